"""Rows of a calibration on the grid of the image."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Complex, Float

from mpi_jax import _linalg, mdf
from mpi_jax.configs import Preprocessing
from mpi_jax.preprocess.frames import NEAR, places
from mpi_jax.scanner import Grid

JOINT = 6e9  # bytes of the largest joint system of patches


def rows_on_grid(
    calibration: mdf.MDF,
    frequency_selection: Bool[np.ndarray, "C K"],
    settings: Preprocessing,
    notes: list[str],
) -> tuple[Complex[np.ndarray, "M P"], Grid]:
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
    if len(np.unique(places(calibration))) > 1:
        raise ValueError(
            f"{calibration.path}: expected a calibration with one offset field, found several"
        )
    voxels = order.reshape(-1)
    stored = np.sort(voxels)
    rows = mdf.system_matrix(calibration, frequency_selection, voxels=stored)
    info = mdf.need_measurement(calibration)
    has_background = len(info.background) and not info.is_background_corrected
    if settings.matrix_background == "none":
        if has_background:
            notes.append(
                "the system matrix keeps its background (matrix_background none)"
            )
        rows = rows[..., : len(stored)]
    elif settings.matrix_background == "mean" and has_background:
        empty = rows[..., len(stored) :].mean(-1, keepdims=True)
        rows = rows[..., : len(stored)] - empty
    else:  # as it is where the file says so, an error without background frames
        rows = mdf.correct_background(calibration, rows, voxels=stored)
    rows = rows.mean(0)[:, np.searchsorted(stored, voxels)]
    if settings.plane is not None:
        rows = rows.reshape(len(rows), len(order), -1).sum(1)
    if settings.shape:
        rows, grid = _regrid(rows, grid, settings)
    if settings.sparse_reduction or settings.sparse_threshold:
        rows = _sparse(rows, grid, settings)
    return rows, grid


def _sparse(rows, grid, settings):
    """Rows of which only the largest coefficients of a cosine transform are left."""
    coefficients = _linalg.dct(rows.reshape(-1, *grid.shape), "DCT-II").reshape(
        rows.shape
    )
    size = np.abs(coefficients)
    if settings.sparse_threshold:
        least = settings.sparse_threshold * size.max(axis=1, keepdims=True)
    else:
        count = int(settings.sparse_reduction * rows.shape[1])
        if not count:
            raise ValueError(
                f"sparse_reduction: expected at least {1 / rows.shape[1]:.2g}, one of "
                f"{rows.shape[1]} coefficients, got {settings.sparse_reduction}"
            )
        least = np.sort(size, axis=1)[:, -count, None]
    coefficients = np.where(size >= least, coefficients, 0)
    back = _linalg.dct(coefficients.reshape(-1, *grid.shape), "DCT-II", inverse=True)
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


def patch_shifts(
    calibrations: Sequence[mdf.MDF], offsets: Float[np.ndarray, "patches 3"]
) -> Float[np.ndarray, "patches 3"]:
    """Way of the field-free point from the calibration to each patch [patches, 3] m."""
    fields = [mdf.need_acquisition(file).offset_field for file in calibrations]
    at_rest = [np.zeros(3) if field is None else field[0, 0] for field in fields]
    if np.ptp(at_rest, axis=0).max() > NEAR:
        raise ValueError(
            f"calibration: expected files with one offset field, got {at_rest} T"
        )
    change = offsets - at_rest[0]
    if np.abs(change).max() <= NEAR:
        return np.zeros_like(change)
    gradient = mdf.need_acquisition(calibrations[0]).gradient
    if gradient is None or np.linalg.matrix_rank(gradient[0, 0]) < 3:
        raise ValueError(
            f"{calibrations[0].path}: expected a gradient of full rank to place patches of "
            f"other offset fields, found {'none' if gradient is None else gradient[0, 0]}"
        )
    return -np.linalg.solve(gradient[0, 0], change.T).T


def joint_patches(
    rows: Complex[np.ndarray, "M P"], grid: Grid, shifts: Float[np.ndarray, "patches 3"]
) -> tuple[Complex[np.ndarray, "rows columns"], Grid]:
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
    if size > JOINT:
        raise ValueError(
            f"patches: expected a joint system of at most {JOINT / 1e9:g} GB; "
            f"{len(shifts)} patches of {len(rows)} rows on {list(shape)} voxels need "
            f"{size / 1e9:.1f}; select fewer rows (snr_threshold, num_rows) or patches "
            "(periods)"
        )
    patches = np.empty((len(shifts), len(rows), columns), rows.dtype)
    for patch, shift in zip(patches, shifts, strict=True):
        moved = dataclasses.replace(grid, centre=np.asarray(grid.centre) + shift)
        spread = map(_interpolation, _axes(moved), _axes(joint))
        patch[:] = _resample(rows, grid, (matrix.T for matrix in spread))
    return patches.reshape(-1, columns), joint
