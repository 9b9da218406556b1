"""Classical methods: each takes a problem and its settings, and gives what solves.

Functions are named after their rows in METHODS, where the defaults stand; what the
settings mean is told in `settings`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mpi_jax.methods import choice
from mpi_jax.methods.problem import Problem, Reconstruction, Solve
from mpi_jax.reconstruct import (
    admm,
    iterative,
    kaczmarz,
    spectral,
    xspace,
    xspace_tensor,
)
from mpi_jax.scanner import Scanner

# Penalties of the splittings over the standard deviation of the noise, relative to the
# largest singular value and the brightest voxel: near the best of 20 steps (non-negative)
# and 100 steps (total variation) from 60 to 10 dB, see docs/results.md.
RHO = {"nonnegative": 0.75, "tv": 0.25}
RHO_LEAST, RHO_MOST = 1e-5, 1.0


def scanner_of(problem: Problem, method: str) -> Scanner:
    """The scanner whose field-free point moves; ValueError where it isn't known."""
    if problem.scanner is None:
        raise ValueError(
            f"method {method}: expected a simulated scanner, got a system matrix, which "
            "doesn't tell how the field-free point moves"
        )
    return problem.scanner


def xspace_plan(problem: Problem, width: float | None) -> xspace_tensor.TensorPlan:
    """The plan for a width: prepared once for a problem."""
    scanner = scanner_of(problem, "xspace_tensor")
    if width not in problem.plans:
        problem.plans[width] = xspace_tensor.tensor_plan(
            scanner, width=width, model=problem.model
        )
    return problem.plans[width]


def xspace_images(
    problem: Problem, u: Float[Array, "B C V"], width: float | None
) -> Float[Array, "B ny nx"]:
    """x-space images, of any sign."""
    scanner = scanner_of(problem, "xspace")
    return xspace.reconstruct(scanner, u, width=width, model=problem.model)


def xspace_solver(problem: Problem, *, width: float | None, gain: float) -> Solve:
    """x-space images times a gain."""
    scanner_of(problem, "xspace")

    def solve(u):
        image = gain * xspace_images(problem, u, width)
        return Reconstruction(jnp.maximum(image, 0))

    return solve


def xspace_tensor_solver(
    problem: Problem, *, width: float | None, rho: float, iterations: int
) -> Solve:
    """x-space with the tensor of the signal and non-negative deconvolution."""
    plan = xspace_tensor.with_rho(xspace_plan(problem, width), rho)

    def solve(u):
        image = xspace_tensor.reconstruct_tensor(plan, u, iterations=iterations)
        return Reconstruction(problem.images(image))

    return solve


# A setting and the right-hand sides [B, M] -> columns [B, P], of any sign.
Columns = Callable[[Any, Array], Float[Array, "B P"]]


def _solver(problem: Problem, setting: str, value: Any, columns: Columns) -> Solve:
    """What solves with a setting's value, or with one chosen by a rule for each frame."""
    if value in choice.RULES:
        return choice.solver(problem, setting, value, columns)
    if isinstance(value, str):
        raise ValueError(
            f"{setting}: expected a number or one of {', '.join(choice.RULES)}, got "
            f"{value!r}"
        )
    return lambda u: Reconstruction(problem.images(columns(value, problem.measure(u))))


def kaczmarz_solver(
    problem: Problem, *, lam: float | str, lam_unit: str, iterations: int
) -> Solve:
    """Regularised Kaczmarz, real and non-negative."""

    def columns(lam, data):
        relative = problem.lam(lam, lam_unit)
        return kaczmarz.solve(problem.rows, data, lam=relative, iterations=iterations)

    return _solver(problem, "lam", lam, columns)


def cgnr_solver(
    problem: Problem, *, lam: float | str, lam_unit: str, iterations: int
) -> Solve:
    """Conjugate gradients on the normal equations, negative values set to 0 at the end."""

    def columns(lam, data):
        ridge = problem.lam(lam, lam_unit) * problem.mean_energy
        return iterative.cgnr(problem.rows, data, lam=ridge, iterations=iterations)

    return _solver(problem, "lam", lam, columns)


