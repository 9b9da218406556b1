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
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from mpi_jax import (
    _progress,
    data,
    mdf,
    metrics,
    open_mpi,
    phantoms,
    results,
    train,
)
from mpi_jax.configs import Config
from mpi_jax.methods import classical, networks, problem, tuning

# The settings of Open MPI Data's own 2D example; the others are tuned like those of
# mpi_jax.evaluate, on phantoms that the networks are trained on.
KACZMARZ = {"lam": 0.01, "iterations": 10}
TUNED = ("nonnegative", "tv")


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
    of each measurement. calibration: where the file of the runs is now. periods, background:
    see `calibrated.voltage`. Raises ValueError where these don't fit together.
    """
    if len(measurements) != len(names) or not measurements or not runs:
        raise ValueError(
            "measurements: expected one file for each phantom and at least one run, got "
            f"{len(measurements)} for {', '.join(names) or 'none'} and {len(runs)}"
        )
    loaded = [networks.load_network(folder) for folder in runs]
    settings = [_at(config, calibration) for config, _, _ in loaded]
    first = settings[0]
    for folder, config in zip(runs, settings, strict=True):
        same = (config.scanner, config.calibration) == (
            first.scanner,
            first.calibration,
        )
        if not same:
            raise ValueError(
                f"runs: expected one calibration and grid, but {folder} has another than "
                f"{runs[0]}"
            )
    grid = data.calibrated.scanner_of(first).grid
    truth = np.stack([phantoms.open_mpi.phantom(name, grid) for name in names])
    stages = 2 + len(TUNED) + len(runs)
    tell("read", 0, stages, {})
    u = [
        data.calibrated.voltage(
            first, mdf.read(path), periods=periods, background=background
        ).mean(0)
        for path in measurements
    ]
    u = jnp.asarray(np.stack(u))

    tell("build", 1, stages, {})
    operators = [data.build(config) for config in settings]
    p = problem.problem(first, operators[0])
    draw = partial(data.draw, operators[0], "validation")
    size, snr = first.data.batch_size, first.data.test_snr_db
    made = [draw(i, size, snr) for i in range(0, first.validation_images, size)]
    made = data.Examples(*map(jnp.concatenate, zip(*made, strict=True)))

    solve = classical.kaczmarz_solver(p, **KACZMARZ)
    level = tuning.tune_threshold(solve(made.voltage), made)
    solvers = {"kaczmarz": (problem.LABELS["kaczmarz"], solve, level)}
    chosen = {"kaczmarz": KACZMARZ}
    for n, method in enumerate(TUNED):
        tell("tune", 2 + n, stages, {})
        chosen[method], image = tuning.tune(p, method, made)
        solve = classical.CLASSICAL[method](p, **chosen[method])
        level = tuning.tune_threshold(image, made)
        solvers[method] = problem.LABELS[method], solve, level
    for folder, (config, generator, params), forward in zip(
        runs, loaded, operators, strict=True
    ):
        solve = partial(train.predict, generator, params, forward)
        image, logit = solve(made.voltage)
        level = None if logit is not None else tuning.tune_threshold(image, made)
        name = networks.label(config, generator)
        if name in [label for label, _, _ in solvers.values()]:
            name = f"{name} ({Path(folder).name})"
        solvers[str(folder)], chosen[str(folder)] = (name, solve, level), {}

    peak = solvers["nonnegative"][1](u).max(axis=(1, 2), keepdims=True)
    unit = open_mpi.unit(data.calibrated.read(first))
    flat = np.asarray(operators[0].matrix).reshape(-1, grid.size)
    given = {
        str(folder): {"kind": "learned", "physics": config.physics.rank > 0}
        for folder, config in zip(runs, settings, strict=True)
    }
    lines, images, masks = [], {}, {}
    for n, (method, (name, solve, level)) in enumerate(solvers.items()):
        tell("reconstruct", stages - len(solvers) + n, stages, {})
        image, logit = solve(u / peak), None
        if isinstance(image, tuple):
            image, logit = image
        mask = logit > 0 if level is None else tuning.threshold(image, level)
        image, mask = np.asarray(image * peak, float), np.asarray(mask)
        residual = image.reshape(len(u), -1) @ flat.T - np.asarray(u).reshape(
            len(u), -1
        )
        residual = np.linalg.norm(residual, axis=1) / np.linalg.norm(u, axis=(1, 2))
        images[method], masks[method] = image * unit, mask
        for k, phantom in enumerate(names):
            lines.append(
                results.Figure3Line(
                    method=method,
                    label=name,
                    **given.get(method, {"kind": "classical"}),
                    phantom=phantom,
                    **_numbers(image[k] * unit, truth[k], mask[k], grid),
                    residual=float(residual[k]),
                    mask="predicted"
                    if level is None
                    else f"above {level:g} of maximum",
                    settings=chosen[method],
                )
            )
    tell("reconstruct", stages, stages, {})
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    x, y = np.asarray(grid.pitch)[:2]
    results.Figure3Images(
        truth=truth,
        phantoms=tuple(names),
        pixel_size=(float(x), float(y)),
        images=images,
        masks=masks,
        about={
            "runs": [str(folder) for folder in runs],
            "measurements": [str(path) for path in measurements],
            "calibration": dataclasses.asdict(first.calibration),
            "periods": periods,
            "background": background,
        },
    ).write(out / "arrays.npz")
    results.write_lines(out / "metrics.jsonl", lines)
    return lines


def _at(config: Config, path: Path | None) -> Config:
    """The config with its calibration where it is now."""
    if path is None:
        return config
    moved = dataclasses.replace(config.calibration, path=str(path))
    return dataclasses.replace(config, calibration=moved)


def _numbers(
    image: Float[np.ndarray, "ny nx"], truth: Float[np.ndarray, "ny nx"], mask, grid
) -> dict[str, float]:
    """`evaluate.compare` as it is and with the factor that fits best, Dice of the mask."""
    cell = float(np.prod(np.asarray(grid.pitch)))
    factor = float((image * truth).sum() / max((image**2).sum(), 1e-300))
    scaled = metrics.compare(factor * image, truth, cell)
    wanted = truth > truth.max() / 2
    return {
        **metrics.compare(image, truth, cell),
        "factor": factor,
        "scaled_nrmse": scaled["nrmse"],
        "scaled_psnr": scaled["psnr"],
        "mask_dice": float(2 * np.sum(mask & wanted) / (np.sum(mask) + np.sum(wanted))),
    }
