"""Which rows of a calibration are used, and what they are divided by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from mpi_jax import mdf
from mpi_jax.configs import Preprocessing


def select(calibration: mdf.MDF, settings: Preprocessing) -> Bool[np.ndarray, "C K"]:
    """Rows [C, V // 2 + 1] of a calibration that the settings leave in."""
    frequency = mdf.frequencies(calibration)
    channels = mdf.need_acquisition(calibration).receiver.channels
    band = (frequency >= settings.min_frequency) & (frequency <= settings.max_frequency)
    for low, high in settings.stop_bands:
        band &= (frequency < low) | (frequency > high)
    if settings.sidebands is not None:
        beside = np.arange(len(band)) % settings.period_grouping
        band &= (
            np.minimum(beside, settings.period_grouping - beside) <= settings.sidebands
        )
    if calibration.measurement is not None:
        stored = calibration.measurement.frequency_selection
        if stored is not None:
            band &= np.isin(np.arange(len(band)), stored)
    if settings.max_mixing_order:
        _, order = mdf.mixing_orders(calibration, settings.max_mixing_order)
        band &= (order >= 0) & (order <= settings.max_mixing_order)
    frequency_selection = np.tile(band, (channels, 1))
    if settings.channels:
        if max(settings.channels) >= channels:
            raise ValueError(
                f"channels: expected numbers from 0 to {channels - 1}, got "
                f"{settings.channels}"
            )
        frequency_selection[np.setdiff1d(np.arange(channels), settings.channels)] = (
            False
        )
    highest = ""
    if frequency_selection.any() and (settings.snr_threshold or settings.num_rows):
        ratio = mdf.snr(calibration)[0]
        if settings.snr_threshold:
            highest = f" (the highest is {ratio[frequency_selection].max():.3g})"
            frequency_selection &= ratio >= settings.snr_threshold
        elif settings.num_rows < frequency_selection.sum():
            ranked = np.where(frequency_selection, ratio, -1).reshape(-1)
            best = np.argsort(-ranked, kind="stable")[: settings.num_rows]
            frequency_selection = np.isin(
                np.arange(frequency_selection.size), best
            ).reshape(frequency_selection.shape)
    if not frequency_selection.any():
        raise ValueError(
            f"{calibration.path}: the frequency selection leaves no rows: "
            f"{settings.min_frequency:g} to {settings.max_frequency:g} Hz, "
            f"channels {settings.channels or 'all'}, "
            f"SNR from {settings.snr_threshold:g}{highest}, "
            f"mixing order to {settings.max_mixing_order or 'any'}"
        )
    return frequency_selection


def transfer(
    calibrations: Sequence[mdf.MDF],
    measurements: Sequence[mdf.MDF],
    frequency_selection: Bool[np.ndarray, "C K"],
    settings: Preprocessing,
) -> list[np.ndarray]:
    """What the selected rows of each file are divided by, [M] each."""
    files = [*calibrations, *measurements]
    unchanged = np.ones(frequency_selection.sum())
    having = [
        file
        for file in files
        if not mdf.need_measurement(file).is_transfer_function_corrected
        and mdf.need_acquisition(file).receiver.transfer_function is not None
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
        function = mdf.need_acquisition(file).receiver.transfer_function
        info = mdf.need_measurement(file)
        if info.is_transfer_function_corrected:
            factors.append(unchanged)
            continue
        if function is None:
            raise ValueError(
                f"transfer_function: expected one in {file.path}, which is not corrected, "
                "got none"
            )
        if settings.period_grouping > 1 and any(file is one for one in measurements):
            raise ValueError(
                f"transfer_function: expected {file.path} to be corrected already, for its "
                "transfer function is not known at the frequencies of period_grouping"
            )
        if (
            function.shape[1] != frequency_selection.shape[1]
        ):  # of the stored frequencies only
            full = np.ones(frequency_selection.shape, complex)
            full[:, info.frequency_selection] = function
            function = full
        factor = function[frequency_selection]
        if not (np.isfinite(factor).all() and np.all(factor != 0)):
            raise ValueError(
                f"transfer_function: expected finite numbers other than 0 in the selected "
                f"rows of {file.path}; select others (min_frequency, stop_bands)"
            )
        factors.append(factor)
    return factors
