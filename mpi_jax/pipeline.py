"""From two MDF files to an image: choose rows, clean both files alike, solve.

    calibration -+
                 +-> compatible? -> `prepare` -> System(rows, data, grid) -> `reconstruct`
    measurement -+

Symbols: C receive channels, K frequencies of one period, M selected rows, P voxels, F
frames. Rows are in the order frequency fastest, then channel, then patch; pixels in that
of `image.reshape(-1)`. Units: rows and data share one arbitrary factor, so that c is in
units of the calibration's delta sample: 1 means its concentration in all of a voxel of
the calibration's grid.

The steps and their defaults follow MPIReco.jl (Knopp et al. 2019, JuliaImageRecon);
departures: no default for transfer functions, no silent change of frames, options that
contradict each other are errors.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Complex, Float

from mpi_jax import mdf
from mpi_jax.configs import Preprocessing
from mpi_jax.reconstruct import iterative, kaczmarz, variational
from mpi_jax.scanner import Grid


@dataclasses.dataclass(frozen=True)
class System:
    """A linear system rows @ c = data for each frame, ready for a solver.

    keep [C, K]: the selected rows of one patch; weights [M] or None: not yet applied;
    notes: what a reader should know about how it came to be.
    """

    rows: Complex[Array | np.ndarray, "M P"]
    data: Complex[Array | np.ndarray, "F M"]
    weights: Float[Array | np.ndarray, " M"] | None
    keep: Bool[np.ndarray, "C K"]
    grid: Grid
    notes: tuple[str, ...] = ()


_PLAIN = Preprocessing()


def prepare(
    calibration: mdf.MDF,
    measurement: mdf.MDF,
    settings: Preprocessing = _PLAIN,
    background: mdf.MDF | None = None,
) -> System:
    """The linear system of two files; only the selected rows are read.

    background: the file of settings.background "external". Raises ValueError where the
    files don't fit together (`mdf.compatible`), where an option needs what they lack, and
    where nothing is left.
    """
    if (settings.background == "external") != (background is not None):
        raise ValueError(
            "background: expected a file with settings.background 'external' and none "
            f"otherwise, got {settings.background!r} and "
            f"{'none' if background is None else background.path}"
        )
    others = [measurement] if background is None else [measurement, background]
    for other in others:
        differing = [
            text
            for text in mdf.compatible(calibration, other)
            if not text.startswith(tuple(settings.tolerate) or ("\0",))
        ]
        if differing:
            raise ValueError(
                f"{calibration.path} doesn't fit {other.path}: {'; '.join(differing)}"
            )
    notes: list[str] = []
    keep = select(calibration, settings)
    factor = _transfer(calibration, others, keep, settings)
    rows, grid = _matrix(calibration, keep, settings, notes)
    rows = rows / factor[0][:, None]
    data, offsets, noise = _measured(measurement, background, keep, settings, notes)
    data = data / factor[1]  # [frames, patches, M]
    weights = _weights(
        rows, None if noise is None else noise / factor[1], keep, settings
    )
    if offsets is None:
        data = data.reshape(-1, data.shape[-1])
    else:
        rows, grid = _patches(rows, grid, calibration, offsets)
        weights = None if weights is None else np.tile(weights, len(offsets))
        data = data.reshape(len(data), -1)
    # Squares of induced voltages leave the range of float32.
    scale = np.sqrt(np.mean(np.abs(data) ** 2)) or 1.0
    return System(
        (rows / scale).astype(np.complex64),
        (data / scale).astype(np.complex64),
        weights,
        keep,
        grid,
        tuple(notes),
    )


# --- Which rows


def select(calibration: mdf.MDF, settings: Preprocessing) -> Bool[np.ndarray, "C K"]:
    """Rows [C, V // 2 + 1] of a calibration that the settings leave in."""
    frequency = mdf.frequencies(calibration)
    channels = calibration.acquisition.receiver.channels
    band = (frequency >= settings.min_frequency) & (frequency <= settings.max_frequency)
    for low, high in settings.stop_bands:
        band &= (frequency < low) | (frequency > high)
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
    if keep.any() and (settings.snr_threshold or settings.num_rows):
        ratio = mdf.snr(calibration)[0]
        if settings.snr_threshold:
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
            f"SNR from {settings.snr_threshold:g}, "
            f"mixing order to {settings.max_mixing_order or 'any'}"
        )
    return keep


