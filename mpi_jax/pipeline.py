"""From two MDF files to an image: choose rows, clean both files alike, solve.

    calibration -+
                 +-> compatible? -> `prepare` -> System(rows, data, grid) -> `reconstruct`
    measurement -+

Symbols: C receive channels, K frequencies of one period, M selected rows, P voxels, F
frames, A tracers. Rows are in the order frequency fastest, then channel, then patch;
voxels in that of `image.reshape(-1)`. Units: rows and data share one arbitrary factor, so
that c is in units of the calibration's delta sample: 1 means one delta sample in every
voxel of the calibration's grid, also on other grids, where it means the same
concentration.

The steps and their defaults follow MPIReco.jl (Knopp et al. 2019, JuliaImageRecon);
departures: no default for transfer functions, no silent change of frames, no mean over
different patches, measured background interpolated at the true times of the frames,
leakage windows that never span different patches or foreground and background, and
options that contradict each other are errors.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Complex, Float

from mpi_jax import mdf
from mpi_jax.configs import Preprocessing
from mpi_jax.reconstruct import iterative, kaczmarz, variational
from mpi_jax.scanner import Grid

_PIECE = 2**26  # bytes of spectra read at a time
_JOINT = 6e9  # bytes of the largest joint system of patches
_NEAR = 1e-9  # [T] offset fields that differ by less are one patch


@dataclasses.dataclass(frozen=True)
class System:
    """A linear system rows @ c = data for each frame, ready for a solver.

    keep [C, K]: the selected rows of one patch; weights [M] or None: not yet applied;
    notes: what a reader should know about how it came to be; noise [M] or None: standard
    deviation of the data from background frames; tracers A or None: columns are the
    voxels of one tracer after the other, None is one and images have no axis for it.
    """

    rows: Complex[Array | np.ndarray, "M P"]
    data: Complex[Array | np.ndarray, "F M"]
    weights: Float[Array | np.ndarray, " M"] | None
    keep: Bool[np.ndarray, "C K"]
    grid: Grid
    notes: tuple[str, ...] = ()
    noise: Float[Array | np.ndarray, " M"] | None = None
    tracers: int | None = None


_PLAIN = Preprocessing()


def prepare(
    calibration: mdf.MDF | Sequence[mdf.MDF],
    measurement: mdf.MDF | None,
    settings: Preprocessing = _PLAIN,
    background: mdf.MDF | None = None,
) -> System:
    """The linear system of two files; only the selected rows are read.

    calibration: several files, of different tracers on one grid, make a system for an
    image of each tracer, of the rows that are selected in all of them. background: the
    file of settings.background "external". measurement None: the rows as any measurement
    finds them, without weights, and data of no frames. Raises ValueError where the files don't fit
    together (`mdf.compatible`), where an option needs what they lack, and where nothing
    is left.
    """
    if (settings.background == "external") != (background is not None):
        raise ValueError(
            "background: expected a file with settings.background 'external' and none "
            f"otherwise, got {settings.background!r} and "
            f"{'none' if background is None else background.path}"
        )
    several = not isinstance(calibration, mdf.MDF)
    calibrations = list(calibration) if several else [calibration]
    if not calibrations:
        raise ValueError("calibration: expected at least one file, got none")
    others = [file for file in (measurement, background) if file is not None]
    for file, other in itertools.product(calibrations, others):
        _check_fit(file, other, settings)
    keep = np.logical_and.reduce([select(file, settings) for file in calibrations])
    if not keep.any():
        raise ValueError("calibration: expected rows selected in all files, got none")
    factors = _transfer(calibrations, others, keep, settings)

    notes: list[str] = []
    parts = [_matrix(file, keep, settings, notes) for file in calibrations]
    for (part, grid), factor in zip(parts, factors, strict=False):
        if not _same_grid(grid, parts[0][1]):
            raise ValueError(
                f"calibration: expected files on one grid, got {parts[0][1]} and {grid}"
            )
        np.divide(part, factor[:, None], out=part, casting="same_kind")
    rows, grid = parts[0]
    if several:
        rows = np.concatenate([part for part, _ in parts], axis=1)
    if measurement is None:
        return _rows_alone(rows, keep, grid, settings, notes, len(parts) * several)
    del parts

    data, scans, level, offsets = _measured(
        measurement, background, keep, factors[len(calibrations) :], settings, notes
    )
    patches = 1
    if offsets is not None:
        shifts = _shifts(calibrations, offsets)
        if np.ptp(offsets, axis=0).max() > _NEAR:
            patches = len(offsets)
        else:
            shifts = shifts[:1]
        rows, grid = _patches(rows, grid, shifts)
    # Patches are more rows, other groups of periods are more frames.
    data = data.reshape(-1, patches * keep.sum())
    noise = None
    if level is not None:
        level = level if patches > 1 else level.mean(0)
        noise = level.reshape(-1) / np.sqrt(settings.frame_average)

    # Squares of induced voltages leave the range of float32.
    scale = np.abs(rows).max()
    if not (np.isfinite(scale) and scale > 0 and np.isfinite(data).all()):
        raise ValueError(
            "rows: expected finite numbers, not all of them 0, in the selected rows of "
            f"the files; got {scale:g} as the largest of the calibration"
        )
    dtype = jax.dtypes.canonicalize_dtype(np.complex128)
    rows /= scale
    rows, data = rows.astype(dtype, copy=False), (data / scale).astype(dtype)
    noise = None if noise is None else noise / scale
    weights = _weights(rows, noise, keep, settings)
    joint = settings.joint_background
    if joint and not measurement.measurement.is_background_corrected:
        empty = (scans / scale).reshape(-1, data.shape[-1]).astype(dtype)
        if len(empty) < joint:
            raise ValueError(
                f"joint_background: expected at most {len(empty)}, the background frames "
                f"of {measurement.path}, got {joint}"
            )
        if weights is not None:
            rows, data, empty = weights[:, None] * rows, weights * data, weights * empty
            noise, weights = None if noise is None else noise * weights, None
        vectors = iterative.background_dictionary(empty, joint)
        penalty = settings.background_penalty
        rows, data = iterative.eliminate_background(rows, data, vectors, penalty)
    tracers = len(calibrations) if several else None
    return System(rows, data, weights, keep, grid, tuple(notes), noise, tracers)


def _rows_alone(rows, keep, grid, settings, notes, tracers):
    needing = ("background", "joint_background", "whitening", "row_norm")
    for name in (*needing, "channel_weights"):
        if getattr(settings, name) != getattr(_PLAIN, name):
            raise ValueError(f"{name}: expected a measurement to use it on")
    scale = np.abs(rows).max()
    if not (np.isfinite(scale) and scale > 0):
        raise ValueError(
            "rows: expected finite numbers, not all of them 0, in the selected rows; got "
            f"{scale:g} as the largest of the calibration"
        )
    dtype = jax.dtypes.canonicalize_dtype(np.complex128)
    rows, nothing = (rows / scale).astype(dtype), np.zeros((0, len(rows)), dtype)
    return System(
        rows, nothing, None, keep, grid, tuple(notes), tracers=tracers or None
    )


def _check_fit(calibration, other, settings):
    differing = [
        text
        for text in mdf.compatible(calibration, other, settings.period_grouping)
        if text.split(":")[0] not in settings.tolerate
    ]
    if differing:
        raise ValueError(
            f"{calibration.path} doesn't fit {other.path}: {'; '.join(differing)}"
        )


def _same_grid(one, two):
    return one.shape == two.shape and all(
        np.allclose(getattr(one, name), getattr(two, name), rtol=1e-6, atol=1e-9)
        for name in ("field_of_view", "centre")
    )


# --- Which rows


def select(calibration: mdf.MDF, settings: Preprocessing) -> Bool[np.ndarray, "C K"]:
    """Rows [C, V // 2 + 1] of a calibration that the settings leave in."""
    frequency = mdf.frequencies(calibration)
    channels = calibration.acquisition.receiver.channels
    band = (frequency >= settings.min_frequency) & (frequency <= settings.max_frequency)
    for low, high in settings.stop_bands:
        band &= (frequency < low) | (frequency > high)
    if settings.sidebands is not None:
        beside = np.arange(len(band)) % settings.period_grouping
        band &= (
            np.minimum(beside, settings.period_grouping - beside) <= settings.sidebands
        )
    stored = calibration.measurement and calibration.measurement.frequency_selection
    if stored is not None:
        band &= np.isin(np.arange(len(band)), stored)
    if settings.max_mixing_order:
        _, order = mdf.mixing_orders(calibration, settings.max_mixing_order)
        band &= (order >= 0) & (order <= settings.max_mixing_order)
    keep = np.tile(band, (channels, 1))
    if settings.channels:
        if max(settings.channels) >= channels:
            raise ValueError(
                f"channels: expected numbers from 0 to {channels - 1}, got "
                f"{settings.channels}"
            )
        keep[np.setdiff1d(np.arange(channels), settings.channels)] = False
    highest = ""
    if keep.any() and (settings.snr_threshold or settings.num_rows):
        ratio = mdf.snr(calibration)[0]
        if settings.snr_threshold:
            highest = f" (the highest is {ratio[keep].max():.3g})"
            keep &= ratio >= settings.snr_threshold
        elif settings.num_rows < keep.sum():
            ranked = np.where(keep, ratio, -1).reshape(-1)
            best = np.argsort(-ranked, kind="stable")[: settings.num_rows]
            keep = np.isin(np.arange(keep.size), best).reshape(keep.shape)
    if not keep.any():
        raise ValueError(
            f"{calibration.path}: the frequency selection leaves no rows: "
            f"{settings.min_frequency:g} to {settings.max_frequency:g} Hz, "
            f"channels {settings.channels or 'all'}, "
            f"SNR from {settings.snr_threshold:g}{highest}, "
            f"mixing order to {settings.max_mixing_order or 'any'}"
        )
    return keep


def _transfer(calibrations, others, keep, settings):
    """What the selected rows of each file are divided by, [M] each."""
    files = [*calibrations, *others]
    unchanged = np.ones(keep.sum())
    open_ones = [f for f in files if not f.measurement.is_transfer_function_corrected]
    having = [
        f for f in open_ones if f.acquisition.receiver.transfer_function is not None
    ]
    if having and settings.transfer_function is None:
        raise ValueError(
            "transfer_function: expected a choice, True or False, because of the one in "
            f"{', '.join(dict.fromkeys(str(f.path) for f in having))}"
        )
    if not settings.transfer_function:
        return [unchanged] * len(files)
    factors = []
    for file in files:
        function = file.acquisition.receiver.transfer_function
        if file.measurement.is_transfer_function_corrected:
            factors.append(unchanged)
            continue
        if function is None:
            raise ValueError(
                f"transfer_function: expected one in {file.path}, which is not corrected, "
                "got none"
            )
        if settings.period_grouping > 1 and any(file is one for one in others):
            raise ValueError(
                f"transfer_function: expected {file.path} to be corrected already, for its "
                "transfer function is not known at the frequencies of period_grouping"
            )
        if function.shape[1] != keep.shape[1]:  # of the stored frequencies only
            full = np.ones(keep.shape, complex)
            full[:, file.measurement.frequency_selection] = function
            function = full
        factor = function[keep]
        if not (np.isfinite(factor).all() and np.all(factor != 0)):
            raise ValueError(
                f"transfer_function: expected finite numbers other than 0 in the selected "
                f"rows of {file.path}; select others (min_frequency, stop_bands)"
            )
        factors.append(factor)
    return factors


# --- The system matrix


def _matrix(calibration, keep, settings, notes):
    """Rows [M, P] in image layout and their grid."""
    order = mdf.voxel_order(calibration)
    if settings.plane is not None:
        slab = settings.slab
        if not slab <= settings.plane < len(order) - slab:
            raise ValueError(
                f"plane: expected {slab} to {len(order) - 1 - slab}"
                f"{f' with slab {slab}' if slab else ''}, got {settings.plane}"
            )
        order = order[settings.plane - slab : settings.plane + slab + 1]
    grid = mdf.grid(calibration, settings.plane)
    if settings.slab:
        extent = np.array([1, 1, len(order)]) * grid.field_of_view
        grid = dataclasses.replace(grid, field_of_view=extent)
    if settings.plane is None and len(order) == 1:  # an image
        order, grid = order[0], dataclasses.replace(grid, shape=grid.shape[1:])
    if len(np.unique(_places(calibration))) > 1:
        raise ValueError(
            f"{calibration.path}: expected a calibration with one offset field, found several"
        )
    voxels = order.reshape(-1)
    wanted = np.sort(voxels)
    rows = mdf.system_matrix(calibration, keep, voxels=wanted)
    info = calibration.measurement
    kept = len(info.background) and not info.is_background_corrected
    if settings.matrix_background == "none":
        if kept:
            notes.append(
                "the system matrix keeps its background (matrix_background none)"
            )
        rows = rows[..., : len(wanted)]
    elif settings.matrix_background == "mean" and kept:
        empty = rows[..., len(wanted) :].mean(-1, keepdims=True)
        rows = rows[..., : len(wanted)] - empty
    else:  # as it is where the file says so, an error without background frames
        rows = mdf.correct_background(calibration, rows, voxels=wanted)
    rows = rows.mean(0)[:, np.searchsorted(wanted, voxels)]
    if settings.plane is not None:
        rows = rows.reshape(len(rows), len(order), -1).sum(1)
    if settings.shape:
        rows, grid = _regrid(rows, grid, settings)
    if settings.sparse_reduction or settings.sparse_threshold:
        rows = _sparse(rows, grid, settings)
    return rows, grid


def _sparse(rows, grid, settings):
    """Rows of which only the largest coefficients of a cosine transform are left."""
    coefficients = mdf.dct(rows.reshape(-1, *grid.shape), "DCT-II").reshape(rows.shape)
    size = np.abs(coefficients)
    if settings.sparse_threshold:
        least = settings.sparse_threshold * size.max(axis=1, keepdims=True)
    else:
        left = int(settings.sparse_reduction * rows.shape[1])
        if not left:
            raise ValueError(
                f"sparse_reduction: expected at least {1 / rows.shape[1]:.2g}, one of "
                f"{rows.shape[1]} coefficients, got {settings.sparse_reduction}"
            )
        least = np.sort(size, axis=1)[:, -left, None]
    coefficients = np.where(size >= least, coefficients, 0)
    back = mdf.dct(coefficients.reshape(-1, *grid.shape), "DCT-II", inverse=True)
    return back.reshape(rows.shape).astype(rows.dtype, copy=False)


def _regrid(rows, grid, settings):
    """Rows interpolated linearly to another grid about the same centre."""
    if len(settings.shape) != len(grid.shape):
        raise ValueError(
            f"shape: expected {len(grid.shape)} numbers like the calibration's "
            f"{grid.shape}, got {settings.shape}"
        )
    extent = np.array(settings.field_of_view or grid.field_of_view, float)
    new = Grid(settings.shape, extent, grid.centre)
    matrices = map(_interpolation, _axes(new), _axes(grid))
    # The same concentration is less tracer in a smaller voxel.
    ratio = np.prod(extent / new.counts) / np.prod(grid.field_of_view / grid.counts)
    return _resample(rows, grid, matrices) * rows.real.dtype.type(ratio), new


def _axes(grid):
    """Voxel centres along each axis of an image or volume [m], in double precision."""
    x, y, z = (
        centre + (np.arange(n) + 0.5 - n / 2) * extent / n
        for n, extent, centre in zip(
            grid.counts,
            np.asarray(grid.field_of_view, float),
            np.asarray(grid.centre, float),
            strict=True,
        )
    )
    return (z, y[::-1], x)[-len(grid.shape) :]


def _interpolation(at, old):
    """Matrix [at, old] of linear inter- and extrapolation on an even grid."""
    if len(old) == 1:
        return np.ones((len(at), 1))
    place = (at - old[0]) / (old[1] - old[0])
    low = np.clip(np.floor(place).astype(int), 0, len(old) - 2)
    matrix = np.zeros((len(at), len(old)))
    rows = np.arange(len(at))
    matrix[rows, low], matrix[rows, low + 1] = 1 - (place - low), place - low
    return matrix


def _resample(rows, grid, matrices):
    """Rows [M, P] with a matrix [new, old] applied along each axis of the grid."""
    volume = rows.reshape(-1, *grid.shape)
    for axis, matrix in enumerate(matrices, 1):
        matrix = matrix.astype(rows.real.dtype)
        volume = np.moveaxis(np.tensordot(volume, matrix, (axis, 1)), -1, axis)
    return volume.reshape(len(rows), -1)


def _shifts(calibrations, offsets):
    """Way of the field-free point from the calibration to each patch [patches, 3] m."""
    acquisition = calibrations[0].acquisition
    own = [file.acquisition.offset_field for file in calibrations]
    own = [np.zeros(3) if field is None else field[0, 0] for field in own]
    if np.ptp(own, axis=0).max() > _NEAR:
        raise ValueError(
            f"calibration: expected files with one offset field, got {own} T"
        )
    change = offsets - own[0]
    if np.abs(change).max() <= _NEAR:
        return np.zeros_like(change)
    gradient = acquisition.gradient
    if gradient is None or np.linalg.matrix_rank(gradient[0, 0]) < 3:
        raise ValueError(
            f"{calibrations[0].path}: expected a gradient of full rank to place patches of "
            f"other offset fields, found {'none' if gradient is None else gradient[0, 0]}"
        )
    return -np.linalg.solve(gradient[0, 0], change.T).T


def _patches(rows, grid, shifts):
    """Rows [patches * M, P] on one grid that covers all patches.

    A patch is the calibration's field of view, shifted; its voxels take the joint grid's
    values by linear interpolation, which is exact for shifts by whole voxels.
    """
    axes = len(grid.shape)
    pitch, counts = np.asarray(grid.field_of_view) / grid.counts, np.array(grid.counts)
    span = np.ptp(shifts, axis=0) / pitch
    if axes == 2 and span[2] > 1e-3:
        raise ValueError(
            "plane: expected None, and a calibration of a volume, for patches that differ "
            "in z; or choose one patch with periods"
        )
    extra = np.ceil(span - 1e-3).astype(int)
    start, joint_counts = shifts.min(0), counts + extra
    shape = tuple(int(n) for n in joint_counts[::-1])[-axes:]
    centre = np.asarray(grid.centre) + start + extra * pitch / 2
    joint = Grid(shape, joint_counts * pitch, centre)
    if len(shifts) == 1:
        return rows, joint
    columns = rows.shape[1] // grid.size * joint.size
    size = len(shifts) * len(rows) * columns * rows.itemsize
    if size > _JOINT:
        raise ValueError(
            f"patches: expected a joint system of at most {_JOINT / 1e9:g} GB; "
            f"{len(shifts)} patches of {len(rows)} rows on {list(shape)} voxels need "
            f"{size / 1e9:.1f}; select fewer rows (snr_threshold, num_rows) or patches "
            "(periods)"
        )
    made = np.empty((len(shifts), len(rows), columns), rows.dtype)
    for patch, shift in zip(made, shifts, strict=True):
        moved = dataclasses.replace(grid, centre=np.asarray(grid.centre) + shift)
        spread = map(_interpolation, _axes(moved), _axes(joint))
        patch[:] = _resample(rows, grid, (matrix.T for matrix in spread))
    return made.reshape(-1, columns), joint


# --- The measurement


def _measured(measurement, background, keep, factors, settings, notes):
    """Spectra [F, groups, M], empty ones [E, groups, M] or None, the noise of a frame
    [groups, M] or None, offset fields or None.

    factors: what the rows of the measurement and of the background file are divided by.
    """
    info = measurement.measurement
    foreground, empty = info.foreground, info.background
    if not len(foreground):
        raise ValueError(f"{measurement.path}: expected foreground frames, found none")
    if settings.frames:
        if max(settings.frames) >= len(foreground):
            raise ValueError(
                f"frames: expected numbers from 0 to {len(foreground) - 1}, the "
                f"foreground of {measurement.path}, got {settings.frames}"
            )
        foreground = foreground[list(settings.frames)]
    groups, offsets = _periods(measurement, settings)
    if settings.spectral_leakage and info.is_spectral_leakage_corrected:
        notes.append("the measurement was corrected for spectral leakage already")
    data = _spectra(measurement, keep, foreground, groups, settings)[0] / factors[0]

    scans = None
    if background is not None:
        other, moved = _periods(background, settings)
        if len(other) != len(groups):
            raise ValueError(
                f"{background.path}: expected {len(groups)} groups of periods like the "
                f"measurement, found {len(other)}"
            )
        both = len(groups) > 1 and offsets is not None and moved is not None
        if both and np.abs(offsets - moved).max() > _NEAR:
            raise ValueError(
                f"{background.path}: expected the offset fields of the measurement in its "
                "order, found others"
            )
        every = np.arange(background.acquisition.frames)
        scans, level = _spectra(background, keep, every, other, settings)
        scans, level = scans / factors[1], level / np.abs(factors[1])
    elif len(empty) and (
        settings.background != "none" or settings.whitening or settings.joint_background
    ):
        scans, level = _spectra(measurement, keep, empty, groups, settings)
        scans, level = scans / factors[0], level / np.abs(factors[0])
    if settings.background == "none" and not settings.joint_background:
        if len(empty) and not info.is_background_corrected:
            notes.append("the measurement keeps its background (background none)")
    elif info.is_background_corrected:
        notes.append("the measurement was corrected for background already")
    elif scans is None:
        raise ValueError(f"{measurement.path}: expected background frames, found none")
    elif settings.background == "interpolated":
        data = data - _between(measurement, foreground, scans)
    elif not settings.joint_background:
        data = data - scans.mean(0)
    noise = None
    if scans is not None and len(scans) > 1:
        noise = scans.std(axis=0)
    elif scans is not None and np.isfinite(level).all():
        noise = level[0]
    if settings.whitening and noise is None:
        raise ValueError(
            "whitening: expected at least 2 background frames, found "
            f"{0 if scans is None else len(scans)} (one of several periods that are "
            "averaged does, too)"
        )
    size = settings.frame_average
    if len(data) % size and not settings.allow_short:
        raise ValueError(
            f"frame_average: expected a divisor of {len(data)} frames, got {size} "
            "(or allow_short)"
        )
    data = np.stack([data[i : i + size].mean(0) for i in range(0, len(data), size)])
    return data, scans, noise, offsets


def _places(file):
    """A number for the offset field of each period [J], the same for the same field."""
    offset = file.acquisition.offset_field
    if offset is None:
        return np.zeros(file.acquisition.periods, int)
    if offset.shape[1] > 1:
        raise ValueError(
            f"{file.path}: expected one partition of the selection field, found "
            f"{offset.shape[1]}"
        )
    near = np.rint(offset[:, 0] / _NEAR)
    return np.unique(near, axis=0, return_inverse=True)[1].reshape(-1)


def _periods(file, settings):
    """Groups of periods that are averaged, and their offset fields [groups, 3] or None."""
    total, place = file.acquisition.periods, _places(file)
    first, behind = settings.periods or (0, total)
    if behind > total:
        raise ValueError(
            f"periods: expected (first, behind the last) up to {total} in {file.path}, "
            f"got {behind}"
        )
    every, long = np.arange(first, behind), settings.period_grouping
    size = settings.period_average * long
    if not size:
        numbers = dict.fromkeys(place[every].tolist())
        groups = [every[place[every] == number] for number in numbers]
    elif len(every) % size and not settings.allow_short:
        raise ValueError(
            f"period_average: expected a divisor of {len(every) // long} periods, got "
            f"{settings.period_average} (or allow_short)"
        )
    else:
        groups = [every[i : i + size] for i in range(0, len(every), size)]
    for group in groups:
        if np.ptp(place[group]) > 0:
            raise ValueError(
                "period_average: expected periods of one offset field each, got "
                f"different ones in {group[0]} to {group[-1]}; 0 averages patch by patch"
            )
        if len(group) % long or np.any(np.diff(group.reshape(-1, long)) != 1):
            raise ValueError(
                f"period_grouping: expected groups of {long} successive periods of one "
                f"offset field, got {len(group)} periods from {group[0]} to {group[-1]}"
            )
    offset = file.acquisition.offset_field
    starts = [group[0] for group in groups]
    return groups, None if offset is None else offset[starts, 0]


def _spectra(file, keep, frames, groups, settings):
    """Means over groups of periods of selected rows and their standard deviations from
    the scatter of these periods (NaN for one), [frames, groups, M] each.
    """
    info, receiver = file.measurement, file.acquisition.receiver
    clean = settings.spectral_leakage and not info.is_spectral_leakage_corrected
    if clean and info.is_fourier_transformed:
        raise ValueError(
            f"spectral_leakage: expected a time signal in {file.path}, found spectra"
        )
    out = np.zeros((len(frames), len(groups), int(keep.sum())), np.complex128)
    square = np.zeros(out.shape)
    long = settings.period_grouping
    step = long * max(1, _PIECE // (16 * receiver.channels * receiver.samples * long))
    for i, j in np.ndindex(out.shape[:2]):
        group, first = groups[j], None
        for start in range(0, len(group), step):
            some = group[start : start + step]
            if clean:
                part = _cleaned(file, keep, frames[i], some)
            elif long > 1:
                u = mdf.signals(file, frames=frames[i], periods=some)[0]
                u = u.reshape(-1, long, *u.shape[1:]).swapaxes(1, 2)
                part = np.fft.rfft(u.reshape(*u.shape[:2], -1))[:, keep]
            else:
                part = mdf.spectra(file, keep=keep, frames=frames[i], periods=some)[0]
            # About the first period: signals are far larger than their scatter.
            first = part[0] if first is None else first
            part = part - first
            out[i, j] += part.sum(0, dtype=np.complex128)
            square[i, j] += np.square(np.abs(part)).sum(0, dtype=np.float64)
        count = len(group) // long
        out[i, j] /= count
        square[i, j] = square[i, j] / count - np.square(np.abs(out[i, j]))
        square[i, j] = (
            np.maximum(square[i, j], 0) / (count - 1) if count > 1 else np.nan
        )
        out[i, j] += first
    return out, np.sqrt(square)


def _cleaned(file, keep, frame, periods):
    """Spectra [periods, M] of a frame without spectral leakage.

    The neighbours of a period are those of the same frame and offset field; in files of
    one period a frame, the frames acquired before and after it, if these are foreground
    or background like it.
    """
    if file.acquisition.periods == 1:
        order, empty = mdf.acquisition_order(file), file.measurement.is_background_frame
        at = int(np.flatnonzero(order == frame)[0])
        near = order[max(at - 1, 0) : at + 2]
        near = near[empty[near] == empty[frame]]
        u = spectral_leakage(mdf.signals(file, frames=near)[:, 0])[near == frame]
        return np.fft.rfft(u)[:, keep]
    place, parts = _places(file), []
    for run in np.split(periods, np.flatnonzero(np.diff(periods) > 1) + 1):
        near = np.arange(max(run[0] - 1, 0), min(run[-1] + 2, len(place)))
        near = near[place[near] == place[run[0]]]
        u = spectral_leakage(mdf.signals(file, frames=frame, periods=near)[0])
        parts.append(np.fft.rfft(u[np.isin(near, run)])[:, keep])
    return np.concatenate(parts)


def spectral_leakage(u: Float[np.ndarray, "N C V"]) -> Float[np.ndarray, "N C V"]:
    """Successive periods, each with its neighbours under one smooth window.

    Signals that are not periodic in V (drift, other drive fields) leak into all
    frequencies; periodic ones stay as they are. The window is a Hann window of three
    periods, of two at both ends. Raises ValueError for fewer than 2 periods.
    """
    count, samples = len(u), u.shape[-1]
    if count < 2:
        raise ValueError(
            "spectral_leakage: expected at least 2 successive periods, or frames of one "
            "period, of one offset field and kind; got 1"
        )

    def window(periods):
        m = periods * samples
        wave = 1 - np.cos(2 * np.pi * np.arange(m) / (m - 1))
        return wave.reshape(periods, samples) * m / (m - 1)

    three, two = window(3)[:, None, None], window(2)[:, None]
    out = np.empty(u.shape, np.result_type(u, np.float64))
    out[1:-1] = (u[:-2] * three[0] + u[1:-1] * three[1] + u[2:] * three[2]) / 3
    for end, pair in ((0, u[:2]), (-1, u[-2:])):
        out[end] = (pair[0] * two[0] + pair[1] * two[1]) / 2
    return out


def _between(file, foreground, scans):
    """Background at the time of each foreground frame, linear between the scans."""
    empty = file.measurement.background
    acquired = np.argsort(mdf.acquisition_order(file))
    order = np.argsort(acquired[empty])
    times, scans = acquired[empty][order], scans[order]
    # Scans in a row are one scan at their mean time.
    block = np.cumsum(np.diff(times, prepend=times[:1]) > 1)
    number = np.arange(block[-1] + 1)
    times = np.array([times[block == b].mean() for b in number])
    scans = np.stack([scans[block == b].mean(0) for b in number])
    weight = [np.interp(acquired[foreground], times, e) for e in np.eye(len(number))]
    return np.tensordot(np.array(weight), scans, (0, 0))


def _weights(rows, noise, keep, settings):
    """Product of the weights in use, [M] or None."""
    factors = []
    if settings.channel_weights:
        if len(settings.channel_weights) != len(keep):
            raise ValueError(
                f"channel_weights: expected {len(keep)} numbers, one for each receive "
                f"channel, got {len(settings.channel_weights)}"
            )
        weights = np.array(settings.channel_weights)[np.nonzero(keep)[0]]
        if not weights.any():
            raise ValueError(
                "channel_weights: expected one > 0 for a channel in use, got "
                f"{settings.channel_weights}"
            )
        factors.append(np.tile(weights, len(rows) // len(weights)))
    if settings.whitening:
        if not noise.min() > 0:
            raise ValueError(
                "whitening: expected noise in every row, found none in some"
            )
        factors.append(noise.min() / noise)
    if settings.row_norm:
        factors.append(np.asarray(kaczmarz.row_norm_weights(rows)))
    return np.prod(factors, axis=0).astype(rows.real.dtype) if factors else None


# --- Solving

METHODS = {
    "kaczmarz": {"lam": 1e-2, "iterations": 10},
    "cgnr": {"lam": 0.0, "iterations": 10},
    "tikhonov": {"lam": 1e-4},
    "nonnegative": {"rho": 3e-4, "iterations": 20},
    "tv": {"lam_tv": 1e-6, "rho": 3e-4, "iterations": 100},
    "elastic_net": {"lam": 1e-3, "l1": 0.0, "iterations": 200},
}
LAMS = tuple(10.0 ** (k / 2) for k in range(2, -13, -1))  # to choose from
RANK = 1024  # of the singular basis, at most
_BRIGHTEST = 1e-3  # lam of the image that tells how bright the brightest voxel is


def reconstruct(system: System, method: str, **settings: Any) -> Array:
    """Images [F, *grid.shape], real and >= 0, of a prepared system.

    [F, A, *grid.shape] where it is of several tracers. settings: see METHODS for those of
    each method and their defaults. lam is relative: to the energy of all rows per voxel
    (kaczmarz, cgnr, elastic_net), to the largest singular value squared (tikhonov); l1
    to the smallest that leaves a frame's image empty; lam_tv to that value squared, for a
    frame with 1 as its brightest voxel. Raises ValueError for unknown methods and
    settings.
    """
    chosen = _chosen(method, settings)
    shape = system.grid.shape
    if system.tracers is not None:
        if method == "tv":
            raise ValueError("method tv: expected a system of one calibration")
        shape = (system.tracers, *shape)
    if method == "kaczmarz":
        c = kaczmarz.solve(system.rows, system.data, weights=system.weights, **chosen)
        return c.reshape(-1, *shape)
    rows, data = _weighted(system)
    if method == "cgnr":
        lam = chosen.pop("lam") * iterative.mean_energy(rows)
        c = iterative.cgnr(rows, data, lam=lam, nonnegative=True, **chosen)
    elif method == "elastic_net":
        l2 = chosen.pop("lam") * iterative.mean_energy(rows)
        # Images scale with the data and l1 together: every frame has its own unit.
        slope = jnp.matmul(data, rows.conj(), precision="highest").real
        unit = jnp.max(slope, axis=1, keepdims=True)
        unit = jnp.where(unit > 0, unit, 1)
        c = unit * iterative.elastic_net(
            rows, data / unit, l2=l2, nonnegative=True, **chosen
        )
    else:
        basis = _basis(rows, chosen.pop("rho", None))
        if method == "tikhonov":
            c = jnp.maximum(variational.tikhonov(basis, data, chosen["lam"]), 0)
        elif method == "nonnegative":
            c = variational.nonnegative(basis, data, **chosen)
        else:
            # The same for frames of any strength: the unit is about the brightest voxel.
            c = variational.tikhonov(basis, data, _BRIGHTEST)
            unit = jnp.max(jnp.abs(c), axis=1, keepdims=True)
            unit = jnp.where(unit > 0, unit, 1)
            c = unit * variational.total_variation(basis, data / unit, shape, **chosen)
    return c.reshape(-1, *shape)


def choose_lam(
    system: System,
    method: str,
    lams: Sequence[float] | Float[np.ndarray, " L"] = LAMS,
    *,
    rule: str = "l_curve",
    **settings: Any,
) -> tuple[Float[np.ndarray, " F"], variational.LCurve, Array]:
    """A lam for each frame [F], out of `lams`, the L-curve [F, L] it was found on, and the
    images of every lam [F, L, ...] as `reconstruct` makes them.

    rule: "l_curve", the corner; or "discrepancy", the largest lam whose residual is no
    larger than the noise of the background frames (System.noise; the smallest lam where
    none is). The index in the curve is that of the rule. lams: falling. settings: the
    others of the method. Raises ValueError where the method has no lam.
    """
    chosen = _chosen(method, {"lam": 0.0, **settings})
    lams = np.asarray(lams, float)
    if lams.ndim != 1 or len(lams) < 3 or np.any(np.diff(lams) >= 0) or lams[-1] <= 0:
        raise ValueError(
            f"lams: expected three or more falling numbers > 0, got {lams}"
        )
    if rule not in ("l_curve", "discrepancy"):
        raise ValueError(f"rule: expected l_curve or discrepancy, got {rule!r}")
    if rule == "discrepancy" and system.noise is None:
        raise ValueError(
            "rule: expected l_curve, because noise is not known: prepare with a background "
            "of 2 frames or more (background, joint_background or whitening)"
        )
    rows, data = _weighted(system)
    if method == "tikhonov":
        images = jnp.maximum(variational.tikhonov(_basis(rows), data, lams), 0)
    else:
        images = [
            reconstruct(system, method, **(chosen | {"lam": lam})) for lam in lams
        ]
        images = jnp.stack([c.reshape(len(data), -1) for c in images], axis=1)
    curve = variational.l_curve(lams, *variational.norms(rows, data, images))
    if rule == "discrepancy":
        noise = (
            system.noise if system.weights is None else system.noise * system.weights
        )
        sigma = float(np.sqrt(np.mean(np.square(noise))))
        index = variational.discrepancy(curve.residual, sigma, len(rows))
        curve = curve._replace(index=jnp.where(index < 0, len(lams) - 1, index))
    shape = system.grid.shape
    if system.tracers is not None:
        shape = (system.tracers, *shape)
    return (
        lams[np.asarray(curve.index)],
        curve,
        images.reshape(*images.shape[:2], *shape),
    )


def _chosen(method, settings):
    if method not in METHODS:
        raise ValueError(
            f"method: expected one of {', '.join(METHODS)}; got {method!r}"
        )
    unknown = set(settings) - set(METHODS[method])
    if unknown:
        raise ValueError(
            f"method {method}: expected settings out of {', '.join(METHODS[method])}; "
            f"got {', '.join(sorted(unknown))}"
        )
    return {**METHODS[method], **settings}


def _weighted(system):
    rows, data = jnp.asarray(system.rows), jnp.asarray(system.data)
    if system.weights is None:
        return rows, data
    weights = jnp.asarray(system.weights, data.real.dtype)
    return weights[:, None] * rows, weights[None] * data


def _basis(rows, rho=None):
    """The singular basis of rows, real above imaginary parts, cut at RANK."""
    options = {} if rho is None else {"rho": rho}
    if min(2 * len(rows), rows.shape[1]) > RANK:
        try:
            return variational.spectral_basis(rows, RANK, **options)
        except ValueError:
            pass  # fewer singular values than that are resolved
    return variational.spectral_basis(rows, **options)
