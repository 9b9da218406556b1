"""What the frames of a calibration mean: places, frequencies, mixing orders, SNR."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
from jaxtyping import Complex, Float, Int, Shaped

from mpi_jax.mdf.bulk import (
    Choice,
    blocks,
    bulk,
    choose,
    foreground_frames,
    need,
    result,
    stored_frequencies,
    system_matrix,
)
from mpi_jax.mdf.schema import (
    MDF,
    CalibrationInfo,
    ReconstructionInfo,
    need_acquisition,
    need_calibration,
    need_measurement,
    stored_shape,
)
from mpi_jax.mdf.source import PIECE


def acquisition_order(file: MDF) -> Int[np.ndarray, " N"]:
    """Stored index of each frame in the order of acquisition.

    Examples:
      >>> import numpy as np
      >>> from mpi_jax import mdf, scanner, system_matrix
      >>> s = scanner.paper(2)  # 2 x 2 pixels
      >>> S = system_matrix.to_frequency(system_matrix.simulate(s))  # [C, K, P]
      >>> head = mdf.header(s, calibration=True)
      >>> file_order = np.argsort(mdf.voxel_order(head), axis=None)
      >>> mdf.write_calibration("calibration.mdf", head, np.asarray(S)[None][..., file_order])
      >>> file = mdf.read("calibration.mdf")
      >>> print(mdf.acquisition_order(file))  # stored as acquired
      [0 1 2 3]
    """
    need(file)
    order = need_measurement(file).frame_permutation
    if order is None:
        return np.arange(need_acquisition(file).frames)
    return np.argsort(order)


def correct_background(
    file: MDF, rows: Complex[np.ndarray, "*rows columns"], *, voxels: Choice = None
) -> Complex[np.ndarray, "*rows O"]:
    """Rows [..., O + E] of `system_matrix` -> [..., O] without background.

    Contiguous background scans are averaged, then each voxel loses the background
    interpolated linearly at its time of acquisition, with background scans taken as
    equidistant in time. Returns the foreground as it is where the file says that it is
    corrected already; raises ValueError where there are no background frames.
    voxels: as given to `system_matrix`.

    Examples:
      >>> import dataclasses
      >>> import numpy as np
      >>> from mpi_jax import mdf, scanner
      >>> head = mdf.header(scanner.paper(2), calibration=True)  # 4 voxels
      >>> empty = np.array([True, False, False, False, False, True])  # before and behind
      >>> measured = dataclasses.replace(head.measurement, is_background_frame=empty)
      >>> acquired = dataclasses.replace(head.acquisition, frames=6)
      >>> head = dataclasses.replace(head, measurement=measured, acquisition=acquired)
      >>> drift = np.ones((1, 2, 817, 1)) * np.arange(6.0)  # [J, C, K, N], a background alone
      >>> mdf.write_calibration("drift.mdf", head, drift.astype(np.complex64))
      >>> file = mdf.read("drift.mdf")
      >>> rows = mdf.system_matrix(file)  # [J, M, O + E]
      >>> float(abs(mdf.correct_background(file, rows)).max())
      0.0
    """
    foreground, m = foreground_frames(file), need_measurement(file)
    background = m.background
    chosen = foreground[choose("voxels", voxels, len(foreground))]
    frames, count = need_acquisition(file).frames, len(background)
    width = len(chosen)
    if rows.shape[-1] != width + count:
        raise ValueError(
            f"rows: expected {width} voxels + {count} background frames, got "
            f"{list(rows.shape)}"
        )
    if m.is_background_corrected:
        return rows[..., :width]
    if not count:
        raise ValueError(f"{file.path}: expected background frames, found none")
    acquired = np.empty(frames, np.int64)
    acquired[acquisition_order(file)] = np.arange(frames)
    order = np.argsort(acquired[background])
    scans = rows[..., width:][..., order]
    block = np.flatnonzero(np.diff(acquired[background][order], prepend=-2) > 1)
    length = np.diff(block, append=count)
    means = np.add.reduceat(scans, block, axis=-1) / length.astype(rows.real.dtype)
    scans = np.repeat(means, length, axis=-1)
    place = acquired[chosen] / max(frames - 1, 1) * (count - 1)
    low = np.minimum(place.astype(np.int64), max(count - 2, 0))
    high = np.minimum(low + 1, count - 1)
    weight = (place - low).astype(rows.real.dtype)
    out = np.array(rows[..., :width])
    for row in np.ndindex(rows.shape[:-1]):
        out[row] -= (1 - weight) * scans[row][low] + weight * scans[row][high]
    return out


def _grid_of(file: MDF) -> CalibrationInfo | ReconstructionInfo:
    grid = file.reconstruction if file.calibration is None else file.calibration
    if grid is None or grid.size is None:
        raise ValueError(f"{file.path}: expected a regular grid, found no size")
    return grid


def voxel_order(file: MDF) -> Int[np.ndarray, "nz ny nx"]:
    """Index in the file of each voxel of a volume in our layout, row 0 at the largest y.

    `rows[..., voxel_order(file)]` turns rows [..., O] into volumes [..., nz, ny, nx].

    Examples:
      >>> from mpi_jax import mdf, scanner
      >>> head = mdf.header(scanner.paper(2), calibration=True)
      >>> print(mdf.voxel_order(head))  # files begin with the smallest y
      [[[2 3]
        [0 1]]]
    """
    grid = _grid_of(file)
    # The first letter is the fastest axis, in NumPy the last.
    axes = (grid.order or "xyz")[::-1]
    shape = stored_shape(grid)
    index = np.arange(math.prod(shape)).reshape(shape)
    return index.transpose([axes.index(axis) for axis in "zyx"])[:, ::-1]


def grid(file: MDF, plane: int | None = None) -> Any:
    """mpi_jax.scanner.Grid (nz, ny, nx) of the file, or (ny, nx) of the z plane `plane`.

    Examples:
      >>> from mpi_jax import mdf, scanner
      >>> head = mdf.header(scanner.paper(2), calibration=True)
      >>> mdf.grid(head, plane=0).shape
      (2, 2)
    """
    from mpi_jax import scanner

    header = _grid_of(file)
    if header.size is None or header.field_of_view is None:
        raise ValueError(f"{file.path}: expected a fieldOfView, found none")
    centre = header.field_of_view_centre
    if centre is None:
        centre = np.zeros(3)
    nx, ny, nz = map(int, header.size)
    if plane is None:
        return scanner.Grid((nz, ny, nx), header.field_of_view, centre)
    if not 0 <= plane < nz:
        raise ValueError(f"plane: expected 0 to {nz - 1}, got {plane}")
    thickness = header.field_of_view[2] / nz
    shift = (plane + 0.5 - nz / 2) * thickness
    field_of_view = np.array([*header.field_of_view[:2], thickness])
    return scanner.Grid((ny, nx), field_of_view, centre + np.array([0, 0, shift]))


def images(file: MDF, *, frames: Choice = None) -> Shaped[np.ndarray, "Q S nz ny nx"]:
    """Reconstructed volumes [Q, S, nz, ny, nx] in our layout, row 0 at the largest y.

    Examples:
      >>> import numpy as np
      >>> from mpi_jax import mdf, scanner
      >>> image = np.arange(4.0).reshape(2, 2)
      >>> mdf.write_reconstruction("image.mdf", image, grid=scanner.paper(2).grid)
      >>> print(mdf.images(mdf.read("image.mdf"))[0, 0, 0])
      [[0. 1.]
       [2. 3.]]
    """
    data = need(file, "reconstruction")
    order = voxel_order(dataclasses.replace(file, calibration=None))
    frames = choose("frames", frames, data.shape[0])
    with bulk(file, "reconstruction") as (dataset, _):
        index = [frames, *map(np.arange, data.shape[1:])]
        out = result(file, dataset, [len(i) for i in index], data.dtype)
        for where, values in blocks(dataset, index):
            out[np.ix_(*where)] = values
    return out.transpose(0, 2, 1)[..., order]


def frequencies(file: MDF) -> Float[np.ndarray, " K"]:
    """All V // 2 + 1 frequencies [Hz]; measurement.frequency_selection indexes them.

    Examples:
      >>> from mpi_jax import mdf, scanner
      >>> mdf.frequencies(mdf.header(scanner.paper(2)))[[0, 16, -1]].round().tolist()  # [Hz]
      [0.0, 24510.0, 1250000.0]
    """
    receiver = need_acquisition(file).receiver
    step = 2 * receiver.bandwidth / receiver.samples
    return np.arange(receiver.samples // 2 + 1) * step


def mixing_orders(
    file: MDF, max_order: int
) -> tuple[Int[np.ndarray, "K D"], Int[np.ndarray, " K"]]:
    """Mixing orders m [K, D] of each frequency and their sum |m| [K].

    Frequency index k = sum_d m_d round(base_frequency cycle / divider_d); the lowest sum
    wins, then the larger m_0, m_1, .... 0 and -1 where no |m_d| <= max_order gets there.
    Several frequencies on a drive channel count as several channels.

    Examples:
      >>> from mpi_jax import mdf, scanner
      >>> orders, total = mdf.mixing_orders(mdf.header(scanner.paper(2)), max_order=4)
      >>> print(orders[16], orders[17], orders[33], total[33])  # f_x, f_y, f_x + f_y
      [1 0] [0 1] [1 1] 2
    """
    a = need_acquisition(file)
    count, drive = a.receiver.samples // 2 + 1, a.drive_field
    step = (
        np.rint(drive.base_frequency * drive.cycle / drive.divider).astype(int).ravel()
    )
    if not 0 <= max_order or (2 * max_order + 1) ** len(step) > 10**7:
        raise ValueError(
            f"max_order: expected a number >= 0 with at most 1e7 combinations of "
            f"{len(step)} channels, got {max_order}"
        )
    orders = np.zeros((count, len(step)), np.int64)
    total = np.full(count, -1)
    one = np.arange(max_order, -max_order - 1, -1)
    rest = np.array(list(itertools.product(one, repeat=len(step) - 1)), np.int64)
    below, sums = rest @ step[1:], np.abs(rest).sum(-1)
    for first in one:
        k, total_here = below + first * step[0], sums + abs(first)
        inside = np.flatnonzero((k >= 0) & (k < count))
        # The lowest sum of each k, the earliest of equals.
        inside = inside[np.argsort(total_here[inside], kind="stable")]
        k_new, where = np.unique(k[inside], return_index=True)
        best = inside[where]
        better = (total[k_new] < 0) | (total_here[best] < total[k_new])
        k_new, best = k_new[better], best[better]
        total[k_new] = total_here[best]
        orders[k_new, 0] = first
        orders[k_new, 1:] = rest[best]
    return orders, total


def snr(file: MDF) -> Float[np.ndarray, "J C K"]:
    """Signal-to-noise ratio [J, C, V // 2 + 1] of a calibration, 0 where nothing is stored.

    As stored in the file, or else from its background frames: noise is their mean
    distance from their mean, signal the median distance of voxels near the tracer. Raises
    ValueError where there is neither.

    Examples:
      >>> import dataclasses
      >>> import numpy as np
      >>> from mpi_jax import mdf, scanner
      >>> head = mdf.header(scanner.paper(2), calibration=True)
      >>> stored = dataclasses.replace(head.calibration, snr=np.full((1, 2, 817), 3.0))
      >>> head = dataclasses.replace(head, calibration=stored)
      >>> rows = np.zeros((1, 2, 817, 4), np.complex64)  # [J, C, K, N]
      >>> mdf.write_calibration("calibration.mdf", head, rows)
      >>> mdf.snr(mdf.read("calibration.mdf")).shape  # [J, C, K]
      (1, 2, 817)
    """
    foreground, a = foreground_frames(file), need_acquisition(file)
    m, stored = need_measurement(file), stored_frequencies(file)
    out = np.zeros((a.periods, a.receiver.channels, a.receiver.samples // 2 + 1))
    if (ratio := need_calibration(file).snr) is not None:
        place = stored if m.frequency_selection is None else m.frequency_selection
        out[..., place] = ratio
        return out
    if not len(m.background):
        raise ValueError(
            f"{file.path}: expected an SNR or background frames, found none"
        )
    step = max(1, PIECE // (16 * a.frames))
    count = len(foreground)
    for j, channel in np.ndindex(out.shape[:2]):

        def rows(bins, j=j, channel=channel):
            frequency_selection = np.zeros(out.shape[1:], bool)
            frequency_selection[channel, bins] = True
            S = system_matrix(file, frequency_selection, periods=j)[0]
            return S[:, :count], S[:, count:]

        first, noise = np.empty(len(stored)), np.empty(len(stored))
        for start in range(0, len(stored), step):
            part = slice(start, start + step)
            voxels, empty = rows(stored[part])
            mean = empty.mean(-1, keepdims=True)
            level = np.abs(empty - mean) if len(m.background) > 1 else np.abs(empty)
            noise[part] = level.mean(-1)
            first[part] = np.median(np.abs(voxels - mean), axis=-1)
        best = np.argsort(-_ratio(first, noise), kind="stable")[:20]
        level = np.abs(rows(np.sort(stored[best]))[0])
        mask = np.any(level > 0.9 * level.max(-1, keepdims=True), axis=0)
        for start in range(0, len(stored), step):
            bins = stored[start : start + step]
            voxels, empty = rows(bins)
            level = np.abs(voxels - empty.mean(-1, keepdims=True))
            for k, row, quiet in zip(bins, level, noise[start:], strict=False):
                signal = np.median(row[mask]) if mask.any() else 0.0
                if signal > 3.5 * quiet:
                    signal = np.median(row[row > 0.9 * row.max()])
                out[j, channel, k] = _ratio(signal, quiet)
    return np.tile(np.median(out, axis=0), (a.periods, 1, 1))


def _ratio(signal, noise):
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(np.asarray(signal) / noise, nan=0.0, posinf=np.inf)
