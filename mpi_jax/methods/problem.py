"""A scanner and its calibration, as every reconstruction method takes them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Complex, Float

from mpi_jax import physics, preprocess, system_matrix
from mpi_jax.configs import Config
from mpi_jax.data import ForwardModel
from mpi_jax.reconstruct import operators, spectral, xspace_tensor
from mpi_jax.scanner import Grid, Scanner

if TYPE_CHECKING:
    from mpi_jax.methods.choice import Choice
    from mpi_jax.methods.controls import Training

# Singular values in use, at most. More cost time and memory, and noise of 1e-4 of the
# signal covers them: at 64 x 64 and 40 dB the images of 2548 are no better than of 1024.
RANK = 1024


class Reconstruction(NamedTuple):
    """Images [B, *grid] >= 0, or [B, A, *grid] of A tracers.

    mask_logit [B, *grid]: of a network that segments; interval: lower and upper image,
    of a method that gives them; choice: how a setting was chosen frame by frame.
    """

    image: Float[Array, "*shape"]
    mask_logit: Float[Array, "*shape"] | None = None
    interval: tuple[Array, Array] | None = None
    choice: Choice | None = None


Solve = Callable[[Array], Reconstruction]


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """rows @ c = measure(u), for signals u of one scanner.

    rows [M, P] complex: selected frequencies of the system matrix, weighted, the largest
    near 1. frequency_selection [C, K] and unit: which frequencies of a voltage they
    belong to, and what a voltage is divided by; a unit of None means that signals are
    rows already, [B, M], as `preprocess.prepare` makes them. noise [M] or None: standard
    deviation of these, known from background frames. tracers: A, where columns are the
    voxels of one tracer after the other.

    What only some methods need, None where it isn't known: scanner, whose field-free
    point moves as physics says (x-space), and its particle model; forward and config, of
    a run (networks, controls); training, its examples (controls).
    """

    rows: Complex[Array, "M P"]
    grid: Grid
    frequency_selection: Bool[np.ndarray, "C K"]
    unit: float | None
    noise: Float[Array, " M"] | None = None
    tracers: int | None = None
    scanner: Scanner | None = None
    model: str = "tensor"
    config: Config | None = None
    forward: ForwardModel | None = None
    training: Training | None = None

    def measure(self, u: Array) -> Complex[Array, "B M"]:
        """Signals as the right-hand sides of the rows.

        Raises ValueError for other shapes than [B, C, V], or [B, M] of a system.
        """
        u = jnp.asarray(u)
        if self.unit is None:
            if u.ndim != 2 or u.shape[1] != len(self.rows):
                raise ValueError(
                    f"signal: expected [B, {len(self.rows)}] like the rows of the system, "
                    f"got shape {u.shape}"
                )
            return u
        channels, frequencies = self.frequency_selection.shape
        if u.ndim != 3 or (u.shape[1], u.shape[2] // 2 + 1) != (channels, frequencies):
            raise ValueError(
                f"signal: expected [B, {channels}, V] with {frequencies} frequencies like "
                f"the system matrix, got shape {u.shape}"
            )
        spectra = physics.spectrum(u / self.unit)
        return system_matrix.select_rows(spectra, self.frequency_selection)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image."""
        grid_shape = self.grid.shape
        return grid_shape if self.tracers is None else (self.tracers, *grid_shape)

    def images(self, c: Float[Array, "*batch P"]) -> Float[Array, "*images"]:
        """Columns as images, negative values set to 0."""
        return jnp.maximum(c, 0).reshape(-1, *self.shape)

    @cached_property
    def basis(self) -> spectral.SpectralBasis:
        """The singular basis of the rows, real above imaginary parts, cut at RANK."""
        if min(2 * self.rows.shape[0], self.rows.shape[1]) > RANK:
            try:
                return spectral.spectral_basis(self.rows, RANK)
            except ValueError:
                pass  # fewer singular values than that are resolved
        return spectral.spectral_basis(self.rows)

    @cached_property
    def mean_energy(self) -> float:
        """||S||_F^2 / P, what lam is relative to."""
        return float(operators.mean_energy(self.rows))

    @cached_property
    def plans(self) -> dict[float | None, xspace_tensor.TensorPlan]:
        """Plans of `xspace_tensor` by width [m], each of which takes seconds."""
        return {}

    def lam(self, lam: float, unit: str) -> float:
        """A ridge parameter relative to the mean energy, whatever it was relative to."""
        if unit == "energy":
            return lam
        if unit != "sigma1":
            raise ValueError(f"lam_unit: expected energy or sigma1, got {unit!r}")
        return lam * float(self.basis.scale) ** 2 / self.mean_energy

    def sigma(self, data: Complex[Array, "B M"]) -> Float[Array, " B"]:
        """Standard deviation of the noise in each real number of the data, frame by frame.

        From background frames, or from what lies outside the span of the basis. Raises
        ValueError where neither tells it.
        """
        if self.noise is not None:
            level = jnp.sqrt(jnp.mean(jnp.square(self.noise)) / 2)
            return jnp.broadcast_to(level, data.shape[:1])
        if self._span.U.shape[0] <= self._span.U.shape[1]:
            raise ValueError(
                "noise: expected background frames of the measurement, or more rows than "
                f"singular values, to tell the noise by; got {len(self.rows)} rows. Give "
                "lam_tv, rho and iterations as numbers, or prepare with a background"
            )
        return spectral.estimate_noise(self._span, data)

    @cached_property
    def _span(self) -> spectral.SpectralBasis:
        """The part of the basis that signals lie in. Vectors of weaker singular values
        are rounding of float32, which differs from file to file.
        """
        b = self.basis
        count = int(np.sum(np.asarray(b.s) > _WEAKEST))
        U, s, V = b.U[:, :count], b.s[:count], b.V[:, :count]
        return dataclasses.replace(b, U=U, s=s, V=V, resolvent=None)

    def brightness(self, data: Complex[Array, "B M"]) -> Float[Array, " B"]:
        """About the brightest voxel of each frame, 1 for frames without signal."""
        c = spectral.tikhonov(self.basis, data, _BRIGHTEST)
        peak = jnp.max(jnp.abs(c), axis=1)
        return jnp.where(peak > 0, peak, 1)


