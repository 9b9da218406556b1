"""Classical methods, prepared with their settings: voltages to images."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mpi_jax import physics, system_matrix
from mpi_jax.methods.problem import Images, Problem
from mpi_jax.reconstruct import admm, kaczmarz, spectral, xspace, xspace_tensor
from mpi_jax.scanner import Scanner

# --- The methods: prepared with their settings, then voltages [B, C, V] -> images

Solver = Callable[[Float[Array, "B C V"]], Images]


def _images(p: Problem, c) -> Images:
    return jnp.maximum(c, 0).reshape(-1, *p.forward.scanner.grid.shape)


def xspace_solver(p: Problem, width: float | None = None, gain: float = 1.0) -> Solver:
    """x-space image times a gain, negative values set to 0."""
    scanner, model = p.forward.scanner, p.config.scanner.model
    if not isinstance(scanner, Scanner):
        raise ValueError(
            "method xspace: expected a simulated scanner, got a calibration file, which "
            "doesn't tell how the field-free point moves"
        )

    def solve(u):
        image = xspace.reconstruct(scanner, u, width=width, model=model)
        return jnp.maximum(gain * image, 0)

    return solve


def xspace_tensor_solver(
    p: Problem, width: float | None = None, rho: float = 3e-3, iterations: int = 50
) -> Solver:
    """x-space with the tensor of the signal and non-negative deconvolution."""
    plan = xspace_tensor.with_rho(_plan(p, width), rho)
    return lambda u: _images(
        p, xspace_tensor.reconstruct_tensor(plan, u, iterations=iterations)
    )


def _plan(p: Problem, width: float | None) -> xspace_tensor.TensorPlan:
    """The plan for a width, which takes seconds: prepared once for a problem."""
    if width not in p.plans:
        p.plans[width] = xspace_tensor.tensor_plan(
            p.forward.scanner, width=width, model=p.config.scanner.model
        )
    return p.plans[width]


def spectra(p: Problem, u) -> Array:
    """Scaled voltages as the rows' right-hand sides, [B, M] complex."""
    scaled = u / p.forward.scale[None]
    return system_matrix.select_rows(physics.spectrum(scaled), p.frequency_selection)


def kaczmarz_solver(p: Problem, lam: float = 1e-2, iterations: int = 10) -> Solver:
    """Regularised Kaczmarz on frequency rows, real and non-negative."""
    options = {"lam": lam, "iterations": iterations}
    return lambda u: _images(p, kaczmarz.solve(p.rows, spectra(p, u), **options))


def tikhonov_solver(p: Problem, lam: float = 1e-4) -> Solver:
    """Tikhonov images, negative values set to 0."""

    def solve(u):
        return _images(p, spectral.tikhonov(p.basis, u.reshape(len(u), -1), lam))

    return solve


def nonnegative_solver(p: Problem, rho: float = 3e-4, iterations: int = 20) -> Solver:
    """Non-negative least squares, stopped early."""
    basis = spectral.with_rho(p.basis, rho)

    def solve(u):
        flat = u.reshape(len(u), -1)
        return _images(p, _nonnegative(basis, flat, iterations=iterations))

    return solve


_nonnegative = jax.jit(admm.nonnegative, static_argnames="iterations")


def tv_solver(
    p: Problem, factor: float = 3.0, rho: float = 3e-4, iterations: int = 100
) -> Solver:
    """Total variation and non-negativity; weight: `factor` times the noise variance seen
    in each signal, over the largest singular value squared.
    """
    basis = spectral.with_rho(p.basis, rho)
    grid = p.forward.scanner.grid.shape

    def solve(u):
        flat = u.reshape(len(u), -1)
        ratio = spectral.estimate_noise(basis, flat) / basis.scale
        options = {"lam_tv": factor * ratio**2, "iterations": iterations}
        return _images(p, _total_variation(basis, flat, grid, **options))

    return solve


_total_variation = jax.jit(admm.total_variation, static_argnames=("grid", "iterations"))

CLASSICAL: dict[str, Callable[..., Solver]] = {
    "xspace": xspace_solver,
    "xspace_tensor": xspace_tensor_solver,
    "kaczmarz": kaczmarz_solver,
    "tikhonov": tikhonov_solver,
    "nonnegative": nonnegative_solver,
    "tv": tv_solver,
}