def _transfer(calibration, others, keep, settings):
    """What the rows of the calibration and of the measurements are divided by, [M] each."""
    files = [calibration, *others]
    functions = [f.acquisition.receiver.transfer_function for f in files]
    done = [f.measurement.is_transfer_function_corrected for f in files]
    if any(f is not None for f in functions) and settings.transfer_function is None:
        having = [
            str(f.path) for f, a in zip(files, functions, strict=True) if a is not None
        ]
        raise ValueError(
            "transfer_function: expected a choice, True or False, because "
            f"{', '.join(having)} has one"
        )
    if not settings.transfer_function:
        return [np.ones(keep.sum())] * 2
    factors = []
    for file, function, corrected in zip(files, functions, done, strict=True):
        if corrected:
            factors.append(np.ones(keep.sum()))
        elif function is None:
            raise ValueError(
                f"transfer_function: expected one in {file.path}, which is not corrected, "
                "got none"
            )
        else:
            selection = file.measurement.frequency_selection
            if function.shape[1] != keep.shape[1]:  # of the selected frequencies only
                full = np.ones(keep.shape, complex)
                full[:, selection] = function
                function = full
            factors.append(function[keep])
    return factors[0], factors[1]


# --- The system matrix


def _matrix(calibration, keep, settings, notes):
    """Rows [M, P] in image layout and their grid."""
    order = mdf.voxel_order(calibration)
    if settings.plane is not None:
        if not 0 <= settings.plane < len(order):
            raise ValueError(
                f"plane: expected 0 to {len(order) - 1}, got {settings.plane}"
            )
        order = order[settings.plane]
    grid = mdf.grid(calibration, settings.plane)
    if settings.plane is None and len(order) == 1:  # an image
        order, grid = order[0], dataclasses.replace(grid, shape=grid.shape[1:])
    voxels = order.reshape(-1)
    wanted = np.sort(voxels)
    rows = mdf.system_matrix(calibration, keep, voxels=wanted)
    measured = calibration.measurement
    if settings.matrix_background == "interpolated":
        rows = mdf.correct_background(calibration, rows, voxels=wanted)
    elif settings.matrix_background == "mean" and not measured.is_background_corrected:
        if not len(measured.background):
            raise ValueError(
                f"{calibration.path}: expected background frames, found none"
            )
        empty = rows[..., len(wanted) :].mean(-1, keepdims=True)
        rows = rows[..., : len(wanted)] - empty
    else:
        if len(measured.background) and not measured.is_background_corrected:
            notes.append(
                "the system matrix keeps its background (matrix_background none)"
            )
        rows = rows[..., : len(wanted)]
    rows = rows.mean(0)[:, np.searchsorted(wanted, voxels)]
    if settings.shape:
        rows, grid = _regrid(rows, grid, settings)
    return rows, grid


def _regrid(rows, grid, settings):
    """Rows interpolated linearly to another grid about the same centre."""
    if len(settings.shape) != len(grid.shape):
        raise ValueError(
            f"shape: expected {len(grid.shape)} numbers like the calibration's "
            f"{grid.shape}, got {settings.shape}"
        )
    extent = settings.field_of_view or np.asarray(grid.field_of_view)
    new = Grid(settings.shape, np.asarray(extent, float), np.asarray(grid.centre))
    volume = rows.reshape(-1, *grid.shape)
    axes = [
        (np.asarray(a), np.asarray(b))
        for a, b in zip(new.axes(), grid.axes(), strict=True)
    ]
    for axis in range(1, volume.ndim):
        at, old = axes[volume.ndim - 1 - axis]  # axes() is x, y, z
        volume = np.moveaxis(
            np.moveaxis(volume, axis, -1) @ _interpolation(at, old).T, -1, axis
        )
    # The same concentration is less tracer in a smaller voxel.
    ratio = np.prod(np.asarray(new.pitch) / np.asarray(grid.pitch))
    return volume.reshape(len(rows), -1) * ratio, new


def _interpolation(at, old):
    """Matrix [new, old] of linear inter- and extrapolation."""
    if len(old) == 1:
        return np.ones((len(at), 1))
    place = (at - old[0]) / (old[1] - old[0])
    low = np.clip(np.floor(place).astype(int), 0, len(old) - 2)
    weight = place - low
    matrix = np.zeros((len(at), len(old)))
    rows = np.arange(len(at))
    matrix[rows, low], matrix[rows, low + 1] = 1 - weight, weight
    return matrix


