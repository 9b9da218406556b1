"""The system matrix S: from physics, into frequency space, and its product with images.

S [C, V, P] time domain, S^ [C, K, P] its unnormalised rfft over the period, rows [M, P]
what solvers take. u = S c; pixels are flat in the order of `image.reshape(-1)`.

Joint problems need no more than stacking what is here:
- Patches: one scanner per offset of the selection field, all on one joint grid; rows
  below each other, `jnp.concatenate([rows_1, rows_2, ...])` [sum M, P], and spectra
  likewise. The offsets are a leaf, so `jax.vmap` over them makes all patches at once.
- Colours: one scanner per tracer; columns beside each other, [M, A * P], and the
  solution [A * P] holds one image a tracer: `c.reshape(A, *grid.shape)`.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Inexact

from mpi_jax import physics
from mpi_jax._checks import (
    check_count,
    check_finite,
    check_signal,
    expect,
)
from mpi_jax._linalg import matmul
from mpi_jax.scanner import Scanner

# Numbers in the signals of the voxels transformed at once: enough to fill the machine,
# few enough to stay in its caches.
_CHUNK = 2**21


def simulate(scanner: Scanner, model: str = "tensor") -> Float[Array, "C V P"]:
    """System matrix of a simulated calibration, in one jitted pass.

    Written block by block into the result, so that peak memory stays near its size.

    Args:
      scanner: one scanner; jax.vmap takes several.
      model: "tensor" or "mpirf".

    Returns:
      S [C, V, P], unit as in the receiver's scaling, per unit concentration.

    Raises:
      ValueError: on another model, and on several scanners in one.

    Examples:
      >>> from mpi_jax import scanner
      >>> simulate(scanner.paper(8)).shape
      (2, 1632, 64)
    """
    physics.check_simulation(scanner, model)
    return _simulate(scanner, model)


@partial(jax.jit, static_argnames="model")
def _simulate(scanner, model):
    dtype = jnp.result_type(float)
    shape = (scanner.channels, scanner.samples, scanner.grid.size)
    empty = jnp.zeros(shape, dtype)
    if physics.filtered(scanner):
        # What follows the coils acts on whole periods: some voxels at a time.
        def columns(pixels):
            spectra = physics.pixel_spectra(scanner, pixels, model)
            return physics.signal(scanner, spectra).transpose(1, 2, 0)

        return _fill(empty, columns, *_chunks(scanner))
    field, rate = (a.astype(dtype) for a in scanner.drive_field.field())
    starts, length = physics.block_starts(scanner)

    @jax.checkpoint
    def block(start):
        rows = [jax.lax.dynamic_slice_in_dim(a, start, length) for a in (field, rate)]
        return physics.response(scanner, rows[0], rows[1], model)

    def write(matrix, start):
        return jax.lax.dynamic_update_slice_in_dim(
            matrix, block(start), start, axis=1
        ), None

    matrix, _ = jax.lax.scan(write, empty, jnp.asarray(starts))
    return matrix


def _chunks(scanner: Scanner, count: int | None = None) -> tuple[np.ndarray, int]:
    """Starts and length of chunks of `count` voxels, all by default.

    The last one is moved back, like physics.block_starts.
    """
    count = count or scanner.grid.size
    per_voxel = scanner.channels * physics.inner(scanner).samples
    length = min(count, max(1, _CHUNK // per_voxel))
    return np.minimum(np.arange(0, count, length), count - length), length


def _fill(matrix, columns, starts, length):
    """matrix [..., P] with `columns(voxels)` [..., length] written chunk by chunk."""
    columns = jax.checkpoint(columns)

    def write(matrix, start):
        part = columns(start + jnp.arange(length))
        return jax.lax.dynamic_update_slice_in_dim(matrix, part, start, axis=-1), None

    return jax.lax.scan(write, matrix, jnp.asarray(starts))[0]


def simulate_rows(
    scanner: Scanner, frequency_selection: np.ndarray, model: str = "tensor"
) -> Complex[Array, "M P"]:
    """Selected rows of S^ without the time-domain matrix in memory.

    Peak memory stays near the result: some voxels at a time are simulated over a whole
    period and transformed.

    Args:
      scanner: one scanner; jax.vmap takes several.
      frequency_selection: boolean [C, K], see `frequency_selection` and `strongest`.
      model: "tensor" or "mpirf".

    Returns:
      [M, P] complex, in the order of `select_rows`; unit as that of S^.

    Raises:
      ValueError: on a selection of another shape or of nothing, on another model, and on
        several scanners in one.

    Examples:
      >>> from mpi_jax import scanner
      >>> s = scanner.paper(8)
      >>> selected = frequency_selection(s, min_frequency=80e3, max_frequency=90e3)
      >>> simulate_rows(s, selected).shape
      (12, 64)
    """
    physics.check_simulation(scanner, model)
    frequency_selection = np.asarray(frequency_selection)
    bins = (scanner.channels, scanner.samples // 2 + 1)
    _check_selection(frequency_selection, bins, "channels and rfft bins of the scanner")
    return _simulate_rows(scanner, np.flatnonzero(frequency_selection), model)


@partial(jax.jit, static_argnames="model")
def _simulate_rows(scanner, index, model):
    def columns(pixels):
        spectra = physics.pixel_spectra(scanner, pixels, model)
        return jnp.take(spectra.reshape(len(pixels), -1), index, axis=1).T

    dtype = jnp.result_type(complex)
    empty = jnp.zeros((len(index), scanner.grid.size), dtype)
    return _fill(empty, columns, *_chunks(scanner))


def row_energies(
    scanner: Scanner, model: str = "tensor", *, stride: int = 1
) -> Float[Array, "C K"]:
    """Mean of |S^|^2 over the voxels, for each channel and frequency.

    Args:
      scanner: one scanner.
      model: "tensor" or "mpirf".
      stride: take every stride-th voxel of each axis only, counted from half a stride,
        an estimate at a fraction of the cost.

    Returns:
      [C, K], unit of u^ squared.

    Raises:
      ValueError: on stride < 1, on another model, and on several scanners in one.

    Examples:
      >>> from mpi_jax import scanner
      >>> row_energies(scanner.paper(8), stride=4).shape
      (2, 817)
    """
    physics.check_simulation(scanner, model)
    stride = check_count("stride", stride)
    index = np.arange(scanner.grid.size).reshape(scanner.grid.shape)
    sampled = tuple(slice(min(stride, n) // 2, None, stride) for n in index.shape)
    return _row_energies(scanner, index[sampled].reshape(-1), model)


@partial(jax.jit, static_argnames="model")
def _row_energies(scanner, voxels, model):
    starts, length = _chunks(scanner, len(voxels))

    @jax.checkpoint
    def energy(start, fresh):
        part = jax.lax.dynamic_slice_in_dim(jnp.asarray(voxels), start, length)
        spectra = physics.pixel_spectra(scanner, part, model)
        # The last chunk repeats some voxels of the one before.
        new = (jnp.arange(length) >= fresh)[:, None, None]
        return jnp.sum(jnp.where(new, spectra.real**2 + spectra.imag**2, 0), axis=0)

    def add(total, start):
        return total + energy(*start), None

    shape = (scanner.channels, scanner.samples // 2 + 1)
    fresh = np.arange(len(starts)) * length - starts
    total, _ = jax.lax.scan(
        add,
        jnp.zeros(shape, jnp.result_type(float)),
        (jnp.asarray(starts), jnp.asarray(fresh)),
    )
    return total / len(voxels)


def strongest(
    energies: Float[Array | np.ndarray, "C K"],
    count: int,
    frequency_selection: np.ndarray | None = None,
) -> np.ndarray:
    """The rows of largest energy.

    Args:
      energies: [C, K], any unit.
      count: how many.
      frequency_selection: boolean [C, K], the rows to choose among; None: all.

    Returns:
      Boolean [C, K].

    Raises:
      ValueError: where there are fewer than that, and on energies that are not finite.

    Examples:
      >>> strongest(np.array([[1.0, 3.0, 2.0]]), 2).tolist()
      [[False, True, True]]
    """
    energies = np.asarray(energies)
    check_signal("energies", energies)
    allowed = (
        np.ones(energies.shape, bool)
        if frequency_selection is None
        else np.asarray(frequency_selection)
    )
    _check_selection(allowed, energies.shape, "the energies")
    count = check_count("count", count)
    most = int(allowed.sum())
    expect(count <= most, "count", f"1 to {most} rows (as many may be kept)", count)
    order = np.argsort(np.where(allowed, -energies, np.inf), axis=None, kind="stable")
    chosen = np.zeros(energies.size, bool)
    chosen[order[:count]] = True
    return chosen.reshape(energies.shape)


def forward(
    matrix: Inexact[Array | np.ndarray, "*rows P"],
    concentration: Float[Array | np.ndarray, "*batch_and_grid"],
) -> Inexact[Array, "*batch_and_rows"]:
    """Signals of concentrations from a cached matrix.

    A batch is one matrix product (for complex rows two, real and imaginary part).

    Args:
      matrix: S [C, V, P] in time, or rows [M, P], complex as they are.
      concentration: [..., ny, nx], [..., nz, ny, nx] or [..., P], real.

    Returns:
      Voltages [..., C, V], or [..., M] from rows; unit of the matrix.

    Raises:
      ValueError: where the pixels don't fit the matrix, and on a concentration that is
        complex, NaN or infinite (where it is concrete).

    Examples:
      >>> forward(np.ones((2, 5, 4)), np.ones((3, 2, 2))).shape
      (3, 2, 5)
    """
    *_, pixels = matrix.shape
    batch, size = concentration.shape, 1
    while size < pixels and batch:
        size *= batch[-1]
        batch = batch[:-1]
    expect(
        size == pixels,
        "concentration",
        f"trailing axes with {pixels} pixels in all like the system matrix",
        f"shape {list(concentration.shape)}",
    )
    check_signal("concentration", concentration)
    return _forward(matrix, jnp.reshape(concentration, (*batch, pixels)))


@jax.jit
def _forward(matrix, concentration):
    *rows, pixels = matrix.shape
    *batch, _ = concentration.shape
    images = concentration.reshape(-1, pixels)
    # The transposes stay outside of the product: folded into it, as XLA would do, they
    # make it three times slower on CPU.
    columns = jax.lax.optimization_barrier(images.T)
    flat = matrix.reshape(-1, pixels)

    if jnp.iscomplexobj(flat):
        u = jax.lax.complex(matmul(flat.real, columns), matmul(flat.imag, columns))
    else:
        u = matmul(flat, columns)
    u = jax.lax.optimization_barrier(u)
    return u.T.reshape(*batch, *rows)


def to_frequency(matrix: Float[Array | np.ndarray, "C V P"]) -> Complex[Array, "C K P"]:
    """Unnormalised rfft of each channel and pixel over the period.

    Args:
      matrix: S [C, V, P].

    Returns:
      S^ [C, K, P], K = V // 2 + 1; unit of S.

    Raises:
      ValueError: on a matrix that is complex, NaN or infinite (where it is concrete).

    Examples:
      >>> to_frequency(np.ones((2, 8, 3))).shape
      (2, 5, 3)
    """
    check_signal("matrix", matrix)
    return _to_frequency(jnp.asarray(matrix))


@jax.jit
def _to_frequency(matrix):
    # rfft along the last axis is several times faster on CPU than along a middle one.
    spectra = jnp.fft.rfft(matrix.swapaxes(1, 2), axis=-1)
    return spectra.swapaxes(1, 2)


def select_rows(
    spectra: Complex[Array | np.ndarray, "*axes"],
    frequency_selection: np.ndarray,
    axis: int = -1,
) -> Inexact[Array, "*rest"]:
    """Rows for a solver: flatten (channel, frequency) at `axis` - 1, `axis` and select.

    S^ [C, K, P] with axis=1 gives [M, P]; u^ [..., C, K] with axis=-1 gives [..., M].
    Both use one row order: frequency fastest, then channel.

    Args:
      spectra: S^ or u^, any unit.
      frequency_selection: boolean [C, K].
      axis: of the frequencies, the channels before it.

    Raises:
      ValueError: on a selection of another shape or of nothing, and on spectra that are
        NaN or infinite (where they are concrete).

    Examples:
      >>> selected = np.array([[False, True, True], [False, False, True]])
      >>> print(select_rows(np.arange(6.0).reshape(2, 3) + 0j, selected).real)
      [1. 2. 5.]
    """
    check_finite("spectra", spectra)
    spectra = jnp.asarray(spectra)
    held = spectra.ndim >= 2 and 1 <= axis % spectra.ndim
    expect(held, "axis", f"1 to {spectra.ndim - 1}, with channels before it", axis)
    axis = axis % spectra.ndim
    _check_selection(
        frequency_selection, spectra.shape[axis - 1 : axis + 1], "the spectra"
    )
    flat = spectra.reshape(
        *spectra.shape[: axis - 1], frequency_selection.size, *spectra.shape[axis + 1 :]
    )
    return jnp.take(flat, np.flatnonzero(frequency_selection), axis=axis - 1)


def _check_selection(
    frequency_selection: np.ndarray, shape: tuple[int, ...], like: str
) -> None:
    name, selected = "frequency_selection", frequency_selection
    expect(
        selected.shape == tuple(shape) and selected.dtype == bool,
        name,
        f"shape {tuple(shape)} like {like}, boolean",
        f"{selected.shape}, {selected.dtype}",
    )
    expect(np.any(selected), name, "at least one selected frequency", "none")


def frequency_selection(
    scanner: Scanner, *, min_frequency: float = 0.0, max_frequency: float = np.inf
) -> np.ndarray:
    """Which frequencies of all channels lie in a band, without DC.

    A periodic signal induces no DC.

    Args:
      scanner: whose channels and rfft bins they are.
      min_frequency, max_frequency: ends of the band, both in it [Hz].

    Returns:
      Boolean [C, K].

    Raises:
      ValueError: where nothing is left.

    Examples:
      >>> from mpi_jax import scanner
      >>> selected = frequency_selection(scanner.paper(8), min_frequency=80e3)
      >>> selected.shape, int(selected.sum())
      ((2, 817), 1528)
    """
    f = scanner.frequencies()
    selected = (f >= min_frequency) & (f <= max_frequency) & (f > 0)
    expect(
        selected.any(),
        "min_frequency, max_frequency",
        f"a band that holds some of the frequencies up to {f[-1]:g} Hz",
        f"{min_frequency:g} to {max_frequency:g} Hz",
    )
    return np.tile(selected, (scanner.channels, 1))
