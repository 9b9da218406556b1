"""From two MDF files to an image: choose rows, clean both files alike, solve.

    calibration -+
                 +-> compatible? -> `prepare` -> System(system_matrix, measurement, grid)
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

import jax
import numpy as np
from jaxtyping import Array, Bool, Complex, Float

from mpi_jax import mdf
from mpi_jax.configs import Preprocessing
from mpi_jax.preprocess.frames import NEAR, measured, row_weights
from mpi_jax.preprocess.matrix import joint_patches, patch_shifts, rows_on_grid
from mpi_jax.preprocess.rows import select, transfer
from mpi_jax.reconstruct.background import background_dictionary, eliminate_background
from mpi_jax.scanner import Grid


@dataclasses.dataclass(frozen=True)
class System:
    """A linear system system_matrix @ c = measurement for each frame, ready for a solver.

    frequency_selection [C, K]: the selected rows of one patch; weights [M] or None: not yet applied;
    notes: what a reader should know about how it came to be; noise [M] or None: standard
    deviation of the data from background frames; tracers A or None: columns are the
    voxels of one tracer after the other, None is one and images have no axis for it.
    """

    system_matrix: Complex[Array | np.ndarray, "M P"]
    measurement: Complex[Array | np.ndarray, "F M"]
    weights: Float[Array | np.ndarray, " M"] | None
    frequency_selection: Bool[np.ndarray, "C K"]
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
    calibrations = (
        [calibration] if isinstance(calibration, mdf.MDF) else list(calibration)
    )
    if not calibrations:
        raise ValueError("calibration: expected at least one file, got none")
    measured_files = [file for file in (measurement, background) if file is not None]
    for file, measured_file in itertools.product(calibrations, measured_files):
        _check_fit(file, measured_file, settings)
    frequency_selection = np.logical_and.reduce(
        [select(file, settings) for file in calibrations]
    )
    if not frequency_selection.any():
        raise ValueError("calibration: expected rows selected in all files, got none")
    factors = transfer(calibrations, measured_files, frequency_selection, settings)

    notes: list[str] = []
    parts = [
        rows_on_grid(file, frequency_selection, settings, notes)
        for file in calibrations
    ]
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
        return _rows_alone(
            rows, frequency_selection, grid, settings, notes, len(parts) * several
        )
    del parts

    data, scans, level, offsets = measured(
        measurement,
        background,
        frequency_selection,
        factors[len(calibrations) :],
        settings,
        notes,
    )
    patches = 1
    if offsets is not None:
        shifts = patch_shifts(calibrations, offsets)
        if np.ptp(offsets, axis=0).max() > NEAR:
            patches = len(offsets)
        else:
            shifts = shifts[:1]
        rows, grid = joint_patches(rows, grid, shifts)
    # Patches are more rows, other groups of periods are more frames.
    data = data.reshape(-1, patches * frequency_selection.sum())
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
    weights = row_weights(rows, noise, frequency_selection, settings)
    tracers = len(calibrations) if several else None
    system = System(
        rows, data, weights, frequency_selection, grid, tuple(notes), noise, tracers
    )
    corrected = mdf.need_measurement(measurement).is_background_corrected
    if settings.joint_background and scans is not None and not corrected:
        empty = (scans / scale).reshape(-1, data.shape[-1]).astype(dtype)
        if len(empty) < settings.joint_background:
            raise ValueError(
                f"joint_background: expected at most {len(empty)}, the background frames "
                f"of {measurement.path}, got {settings.joint_background}"
            )
        system = _without_background(system, empty, settings)
    return system


def _without_background(
    system: System, empty: Complex[np.ndarray, "E M"], settings: Preprocessing
) -> System:
    """The system, weighted, whose solution is the one jointly with a background."""
    rows, data, noise = system.system_matrix, system.measurement, system.noise
    if system.weights is not None:
        rows, data = system.weights[:, None] * rows, system.weights * data
        empty = np.asarray(system.weights) * empty
        noise = None if noise is None else noise * system.weights
    vectors = background_dictionary(empty, settings.joint_background)
    rows, data = eliminate_background(rows, data, vectors, settings.background_penalty)
    return dataclasses.replace(
        system, system_matrix=rows, measurement=data, weights=None, noise=noise
    )


def _rows_alone(rows, frequency_selection, grid, settings, notes, tracers):
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
        rows,
        nothing,
        None,
        frequency_selection,
        grid,
        tuple(notes),
        tracers=tracers or None,
    )


def _check_fit(calibration, measurement, settings):
    differing = [
        text
        for text in mdf.compatible(calibration, measurement, settings.period_grouping)
        if text.split(":")[0] not in settings.tolerate
    ]
    if differing:
        raise ValueError(
            f"{calibration.path} doesn't fit {measurement.path}: {'; '.join(differing)}"
        )


def _same_grid(one, two):
    return one.shape == two.shape and all(
        np.allclose(getattr(one, name), getattr(two, name), rtol=1e-6, atol=1e-9)
        for name in ("field_of_view", "centre")
    )