_BRIGHTEST = 1e-3  # relative to the largest singular value squared
_WEAKEST = 1e-5  # singular value, relative to the largest


def from_forward(
    config: Config, forward: ForwardModel, training: Training | None = None
) -> Problem:
    """The problem of a run: its scanner, simulated or known by its calibration."""
    scanner = forward.scanner
    if forward.frequency_selection is not None:
        selected = np.asarray(forward.frequency_selection)
    elif isinstance(scanner, Scanner):
        selected = system_matrix.frequency_selection(scanner)
    else:
        raise TypeError(f"forward: expected a frequency selection with {scanner}")
    return dataclasses.replace(
        from_matrix(forward.matrix, scanner.grid, selected),
        scanner=scanner if isinstance(scanner, Scanner) else None,
        model=config.scanner.model,
        config=config,
        forward=forward,
        training=training,
    )


def from_matrix(
    matrix: Float[Array | np.ndarray, "C V P"],
    grid: Grid,
    frequency_selection: Bool[np.ndarray, "C K"] | None = None,
) -> Problem:
    """The problem of a system matrix in the time domain.

    frequency_selection [C, K]: by default all frequencies but DC, which a periodic
    signal doesn't have. Raises ValueError where the matrix isn't finite or is 0.
    """
    channels, samples, voxels = matrix.shape
    if frequency_selection is None:
        frequency_selection = np.ones((channels, samples // 2 + 1), bool)
        frequency_selection[:, 0] = False
    # Moments of particles square to numbers near the end of float32.
    unit = float(jnp.max(jnp.abs(matrix)))
    if not (math.isfinite(unit) and unit > 0 and voxels == math.prod(grid.shape)):
        raise ValueError(
            f"system_matrix: expected finite numbers, not all 0, for {grid.shape} voxels; "
            f"got shape {matrix.shape} with {unit:g} as the largest"
        )
    spectra = system_matrix.to_frequency(jnp.asarray(matrix) / unit)
    rows = system_matrix.select_rows(spectra, frequency_selection, axis=1)
    return Problem(rows, grid, frequency_selection, unit)


def from_system(system: preprocess.System) -> Problem:
    """The problem of two measured files; its signals are `system.measurement`, weighted
    by `weighted`.
    """
    weights = system.weights
    rows = jnp.asarray(system.system_matrix)
    noise = None if system.noise is None else jnp.asarray(system.noise)
    if weights is not None:
        weights = jnp.asarray(weights, rows.real.dtype)
        rows = weights[:, None] * rows
        noise = None if noise is None else noise * weights
    return Problem(
        rows,
        system.grid,
        system.frequency_selection,
        unit=None,
        noise=noise,
        tracers=system.tracers,
    )


def weighted(system: preprocess.System) -> Complex[Array, "F M"]:
    """The measurement of a system with its row weights, as `from_system` has the rows."""
    data = jnp.asarray(system.measurement)
    if system.weights is None:
        return data
    return jnp.asarray(system.weights, data.real.dtype)[None] * data