def _patches(rows, grid, calibration, offsets):
    """Rows [patches * M, P] on one grid that covers all patches.

    A patch is the calibration's field of view, shifted by -offset / diag(gradient); its
    voxels take the joint grid's values by linear interpolation.
    """
    gradient = calibration.acquisition.gradient
    if gradient is None:
        raise ValueError(
            f"{calibration.path}: expected a gradient to place the patches, found none"
        )
    own = calibration.acquisition.offset_field
    start = np.zeros(3) if own is None else own[0, 0]
    shift = -(offsets - start) / np.diag(gradient[0, 0])  # [patches, 3] m
    axes = len(grid.shape)
    if axes == 2 and np.ptp(shift[:, 2]) > 1e-6 * abs(np.max(grid.pitch)):
        raise ValueError(
            "plane: expected None for patches that differ in z, choose one with periods"
        )
    pitch, counts = np.asarray(grid.pitch), np.array(grid.counts)
    span = np.ptp(shift, axis=0) / pitch
    extra = np.ceil(span - 1e-3).astype(int)
    extra[2] *= axes == 3
    joint_counts = counts + extra
    size = len(offsets) * len(rows) * int(np.prod(joint_counts)) * 8
    if size > 6e9:
        raise ValueError(
            f"patches: {len(offsets)} of them on {joint_counts.tolist()} voxels with "
            f"{len(rows)} rows each need {size / 1e9:.0f} GB; select fewer rows "
            "(snr_threshold, num_rows) or patches (periods)"
        )
    centre = np.asarray(grid.centre) + (shift.max(0) + shift.min(0)) / 2
    shape = tuple(int(n) for n in joint_counts[[2, 1, 0]])[3 - axes :]
    joint = Grid(shape, joint_counts * pitch, centre)
    volume = rows.reshape(-1, *grid.shape)
    made = np.empty((len(offsets), len(rows), joint.size), rows.dtype)
    old, new = ([np.asarray(a) for a in g.axes()] for g in (grid, joint))
    for patch, moved in zip(made, shift, strict=True):
        part = volume
        for axis in range(axes):
            letter = axes - 1 - axis  # x is axis 0 of axes() and the last of the volume
            spread = _spread(old[letter] + moved[letter], new[letter])
            part = np.moveaxis(np.moveaxis(part, axis + 1, -1) @ spread, -1, axis + 1)
        patch[:] = part.reshape(len(rows), -1)
    return made.reshape(-1, joint.size), joint


def _spread(at, grid):
    """[old, new]: how a voxel at `at` is interpolated from a grid that surrounds it."""
    if len(grid) == 1:
        return np.ones((len(at), 1))
    place = (at - grid[0]) / (grid[1] - grid[0])
    # Shifts by whole voxels stay whole.
    place = np.where(np.abs(place - np.rint(place)) < 1e-3, np.rint(place), place)
    low = np.clip(np.floor(place).astype(int), 0, len(grid) - 2)
    weight = np.clip(place - low, 0, 1)
    matrix = np.zeros((len(at), len(grid)))
    rows = np.arange(len(at))
    matrix[rows, low], matrix[rows, low + 1] = 1 - weight, weight
    return matrix


# --- The measurement


def _measured(measurement, background, keep, settings, notes):
    """Spectra [frames, patches, M], offset field of each patch or None, noise [M] or None."""
    info = measurement.measurement
    foreground = info.foreground
    if settings.frames:
        if max(settings.frames) >= len(foreground):
            raise ValueError(
                f"frames: expected numbers from 0 to {len(foreground) - 1}, the "
                f"foreground of {measurement.path}, got {settings.frames}"
            )
        foreground = foreground[list(settings.frames)]
    if not len(foreground):
        raise ValueError(f"{measurement.path}: expected foreground frames, found none")
    periods = _periods(measurement, settings)
    data = _spectra(measurement, keep, foreground, periods, settings)
    empty = info.background
    scans = None
    if len(empty) and (settings.background in _NEEDS_SCANS or settings.whitening):
        scans = _spectra(measurement, keep, empty, periods, settings)
    if settings.background == "external":
        other = _periods(background, settings, count=len(periods))
        every = np.arange(background.acquisition.frames)
        scans = _spectra(background, keep, every, other, settings)
        data = data - scans.mean(0)
    elif settings.background in _NEEDS_SCANS:
        if info.is_background_corrected:
            notes.append("the measurement was corrected for background already")
        elif scans is None:
            raise ValueError(
                f"{measurement.path}: expected background frames, found none"
            )
        elif settings.background == "mean":
            data = data - scans.mean(0)
        else:
            data = data - _between(measurement, foreground, empty, scans)
    elif len(empty) and not info.is_background_corrected:
        notes.append("the measurement keeps its background (background none)")
    noise = None
    if settings.whitening:
        if scans is None or len(scans) < 2:
            raise ValueError(
                f"whitening: expected at least 2 background frames, found "
                f"{0 if scans is None else len(scans)}"
            )
        noise = scans.std(0).mean(0)
    data = _means(data, settings.frame_average, settings.allow_short, "frame_average")
    offsets = _offsets(measurement, periods)
    return data, offsets, noise


