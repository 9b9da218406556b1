"""Fit core diameter, relaxation time and receive gain to a measured signal, with error bars.

    python examples/fit_tracer.py [--out DIR] [--seed 0] [--help]

A dot of tracer of known place and iron content is scanned; here the simulator measures
it, with noise, once for every noise seed. The three parameters are fitted in logarithms
(all positive, all of order 1) by Levenberg-Marquardt steps, whose Jacobian comes from
jax.jacfwd through the whole scanner. Error bars are those of the Fisher information,
sigma^2 (J^T J)^-1, with sigma from the residual. If they are honest, the errors of the
fits over their error bars are standard normal: printed, drawn and tested.

Symbols
    theta [3]  log of (core diameter / m, relaxation time / s, gain / 1)
    y     [M]  measurement: real and imaginary parts of the chosen frequencies, scaled
               so that white noise of sigma per sample is sigma in each    [A m^2/s]
    J     [M, 3] d model / d theta, in units of sigma
"""

import argparse
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

import mpi_jax
from mpi_jax import physics, scanner, system_matrix
from mpi_jax.noise import noise_level

NAMES = ("core diameter", "relaxation time", "gain")
# In the figure: unit and its size in SI.
UNITS = (("nm", 1e-9), ("µs", 1e-6), ("1", 1.0))


def build(theta, amplitude=12.8e-3, pixels=3):
    """Scanner for parameters theta [3]; its grid is the sample, 2 x 2 mm off centre.

    amplitude [T]. The fourfold sampling inside keeps relaxation free of aliasing.
    """
    diameter, relaxation, gain = jnp.exp(theta)
    drive = scanner.DriveField((amplitude, amplitude, 0.0), (102, 96, 0))
    bins = drive.samples // 2 + 1
    return scanner.Scanner(
        scanner.Tracer(diameter, relaxation_time=relaxation),
        drive,
        scanner.SelectionField(np.diag([-2.0, -2.0, 4.0])),
        scanner.Receiver(
            np.eye(2, 3),
            # One real number here; measured shapes a(f) go in its place.
            transfer_function=gain * jnp.ones((2, bins), complex),
            oversample=4,
        ),
        scanner.Grid((pixels, pixels), (2e-3, 2e-3, 1e-3), (1.5e-3, 1e-3, 0.0)),
    )


def select(min_frequency):
    """Boolean [C, K]: frequencies used [Hz], without the last bin, which is real."""
    s = build(jnp.log(jnp.array([30e-9, 1e-6, 1.0])))
    last = s.frequencies()[-1]
    return system_matrix.frequency_selection(
        s, min_frequency=min_frequency, max_frequency=last * (1 - 1e-9)
    )


def rows(u, keep):
    """Signals [..., C, V] as real numbers [..., M] of the same white noise."""
    chosen = system_matrix.select_rows(physics.spectrum(u), keep)
    parts = jnp.concatenate([chosen.real, chosen.imag], axis=-1)
    return parts * np.sqrt(2 / u.shape[-1])


def model(theta, keep, amplitude=12.8e-3):
    """Noise-free measurement [M] at parameters theta."""
    s = build(theta, amplitude)
    return rows(physics.voltage(s, jnp.ones(s.grid.shape)), keep)


def levenberg_marquardt(residual, start, steps):
    """Minimise ||residual(theta)||^2; theta, and its residual norm after each step.

    Steps that fail are not taken and raise the damping tenfold, others lower it.
    """

    def linearise(theta):
        J, r = jax.jacfwd(lambda t: (residual(t),) * 2, has_aux=True)(theta)
        return r, J

    def step(state, _):
        theta, r, J, damping = state
        normal = J.T @ J
        damped = normal + damping * jnp.diag(jnp.diag(normal))
        # No step changes a parameter by more than a factor of e.
        new = theta - jnp.clip(jnp.linalg.solve(damped, J.T @ r), -1, 1)
        new_r, new_J = linearise(new)
        better = new_r @ new_r < r @ r
        accepted = [
            jnp.where(better, a, b) for a, b in ((new, theta), (new_r, r), (new_J, J))
        ]
        damping = jnp.where(better, damping / 10, damping * 10)
        return (*accepted, damping), jnp.linalg.norm(accepted[1])

    first = (start, *linearise(start), jnp.asarray(1e-2))
    (theta, r, J, _), norms = jax.lax.scan(step, first, length=steps)
    return theta, r, J, norms


def fit(y, start, keep, unit, steps):
    """theta [3], covariance [3, 3] and residual norms [steps] for one measurement y.

    unit [A m^2/s]: about the noise; residuals are of order 1 in it.
    """
    theta, r, J, norms = levenberg_marquardt(
        lambda theta: (model(theta, keep) - y) / unit, start, steps
    )
    sigma2 = r @ r / (len(y) - len(start))
    return theta, sigma2 * jnp.linalg.inv(J.T @ J), norms


