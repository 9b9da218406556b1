"""The paper's Figure 3: two measured phantoms by the system matrix and by networks that were
trained on signals of one plane of its calibration; and the truth, which the paper lacks.

    runs (config open_mpi and its like), MDF measurements -> folder:
        arrays.npz     truth, images [mmol/L], masks
        metrics.jsonl  a line per (phantom, method)

The plane is a model of a body with depth: tracer above and below it is seen as tracer in
it. So images come out too bright, by a factor that no method here can know; numbers are
given as they are and with the factor that fits the truth best.

A signal is divided by the largest value of its non-negative image before any method sees
it, and all images are multiplied by that again: the networks know images from 0 to 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mpi_jax import (
    _progress,
    data,
    mdf,
    methods,
    metrics,
    open_mpi,
    phantoms,
    results,
    system_matrix,
)
from mpi_jax.configs import Config
from mpi_jax.evaluation.lines import method_info
from mpi_jax.methods.networks import Network, of_runs
from mpi_jax.scanner import Grid

# Kaczmarz with the settings of Open MPI Data's own 2D example; the others are tuned on
# phantoms that the networks are trained on.
METHODS: dict[str, dict[str, Any] | None] = {
    "kaczmarz": {"lam": 0.01, "iterations": 10},
    "nonnegative": None,
    "tv": None,
}


def run(
    runs: Sequence[Path],
    measurements: Sequence[Path],
    names: Sequence[str],
    out: Path,
    *,
    calibration: Path | None = None,
    periods: tuple[int, int] | None = None,
    background: str = "mean",
    tell: _progress.Tell = _progress.silent,
) -> list[results.Figure3Line]:
    """Reconstruct every measurement by every method; returns the lines of metrics.jsonl.

    runs: work folders of one calibration, plane and grid. names: the Open MPI phantom
    of each measurement. calibration: where the file of the runs is now. periods,
    background: see `calibrated.voltage`. Raises ValueError where these don't fit together.
    """
    if len(measurements) != len(names) or not measurements or not runs:
        raise ValueError(
            "measurements: expected one file for each phantom and at least one run, got "
            f"{len(measurements)} for {', '.join(names) or 'none'} and {len(runs)}"
        )
    networks = of_runs(runs, calibration)
    config = _common(networks)
    grid = data.calibrated.scanner_of(config).grid
    truth = np.stack([phantoms.open_mpi.phantom(name, grid) for name in names])
    stages = 2 + len(METHODS) + len(networks)
    tell("read", 0, stages, {})
    u = _signals(config, measurements, periods, background)
    tell("build", 1, stages, {})
    forward = data.build(config)
    problem = methods.from_forward(config, forward)
    examples = data.draw_batches(
        forward,
        "validation",
        config.validation_images,
        config.data.batch_size,
        config.data.test_snr_db,
    )
    prepared = []
    chosen = [(methods.METHODS[name], settings) for name, settings in METHODS.items()]
    chosen += [(network.method, {}) for network in networks.values()]
    for n, (method, settings) in enumerate(chosen, 2):
        tell("tune", n, stages, {})
        prepared.append(methods.ready(problem, method, examples, settings))

    peak = prepared[1].solve(u).image.max(axis=(1, 2), keepdims=True)
    unit = open_mpi.unit(data.calibrated.read(config))
    lines: list[results.Figure3Line] = []
    images, masks = {}, {}
    for ready in prepared:
        reconstruction = ready.solve(u / peak)
        mask = np.asarray(ready.mask(reconstruction))
        image = np.asarray(reconstruction.image * peak, float)
        residual = _residual(forward, image, u)
        name = ready.method.name
        images[name], masks[name] = image * unit, mask
        for k, phantom in enumerate(names):
            numbers = _numbers(image[k] * unit, truth[k], mask[k], grid)
            of_phantom = {"phantom": phantom, "residual": float(residual[k]), **numbers}
            lines.append(
                _line(ready, reconstruction.mask_logit is not None, of_phantom)
            )
    tell("reconstruct", stages, stages, {})
    about = {
        "runs": [str(folder) for folder in runs],
        "measurements": [str(path) for path in measurements],
        "calibration": dataclasses.asdict(config.calibration),
        "periods": periods,
        "background": background,
    }
    _write(Path(out), grid, names, truth, images, masks, about)
    results.write_lines(Path(out) / "metrics.jsonl", lines)
    return lines


def _common(networks: dict[str, Network]) -> Config:
    """The config of the first; ValueError where another has another calibration or grid."""
    first, *others = networks.values()
    for other in others:
        same = (other.config.scanner, other.config.calibration) == (
            first.config.scanner,
            first.config.calibration,
        )
        if not same:
            raise ValueError(
                f"runs: expected one calibration and grid, but {other.folder} has another "
                f"than {first.folder}"
            )
    return first.config


def _signals(
    config: Config,
    measurements: Sequence[Path],
    periods: tuple[int, int] | None,
    background: str,
) -> Float[Array, "K C V"]:
    """The mean period of each measurement."""
    options: dict[str, Any] = {"periods": periods, "background": background}
    signals = [
        data.calibrated.voltage(config, mdf.read(path), **options).mean(0)
        for path in measurements
    ]
    return jnp.asarray(np.stack(signals))


def _residual(
    forward: data.ForwardModel, image: np.ndarray, u: Float[Array, "K C V"]
) -> np.ndarray:
    """|S c - u| / |u| of each image, [K]."""
    misfit = system_matrix.forward(forward.matrix, jnp.asarray(image, u.dtype)) - u
    norms = [
        np.linalg.norm(np.asarray(a).reshape(len(u), -1), axis=1) for a in (misfit, u)
    ]
    return norms[0] / norms[1]


def _line(
    ready: methods.Ready, predicted: bool, numbers: dict[str, Any]
) -> results.Figure3Line:
    above = f"above {ready.threshold:g} of maximum"
    return results.Figure3Line(
        **dataclasses.asdict(method_info(ready.method)),
        **numbers,
        mask="predicted" if predicted else above,
        settings=ready.settings,
        at_edge=ready.at_edge,
    )


def _write(
    out: Path,
    grid: Grid,
    names: Sequence[str],
    truth: np.ndarray,
    images: dict[str, np.ndarray],
    masks: dict[str, np.ndarray],
    about: dict[str, Any],
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    x, y = np.asarray(grid.pitch)[:2]
    results.Figure3Images(
        truth=truth,
        phantoms=tuple(names),
        pixel_size=(float(x), float(y)),
        images=images,
        masks=masks,
        about=about,
    ).write(out / "arrays.npz")


def _numbers(
    image: Float[np.ndarray, "ny nx"],
    truth: Float[np.ndarray, "ny nx"],
    mask,
    grid: Grid,
) -> dict[str, float]:
    """`metrics.compare` as it is and with the factor that fits best, Dice of the mask."""
    cell = float(np.prod(np.asarray(grid.pitch)))
    factor = float((image * truth).sum() / max((image**2).sum(), 1e-300))
    scaled = metrics.compare(factor * image, truth, cell)
    tracer = truth > truth.max() / 2
    return {
        **metrics.compare(image, truth, cell),
        "factor": factor,
        "scaled_nrmse": scaled["nrmse"],
        "scaled_psnr": scaled["psnr"],
        "mask_dice": float(metrics.dice(mask, tracer)),
    }
