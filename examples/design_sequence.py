"""Choose drive amplitudes, and then dividers, for the sharpest image in a given time.

    python examples/design_sequence.py [--out DIR] [--seed 0] [--help]

Figure of merit: the mean posterior variance per pixel of a linear Gaussian
reconstruction,

    tr (S^T S / sigma^2 + I / prior^2)^-1 / P,

with the noise sigma of a coil and amplifier, the same for every sequence. It is a
smooth function of the amplitudes: Adam follows its gradient through the simulator at
fixed selection field, field of view and period, from equal amplitudes and from the
rule that lets the field-free point turn round at the edges of the field of view.
Dividers are whole numbers: all pairs of the same period, x near its resonance and y
slower, are tried at the optimum.

The check is independent: phantoms on a finer grid, noise, Tikhonov images of
reconstruct.spectral, error against the truth.

Symbols
    A [2]        drive-field amplitudes along x and y  [T]
    S [C V, P]   system matrix
    sigma        noise of a sample, prior: standard deviation of concentrations
"""

import argparse
import dataclasses
import json
import math
import pathlib
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mpi_jax
from mpi_jax import metrics, phantoms, physics, scanner, system_matrix
from mpi_jax.reconstruct import spectral

GRADIENT = 1.25  # [T/m] along x and y


def build(amplitude, shape, field_of_view, dividers):
    """Scanner for amplitudes [2] T on a grid (ny, nx) of field_of_view (x, y) [m]."""
    zero = jnp.zeros(1)
    return scanner.Scanner(
        scanner.Tracer(25e-9),
        scanner.DriveField(jnp.concatenate([amplitude, zero]), (*dividers, 0)),
        scanner.SelectionField(GRADIENT * np.diag([-1.0, -1.0, 2.0])),
        scanner.Receiver(np.eye(2, 3)),
        scanner.Grid(shape, (*field_of_view, 1e-3)),
    )


def matrix(s):
    return system_matrix.simulate(s).reshape(-1, s.grid.size)


def posterior_variances(s, sigma, prior):
    """Of each pixel [P], in units of concentration squared."""
    S = matrix(s) / sigma
    precision = S.T @ S + jnp.eye(s.grid.size) / prior**2
    # tr A^-1 = |L^-1|^2, column by column, for A = L L^T.
    L = jnp.linalg.cholesky(precision)
    inverse = jax.scipy.linalg.solve_triangular(L, jnp.eye(len(L)), lower=True)
    return jnp.sum(inverse**2, axis=0)


def merit(log_amplitude, sigma, prior, **sequence):
    """Mean posterior variance for log amplitudes [2] (of T)."""
    s = build(jnp.exp(log_amplitude), **sequence)
    return jnp.mean(posterior_variances(s, sigma, prior))


def optimise(value_and_grad, start, steps, rate):
    """Amplitudes and merits of all steps, [steps + 1, 2] and [steps + 1].

    value_and_grad: of the merit as a function of log amplitudes, jitted.
    """
    adam = optax.adam(optax.cosine_decay_schedule(rate, steps))
    x = jnp.log(start)
    state = adam.init(x)
    path, values = [], []
    for step in range(steps + 1):
        value, slope = value_and_grad(x)
        path.append(np.exp(x))
        values.append(float(value))
        if step % 5 == 0:
            print(f"step {step}: {path[-1] * 1e3} mT, {value:.6f}", flush=True)
        # Relative: the merit's unit and size are arbitrary.
        change, state = adam.update(slope / value, state)
        x = optax.apply_updates(x, change)
    return np.stack(path), np.array(values)


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


def pairs(period, fast):
    """Dividers (x, y), x fast, whose common period is `period` base periods."""
    return [
        (x, y)
        for x in range(fast[0], fast[1] + 1)
        for y in range(x + 1, period + 1)
        if math.lcm(x, y) == period
    ]


def reconstruct(s, images, sigma, prior, seed):
    """Tikhonov images [N, ny, nx] of phantoms [N, ...] on a refined grid of s."""
    finer = images.shape[-1] // s.grid.shape[-1]
    fine_scanner = dataclasses.replace(s, grid=s.grid.refined(finer))
    u = physics.voltage(fine_scanner, images).reshape(len(images), -1) / finer**2
    u = u + sigma * np.random.default_rng(seed).normal(size=u.shape)
    basis = spectral.spectral_basis(matrix(s))
    lam = (sigma / (prior * float(basis.scale))) ** 2
    return spectral.tikhonov(basis, u, lam).reshape(-1, *s.grid.shape)


