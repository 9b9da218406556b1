"""Every method on the same test signals: tuned on validation images, measured, written.

A method turns voltages [B, C, V] into images [B, ny, nx]. Classical ones have settings,
chosen by mean PSNR on validation images and then left alone. Masks are the network's, or
the image above a fraction of its maximum, a fraction chosen by Dice on validation images.

    work folder -> evaluation/metrics.jsonl  a line per (method, family)
                   evaluation/arrays.npz     one example of each family, every method
                   evaluation/info.json      what was measured, and how
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import math
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mpi_jax import (
    checkpoint,
    configs,
    data,
    metrics,
    phantoms,
    physics,
    system_matrix,
    train,
)
from mpi_jax.configs import Config
from mpi_jax.models import baselines, transgan
from mpi_jax.reconstruct import kaczmarz, variational, xspace

LABELS = {
    "xspace": "x-space",
    "kaczmarz": "System matrix (Kaczmarz)",
    "tikhonov": "System matrix (Tikhonov)",
    "nonnegative": "System matrix (non-negative)",
    "tv": "System matrix (non-negative, TV)",
    "transgan": "Dual-task TransGAN",
}
METHODS = tuple(LABELS)
# What is evaluated unless methods are named: total variation takes its time.
USUAL = tuple(m for m in METHODS if m != "tv")

# Grids that the settings are chosen from.
KACZMARZ_LAMS = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
KACZMARZ_SWEEPS = (1, 2, 5, 10, 20, 50, 100, 200)
TIKHONOV_LAMS = tuple(10.0 ** (-k / 2) for k in range(2, 13))
RHOS = (1e-4, 3e-4, 1e-3, 3e-3)
STEPS = (10, 20, 50, 100)
FACTORS = (1.5, 3.0, 6.0, 12.0)
TV_STEPS = (100, 200)
WIDTHS = (0.5, 1.0, 2.0)  # of the default gridding width
THRESHOLDS = tuple(np.arange(1, 16) / 20)
CHUNK = 120  # test images at once, rounded up to whole batches
RANK = 1024  # of the basis where a config has none

Images = Float[Array, "B ny nx"]


@dataclasses.dataclass(frozen=True)
class Problem:
    """What classical methods work with. Rows are scaled to unit signals: the moments of
    particles square to numbers near the end of float32.
    """

    config: Config
    operator: data.Operator
    basis: variational.SpectralBasis
    rows: Array  # [M, P] complex, all frequencies of all channels but DC
    keep: np.ndarray  # [C, K]


def problem(config: Config, operator: data.Operator) -> Problem:
    """The frequency rows and the spectral basis of a run's system matrix."""
    matrix = operator.matrix
    basis = operator.basis
    if basis is None:
        rank = min(RANK, operator.scanner.grid.size)
        basis = variational.spectral_basis(matrix.reshape(-1, matrix.shape[-1]), rank)
    keep = system_matrix.frequency_selection(operator.scanner)
    scaled = matrix / operator.scale[..., None]
    rows = system_matrix.select_rows(system_matrix.to_frequency(scaled), keep, axis=1)
    return Problem(config, operator, basis, rows, keep)


# --- The methods: prepared with their settings, then voltages [B, C, V] -> images

Solver = Callable[[Float[Array, "B C V"]], Images]


def _images(p: Problem, c) -> Images:
    return jnp.maximum(c, 0).reshape(-1, *p.operator.scanner.grid.shape)


def xspace_solver(p: Problem, width: float | None = None, gain: float = 1.0) -> Solver:
    """x-space image times a gain, negative values set to 0."""
    scanner, model = p.operator.scanner, p.config.scanner.model

    def solve(u):
        image = xspace.reconstruct(scanner, u, width=width, model=model)
        return jnp.maximum(gain * image, 0)

    return solve


def _spectra(p: Problem, u) -> Array:
    """Scaled voltages as the rows' right-hand sides, [B, M] complex."""
    scaled = u / p.operator.scale[None]
    return system_matrix.select_rows(physics.spectrum(scaled), p.keep)


def kaczmarz_solver(p: Problem, lam: float = 1e-2, iterations: int = 10) -> Solver:
    """Regularised Kaczmarz on frequency rows, real and non-negative."""
    options = {"lam": lam, "iterations": iterations}
    return lambda u: _images(p, kaczmarz.solve(p.rows, _spectra(p, u), **options))


def tikhonov_solver(p: Problem, lam: float = 1e-4) -> Solver:
    """Tikhonov images, negative values set to 0."""

    def solve(u):
        return _images(p, variational.tikhonov(p.basis, u.reshape(len(u), -1), lam))

    return solve


