"""Settings chosen on validation images, by mean PSNR."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from mpi_jax import data, metrics
from mpi_jax.methods import classical, table
from mpi_jax.methods.problem import Problem
from mpi_jax.reconstruct import kaczmarz, xspace, xspace_tensor

Candidate = tuple[dict[str, Any], Array]  # settings and the images they make

LAMS = tuple(10.0 ** (k / 2) for k in range(1, -13, -1))
# Kaczmarz needs less regularisation with more sweeps: all of LAMS for a few sweeps, then
# those near the best for all of them. More than 200 still gain a little and cost more
# than they are worth: tables mark a setting at the end of what was tried.
SWEEPS = (1, 2, 5, 10, 20, 50, 100, 200)
FEW = 20
# Every setting of a row with every other, in the order of the method's own.
GRIDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "cgnr": {
        "lam": (0.0,),
        "iterations": (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 100),
    },
    "tikhonov": {"lam": LAMS},
    "elastic_net": {
        "lam": tuple(10.0**k for k in range(0, -6, -1)),
        "l1": (0.0, 1e-4, 1e-3, 1e-2),
        "iterations": (50, 200, 1000),
    },
    "nonnegative": {
        "rho": ("noise", 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
        "iterations": (5, 10, 20, 50, 100),
    },
    "tv": {"factor": (0.75, 1.5, 3.0, 6.0, 12.0), "iterations": (25, 50, 100, 200)},
}
PLAN_WIDTHS = (None, 0.9e-3, 1.2e-3)  # [m]; None: as the path's gaps ask for
PLAN_RHOS, PLAN_STEPS = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2), (10, 20, 50, 100)
WIDTHS = (0.5, 0.7, 1.0, 1.4, 2.0)  # of the default gridding width
THRESHOLDS = tuple(np.arange(1, 16) / 20)
# A setting that costs more has to be worth more than that [dB].
TIE = 0.02


@dataclasses.dataclass(frozen=True)
class Tuned:
    """Settings with the best mean PSNR on validation images.

    at_edge: those of them that are the last of what was tried, so that better ones may
    lie outside; image [N, *grid]: what the settings make of the validation images.
    """

    settings: dict[str, Any]
    image: Array
    at_edge: tuple[str, ...] = ()


def tune(problem: Problem, method: str, examples: data.Examples) -> Tuned:
    """The settings of a classical method with the best mean PSNR on these examples.

    Among settings within TIE of the best, those that iterate least. Raises ValueError for
    methods without settings to choose.
    """
    row = table.get(method)
    if row.name in _CANDIDATES:
        candidates = _CANDIDATES[row.name](problem, examples)
    elif row.name in GRIDS:
        candidates = _product(problem, row, examples)
    else:
        raise ValueError(f"method {method}: expected one with settings to choose")
    return best(candidates, examples)


def best(candidates: Iterable[Candidate], examples: data.Examples) -> Tuned:
    """The best of candidates, as `tune` says."""
    tried, images = [], {}
    highest = -np.inf
    for settings, image in candidates:
        clipped = jnp.clip(image, 0, 1)
        psnr = float(jnp.mean(metrics.psnr(clipped, examples.image, 1.0)))
        tried.append((psnr, settings))
        highest = max(highest, psnr)
        images[len(tried) - 1] = clipped
        # Images that are out of the race needn't be held.
        for index in [i for i in images if tried[i][0] < highest - TIE]:
            del images[index]
    near = [i for i in images if tried[i][0] >= highest - TIE]
    chosen = min(near, key=lambda i: (tried[i][1].get("iterations", 0), -tried[i][0]))
    settings = tried[chosen][1]
    return Tuned(settings, images[chosen], _edges(settings, [s for _, s in tried]))


def _edges(settings: dict[str, Any], tried: list[dict[str, Any]]) -> tuple[str, ...]:
    """Settings at an end of what was tried, where the next value would make sense."""
    edges = []
    for name, value in settings.items():
        values = sorted({s[name] for s in tried if _is_number(s[name])})
        if name == "gain" or not _is_number(value) or len(values) < 2:
            continue
        least = value == values[0] and value not in (0, 1)
        if least or value == values[-1]:
            edges.append(name)
    return tuple(edges)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _product(
    problem: Problem, row: table.Method, examples: data.Examples
) -> Iterator[Candidate]:
    grid = GRIDS[row.name]
    for values in itertools.product(*grid.values()):
        settings = dict(zip(grid, values, strict=True))
        yield settings, row.prepare(problem, settings)(examples.voltage).image


def kaczmarz_candidates(
    problem: Problem, examples: data.Examples
) -> Iterator[Candidate]:
    """Every lam for a few sweeps, then the best, the next and the one below it for all."""
    right = problem.measure(examples.voltage)

    def run(lam: float, most: int) -> Iterator[Candidate]:
        iterates = kaczmarz.sweeps(problem.rows, right, lam=lam, iterations=most)
        for count in SWEEPS:
            if count <= most:
                c = problem.images(iterates[count - 1])
                yield {"lam": lam, "iterations": count}, c

    short = [candidate for lam in LAMS for candidate in run(lam, FEW)]
    yield from short
    first = LAMS.index(best(short, examples).settings["lam"])
    for lam in LAMS[first : first + 3]:
        yield from run(lam, SWEEPS[-1])


def xspace_widths(problem: Problem) -> list[float]:
    """Gridding widths to try [m]."""
    scanner = classical.scanner_of(problem, "xspace")
    default = float(xspace.default_width(scanner))
    return [factor * default for factor in WIDTHS]


def _xspace_candidates(
    problem: Problem, examples: data.Examples
) -> Iterator[Candidate]:
    for width in xspace_widths(problem):
        image = classical.xspace_images(problem, examples.voltage, width)
        image = jnp.maximum(image, 0)
        fitted = float(jnp.sum(image * examples.image) / jnp.sum(image**2))
        # The gain of least squares, and smaller ones: blurred images do better dim.
        for gain in (1.0, fitted, 0.75 * fitted, 0.5 * fitted):
            yield {"width": width, "gain": gain}, gain * image


def _xspace_tensor_candidates(
    problem: Problem, examples: data.Examples
) -> Iterator[Candidate]:
    """Every width with middle settings, then all settings with the best width."""
    plans = {width: classical.xspace_plan(problem, width) for width in PLAN_WIDTHS}
    traces = {
        w: xspace_tensor.trace(plan, examples.voltage) for w, plan in plans.items()
    }

    def run(width: float | None, rho: float, count: int) -> Candidate:
        plan = xspace_tensor.with_rho(plans[width], rho)
        image = xspace_tensor.deconvolve(plan, traces[width], iterations=count)
        return {"width": width, "rho": rho, "iterations": count}, problem.images(image)

    first = [run(width, 3e-3, 50) for width in PLAN_WIDTHS]
    yield from first
    width = best(first, examples).settings["width"]
    for rho, count in itertools.product(PLAN_RHOS, PLAN_STEPS):
        yield run(width, rho, count)


_CANDIDATES: dict[str, Callable[[Problem, data.Examples], Iterator[Candidate]]] = {
    "kaczmarz": kaczmarz_candidates,
    "xspace": _xspace_candidates,
    "xspace_tensor": _xspace_tensor_candidates,
}


# --- Masks


def threshold(
    image: Float[Array | np.ndarray, "*batch ny nx"], fraction: float
) -> Bool[Array, "*batch ny nx"]:
    """Mask of the pixels above a fraction of each image's maximum."""
    image = jnp.asarray(image)
    return image > fraction * jnp.max(image, axis=(-2, -1), keepdims=True)


def tune_threshold(image: Array, examples: data.Examples) -> float:
    """Fraction of the maximum whose mask has the best mean Dice on these examples."""
    scores = [
        (float(jnp.mean(metrics.dice(threshold(image, t), examples.mask))), t)
        for t in THRESHOLDS
    ]
    return float(max(scores)[1])
