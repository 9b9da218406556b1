"""The system matrix S: from physics, into frequency space, and its product with images.

S [C, V, P] time domain, S^ [C, K, P] its unnormalised rfft over the period, rows [M, P]
what solvers take. u = S c; pixels are flat in the order of `image.reshape(-1)`.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Inexact

from mpi_jax import physics
from mpi_jax.scanner import Scanner


def simulate(scanner: Scanner, model: str = "tensor") -> Float[Array, "C V P"]:
    """System matrix of a simulated calibration, in one jitted pass.

    Written block by block into the result, so that peak memory stays near its size.
    Units: the receiver's, per unit concentration.
    """
    physics.check_model(model)
    return _simulate(scanner, model)


@partial(jax.jit, static_argnames="model")
def _simulate(scanner, model):
    dtype = jnp.result_type(float)
    field, rate = (a.astype(dtype) for a in scanner.drive_field.field())
    starts, length = physics.block_starts(scanner)

    @jax.checkpoint
    def block(start):
        rows = [jax.lax.dynamic_slice_in_dim(a, start, length) for a in (field, rate)]
        return physics.response(scanner, *rows, model)

    def write(matrix, start):
        return jax.lax.dynamic_update_slice_in_dim(
            matrix, block(start), start, axis=1
        ), None

    shape = (scanner.channels, scanner.samples, scanner.grid.size)
    matrix, _ = jax.lax.scan(write, jnp.zeros(shape, dtype), jnp.asarray(starts))
    return matrix


@jax.jit
def forward(
    matrix: Float[Array | np.ndarray, "C V P"],
    concentration: Float[Array | np.ndarray, "*batch_and_grid"],
) -> Float[Array, "*batch C V"]:
    """Voltages [..., C, V] of concentrations [..., ny, nx] (or [..., P]) from a cached S.

    A batch is one matrix product. Raises ValueError where the pixels don't fit S.
    """
    channels, samples, pixels = matrix.shape
    batch, size = concentration.shape, 1
    while size < pixels and batch:
        size *= batch[-1]
        batch = batch[:-1]
    if size != pixels:
        raise ValueError(
            f"concentration: expected trailing axes with {pixels} pixels in all like the "
            f"system matrix, got shape {list(concentration.shape)}"
        )
    images = concentration.reshape(-1, pixels)
    # The transposes stay outside of the product: folded into it, as XLA would do, they
    # make it three times slower on CPU.
    columns = jax.lax.optimization_barrier(images.T)
    u = jnp.matmul(matrix.reshape(-1, pixels), columns, precision="highest")
    u = jax.lax.optimization_barrier(u)
    return u.T.reshape(*batch, channels, samples)


def to_frequency(matrix: Float[Array | np.ndarray, "C V P"]) -> Complex[Array, "C K P"]:
    """Unnormalised rfft of each channel and pixel over the period."""
    return _to_frequency(jnp.asarray(matrix))


@jax.jit
def _to_frequency(matrix):
    # rfft along the last axis is several times faster on CPU than along a middle one.
    spectra = jnp.fft.rfft(matrix.swapaxes(1, 2), axis=-1)
    return spectra.swapaxes(1, 2)


def select_rows(
    spectra: Complex[Array | np.ndarray, "*axes"],
    keep: np.ndarray,
    axis: int = -1,
) -> Inexact[Array, "*rest"]:
    """Rows for a solver: flatten (channel, frequency) at `axis` - 1, `axis` and select.

    keep [C, K] boolean. S^ [C, K, P] with axis=1 gives [M, P]; u^ [..., C, K] with
    axis=-1 gives [..., M]. Both use one row order: frequency fastest, then channel.
    """
    spectra = jnp.asarray(spectra)
    axis = axis % spectra.ndim
    if spectra.shape[axis - 1 : axis + 1] != keep.shape:
        raise ValueError(
            f"keep: expected shape {spectra.shape[axis - 1 : axis + 1]} like the spectra, "
            f"got {keep.shape}"
        )
    if not np.any(keep):
        raise ValueError("keep: expected at least one selected frequency, got none")
    flat = spectra.reshape(
        *spectra.shape[: axis - 1], keep.size, *spectra.shape[axis + 1 :]
    )
    return jnp.take(flat, np.flatnonzero(keep), axis=axis - 1)


def frequency_selection(
    scanner: Scanner, *, min_frequency: float = 0.0, max_frequency: float = np.inf
) -> np.ndarray:
    """Boolean [C, K]: rfft bins from min_frequency to max_frequency [Hz], without DC.

    A periodic signal induces no DC. Raises ValueError where nothing is left.
    """
    f = scanner.frequencies()
    keep = (f >= min_frequency) & (f <= max_frequency) & (f > 0)
    if not keep.any():
        raise ValueError(
            f"min_frequency, max_frequency: expected a band that holds some of the "
            f"frequencies up to {f[-1]:g} Hz, got {min_frequency:g} to {max_frequency:g} Hz"
        )
    return np.tile(keep, (scanner.channels, 1))