def nonnegative_solver(p: Problem, rho: float = 3e-4, iterations: int = 20) -> Solver:
    """Non-negative least squares, stopped early."""
    basis = variational.with_rho(p.basis, rho)

    def solve(u):
        flat = u.reshape(len(u), -1)
        return _images(p, _nonnegative(basis, flat, iterations=iterations))

    return solve


_nonnegative = jax.jit(variational.nonnegative, static_argnames="iterations")


def tv_solver(
    p: Problem, factor: float = 3.0, rho: float = 3e-4, iterations: int = 100
) -> Solver:
    """Total variation and non-negativity; weight: `factor` times the noise variance seen
    in each signal, over the largest singular value squared.
    """
    basis = variational.with_rho(p.basis, rho)
    grid = p.operator.scanner.grid.shape

    def solve(u):
        flat = u.reshape(len(u), -1)
        ratio = variational.noise_level(basis, flat) / basis.scale
        options = {"lam_tv": factor * ratio**2, "iterations": iterations}
        return _images(p, _total_variation(basis, flat, grid, **options))

    return solve


_total_variation = jax.jit(
    variational.total_variation, static_argnames=("grid", "iterations")
)

CLASSICAL: dict[str, Callable[..., Solver]] = {
    "xspace": xspace_solver,
    "kaczmarz": kaczmarz_solver,
    "tikhonov": tikhonov_solver,
    "nonnegative": nonnegative_solver,
    "tv": tv_solver,
}


# --- Choosing settings on validation images


def tune(p: Problem, method: str, made: data.Examples) -> tuple[dict[str, Any], Images]:
    """Settings of a classical method with the best mean PSNR on these examples, and the
    images that they make of them.
    """
    u, truth = made.voltage, made.image
    if method == "kaczmarz":
        return _best(_kaczmarz_candidates(p, u, truth), truth)
    if method == "xspace":
        return _best(_xspace_candidates(p, u, truth), truth)
    if method == "tikhonov":
        grid = [{"lam": lam} for lam in TIKHONOV_LAMS]
    elif method == "tv":
        grid = [
            {"factor": factor, "rho": rho, "iterations": n}
            for factor, rho, n in itertools.product(FACTORS, RHOS[:2], TV_STEPS)
        ]
    else:
        grid = [{"rho": rho, "iterations": n} for rho in RHOS for n in STEPS]
    run = CLASSICAL[method]
    return _best(((settings, run(p, **settings)(u)) for settings in grid), truth)


def _xspace_candidates(p, u, truth):
    default = float(xspace.default_width(p.operator.scanner))
    for factor in WIDTHS:
        image = xspace_solver(p, width=factor * default)(u)
        fitted = float(jnp.sum(image * truth) / jnp.sum(image**2))
        # The gain of least squares, and smaller ones: blurred images do better dim.
        for gain in (1.0, fitted, 0.75 * fitted, 0.5 * fitted):
            yield {"width": factor * default, "gain": gain}, gain * image


def _kaczmarz_candidates(p, u, truth):
    """Every lam for a few sweeps, then the best and the one below for all of them.

    More sweeps need less regularisation, so that the best lam moves down, not up.
    """
    right = _spectra(p, u)

    def run(lam, most):
        iterates = kaczmarz.sweeps(p.rows, right, lam=lam, iterations=most)
        for n in KACZMARZ_SWEEPS:
            if n <= most:
                yield {"lam": lam, "iterations": n}, _images(p, iterates[n - 1])

    short = [c for lam in KACZMARZ_LAMS for c in run(lam, 20)]
    yield from short
    best = KACZMARZ_LAMS.index(_best(short, truth)[0]["lam"])
    for lam in KACZMARZ_LAMS[max(best - 1, 0) : best + 1]:
        yield from run(lam, max(KACZMARZ_SWEEPS))


def _best(candidates, truth) -> tuple[dict[str, Any], Images]:
    best, found = -math.inf, None
    for settings, image in candidates:
        image = jnp.clip(image, 0, 1)
        psnr = float(jnp.mean(metrics.psnr(image, truth, 1.0)))
        if psnr > best:
            best, found = psnr, (settings, image)
    return found


def threshold(image: Images, fraction: float) -> Array:
    """Mask of the pixels above a fraction of each image's maximum."""
    return image > fraction * jnp.max(image, axis=(-2, -1), keepdims=True)


def tune_threshold(image: Images, made: data.Examples) -> float:
    """Fraction of the maximum whose mask has the best mean Dice on these examples."""
    scores = [
        (float(jnp.mean(metrics.dice(threshold(image, t), made.mask))), t)
        for t in THRESHOLDS
    ]
    return float(max(scores)[1])


