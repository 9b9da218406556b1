"""Image and gradient strength together, from signals of a sample at known table positions.

    python examples/calibrate_gradient.py [--out DIR] [--seed 0] [--help]

The selection field is `scale` times its nominal gradient and nobody knows the scale.
Variable projection: for every scale the best image is a closed form (Tikhonov), so what
is left is one residual as a function of one number. Its derivative comes from jax.jvp
through simulator, normal equations and solution; Gauss-Newton steps follow it, and its
length gives the error bar. The final image is non-negative.

At one position the scale can't be found: B = drive + scale G r is the same for the image
c(r) at scale 1 and for c(scale r) scale^2 at `scale`. Lengths have to come from
somewhere; here the table moves the sample by a known distance between scans.

Symbols
    S(scale) [M, P]   system matrix of all positions, one below the other
    c [P]             image, Gaussian prior of mean 0 and standard deviation `prior`
    r [M + P]         (S c - u) / sigma above c / prior, at the best c; [1]
"""

import argparse
import dataclasses
import json
import pathlib
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import mpi_jax
from mpi_jax import metrics, phantoms, physics, scanner, system_matrix
from mpi_jax.reconstruct import admm, spectral

SIDE = 12e-3  # field of view [m]; with 1 T/m and 6 mT the scan reaches its edges


def build(scale, pixels, position):
    """Scanner with the gradient scaled by `scale`, the sample moved to `position` [m]."""
    base = scanner.paper(pixels, amplitude=6e-3, gradient=1.0, field_of_view=SIDE)
    field = scanner.SelectionField(scale * jnp.diag(jnp.array([-1.0, -1.0, 2.0])))
    grid = dataclasses.replace(base.grid, centre=(*position, 0.0))
    return dataclasses.replace(base, selection_field=field, grid=grid)


def matrix(scale, pixels, positions):
    """S of all positions [M, P]."""
    parts = [
        system_matrix.simulate(build(scale, pixels, position)).reshape(-1, pixels**2)
        for position in positions
    ]
    return jnp.concatenate(parts)


def measure(images, scale, positions, finer):
    """Signals [N, M] of images [N, finer * pixels, ...], of the unit of S's signals."""
    parts = [
        physics.voltage(build(scale, images.shape[-1], position), images)
        for position in positions
    ]
    return jnp.concatenate([u.reshape(len(u), -1) for u in parts], 1) / finer**2


def projected_residual(log_scale, u, sigma, *, pixels, positions, prior):
    """r [M + P] at the best image for this scale."""
    S = matrix(jnp.exp(log_scale), pixels, positions) / sigma
    normal = S.T @ S + jnp.eye(pixels**2) / prior**2
    c = jax.scipy.linalg.solve(normal, S.T @ (u / sigma), assume_a="pos")
    return jnp.concatenate([S @ c - u / sigma, c / prior])


def slope(log_scale, u, sigma, **settings):
    """r and dr / d log scale, in one forward pass."""
    residual = partial(projected_residual, u=u, sigma=sigma, **settings)
    return jax.jvp(residual, (log_scale,), (jnp.ones_like(log_scale),))


def gauss_newton(u, sigma, start, steps, **settings):
    """Scales after each step [steps + 1], the last one's relative error bar and |r|^2."""

    def step(log_scale, _):
        r, dr = slope(log_scale, u, sigma, **settings)
        # Misfits far away are no parabola: 5 % a step at most.
        new = log_scale - jnp.clip(dr @ r / (dr @ dr), -0.05, 0.05)
        return new, log_scale

    last, path = jax.lax.scan(step, jnp.log(start), length=steps)
    r, dr = slope(last, u, sigma, **settings)
    path = jnp.append(path, last)
    return jnp.exp(path), 1 / jnp.linalg.norm(dr), r @ r


def nonnegative(S, u, sigma, prior, iterations=200):
    """min |S c - u|^2 / sigma^2 + |c|^2 / prior^2 over c >= 0, images [N, P].

    The prior is more rows of the matrix, that measure 0.
    """
    size = S.shape[1]
    basis = spectral.spectral_basis(
        np.concatenate([np.asarray(S) / sigma, np.eye(size) / prior])
    )
    u = np.pad(np.asarray(u) / sigma, ((0, 0), (0, size)))
    return admm.nonnegative(basis, u, iterations=iterations)