def correlation(covariance):
    sd = np.sqrt(np.diag(covariance))
    return covariance / sd[:, None] / sd[None]


def by_amplitude(truth, amplitudes, keep, sigma):
    """Relative error bars [A, 3] of all parameters, and [A] of the diameter alone."""

    def bars(amplitude):
        J = jax.jacfwd(lambda t: model(t, keep, amplitude) / sigma)(truth)
        return jnp.sqrt(jnp.diag(jnp.linalg.inv(J.T @ J))), 1 / jnp.linalg.norm(J[:, 0])

    return jax.lax.map(bars, amplitudes)


def run(args):
    """The record for the JSON file and the arrays for the figure."""
    keep = select(args.min_frequency)
    truth = jnp.log(jnp.array([args.diameter, args.relaxation, args.gain]))
    start = truth + jnp.log(jnp.array([0.8, 2.0, 1.5]))
    s = build(truth)
    u = physics.voltage(s, jnp.ones(s.grid.shape))
    sigma = float(noise_level(u, args.snr)[0, 0])
    noise = np.random.default_rng(args.seed).normal(size=(args.fits, *u.shape))
    y = rows(u[None] + sigma * noise, keep)

    # One after the other: a vmap would hold all Jacobians at once.
    @jax.jit
    def fits(y):
        return jax.lax.map(lambda one: fit(one, start, keep, sigma, args.steps), y)

    begin = time.perf_counter()
    theta, covariance, norms = (np.asarray(a) for a in fits(y))
    print(f"{args.fits} fits in {time.perf_counter() - begin:.1f} s", flush=True)
    error = theta - np.asarray(truth)[None]
    bars = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    standardised = error / bars
    # Squared distance in all three, in units of the covariance: chi^2_3 on average 3.
    distance = np.einsum("ni,nij,nj->n", error, np.linalg.inv(covariance), error)
    amplitudes = np.linspace(1e-3, 14e-3, args.amplitudes)
    all_bars, alone = jax.jit(lambda a: by_amplitude(truth, a, keep, sigma))(amplitudes)

    everything = select(0.0)
    J = jax.jit(jax.jacfwd(lambda t: model(t, everything) / sigma))(truth)
    bands = {}
    for f in sorted({0.0, args.min_frequency}):
        some = J[np.tile(select(f)[everything], 2)]  # real parts, imaginary parts
        bands[f] = np.linalg.inv(some.T @ some)
    record = {
        "parameters": NAMES,
        "truth": np.exp(truth),
        "start": np.exp(start),
        "first_fit": np.exp(theta[0]),
        "relative_error_bar": bars.mean(0),
        "rms_relative_error": np.sqrt(np.mean(error**2, 0)),
        "standardised_mean": standardised.mean(0),
        "standardised_sd": standardised.std(0, ddof=1),
        "within_1_sigma": np.mean(np.abs(standardised) < 1),
        "within_2_sigma": np.mean(np.abs(standardised) < 2),
        "chi2_per_parameter": distance.mean() / 3,
        "chi2_per_parameter_expected_sd": np.sqrt(2 / (3 * args.fits)),
        "residual_per_number": np.mean(norms[:, -1] ** 2) / (y.shape[1] - 3),
        "last_step_change": np.max(np.abs(norms[:, -1] / norms[:, -2] - 1)),
        "correlation": correlation(covariance.mean(0)),
        "correlation_diameter_gain_by_min_frequency": {
            f"{f:g}": correlation(c)[0, 2] for f, c in bands.items()
        },
        "loss_from_unknown_gain_by_amplitude": [
            [a, b] for a, b in zip(amplitudes, all_bars[:, 0] / alone, strict=True)
        ],
        "numbers_per_measurement": y.shape[1],
        "sigma": sigma,
    }
    keep = np.asarray(keep[0])
    half = y.shape[1] // 4  # rows: real x, real y, imaginary x, imaginary y
    spectra = [
        np.hypot(v[:half], v[2 * half : 3 * half])
        for v in (y[0], model(theta[0], select(args.min_frequency)))
    ]
    arrays = {
        "frequencies": s.frequencies()[keep],
        "measured": spectra[0],
        "fitted": spectra[1],
        "theta": theta,
        "covariance": covariance,
        "standardised": standardised,
        "amplitudes": amplitudes,
        "bars": np.asarray(all_bars),
        "alone": np.asarray(alone),
        "truth": np.asarray(truth),
        "sigma": sigma,
    }
    return record, arrays


