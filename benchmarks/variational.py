"""Classical images of the same noisy signals, each method tuned; prints JSON lines.

    python benchmarks/variational.py [--config small64] [--validation 36] [--num 120]

Tikhonov (negative values set to 0), non-negative least squares and total variation with
non-negativity, the last with one weight for all signals and with weights that follow
the noise seen in each signal. Settings have the best mean PSNR on validation images;
test images are met once. A line per method: PSNR [dB] for range 1 of images clipped to
[0, 1], mean and standard deviation over images, its difference from Tikhonov image by
image, and seconds per image of a batch (median of the batches, compiled before).
Data and reconstruction share one system matrix: all rows flatter alike.
"""

import argparse
import itertools
import json
import os
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from mpi_jax import configs, data, metrics, phantoms
from mpi_jax.methods import classical, problem, tuning
from mpi_jax.reconstruct import admm, spectral

RHOS = (1e-4, 3e-4)
STEPS = (50, 100, 200)
LAMS_TV = (3e-7, 1e-6, 3e-6)
# Of the noise variance over scale^2: a posteriori, the weight of an image near 1.
FACTORS = (1.5, 3.0, 6.0, 12.0)

total_variation = jax.jit(admm.total_variation, static_argnames=("grid", "iterations"))


def fixed_weight(p, lam_tv, rho, iterations):
    """Total variation with one weight for all signals."""
    basis = spectral.with_rho(p.basis, rho)
    grid = p.forward.scanner.grid.shape

    def solve(u):
        flat = u.reshape(len(u), -1)
        images = total_variation(
            basis, flat, grid, lam_tv=lam_tv, iterations=iterations
        )
        return images.reshape(-1, *grid)

    return solve


def noise_weight(p, factor, rho, iterations):
    """Total variation with factor * noise variance / scale^2 for each signal."""
    basis = spectral.with_rho(p.basis, rho)
    grid = p.forward.scanner.grid.shape

    def solve(u):
        flat = u.reshape(len(u), -1)
        ratio = spectral.estimate_noise(basis, flat) / basis.scale
        images = total_variation(
            basis, flat, grid, lam_tv=factor * ratio**2, iterations=iterations
        )
        return images.reshape(-1, *grid)

    return solve


def scores(solve, examples):
    """PSNR [dB] of each image, the images, and seconds per image of each batch."""
    jax.block_until_ready(solve(examples[0].voltage))  # compiles
    psnr, images, seconds = [], [], []
    for batch in examples:
        start = time.perf_counter()
        image = jax.block_until_ready(solve(batch.voltage))
        seconds.append((time.perf_counter() - start) / len(image))
        image = jnp.clip(image, 0, 1)
        psnr.append(np.asarray(metrics.psnr(image, batch.image, 1.0)))
        images.append(np.asarray(image))
    return np.concatenate(psnr), np.concatenate(images), seconds


def best(make, name, values, examples):
    """Settings of the grid with the best mean PSNR."""
    grid = [
        {name: value, "rho": rho, "iterations": steps}
        for value, rho, steps in itertools.product(values, RHOS, STEPS)
    ]
    return max(grid, key=lambda settings: scores(make(**settings), examples)[0].mean())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="small64")
    parser.add_argument("--validation", type=int, default=36)
    parser.add_argument("--num", type=int, default=120)
    parser.add_argument("--save", help="file for the test images of all methods, .npz")
    args = parser.parse_args()

    config = configs.get(args.config)
    forward = data.build(config)
    scanner_problem = problem.problem(config, forward)
    size, snr = config.data.batch_size, config.data.test_snr_db

    def draw(split, count):
        starts = range(0, count, size)
        return [data.draw(forward, split, i, size, snr) for i in starts]

    def join(parts):
        return jax.tree.map(lambda *a: jnp.concatenate(a), *parts)

    joined, test = join(draw("validation", args.validation)), draw("test", args.num)
    validation = [joined]
    test = [join(test[i : i + 5]) for i in range(0, len(test), 5)]
    methods = {}
    for name in ("tikhonov", "nonnegative"):
        settings, _ = tuning.tune(scanner_problem, name, joined)
        methods[name] = classical.CLASSICAL[name](scanner_problem, **settings), settings
    for name, make, knob, values in (
        ("total_variation", fixed_weight, "lam_tv", LAMS_TV),
        ("total_variation_noise", noise_weight, "factor", FACTORS),
    ):

        def prepared(make=make, **settings):
            return make(scanner_problem, **settings)

        settings = best(prepared, knob, values, validation)
        methods[name] = prepared(**settings), settings

    family = np.concatenate([batch.family for batch in test])
    saved = {"truth": np.concatenate([batch.image for batch in test]), "family": family}
    reference = None
    for name, (solve, settings) in methods.items():
        values, saved[name], seconds = scores(solve, test)
        reference = values if reference is None else reference
        gain = values - reference
        record = {
            "benchmark": "variational",
            "config": args.config,
            "grid": list(forward.scanner.grid.shape),
            "snr_db": snr,
            "method": name,
            "settings": settings,
            "images": len(values),
            "psnr_mean": values.mean(),
            "psnr_sd": values.std(ddof=1),
            "gain_over_tikhonov": gain.mean(),
            "gain_standard_error": gain.std(ddof=1) / np.sqrt(len(gain)),
            "gain_worst": gain.min(),
            "psnr_by_family": {
                label: round(float(values[family == n].mean()), 2)
                for n, label in enumerate(phantoms.FAMILIES)
                if (family == n).any()
            },
            "seconds_per_image": statistics.median(seconds),
            "batch": len(test[0].image),
            "validation_images": len(joined.image),
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
            "cores": os.cpu_count(),
        }
        print(
            json.dumps({key: rounded(value) for key, value in record.items()}),
            flush=True,
        )
    if args.save:
        np.savez_compressed(args.save, **saved)


def rounded(value):
    return float(f"{value:.4g}") if isinstance(value, float | np.floating) else value


if __name__ == "__main__":
    main()
