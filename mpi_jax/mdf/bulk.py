"""The bulk data of an MDF file: signals, spectra, system matrix, read in pieces."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Complex, Float, Int

from mpi_jax._linalg import dct
from mpi_jax.mdf.schema import (
    MDF,
    DataInfo,
    need_acquisition,
    need_calibration,
    need_measurement,
    stored_shape,
)
from mpi_jax.mdf.source import EXPANSION, PIECE, SMALL, Source, nbytes, open_hdf5


def need(file: MDF, what: str = "measurement") -> DataInfo:
    """Where the bulk data lie; ValueError where the file has none."""
    data = file.image_data if what == "reconstruction" else file.data
    if data is None or file.path is None:
        raise ValueError(f"{file.path}: expected a file with /{what} data, got none")
    return data


@contextlib.contextmanager
def bulk(file, what="measurement"):
    """The bulk dataset of a file that is still the one whose header was read."""
    data = need(file, what)
    with open_hdf5(file.path) as h5:
        source = Source(h5)
        dataset = source.dataset(data.dataset)
        if dataset is None:
            problem = source.problems[0] if source.problems else "no dataset"
            raise ValueError(f"{file.path}: {data.dataset}: {problem}")
        if dataset.shape != data.shape or dataset.dtype != data.dtype:
            raise ValueError(
                f"{file.path}: {data.dataset}: expected {list(data.shape)} {data.dtype} as "
                f"in the header, found {list(dataset.shape)} {dataset.dtype}"
            )
        indices = None
        compressed = file.measurement and file.measurement.sparsity_transformation
        if what == "measurement" and compressed:
            indices = source.dataset("/measurement/subsamplingIndices")
            if indices is None or indices.shape != data.indices_shape:
                raise ValueError(
                    f"{file.path}: /measurement/subsamplingIndices changed"
                )
        yield dataset, indices


def result(file, dataset, shape, dtype):
    """An array for a result that memory and the file can account for."""
    size = nbytes(shape, np.dtype(dtype))
    stored = dataset.id.get_storage_size()
    memory = math.inf
    if hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    what = f"{file.path}: {dataset.name}"
    if size > memory:
        raise ValueError(
            f"{what}: expected a selection that fits into {memory / 1e9:.1f} GB of memory, "
            f"got {list(shape)}, {size / 1e9:.1f} GB; read it in parts"
        )
    if size > SMALL + 16 * EXPANSION * stored:
        raise ValueError(
            f"{what}: expected data, found {stored} bytes that can't hold {list(shape)}"
        )
    return np.empty(shape, dtype)


def choose(name, choice, count) -> np.ndarray:
    """Indices 0 to count - 1 from None, an index, a slice, a mask or a sequence."""
    if choice is None:
        return np.arange(count)
    if isinstance(choice, slice):
        return np.arange(count)[choice]
    array = np.atleast_1d(np.asarray(choice))
    if array.dtype == bool and array.shape == (count,):
        return np.flatnonzero(array)
    indices = array.ndim == 1 and array.dtype.kind in "iu" and array.size > 0
    if not indices or array.min() < 0 or array.max() >= count:
        raise ValueError(
            f"{name}: expected indices from 0 to {count - 1}, a slice or a mask [{count}], "
            f"got {np.asarray(choice).dtype} {list(np.shape(choice))} {array.ravel()[:4]}"
        )
    return array.astype(np.int64)


class Piece(NamedTuple):
    """What is read at once along an axis: a span that holds positions, and their places."""

    span: slice
    places: np.ndarray  # in the result
    positions: np.ndarray  # in the file

    @property
    def width(self) -> int:
        return self.span.stop - self.span.start


def blocks(dataset, index, whole=()) -> Iterator[tuple[tuple, np.ndarray]]:
    """(where in the result, values) of a selection, in pieces of bounded size.

    index: positions to read along each axis, in any order; whole: axes never cut.
    """
    axes = range(dataset.ndim)
    size = dataset.dtype.itemsize * math.prod(len(index[i]) for i in whole)
    pieces: list[list[Piece]] = [[] for _ in axes]
    for i in reversed(axes):
        order = np.argsort(index[i], kind="stable")
        ascending = np.asarray(index[i])[order]
        chunk = dataset.chunks[i] if dataset.chunks else 1
        # Reading on over a short gap costs less than starting anew.
        gap = 1 + max(chunk - 1, 2**16 // max(size, 1))
        limit = (
            len(ascending) and ascending[-1] + 1
            if i in whole
            else max(1, PIECE // size)
        )
        run = np.cumsum(np.diff(ascending, prepend=ascending[:1]) > gap)
        first = ascending[np.searchsorted(run, run)]
        part = (ascending - first) // max(limit, 1)
        new = np.flatnonzero((np.diff(run) > 0) | (np.diff(part) > 0)) + 1
        pieces[i] = [
            Piece(
                slice(int(ascending[a]), int(ascending[b - 1]) + 1),
                order[a:b],
                ascending[a:b],
            )
            for a, b in itertools.pairwise([0, *new.tolist(), len(ascending)])
        ]
        if i not in whole:
            size *= max(piece.width for piece in pieces[i])
    for parts in itertools.product(*pieces):
        values = dataset[tuple(piece.span for piece in parts)]
        for i, piece in enumerate(parts):
            local = piece.positions - piece.span.start
            if not np.array_equal(local, np.arange(piece.width)):
                values = values.take(local, axis=i)
        yield tuple(piece.places for piece in parts), values


def _gather(dataset, index):
    """A small selection as an array."""
    out = np.empty([len(i) for i in index], dataset.dtype)
    for where, values in blocks(dataset, index):
        out[np.ix_(*where)] = values
    return out


def _fill(file, opened, out, frames, periods, channel, bins, frequency):
    """Read one channel into out [N, J, len(bins)], in the receiver's unit.

    bins: samples, or where `frequency` is set indices of the whole frequency axis.
    """
    dataset, _ = opened
    data, m, receiver = (
        need(file),
        need_measurement(file),
        need_acquisition(file).receiver,
    )
    samples = receiver.samples
    factor, offset = 1.0, 0.0
    if receiver.data_conversion_factor is not None:
        factor, offset = receiver.data_conversion_factor[channel].tolist()
    columns = bins
    if m.frequency_selection is not None:
        column = np.full(samples // 2 + 1, -1)
        column[m.frequency_selection] = np.arange(len(m.frequency_selection))
        columns = column[bins]
        if columns.min() < 0:
            missing = bins[columns < 0][:4].tolist()
            raise ValueError(
                f"{file.path}: expected frequencies among the stored ones, got {missing}"
            )
    if (kind := m.sparsity_transformation) is not None:
        where = (frames, periods, channel, columns)
        _fill_compressed(file, opened, out, kind, *where)
        out *= factor
    else:
        same = frequency == m.is_fourier_transformed
        last = "K" if m.is_fourier_transformed else "V"
        stored = data.shape[data.axes.index(last)]
        index = {"N": frames, "J": periods, "C": np.array([channel])}
        index[last] = columns if same else np.arange(stored)
        whole = [] if same else [data.axes.index(last)]
        selection = [index[axis] for axis in data.axes]
        if data.is_pairs:
            selection.append(np.arange(2))
            whole.append(len(data.axes))
        letters, view = f"NJC{last}", out[:, :, None]
        if "J" not in data.axes:
            letters, view = f"NC{last}", view[:, 0]
        view = view.transpose([letters.index(axis) for axis in data.axes])
        axis = data.axes.index(last)
        for where, values in blocks(dataset, selection, whole):
            places = list(where)
            if data.is_pairs:
                places.pop()
                values = values[..., 0] + 1j * values[..., 1]
            # Converted in double precision, kept in that of the file.
            wide = np.complex128 if values.dtype.kind == "c" else np.float64
            values = values.astype(wide)
            if not same:
                if frequency:
                    values = np.fft.rfft(values, axis=axis)
                else:
                    values = np.fft.irfft(values, samples, axis=axis)
                values = values.take(bins, axis=axis)
                places[axis] = np.arange(len(bins))
            view[_spans(places)] = values * factor + (0 if frequency else offset)
    if frequency and offset:
        out[..., bins == 0] += offset * samples


def _spans(where):
    """Slices where all positions are consecutive, which NumPy copies much faster."""
    if all(np.array_equal(w, np.arange(len(w)) + w[0]) for w in where if len(w)):
        return tuple(slice(int(w[0]), int(w[0]) + len(w)) for w in where)
    return np.ix_(*where)


def _fill_compressed(file, opened, out, kind: str, frames, periods, channel, columns):
    dataset, indices = opened
    m = need_measurement(file)
    foreground, background = len(m.foreground), len(m.background)
    count = dataset.shape[-1] - background
    shape = stored_shape(need_calibration(file))
    step = max(1, PIECE // (16 * (foreground + background)))
    for j, period in enumerate(periods):
        for start in range(0, len(columns), step):
            some = columns[start : start + step]
            index = [np.array([period]), np.array([channel]), some]
            stored = _gather(dataset, [*index, np.arange(dataset.shape[-1])])[0, 0]
            places = (
                _gather(indices, [*index, np.arange(count)])[0, 0].astype(np.int64) - 1
            )
            if places.min() < 0 or places.max() >= foreground:
                raise ValueError(
                    f"{file.path}: /measurement/subsamplingIndices: expected 1 to "
                    f"{foreground}, found {places.min() + 1} to {places.max() + 1}"
                )
            rows = np.zeros((len(some), foreground), np.complex128)
            np.put_along_axis(rows, places, stored[:, :count], axis=1)
            rows = dct(rows.reshape(-1, *shape), kind, inverse=True)
            rows = rows.reshape(len(some), foreground)
            rows = np.concatenate([rows, stored[:, count:]], axis=1)
            out[:, j, start : start + len(some)] = rows[:, frames].T


# An index, a slice, a boolean mask or a sequence of indices; None chooses all.
Choice = int | np.integer | slice | Sequence[int] | np.ndarray | None


def signals(
    file: MDF, *, frames: Choice = None, periods: Choice = None, channels: Choice = None
) -> Float[np.ndarray, "N J C V"]:
    """Time-domain signal [N, J, C, V] in the receiver's unit, as a rule V.

    Frames come as stored (and are chosen by stored index); acquisition order is
    `signals(file, frames=acquisition_order(file))`. float32, or float64 where the file
    holds float64 or 32-bit integers. Raises ValueError where frequencies are missing.

    Examples:
      >>> import numpy as np
      >>> from mpi_jax import mdf, scanner
      >>> s = scanner.paper(2)
      >>> u = np.ones((3, 1, 2, 1632), np.float32)  # [N, J, C, V]
      >>> mdf.write_measurement("measurement.mdf", mdf.header(s, frames=3), u)
      >>> mdf.signals(mdf.read("measurement.mdf"), frames=[0, 2], channels=0).shape
      (2, 1, 1, 1632)
    """
    data = need(file)
    a, m = need_acquisition(file), need_measurement(file)
    if m.frequency_selection is not None:
        raise ValueError(
            f"{file.path}: expected all frequencies for a time signal, found a selection "
            f"of {len(m.frequency_selection)}; use spectra"
        )
    frames = choose("frames", frames, a.frames)
    periods = choose("periods", periods, a.periods)
    channels = choose("channels", channels, a.receiver.channels)
    samples = np.arange(a.receiver.samples)
    with bulk(file) as opened:
        shape = (len(frames), len(periods), len(channels), len(samples))
        out = result(file, opened[0], shape, f"f{_bytes(data)}")
        for i, channel in enumerate(channels):
            part = out[:, :, i]
            if opened[1] is not None:
                part = np.empty(part.shape, np.float64)
                rows = np.empty((*part.shape[:2], len(samples) // 2 + 1), np.complex128)
                bins = np.arange(rows.shape[-1])
                _fill(file, opened, rows, frames, periods, channel, bins, True)
                out[:, :, i] = np.fft.irfft(rows, len(samples))
            else:
                _fill(file, opened, part, frames, periods, channel, samples, False)
    return out


def spectra(
    file: MDF,
    *,
    frequency_selection: Bool[np.ndarray, "C K"] | None = None,
    frames: Choice = None,
    periods: Choice = None,
) -> Complex[np.ndarray, "N J *rows"]:
    """Unnormalised rfft of the signal, [N, J, M] with `frequency_selection`, else [N, J, C, K].

    frequency_selection [C, V // 2 + 1] selects rows, frequency fastest, then channel, as in
    `system_matrix`. Without it K counts the stored frequencies. Frames as in `signals`.

    Examples:
      >>> import numpy as np
      >>> from mpi_jax import mdf, scanner
      >>> s = scanner.paper(2)
      >>> u = np.ones((3, 1, 2, 1632), np.float32)  # [N, J, C, V]
      >>> mdf.write_measurement("measurement.mdf", mdf.header(s, frames=3), u)
      >>> file = mdf.read("measurement.mdf")
      >>> mdf.spectra(file).shape  # [N, J, C, K]
      (3, 1, 2, 817)
      >>> above = np.tile(mdf.frequencies(file) >= 80e3, (2, 1))  # [C, K], from 80 kHz on
      >>> mdf.spectra(file, frequency_selection=above).shape == (3, 1, above.sum())
      True
    """
    need(file)
    a = need_acquisition(file)
    frames = choose("frames", frames, a.frames)
    rows = _rows(file, frequency_selection, frames, periods, (0, 1, 2))
    if frequency_selection is None:
        rows = rows.reshape(*rows.shape[:2], a.receiver.channels, -1)
    return rows


def system_matrix(
    file: MDF,
    frequency_selection: Bool[np.ndarray, "C K"] | None = None,
    *,
    periods: Choice = None,
    voxels: Choice = None,
) -> Complex[np.ndarray, "J M columns"]:
    """Rows of the system matrix [J, M, O + E]: foreground voxels, then background frames.

    frequency_selection [C, V // 2 + 1] selects rows, frequency fastest, then channel; None takes all
    that are stored. voxels: which foreground columns, counted in the file's voxel order
    (`voxel_order(file)[iz].ravel()` is one plane in image layout). Only the selected
    rows and columns are read. Unit: the receiver's times samples, not corrected for
    background (`correct_background`). complex64, or complex128 for double files.

    Examples:
      >>> import numpy as np
      >>> from mpi_jax import mdf, scanner, system_matrix
      >>> s = scanner.paper(2)  # 2 x 2 pixels
      >>> S = system_matrix.to_frequency(system_matrix.simulate(s))  # [C, K, P]
      >>> head = mdf.header(s, calibration=True)
      >>> file_order = np.argsort(mdf.voxel_order(head), axis=None)
      >>> mdf.write_calibration("calibration.mdf", head, np.asarray(S)[None][..., file_order])
      >>> file = mdf.read("calibration.mdf")
      >>> mdf.system_matrix(file).shape  # [J, M, O + E]
      (1, 1634, 4)
    """
    foreground = foreground_frames(file)
    voxels = choose("voxels", voxels, len(foreground))
    background = need_measurement(file).background
    frames = np.concatenate([foreground[voxels], background])
    return _rows(file, frequency_selection, frames, periods, (1, 2, 0))


def _rows(file, frequency_selection, frames, periods, axes):
    """Selected rows with the axes (N, J, M) in memory order `axes`."""
    data = need(file)
    frequency_selection = _keep(file, frequency_selection)
    periods = choose("periods", periods, need_acquisition(file).periods)
    shape = (len(frames), len(periods), int(frequency_selection.sum()))
    with bulk(file) as opened:
        out = result(file, opened[0], [shape[i] for i in axes], f"c{2 * _bytes(data)}")
        view, start = out.transpose(np.argsort(axes)), 0
        for channel in np.flatnonzero(frequency_selection.any(axis=1)):
            bins = np.flatnonzero(frequency_selection[channel])
            part = view[:, :, start : start + len(bins)]
            _fill(file, opened, part, frames, periods, channel, bins, True)
            start += len(bins)
    return out


def _bytes(data):
    """Of a real number: 4, or 8 where the file's numbers don't fit into float32."""
    size = data.dtype.itemsize
    return (
        8
        if size > (8 if data.dtype.kind == "c" else 4)
        or (data.dtype.kind in "iu" and size > 2)
        else 4
    )


def stored_frequencies(file: MDF) -> Int[np.ndarray, " K"]:
    """Indices of the stored frequencies, ascending."""
    selection = need_measurement(file).frequency_selection
    full = need_acquisition(file).receiver.samples // 2 + 1
    return np.arange(full) if selection is None else np.sort(selection)


def _keep(file, frequency_selection):
    receiver = need_acquisition(file).receiver
    shape = (receiver.channels, receiver.samples // 2 + 1)
    stored = np.zeros(shape[1], bool)
    stored[stored_frequencies(file)] = True
    if frequency_selection is None:
        return np.tile(stored, (shape[0], 1))
    frequency_selection = np.asarray(frequency_selection)
    if (
        frequency_selection.shape != shape
        or frequency_selection.dtype != bool
        or not frequency_selection.any()
    ):
        raise ValueError(
            f"frequency_selection: expected a boolean array {list(shape)} with at least "
            f"one row, got {frequency_selection.dtype} {list(frequency_selection.shape)} "
            f"with {np.count_nonzero(frequency_selection)}"
        )
    if np.any(frequency_selection & ~stored):
        lost = np.flatnonzero(np.any(frequency_selection & ~stored, axis=0))[
            :4
        ].tolist()
        raise ValueError(
            f"frequency_selection: expected frequencies stored in {file.path}, got others too: {lost}"
        )
    return frequency_selection


def foreground_frames(file: MDF) -> Int[np.ndarray, " O"]:
    """Stored index of the frame of each voxel, in the file's voxel order."""
    need(file)
    m = need_measurement(file)
    if need_calibration(file).is_meandering_grid and m.frame_permutation is None:
        raise ValueError(
            f"{file.path}: /calibration/isMeanderingGrid: expected 0 for frames stored as "
            "acquired, found 1: the order of the voxels is not known"
        )
    return m.foreground