def run(args):
    """The record for the JSON file and the arrays for the figure."""
    grid = {"shape": tuple(args.shape), "field_of_view": tuple(args.field_of_view)}
    lissajous = tuple(args.dividers)
    start = np.array(args.start)
    edges = GRADIENT * np.array(args.field_of_view) / 2
    first = build(start, dividers=lissajous, **grid)
    fine_grid = first.grid.refined(args.finer)
    images = draw(args.phantoms, fine_grid, args.seed, args.family)
    truth = first.grid.average(images)
    u = physics.voltage(first, truth)
    sigma = float(jnp.sqrt(jnp.mean(u**2))) * 10 ** (-args.snr / 20)
    settings = {"sigma": sigma, "prior": args.prior} | grid
    # The merit has more than one minimum: descend from both, keep the lower end.
    goal = partial(merit, dividers=lissajous, **settings)
    slope = jax.jit(jax.value_and_grad(goal))
    tries = [optimise(slope, a, args.steps, args.rate) for a in (start, edges)]
    best = min(tries, key=lambda one: one[1][-1])[0][-1]

    x, y = (np.linspace(0.6 * a, max(2 * a, 13e-3), args.map) for a in edges)
    mesh = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
    surface = jax.jit(lambda a: jax.lax.map(lambda b: goal(jnp.log(b)), a))
    surface = np.asarray(surface(mesh)).reshape(len(y), len(x))

    divider_pairs = pairs(math.lcm(*lissajous), args.fast)
    print(f"{len(divider_pairs)} pairs of dividers", flush=True)
    scan = [float(merit(jnp.log(best), dividers=p, **settings)) for p in divider_pairs]
    best_pair, worst_pair = (
        divider_pairs[np.argmin(scan)],
        divider_pairs[np.argmax(scan)],
    )

    designs = {
        "start": (start, lissajous),
        "edges": (edges, lissajous),
        "optimum": (best, best_pair),
        "worst dividers": (best, worst_pair),
    }
    # Images from the prior: their mean squared error must be the merit.
    drawn = args.prior * np.random.default_rng(args.seed).normal(
        size=(args.draws, *grid["shape"])
    )
    results, pictures, spread = {}, {}, {}
    for name, (amplitude, dividers) in designs.items():
        s = build(amplitude, dividers=dividers, **grid)
        reconstructions = reconstruct(s, images, sigma, args.prior, args.seed + 1)
        again = reconstruct(s, drawn, sigma, args.prior, args.seed + 2)
        variances = posterior_variances(s, sigma, args.prior)
        pictures[name] = np.asarray(reconstructions)
        spread[name] = np.sqrt(variances).reshape(grid["shape"])
        results[name] = {
            "amplitude": amplitude,
            "dividers": dividers,
            "period_samples": s.samples,
            "posterior_variance": jnp.mean(variances),
            "prior_draws_mse": jnp.mean((again - drawn) ** 2),
            "rmse": metrics.rmse(reconstructions, truth),
        }
        print(f"{name}: RMS error {results[name]['rmse'].mean():.3f}", flush=True)
    base = results["start"]["rmse"]
    for one in results.values():
        change = np.asarray(one["rmse"] / base - 1)
        one["rmse_mean"] = one["rmse"].mean()
        one["rmse_change"] = change.mean()
        one["rmse_change_standard_error"] = change.std(ddof=1) / np.sqrt(len(change))
    record = {
        "designs": results,
        "merit_at_steps": {
            name: values
            for name, (_, values) in zip(("start", "edges"), tries, strict=True)
        },
        "dividers": [[*p, v] for p, v in zip(divider_pairs, scan, strict=True)],
        "sigma": sigma,
    }
    arrays = {
        "paths": [path for path, _ in tries],
        "best": best,
        "x": x,
        "y": y,
        "surface": surface,
        "pairs": divider_pairs,
        "scan": np.array(scan),
        "results": results,
        "pictures": pictures,
        "spread": spread,
        "truth": np.asarray(truth),
        "sides": np.array(args.field_of_view),
    }
    return record, arrays