def draw(count, grid, seed, family=None):
    """Phantoms [count, ny, nx] of one family, or of all in turn."""
    families = phantoms.FAMILIES if family is None else (family,)
    # Random draws, and so pictures, depend on precision.
    with jax.enable_x64(False):
        key = jax.random.key(seed)
        images = [
            phantoms.sample(
                jax.random.fold_in(key, k), grid, families[k % len(families)], "test"
            )
            for k in range(count)
        ]
    return jnp.asarray(jnp.stack(images), float)


def run(args):
    """The record for the JSON file and the arrays for the figure."""
    moves = [(0.0, 0.0), (args.move, 0.0), (0.0, args.move)]
    settings = {"pixels": args.pixels, "positions": moves, "prior": args.prior}
    fine_grid = build(1.0, args.finer * args.pixels, (0.0, 0.0)).grid
    coarse_grid = build(1.0, args.pixels, (0.0, 0.0)).grid
    images = draw(args.phantoms, fine_grid, args.seed, args.family)
    truth = coarse_grid.average(images)
    u = measure(images, args.scale, moves, args.finer)
    sigma = float(jnp.sqrt(jnp.mean(u**2))) * 10 ** (-args.snr / 20)
    u = u + sigma * np.random.default_rng(args.seed).normal(size=u.shape)

    solve = jax.jit(
        lambda u: gauss_newton(u, sigma, args.start, args.steps, **settings)
    )
    paths, bars, costs = [], [], []
    for k, one in enumerate(u):
        path, bar, cost = (np.asarray(a) for a in solve(one))
        paths.append(path)
        bars.append(path[-1] * bar)
        costs.append(cost)
        print(f"phantom {k}: scale {path[-1]:.5f} +- {bars[-1]:.5f}", flush=True)
    paths, bars = np.stack(paths), np.stack(bars)
    fitted = paths[:, -1]

    def nrms(candidates):
        """Images with a scale for each phantom, and their errors."""
        reconstructions = []
        for scale, one in zip(candidates, u, strict=True):
            S = matrix(scale, args.pixels, moves)
            reconstructions.append(nonnegative(S, one[None], sigma, args.prior)[0])
        reconstructions = jnp.stack(reconstructions).reshape(truth.shape)
        return np.asarray(reconstructions), np.asarray(
            metrics.nrmse(reconstructions, truth)
        )

    by_scale = {}
    for name, scales in (
        ("nominal", np.full(args.phantoms, args.start)),
        ("fitted", fitted),
        ("true", np.full(args.phantoms, args.scale)),
    ):
        by_scale[name] = nrms(scales)
        print(f"{name} scale: NRMS error {by_scale[name][1].mean():.3f}", flush=True)

    scales = np.linspace(args.scale - 0.1, args.scale + 0.1, args.profile)
    rows = u.shape[1] // len(moves)

    def profile(count):
        """Least cost per number at given scales, from the first `count` positions."""
        some = settings | {"positions": moves[:count]}
        one = u[0, : count * rows]

        def cost(scale):
            r = projected_residual(jnp.log(scale), one, sigma, **some)
            return r @ r / one.size

        return np.asarray(jax.jit(lambda s: jax.lax.map(cost, s))(scales))

    profiles = {count: profile(count) for count in (1, len(moves))}
    standardised = (fitted - args.scale) / bars
    record = {
        "true_scale": args.scale,
        "start": args.start,
        "fitted_scale": fitted,
        "error_bar": bars,
        "standardised_error": standardised,
        "rms_scale_error": np.sqrt(np.mean((fitted - args.scale) ** 2)),
        "last_step": np.max(np.abs(paths[:, -1] - paths[:, -2])),
        "cost_per_number": np.array(costs) / u.shape[1],
        "image_nrms": {k: v[1] for k, v in by_scale.items()},
        "image_nrms_mean": {k: v[1].mean() for k, v in by_scale.items()},
        "cost_range_one_position": profiles[1].max() / profiles[1].min(),
        "cost_range_all_positions": profiles[len(moves)].max()
        / profiles[len(moves)].min(),
        "sigma": sigma,
    }
    arrays = {
        "scales": scales,
        "profiles": profiles,
        "paths": paths,
        "bars": bars,
        "scale": args.scale,
        "truth": np.asarray(truth),
        "by_scale": by_scale,
    }
    return record, arrays


