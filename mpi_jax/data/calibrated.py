"""A scanner that is known by its calibration file alone: S of one plane, and signals.

    MDF calibration -> `matrix`    S [C, V, P] and its rows in use, frequency_selection [C, K]
    MDF measurement -> `voltage`   u [N, C, V], what S c is compared with

Both have the selected rows of CalibrationConfig and nothing else: spectra that lost their
background, 0 in all other rows, back in the time domain. So u = S c + n holds for them
as it does for simulated scanners, with n in the same rows, and networks and solvers of
these take them as they are.

Unit of both: the largest entry of the rows is 1; c = 1 is the calibration's delta sample
in every voxel of its own grid (`open_mpi.unit` [mmol/L]).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Complex, Float

from mpi_jax import mdf, preprocess
from mpi_jax.configs import Config, Preprocessing
from mpi_jax.configs.preprocessing import Background
from mpi_jax.scanner import CalibratedScanner, Grid

PRESET = "calibration"  # of ScannerConfig


def read(config: Config) -> mdf.MDF:
    """The calibration file of a config; ValueError where there is none to read."""
    settings = config.calibration
    if config.scanner.preset != PRESET:
        raise ValueError(
            f"scanner.preset: expected {PRESET}, got {config.scanner.preset!r}"
        )
    if not settings.path:
        raise ValueError(
            "calibration.path: expected an MDF calibration, got none "
            "(--calibration.path FILE)"
        )
    if not Path(settings.path).is_file():
        raise ValueError(
            f"calibration.path: expected an MDF file, found none in {settings.path}"
        )
    file = mdf.read(settings.path)
    if file.calibration is None:
        raise ValueError(
            f"calibration.path: expected a calibration, but {settings.path} holds a "
            "measurement"
        )
    return file


def scanner_of(config: Config) -> CalibratedScanner:
    """Grid, channels and samples of the signals; reads no matrix.

    Raises ValueError for a plane or field of view that the calibration doesn't have.
    """
    file, settings = read(config), config.calibration
    receiver = mdf.need_acquisition(file).receiver
    plane = mdf.grid(file, settings.plane)
    extent = np.asarray(plane.field_of_view, float)
    side, widest = settings.field_of_view, extent[:2].min()
    if not 0 < side <= widest * (1 + 1e-6):
        raise ValueError(
            f"calibration.field_of_view: expected at most {widest:g} m, the side of the "
            f"calibration's grid, got {side:g}"
        )
    if not settings.channels or max(settings.channels) >= receiver.channels:
        raise ValueError(
            f"calibration.channels: expected numbers from 0 to {receiver.channels - 1}, "
            f"got {settings.channels}"
        )
    pixels = config.scanner.pixels
    thickness = extent[2] * (1 + 2 * settings.slab)
    return CalibratedScanner(
        grid=Grid((pixels, pixels), (side, side, thickness), plane.centre),
        channels=len(settings.channels),
        samples=receiver.samples,
        sampling_rate=2 * receiver.bandwidth,
    )


def preprocessing(config: Config) -> Preprocessing:
    """What is done to the calibration, as `pipeline.prepare` takes it."""
    settings, grid = config.calibration, scanner_of(config).grid
    return Preprocessing(
        min_frequency=settings.min_frequency,
        channels=tuple(sorted(settings.channels)),
        snr_threshold=settings.snr_threshold,
        matrix_background=settings.background,
        plane=settings.plane,
        slab=settings.slab,
        shape=grid.shape,
        field_of_view=tuple(np.asarray(grid.field_of_view, float).tolist()),
    )


def matrix(
    config: Config,
) -> tuple[Float[np.ndarray, "C V P"], Bool[np.ndarray, "C K"]]:
    """System matrix in the time domain and the rows that are in use.

    Raises ValueError as `pipeline.prepare` does, and where a channel has no rows.
    """
    samples = scanner_of(config).samples
    system = preprocess.prepare(read(config), None, preprocessing(config))
    columns = _in_time(
        np.asarray(system.system_matrix).T, system.frequency_selection, samples
    )
    frequency_selection = system.frequency_selection[
        sorted(config.calibration.channels)
    ]
    if not frequency_selection.any(axis=1).all():
        raise ValueError(
            "calibration.channels: expected rows in each, found none in "
            f"{[c for c, k in zip(config.calibration.channels, frequency_selection, strict=True) if not k.any()]} "
            f"(snr_threshold {config.calibration.snr_threshold:g})"
        )
    return np.ascontiguousarray(columns.transpose(1, 2, 0)), frequency_selection


def voltage(
    config: Config,
    measurement: mdf.MDF,
    *,
    periods: tuple[int, int] | None = None,
    background: Background = "mean",
) -> Float[np.ndarray, "N C V"]:
    """A measurement's mean period in the unit and rows of `matrix`, a signal a frame.

    periods: (first, behind the last); None: those in which the field-free point is where
    it was in the calibration. Raises ValueError as `pipeline.prepare` does.
    """
    calibration = read(config)
    if periods is None:
        periods = _unmoved(calibration, measurement)
    settings = dataclasses.replace(
        preprocessing(config), periods=periods, background=background
    )
    system = preprocess.prepare(calibration, measurement, settings)
    if system.measurement.shape[1] != system.frequency_selection.sum():
        raise ValueError(
            f"periods: expected those of one offset field, got {periods} with several"
        )
    samples = mdf.need_acquisition(measurement).receiver.samples
    return _in_time(np.asarray(system.measurement), system.frequency_selection, samples)


def _in_time(
    data: Complex[np.ndarray, "N M"],
    frequency_selection: Bool[np.ndarray, "C K"],
    samples: int,
) -> Float[np.ndarray, "N channels V"]:
    """Signals of the selected rows [N, channels in use, V]."""
    spectra = np.zeros((len(data), *frequency_selection.shape), data.dtype)
    spectra[:, frequency_selection] = data
    used = spectra[:, frequency_selection.any(axis=1)]
    return np.fft.irfft(used, samples).astype(data.real.dtype)


def _unmoved(calibration: mdf.MDF, measurement: mdf.MDF) -> tuple[int, int] | None:
    """The run of periods with the calibration's offset field, or None for all."""
    at_rest = mdf.need_acquisition(calibration).offset_field
    moved = mdf.need_acquisition(measurement).offset_field
    if moved is None or np.ptp(moved, axis=0).max() == 0:
        return None
    start = np.zeros(3) if at_rest is None else at_rest[0, 0]
    near = np.flatnonzero(np.abs(moved[:, 0] - start).max(axis=1) < 1e-9)
    if not len(near) or np.ptp(near) != len(near) - 1:
        raise ValueError(
            f"periods: expected (first, behind the last), because {measurement.path} has "
            f"{'no' if not len(near) else 'no single'} run of periods with the offset "
            "field of the calibration"
        )
    return int(near[0]), int(near[-1]) + 1