def figure(arrays):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    canvas = pyplot.figure(figsize=(7.2, 5.8), layout="constrained")
    upper, lower = canvas.subfigures(2, 1, height_ratios=(1.2, 1))
    surface, scan, errors = upper.subplots(1, 3)
    low, high = np.sqrt([arrays["surface"].min(), arrays["surface"].max()])
    levels = np.linspace(np.floor(low * 100) / 100, np.ceil(high * 100) / 100, 13)
    drawn = surface.contourf(
        arrays["x"] * 1e3, arrays["y"] * 1e3, np.sqrt(arrays["surface"]), levels
    )
    for path in arrays["paths"]:
        surface.plot(*path.T * 1e3, "w.-", ms=3, lw=0.8)
        surface.plot(*path[0] * 1e3, "wo", ms=5)
    surface.plot(*arrays["best"] * 1e3, "r+", ms=10)
    surface.set(xlabel="amplitude x (mT)", ylabel="amplitude y (mT)")
    upper.colorbar(
        drawn,
        ax=surface,
        label="posterior SD (1)",
        location="top",
        ticks=levels[::6],
        format="%.2f",
    )

    ratio = [y / x for x, y in arrays["pairs"]]
    scan.semilogx(ratio, np.sqrt(arrays["scan"]), "o", ms=3)
    k = int(np.argmin(arrays["scan"]))
    label = "{} / {}".format(*arrays["pairs"][k])
    scan.plot(ratio[k], np.sqrt(arrays["scan"][k]), "r+", ms=10, label=label)
    scan.set(xlabel="frequency ratio x / y (1)", ylabel="posterior SD (1)")
    scan.legend(frameon=False, fontsize="small")

    results = arrays["results"]
    number = np.arange(len(results))
    change = [100 * r["rmse_change"] for r in results.values()]
    bars = [100 * r["rmse_change_standard_error"] for r in results.values()]
    errors.errorbar(number, change, bars, fmt="ko", ms=4, capsize=3)
    errors.axhline(0, color="0.7", lw=0.8)
    errors.set_xticks(number, list(results), rotation=30, ha="right")
    errors.set_ylabel("change of the image\nRMS error (%)")
    errors.margins(x=0.15)

    half = arrays["sides"] / 2 * 1e3
    extent = (-half[0], half[0], -half[1], half[1])
    panels = lower.subplots(2, len(results) + 1, sharex=True, sharey=True)
    top = max(s.max() for s in arrays["spread"].values())
    panels[0, 0].axis("off")
    for axis, (name, values) in zip(
        panels[0, 1:], arrays["spread"].items(), strict=True
    ):
        sd = axis.imshow(values, vmin=0, vmax=top, extent=extent, cmap="viridis")
        axis.set_title(name, fontsize="medium")
    lower.colorbar(sd, ax=panels[0], label="SD (1)")
    k = int(np.argmax(arrays["truth"].sum((1, 2))))  # the fullest phantom
    images = [arrays["truth"][k], *(p[k] for p in arrays["pictures"].values())]
    for axis, image in zip(panels[1], images, strict=True):
        picture = axis.imshow(image, vmin=0, vmax=1, extent=extent, cmap="gray")
        axis.set_xlabel("x (mm)")
    panels[1, 0].set_title("truth", fontsize="medium")
    panels[1, 0].set_ylabel("y (mm)")
    lower.colorbar(picture, ax=panels[1], label="c (1)")
    marked = (surface, scan, errors, panels[0, 1], panels[1, 0])
    for letter, axis in zip("abcde", marked, strict=True):
        axis.set_title(letter, loc="left", fontweight="bold")
    return canvas


def plain(value):
    """JSON for arrays and NumPy's numbers."""
    return np.asarray(value).tolist()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default="runs/design_sequence")
    parser.add_argument("--seed", type=int, default=0, help="of noise and phantoms")
    parser.add_argument(
        "--shape", type=int, nargs=2, default=(12, 20), help="pixels (ny, nx)"
    )
    parser.add_argument(
        "--field-of-view", type=float, nargs=2, default=(12e-3, 7.2e-3), help="[m], x y"
    )
    parser.add_argument(
        "--start", type=float, nargs=2, default=(12e-3, 12e-3), help="amplitudes [T]"
    )
    parser.add_argument("--snr", type=float, default=55.0, help="at the start [dB]")
    parser.add_argument("--prior", type=float, default=0.3, help="SD of concentrations")
    parser.add_argument("--steps", type=int, default=20, help="Adam's, from each start")
    parser.add_argument("--rate", type=float, default=0.1, help="first step, log A")
    parser.add_argument("--map", type=int, default=11, help="points a side of panel a")
    parser.add_argument(
        "--dividers", type=int, nargs=2, default=(96, 102), help="of the start"
    )
    parser.add_argument(
        "--fast", type=int, nargs=2, default=(90, 110), help="range of x's divider"
    )
    parser.add_argument("--phantoms", type=int, default=24, help="number of them")
    parser.add_argument("--family", choices=phantoms.FAMILIES, help="default: all")
    parser.add_argument("--finer", type=int, default=3, help="data per pixel and axis")
    parser.add_argument("--draws", type=int, default=200, help="images of the prior")
    args = parser.parse_args(argv)
    jax.config.update("jax_enable_x64", True)
    begin = time.perf_counter()
    record, arrays = run(args)
    args.out.mkdir(parents=True, exist_ok=True)
    figure(arrays).savefig(args.out / "design_sequence.png", dpi=200)
    record |= {
        "settings": vars(args) | {"out": str(args.out)},
        "version": mpi_jax.__version__,
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "seconds": time.perf_counter() - begin,
    }
    text = json.dumps(record, indent=1, default=plain)
    (args.out / "design_sequence.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