# --- The whole table


def load_network(folder: Path) -> tuple[Config, nn.Module, Any]:
    """Config, generator and what train.predict needs of a run's weights.safetensors."""
    weights, metadata = checkpoint.load_weights(Path(folder) / "weights.safetensors")
    config = configs.from_dict(metadata["config"])
    generator = train.make_networks(config).generator
    return config, generator, jax.tree.map(jnp.asarray, weights)


def run(
    workdir: Path,
    *,
    methods: list[str] | None = None,
    num: int = 600,
    tell: train.Tell = train.silent,
) -> list[dict]:
    """Evaluate methods on the first `num` test images; returns the rows of the table.

    methods: names of METHODS; by default USUAL, transgan where the run has weights.
    Images are clipped to [0, 1] for every method. Raises ValueError for unknown methods
    and where weights are asked for that aren't there.
    """
    workdir = Path(workdir)
    config = train.read_config(workdir)
    trained = (workdir / "weights.safetensors").exists()
    if methods is None:
        methods = [m for m in USUAL if m != "transgan" or trained]
    unknown = [m for m in methods if m not in METHODS]
    if unknown or not methods:
        raise ValueError(
            f"methods: expected some of {', '.join(METHODS)}; got {unknown or 'none'}"
        )
    if num < len(phantoms.FAMILIES):
        raise ValueError(
            f"num: expected at least {len(phantoms.FAMILIES)}, one image of each "
            f"family, got {num}"
        )
    if "transgan" in methods and not trained:
        raise ValueError(
            f"{workdir}: has no weights yet; finish its training with --resume, or "
            "leave transgan out of --methods"
        )
    began = time.monotonic()
    tell("build", 0, 1, {})
    operator = data.build(config)
    p = problem(config, operator)
    examples = partial(_examples, operator, config)
    validation = examples("validation", 0, config.validation_images)

    solvers, settings = {}, {}
    for n, method in enumerate(methods):
        tell("tune", n, len(methods), {})
        if method == "transgan":
            _, generator, params = load_network(workdir)
            solvers[method] = partial(_network, generator, params, operator)
            chosen = {"refine": operator.refine} if operator.refine else {}
            image, logit = solvers[method](validation.voltage)
            if logit is None:
                chosen["threshold"] = tune_threshold(image, validation)
        else:
            chosen, image = tune(p, method, validation)
            solvers[method] = partial(_clipped, CLASSICAL[method](p, **chosen))
            chosen["threshold"] = tune_threshold(image, validation)
        settings[method] = chosen
    tell("tune", len(methods), len(methods), {})

    values: dict[str, list[dict]] = {m: [] for m in methods}
    seconds: dict[str, list[float]] = {m: [] for m in methods}
    families, shown, first = [], {}, None
    chunk = -(-CHUNK // config.data.batch_size) * config.data.batch_size
    for start in range(0, num, chunk):
        made = examples("test", start, min(chunk, num - start))
        families.append(np.asarray(made.family))
        for method, solver in solvers.items():
            if num <= chunk:
                jax.block_until_ready(solver(made.voltage))  # compiles
            clock = time.perf_counter()
            image, logit = jax.block_until_ready(solver(made.voltage))
            taken = time.perf_counter() - clock
            if start or num <= chunk:  # the first of many chunks compiles
                seconds[method].append(taken / len(made.voltage))
            fraction = settings[method].get("threshold")
            mask = logit > 0 if fraction is None else threshold(image, fraction)
            found = metrics.measure(image, made.image, mask, made.mask, 1.0)
            values[method].append(jax.device_get(found))
            if start == 0:
                shown[method] = np.asarray(image), np.asarray(mask, np.uint8)
        first = first or jax.device_get(made)
        tell("test", min(start + chunk, num), num, {})

    family = np.concatenate(families)[:num]
    rows = []
    for method in methods:
        found = {
            k: np.concatenate([v[k] for v in values[method]])[:num]
            for k in values[method][0]
        }
        for name in ("all", *phantoms.FAMILIES):
            own = family >= 0
            if name != "all":
                own = family == phantoms.FAMILIES.index(name)
            rows.append(
                {
                    "method": method,
                    "label": label(method, config),
                    "family": name,
                    "num": int(own.sum()),
                    **{k: metrics.summary(v[own]) for k, v in found.items()},
                    "pooled_psnr": metrics.pooled_psnr(found["mse"][own], 1.0),
                    "seconds_per_image": float(np.median(seconds[method])),
                    "settings": settings[method],
                    "segmentation": (
                        "thresholded"
                        if "threshold" in settings[method]
                        else "predicted"
                    ),
                }
            )
    _write(workdir, config, rows, first, shown, num, time.monotonic() - began)
    return rows


def _examples(operator, config, split, start, count) -> data.Examples:
    """At least `count` examples, in the batches that training has compiled already."""
    size = config.data.batch_size
    parts = [
        data.draw(operator, split, i, size, config.data.test_snr_db)
        for i in range(start, start + count, size)
    ]
    return jax.tree.map(lambda *a: jnp.concatenate(a), *parts)


def label(method: str, config: Config) -> str:
    """Name of a method in tables."""
    if method != "transgan":
        return LABELS[method]
    if config.generator in baselines.GENERATORS:
        return baselines.GENERATORS[config.generator].label
    single = transgan.GENERATORS[config.generator].tasks == ("recon",)
    name = "Single-task TransGAN" if single else LABELS[method]
    if config.generator.split("_")[1:3] == ["single", "matched"]:
        name += ", matched"
    return f"{name} + physics" if config.physics.rank else name


def _network(generator, params, operator, u):
    out = train.predict(generator, params, operator, u)
    return out.reconstruction, out.segmentation


def _clipped(solver, u):
    return jnp.clip(solver(u), 0, 1), None


def _write(workdir, config, rows, examples, shown, num, seconds) -> None:
    folder = workdir / "evaluation"
    folder.mkdir(exist_ok=True)
    first = [
        int(np.argmax(examples.family == f)) for f in range(len(phantoms.FAMILIES))
    ]
    grid = data.make_scanner(config).grid
    methods = list(shown)
    arrays = {
        "truth": examples.image[first],
        "mask": np.asarray(examples.mask[first], np.uint8),
        "family": np.array(phantoms.FAMILIES),
        "pixel_size": np.asarray(grid.pitch)[:2],
        "methods": np.array(methods),
        "labels": np.array([label(m, config) for m in methods]),
    }
    for method, (image, mask) in shown.items():
        arrays[f"image_{method}"], arrays[f"mask_{method}"] = image[first], mask[first]
    device = jax.local_devices()[0]
    info = {
        "num": num,
        "snr_db": config.data.test_snr_db,
        "noise": "white, power SNR of each signal; data and reconstruction share one "
        "system matrix (an inverse crime: every row is better than on a real scanner)",
        "model": config.scanner.model,
        "seed": config.seed,
        "seconds": round(seconds, 1),
        "device": f"{device.device_kind}, {os.cpu_count()} CPU cores",
        "ssim": "Gaussian 11x11, sigma 1.5, range 1",
        "grid": list(grid.shape),
    }
    save_npz(folder / "arrays.npz", arrays)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    train.write_atomically(folder / "metrics.jsonl", lines)
    train.write_atomically(folder / "info.json", json.dumps(info, indent=1))


def compare(
    image: Float[np.ndarray, "*grid"], truth: Float[np.ndarray, "*grid"], cell: float
) -> dict[str, float]:
    """How close a reconstruction is to the concentration that was measured, both mmol/L.

    nrmse: relative to the root mean square of the truth; psnr [dB]: range from 0 to the
    largest true value; correlation (Pearson); dice of what is above half the largest
    value; iron [umol] and true_iron, with cell: volume of a voxel [m^3]. The truth is the
    phantom's nominal place and filling: a registration is not attempted.
    """
    if image.shape != truth.shape:
        raise ValueError(
            f"image: expected shape {truth.shape} like the truth, got {image.shape}"
        )
    if not truth.any():
        raise ValueError("truth: expected tracer on the grid, got none")
    image, truth = np.asarray(image, float), np.asarray(truth, float)
    mse = np.mean((image - truth) ** 2)
    one, two = image > image.max() / 2, truth > truth.max() / 2
    spread = np.std(image) * np.std(truth)
    covariance = np.mean((image - image.mean()) * (truth - truth.mean()))
    return {
        "nrmse": float(np.sqrt(mse / np.mean(truth**2))),
        "psnr": float(10 * np.log10(truth.max() ** 2 / max(mse, 1e-300))),
        "correlation": float(covariance / spread) if spread else 0.0,
        "dice": float(2 * np.sum(one & two) / (np.sum(one) + np.sum(two))),
        # 1 mmol/L is 1 mol/m^3.
        "iron": float(image.sum() * cell * 1e6),
        "true_iron": float(truth.sum() * cell * 1e6),
    }


def save_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """An .npz file, whole or not at all."""
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    train.write_atomically(path, content.getvalue())