def tikhonov_solver(problem: Problem, *, lam: float | str, lam_unit: str) -> Solve:
    """Tikhonov images, negative values set to 0."""

    def columns(lam, data):
        ridge = problem.lam(lam, lam_unit) * problem.mean_energy
        ridge = ridge / float(problem.basis.scale) ** 2
        return spectral.tikhonov(problem.basis, data, ridge)

    return _solver(problem, "lam", lam, columns)


def elastic_net_solver(
    problem: Problem, *, lam: float | str, lam_unit: str, l1: float, iterations: int
) -> Solve:
    """Sparse and small non-negative images by accelerated proximal gradients."""

    def columns(lam, data):
        l2 = problem.lam(lam, lam_unit) * problem.mean_energy
        # Images scale with the data and l1 together: every frame has its own unit.
        slope = jnp.matmul(data, problem.rows.conj(), precision="highest").real
        unit = jnp.max(slope, axis=1, keepdims=True)
        unit = jnp.where(unit > 0, unit, 1)
        relative = iterative.elastic_net(
            problem.rows,
            data / unit,
            l1=l1,
            l2=l2,
            iterations=iterations,
            nonnegative=True,
        )
        return unit * relative

    return _solver(problem, "lam", lam, columns)


def nonnegative_solver(
    problem: Problem, *, rho: float | str, iterations: int | str
) -> Solve:
    """Non-negative least squares, stopped early."""
    _check_rho(rho)

    def columns(iterations, data):
        penalty: Array | float | str = rho
        if rho == "noise":
            ratio = _noise_ratio(problem, data, problem.brightness(data))
            penalty = _penalty("nonnegative", ratio)
        return _nonnegative(problem.basis, data, iterations=iterations, rho=penalty)

    return _solver(problem, "iterations", iterations, columns)


_nonnegative = jax.jit(admm.nonnegative, static_argnames="iterations")


def tv_solver(
    problem: Problem,
    *,
    lam_tv: float | str,
    factor: float,
    rho: float | str,
    iterations: int,
) -> Solve:
    """Total variation and non-negativity."""
    _check_rho(rho)
    if problem.tracers is not None:
        raise ValueError("method tv: expected a system of one calibration")
    grid = problem.grid.shape

    def columns(lam_tv, data):
        # The same for frames of any strength: the unit is about the brightest voxel.
        unit = problem.brightness(data)
        weight = lam_tv
        penalty: Array | float | str = rho
        if lam_tv is None or rho == "noise":
            ratio = _noise_ratio(problem, data, unit)
            weight = factor * jnp.square(ratio) if lam_tv is None else lam_tv
            penalty = _penalty("tv", ratio) if rho == "noise" else rho
        unit = unit[:, None]
        options = {"lam_tv": weight, "rho": penalty, "iterations": iterations}
        return unit * _total_variation(problem.basis, data / unit, grid, **options)

    return _solver(problem, "lam_tv", None if lam_tv == "noise" else lam_tv, columns)


_total_variation = jax.jit(admm.total_variation, static_argnames=("grid", "iterations"))


def _check_rho(rho: float | str) -> None:
    if isinstance(rho, str) and rho != "noise":
        raise ValueError(f"rho: expected a number or noise, got {rho!r}")


def _penalty(method: str, ratio: Float[Array, " B"]) -> Float[Array, " B"]:
    """Large enough that the first steps don't hand the noise on to the image."""
    return jnp.clip(RHO[method] * ratio, RHO_LEAST, RHO_MOST)


def _noise_ratio(problem: Problem, data: Array, unit: Array) -> Float[Array, " B"]:
    """Noise of each frame over its brightest voxel and the largest singular value."""
    return problem.sigma(data) / (problem.basis.scale * unit)
