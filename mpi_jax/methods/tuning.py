"""Settings chosen on validation images."""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from mpi_jax import data, metrics
from mpi_jax.methods.classical import CLASSICAL, _images, _plan, spectra, xspace_solver
from mpi_jax.methods.problem import (
    FACTORS,
    KACZMARZ_LAMS,
    KACZMARZ_SWEEPS,
    PLAN_RHOS,
    PLAN_STEPS,
    PLAN_WIDTHS,
    RHOS,
    STEPS,
    THRESHOLDS,
    TIKHONOV_LAMS,
    TV_STEPS,
    WIDTHS,
    Images,
    Problem,
)
from mpi_jax.reconstruct import kaczmarz, xspace, xspace_tensor

# --- Choosing settings on validation images


def tune(p: Problem, method: str, made: data.Examples) -> tuple[dict[str, Any], Images]:
    """Settings of a classical method with the best mean PSNR on these examples, and the
    images that they make of them.
    """
    u, truth = made.voltage, made.image
    if method == "kaczmarz":
        return _best(kaczmarz_candidates(p, u, truth), truth)
    if method == "xspace":
        return _best(_xspace_candidates(p, u, truth), truth)
    if method == "xspace_tensor":
        return _best(_xspace_tensor_candidates(p, u, truth), truth)
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
    xspace_solver(p)  # complains where the scanner isn't known
    default = float(xspace.default_width(p.forward.scanner))
    for factor in WIDTHS:
        image = xspace_solver(p, width=factor * default)(u)
        fitted = float(jnp.sum(image * truth) / jnp.sum(image**2))
        # The gain of least squares, and smaller ones: blurred images do better dim.
        for gain in (1.0, fitted, 0.75 * fitted, 0.5 * fitted):
            yield {"width": factor * default, "gain": gain}, gain * image


def _xspace_tensor_candidates(p, u, truth):
    """Every width with the middle settings, then all settings with the best width."""
    traces = {width: xspace_tensor.trace(_plan(p, width), u) for width in PLAN_WIDTHS}

    def run(width, rho, n):
        plan = xspace_tensor.with_rho(_plan(p, width), rho)
        image = xspace_tensor.deconvolve(plan, traces[width], iterations=n)
        return {"width": width, "rho": rho, "iterations": n}, image

    first = [run(width, PLAN_RHOS[1], PLAN_STEPS[1]) for width in PLAN_WIDTHS]
    yield from first
    width = _best(first, truth)[0]["width"]
    for rho, n in itertools.product(PLAN_RHOS, PLAN_STEPS):
        yield run(width, rho, n)


def kaczmarz_candidates(p, u, truth):
    """Every lam for a few sweeps, then the best and the one below for all of them.

    More sweeps need less regularisation, so that the best lam moves down, not up.
    """
    right = spectra(p, u)

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
