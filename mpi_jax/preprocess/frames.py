"""Frames and periods of a measurement, cleaned and averaged to data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Complex, Float, Int

from mpi_jax import mdf
from mpi_jax.configs import Preprocessing
from mpi_jax.reconstruct import kaczmarz

_PIECE = 2**26  # bytes of spectra read at a time
NEAR = 1e-9  # [T] offset fields that differ by less are one patch


def measured(
    measurement: mdf.MDF,
    background: mdf.MDF | None,
    frequency_selection: Bool[np.ndarray, "C K"],
    factors: Sequence[np.ndarray],
    settings: Preprocessing,
    notes: list[str],
) -> tuple[
    Complex[np.ndarray, "F groups M"],
    Complex[np.ndarray, "E groups M"] | None,
    Float[np.ndarray, "groups M"] | None,
    Float[np.ndarray, "groups 3"] | None,
]:
    """Spectra [F, groups, M], empty ones [E, groups, M] or None, the noise of a frame
    [groups, M] or None, offset fields or None.

    factors: what the rows of the measurement and of the background file are divided by.
    """
    info = mdf.need_measurement(measurement)
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
    data = (
        _spectra(measurement, frequency_selection, foreground, groups, settings)[0]
        / factors[0]
    )

    scans = None
    if background is not None:
        background_groups, background_offsets = _periods(background, settings)
        if len(background_groups) != len(groups):
            raise ValueError(
                f"{background.path}: expected {len(groups)} groups of periods like the "
                f"measurement, found {len(background_groups)}"
            )
        if len(groups) > 1 and offsets is not None and background_offsets is not None:
            if np.abs(offsets - background_offsets).max() > NEAR:
                raise ValueError(
                    f"{background.path}: expected the offset fields of the measurement "
                    "in its order, found others"
                )
        every = np.arange(mdf.need_acquisition(background).frames)
        scans, level = _spectra(
            background, frequency_selection, every, background_groups, settings
        )
        scans, level = scans / factors[1], level / np.abs(factors[1])
    elif len(empty) and (
        settings.background != "none" or settings.whitening or settings.joint_background
    ):
        scans, level = _spectra(
            measurement, frequency_selection, empty, groups, settings
        )
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


def places(file: mdf.MDF) -> Int[np.ndarray, " J"]:
    """A number for the offset field of each period [J], the same for the same field."""
    acquisition = mdf.need_acquisition(file)
    offset = acquisition.offset_field
    if offset is None:
        return np.zeros(acquisition.periods, int)
    if offset.shape[1] > 1:
        raise ValueError(
            f"{file.path}: expected one partition of the selection field, found "
            f"{offset.shape[1]}"
        )
    near = np.rint(offset[:, 0] / NEAR)
    return np.unique(near, axis=0, return_inverse=True)[1].reshape(-1)


def _periods(
    file: mdf.MDF, settings: Preprocessing
) -> tuple[list[np.ndarray], np.ndarray | None]:
    """Groups of periods that are averaged, and their offset fields [groups, 3] or None."""
    acquisition = mdf.need_acquisition(file)
    total, place = acquisition.periods, places(file)
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
    offset = acquisition.offset_field
    starts = [group[0] for group in groups]
    return groups, None if offset is None else offset[starts, 0]


def _spectra(file, frequency_selection, frames, groups, settings):
    """Means over groups of periods of selected rows and their standard deviations from
    the scatter of these periods (NaN for one), [frames, groups, M] each.
    """
    info, receiver = mdf.need_measurement(file), mdf.need_acquisition(file).receiver
    clean = settings.spectral_leakage and not info.is_spectral_leakage_corrected
    if clean and info.is_fourier_transformed:
        raise ValueError(
            f"spectral_leakage: expected a time signal in {file.path}, found spectra"
        )
    out = np.zeros(
        (len(frames), len(groups), int(frequency_selection.sum())), np.complex128
    )
    square = np.zeros(out.shape)
    long = settings.period_grouping
    step = long * max(1, _PIECE // (16 * receiver.channels * receiver.samples * long))
    for i, j in np.ndindex(out.shape[:2]):
        group = groups[j]
        # About the first period: signals are far larger than their scatter.
        origin: np.ndarray | None = None
        for start in range(0, len(group), step):
            some = group[start : start + step]
            if clean:
                part = _cleaned(file, frequency_selection, frames[i], some)
            elif long > 1:
                u = mdf.signals(file, frames=frames[i], periods=some)[0]
                u = u.reshape(-1, long, *u.shape[1:]).swapaxes(1, 2)
                part = np.fft.rfft(u.reshape(*u.shape[:2], -1))[:, frequency_selection]
            else:
                part = mdf.spectra(
                    file,
                    frequency_selection=frequency_selection,
                    frames=frames[i],
                    periods=some,
                )[0]
            origin = part[0] if origin is None else origin
            part = part - origin
            out[i, j] += part.sum(0, dtype=np.complex128)
            square[i, j] += np.square(np.abs(part)).sum(0, dtype=np.float64)
        count = len(group) // long
        out[i, j] /= count
        square[i, j] = square[i, j] / count - np.square(np.abs(out[i, j]))
        square[i, j] = (
            np.maximum(square[i, j], 0) / (count - 1) if count > 1 else np.nan
        )
        out[i, j] += 0 if origin is None else origin
    return out, np.sqrt(square)


def _cleaned(file, frequency_selection, frame, periods):
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
        return np.fft.rfft(u)[:, frequency_selection]
    place, parts = places(file), []
    for run in np.split(periods, np.flatnonzero(np.diff(periods) > 1) + 1):
        near = np.arange(max(run[0] - 1, 0), min(run[-1] + 2, len(place)))
        near = near[place[near] == place[run[0]]]
        u = spectral_leakage(mdf.signals(file, frames=frame, periods=near)[0])
        parts.append(np.fft.rfft(u[np.isin(near, run)])[:, frequency_selection])
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


def row_weights(
    rows: Complex[np.ndarray, "M P"],
    noise: Float[np.ndarray, " M"] | None,
    frequency_selection: Bool[np.ndarray, "C K"],
    settings: Preprocessing,
) -> Float[np.ndarray, " M"] | None:
    """Product of the weights in use, [M] or None."""
    factors = []
    if settings.channel_weights:
        if len(settings.channel_weights) != len(frequency_selection):
            raise ValueError(
                f"channel_weights: expected {len(frequency_selection)} numbers, one for each receive "
                f"channel, got {len(settings.channel_weights)}"
            )
        weights = np.array(settings.channel_weights)[np.nonzero(frequency_selection)[0]]
        if not weights.any():
            raise ValueError(
                "channel_weights: expected one > 0 for a channel in use, got "
                f"{settings.channel_weights}"
            )
        factors.append(np.tile(weights, len(rows) // len(weights)))
    if settings.whitening:
        if noise is None or not noise.min() > 0:
            raise ValueError(
                "whitening: expected noise in every row, found none in some"
            )
        factors.append(noise.min() / noise)
    if settings.row_norm:
        factors.append(np.asarray(kaczmarz.row_norm_weights(rows)))
    return np.prod(factors, axis=0).astype(rows.real.dtype) if factors else None