def ellipse(covariance, radius):
    """Points [2, 200] of (radius sigma) around 0."""
    angle = np.linspace(0, 2 * np.pi, 200)
    return radius * np.linalg.cholesky(covariance) @ [np.cos(angle), np.sin(angle)]


def figure(arrays):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    canvas, axes = pyplot.subplots(2, 2, figsize=(7.2, 5.8), layout="constrained")
    (spectrum, plane), (normal, amplitude) = axes
    f, unit = arrays["frequencies"] / 1e3, arrays["sigma"]
    spectrum.semilogy(f, arrays["measured"] / unit, ".", ms=2, label="measured")
    spectrum.semilogy(f, arrays["fitted"] / unit, lw=0.7, label="fitted")
    spectrum.set(
        xlabel="frequency (kHz)", ylabel="|û|, x channel (noise SD)", ylim=(1e-2, None)
    )
    spectrum.legend(loc="upper right", frameon=False)

    truth, theta = arrays["truth"], arrays["theta"]
    scale = np.array([UNITS[0][1], 1.0])
    points = np.exp(theta[:, [0, 2]]) / scale[None]
    bars = np.sqrt(np.diagonal(arrays["covariance"], axis1=1, axis2=2))[:, [0, 2]]
    plane.errorbar(
        *points.T,
        xerr=bars[:, 0] * points[:, 0],
        yerr=bars[:, 1] * points[:, 1],
        fmt=".",
        ms=4,
        lw=0.5,
        alpha=0.7,
        errorevery=max(1, len(points) // 10),
        label="fits, 1 SD",
    )
    shape = arrays["covariance"].mean(0)[np.ix_([0, 2], [0, 2])]
    centre = np.exp(truth[[0, 2]]) / scale
    for radius, style in ((1, "-"), (2, "--")):
        x, y = centre[:, None] * (1 + ellipse(shape, radius))
        plane.plot(x, y, "k" + style, lw=0.8, label=f"Fisher, {radius} SD")
    plane.plot(*centre, "r+", ms=10, label="truth")
    plane.set(xlabel="core diameter (nm)", ylabel="gain (1)")
    plane.ticklabel_format(useOffset=False)
    plane.legend(frameon=False, fontsize="small")

    values = np.sort(arrays["standardised"], axis=0)
    chance = (np.arange(len(values)) + 0.5) / len(values)
    quantile = np.asarray(jax.scipy.special.ndtri(chance))
    for name, column in zip(NAMES, values.T, strict=True):
        normal.plot(quantile, column, ".", label=name)
    normal.axline((0, 0), slope=1, color="k", lw=0.8)
    normal.set(xlabel="quantile of the standard normal", ylabel="error / error bar")
    normal.legend(frameon=False, fontsize="small")

    x = arrays["amplitudes"] * 1e3
    for k, name in enumerate(NAMES):
        amplitude.semilogy(x, 100 * arrays["bars"][:, k], label=name)
    amplitude.semilogy(
        x, 100 * arrays["alone"], "C0--", label="core diameter, rest known"
    )
    amplitude.set(xlabel="drive-field amplitude (mT)", ylabel="relative error bar (%)")
    amplitude.legend(frameon=False, fontsize="small")
    for letter, ax in zip("abcd", axes.flat, strict=True):
        ax.set_title(letter, loc="left", fontweight="bold")
    return canvas


def plain(value):
    """JSON for arrays and NumPy's numbers."""
    return np.asarray(value).tolist()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default="runs/fit_tracer")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument(
        "--fits", type=int, default=100, help="noise seeds, one fit each"
    )
    parser.add_argument("--steps", type=int, default=8, help="Levenberg-Marquardt's")
    parser.add_argument("--snr", type=float, default=20.0, help="power SNR [dB]")
    parser.add_argument("--diameter", type=float, default=25e-9, help="true core [m]")
    parser.add_argument("--relaxation", type=float, default=2e-6, help="true [s]")
    parser.add_argument("--gain", type=float, default=1.0, help="true receive gain")
    parser.add_argument(
        "--min-frequency", type=float, default=80e3, help="of the rows used [Hz]"
    )
    parser.add_argument(
        "--amplitudes", type=int, default=14, help="of the last panel, up to 14 mT"
    )
    args = parser.parse_args(argv)
    jax.config.update("jax_enable_x64", True)
    begin = time.perf_counter()
    record, arrays = run(args)
    args.out.mkdir(parents=True, exist_ok=True)
    figure(arrays).savefig(args.out / "fit_tracer.png", dpi=200)
    record |= {
        "settings": vars(args) | {"out": str(args.out)},
        "version": mpi_jax.__version__,
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "seconds": time.perf_counter() - begin,
    }
    text = json.dumps(record, indent=1, default=plain)
    (args.out / "fit_tracer.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