def figure(arrays):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    canvas = pyplot.figure(figsize=(7.2, 5.0), layout="constrained")
    upper, lower = canvas.subfigures(2, 1, height_ratios=(1.3, 1))
    profile, fitted, errors = upper.subplots(1, 3)
    for count, values in arrays["profiles"].items():
        label = f"{count} position" + "s" * (count > 1)
        profile.semilogy(arrays["scales"], values, ".-", lw=0.8, label=label)
    profile.axvline(arrays["scale"], color="k", ls="--", lw=0.8, label="truth")
    profile.set(xlabel="gradient scale (1)", ylabel="least cost per number (1)")
    profile.set_ylim(top=20 * max(v.max() for v in arrays["profiles"].values()))
    profile.legend(loc="upper right", fontsize="small", framealpha=1)

    last, number = arrays["paths"][:, -1], np.arange(len(arrays["paths"])) + 1
    fitted.errorbar(
        number, 1e3 * (last - arrays["scale"]), 1e3 * arrays["bars"], fmt="o", ms=3
    )
    fitted.axhline(0, color="k", ls="--", lw=0.8)
    fitted.set(xlabel="phantom", ylabel="error of the scale (10⁻³)", xticks=number)

    by_scale = arrays["by_scale"]
    for values in zip(*(v[1] for v in by_scale.values()), strict=True):
        errors.plot(list(by_scale), values, "-", color="0.8", lw=0.8)
    mean = [v[1].mean() for v in by_scale.values()]
    spread = [v[1].std(ddof=1) / np.sqrt(len(v[1])) for v in by_scale.values()]
    errors.errorbar(list(by_scale), mean, spread, fmt="ko", ms=4, capsize=3)
    errors.set(
        xlabel="scale used", ylabel="NRMS error of the image (1)", ylim=(0, None)
    )
    errors.margins(x=0.15)

    half = SIDE / 2 * 1e3
    panels = lower.subplots(1, 4, sharey=True)
    images = {"truth": arrays["truth"][0]} | {k: v[0][0] for k, v in by_scale.items()}
    for axis, (name, image) in zip(panels, images.items(), strict=True):
        drawn = axis.imshow(
            image, vmin=0, vmax=1, cmap="gray", extent=(-half, half, -half, half)
        )
        axis.set(title=name if name == "truth" else f"{name} scale", xlabel="x (mm)")
    panels[0].set_ylabel("y (mm)")
    lower.colorbar(drawn, ax=panels, label="concentration (1)", shrink=0.8)
    for letter, axis in zip("abcd", (profile, fitted, errors, panels[0]), strict=True):
        axis.set_title(letter, loc="left", fontweight="bold")
    return canvas


def plain(value):
    """JSON for arrays and NumPy's numbers."""
    return np.asarray(value).tolist()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default="runs/calibrate_gradient")
    parser.add_argument("--seed", type=int, default=0, help="of noise and phantoms")
    parser.add_argument("--phantoms", type=int, default=6, help="number of them")
    parser.add_argument("--family", choices=phantoms.FAMILIES, help="default: all")
    parser.add_argument("--pixels", type=int, default=20, help="of the image, a side")
    parser.add_argument("--finer", type=int, default=3, help="data per pixel and axis")
    parser.add_argument("--snr", type=float, default=40.0, help="power SNR [dB]")
    parser.add_argument("--scale", type=float, default=1.06, help="true scale")
    parser.add_argument("--start", type=float, default=1.0, help="nominal scale")
    parser.add_argument("--move", type=float, default=3e-3, help="of the table [m]")
    parser.add_argument("--prior", type=float, default=0.3, help="SD of concentrations")
    parser.add_argument("--steps", type=int, default=5, help="Gauss-Newton's")
    parser.add_argument("--profile", type=int, default=15, help="points of panel a")
    args = parser.parse_args(argv)
    jax.config.update("jax_enable_x64", True)
    begin = time.perf_counter()
    record, arrays = run(args)
    args.out.mkdir(parents=True, exist_ok=True)
    figure(arrays).savefig(args.out / "calibrate_gradient.png", dpi=200)
    record |= {
        "settings": vars(args) | {"out": str(args.out)},
        "version": mpi_jax.__version__,
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "seconds": time.perf_counter() - begin,
    }
    text = json.dumps(record, indent=1, default=plain)
    (args.out / "calibrate_gradient.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