_NEEDS_SCANS = ("mean", "interpolated")


def _periods(file, settings, count=None):
    """Groups of periods that are averaged."""
    total = file.acquisition.periods
    first, behind = settings.periods or (0, total)
    if behind > total:
        raise ValueError(
            f"periods: expected (first, behind the last) up to {total}, got {behind}"
        )
    every = np.arange(first, behind)
    size = settings.period_average or len(every)
    if len(every) % size and not settings.allow_short:
        raise ValueError(
            f"period_average: expected a divisor of {len(every)} periods, got {size} "
            "(or allow_short)"
        )
    groups = [every[i : i + size] for i in range(0, len(every), size)]
    if count is not None and len(groups) != count:
        raise ValueError(
            f"{file.path}: expected {count} groups of periods like the measurement, "
            f"found {len(groups)}"
        )
    return groups


def _spectra(file, keep, frames, periods, settings):
    """Means over groups of periods of selected rows, [frames, groups, M]."""
    out = np.empty((len(frames), len(periods), int(keep.sum())), np.complex128)
    if settings.spectral_leakage:
        info = file.measurement
        if info.is_fourier_transformed or info.is_spectral_leakage_corrected:
            raise ValueError(
                f"spectral_leakage: expected an uncorrected time signal in {file.path}"
            )
    for i, group in enumerate(periods):
        for j, frame in enumerate(frames):
            if settings.spectral_leakage:
                if len(group) > 1:
                    u = mdf.signals(file, frames=frame, periods=group)[0]
                    spectra = np.fft.rfft(spectral_leakage(u))[:, keep]
                else:
                    # The neighbours in time are frames.
                    near = np.arange(max(0, j - 1), min(len(frames), j + 2))
                    u = mdf.signals(file, frames=frames[near], periods=group)[:, 0]
                    u = spectral_leakage(u)[j - near[0]]
                    spectra = np.fft.rfft(u)[keep][None]
                out[j, i] = spectra.mean(0)
            else:
                out[j, i] = mdf.spectra(file, keep=keep, frames=frame, periods=group)[
                    0
                ].mean(0)
    return out


def spectral_leakage(u: Float[np.ndarray, "N C V"]) -> Float[np.ndarray, "N C V"]:
    """Successive periods, each with its neighbours under one smooth window.

    Signals that are not periodic in V (drift, other drive fields) leak into all
    frequencies; periodic ones stay as they are. The window is a Hann window of three
    periods, of two at both ends. Raises ValueError for fewer than 2 periods.
    """
    count, samples = len(u), u.shape[-1]
    if count < 2:
        raise ValueError("spectral_leakage: expected at least 2 periods, got 1")

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


def _between(file, foreground, empty, scans):
    """Background at the time of each foreground frame, linear between the scans."""
    acquired = np.empty(file.acquisition.frames, int)
    acquired[mdf.acquisition_order(file)] = np.arange(file.acquisition.frames)
    order = np.argsort(acquired[empty])
    times, scans = acquired[empty][order], scans[order]
    # Scans in a row are one scan at their mean time.
    block = np.cumsum(np.diff(times, prepend=times[:1]) > 1)
    number = np.arange(block[-1] + 1)
    times = np.array([times[block == b].mean() for b in number])
    scans = np.stack([scans[block == b].mean(0) for b in number])
    weight = np.stack(
        [np.interp(acquired[foreground], times, e) for e in np.eye(len(number))]
    )
    return np.tensordot(weight, scans, (0, 0))


def _means(data, size, allow_short, name):
    if len(data) % size and not allow_short:
        raise ValueError(
            f"{name}: expected a divisor of {len(data)} frames, got {size} "
            "(or allow_short)"
        )
    return np.stack([data[i : i + size].mean(0) for i in range(0, len(data), size)])


def _offsets(file, periods):
    """Offset field [patches, 3] T of groups of periods, None where it is one."""
    offset = file.acquisition.offset_field
    if offset is None or len(periods) == 1 and offset.shape[1] == 1:
        # One patch, wherever it is: the calibration's own place.
        return None
    if offset.shape[1] > 1:
        raise ValueError(
            f"{file.path}: expected one partition of the selection field, found "
            f"{offset.shape[1]}"
        )
    for group in periods:
        if np.ptp(offset[group, 0], axis=0).max() > 1e-9:
            raise ValueError(
                "period_average: expected periods of one offset field each, got "
                f"different ones in {group[0]} to {group[-1]}"
            )
    found = np.stack([offset[group[0], 0] for group in periods])
    return None if np.ptp(found, axis=0).max() <= 1e-9 else found


def _weights(rows, noise, keep, settings):
    """Product of the weights in use, [M] or None."""
    weights = np.ones(len(rows))
    if settings.channel_weights:
        if len(settings.channel_weights) != len(keep):
            raise ValueError(
                f"channel_weights: expected {len(keep)} numbers, one for each receive "
                f"channel, got {len(settings.channel_weights)}"
            )
        weights = weights * np.array(settings.channel_weights)[np.nonzero(keep)[0]]
    if noise is not None:
        level = np.abs(noise)
        if not level.min() > 0:
            raise ValueError(
                "whitening: expected noise in every row, found none in some"
            )
        weights = weights * level.min() / level
    if settings.row_norm:
        norm = np.sqrt(np.sum(np.abs(weights[:, None] * rows) ** 2, axis=1))
        weights = weights * np.where(
            norm > 0, norm[norm > 0].max() / np.maximum(norm, 1e-300), 0
        )
    plain = not (settings.channel_weights or settings.row_norm or noise is not None)
    return None if plain else weights


# --- Solving

METHODS = {
    "kaczmarz": {"lam": 1e-2, "iterations": 10},
    "cgnr": {"lam": 0.0, "iterations": 10},
    "tikhonov": {"lam": 1e-4},
    "nonnegative": {"rho": 3e-4, "iterations": 20},
    "tv": {"lam_tv": 1e-6, "rho": 3e-4, "iterations": 100},
    "elastic_net": {"lam": 1e-3, "l1": 0.0, "iterations": 200},
}
RANK = 1024  # of the singular basis, at most


def reconstruct(system: System, method: str, **settings: Any) -> Array:
    """Images [F, *grid.shape], real and >= 0, of a prepared system.

    settings: see METHODS for those of each method and their defaults. lam is relative: to
    the mean row energy per voxel (kaczmarz, cgnr, elastic_net), to the largest singular
    value squared (tikhonov); l1 to the largest that leaves an empty image. Raises
    ValueError for unknown methods and settings.
    """
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
    chosen = {**METHODS[method], **settings}
    rows, data = jnp.asarray(system.rows), jnp.asarray(system.data)
    if method == "kaczmarz":
        c = kaczmarz.solve(rows, data, weights=system.weights, **chosen)
        return c.reshape(-1, *system.grid.shape)
    if system.weights is not None:
        weights = jnp.asarray(system.weights, data.real.dtype)
        rows, data = weights[:, None] * rows, weights[None] * data
    if method in ("cgnr", "elastic_net"):
        energy = iterative.mean_energy(rows)
        lam = chosen.pop("lam") * energy
        if method == "cgnr":
            c = iterative.cgnr(rows, data, lam=lam, nonnegative=True, **chosen)
        else:
            l1 = chosen.pop("l1")
            slope = jnp.real(data @ rows.conj())
            c = iterative.elastic_net(
                rows,
                data,
                l1=l1 * jnp.max(slope),
                l2=lam,
                nonnegative=True,
                **chosen,
            )
        return c.reshape(-1, *system.grid.shape)
    # Real images: the rows' real parts above their imaginary parts.
    rows = np.concatenate([rows.real, rows.imag])
    data = jnp.concatenate([data.real, data.imag], axis=-1)
    basis = variational.spectral_basis(rows, _rank(rows), chosen.pop("rho", 3e-4))
    if method == "tikhonov":
        c = jnp.maximum(variational.tikhonov(basis, data, chosen["lam"]), 0)
    elif method == "nonnegative":
        c = variational.nonnegative(basis, data, **chosen)
    else:
        c = variational.total_variation(basis, data, system.grid.shape, **chosen)
    return c.reshape(-1, *system.grid.shape)


def _rank(rows) -> int | None:
    return None if min(rows.shape) <= RANK else RANK
