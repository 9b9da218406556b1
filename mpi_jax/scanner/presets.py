"""Scanners by name."""

from __future__ import annotations

import math
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Float

from mpi_jax._checks import (
    DISTANCE,
    LENGTH,
    check_count,
    check_positive,
    expect,
    is_integer,
)
from mpi_jax.scanner._pytree import (
    BOLTZMANN,
    VACUUM_PERMEABILITY,
    Scalar,
    Vector,
    array,
    pytree,
)
from mpi_jax.scanner.components import (
    DriveField,
    Receiver,
    Scanner,
    SelectionField,
    Tracer,
)
from mpi_jax.scanner.grid import Grid

# MPIRF's rounded constants.
_MPIRF_PI = 3.1416
_MPIRF_BOLTZMANN = 1.3806488e-23
_MPIRF_VACUUM_PERMEABILITY = 4 * _MPIRF_PI * 1e-7
_MPIRF_STEP = 1e-4  # [m]


@pytree
class MPIRFDriveField(DriveField):
    """MPIRF's sampling: the period plus its repeated end point, phases with pi = 3.1416.

    Only for comparison with files of that simulator.

    Examples:
      >>> MPIRFDriveField((12e-3, 12e-3, 0.0), (102, 96, 0)).samples
      1633
    """

    @property
    def samples(self) -> int:
        return super().samples + 1

    @property
    def frequencies(self):
        return super().frequencies * (_MPIRF_PI / math.pi)

    def turns(self) -> np.ndarray:
        period = self.oversampling * np.array([d or 1 for d in self.divider])
        turns = np.arange(self.samples)[:, None] / period * (_MPIRF_PI / math.pi)
        # -cos(w t + pi / 2) is a sine only for the true pi.
        return turns + (_MPIRF_PI / math.pi - 1) / 4


def _shape(shape: Any, axes: int) -> tuple[int, ...]:
    if is_integer(shape):
        return (int(shape),) * axes
    form = f"an integer or a tuple of {axes} integers"
    expect(np.ndim(shape) == 1 and len(shape) == axes, "shape", form, repr(shape))
    return tuple(check_count("shape", n) for n in shape)


def paper(
    shape: SupportsIndex | tuple[SupportsIndex, ...] = 128,
    *,
    amplitude: Scalar = 12.8e-3,
    gradient: Scalar = 2.0,
    field_of_view: Scalar = 12.8e-3,
    phase: Scalar = 0.0,
    tracer: Tracer | None = None,
    oversample: SupportsIndex = 2,
) -> Scanner:
    """The dual-task TransGAN paper's scan: 12.8 x 12.8 mm, 2 x 1632 samples.

    The paper fixes the field of view, the Lissajous path and the signal length; only
    the ratio amplitude / gradient = 6.4 mm follows from it. The defaults are nearest to
    those of the paper's simulator MPIRF. A Bruker scanner reaches amplitude=8e-3,
    gradient=1.25 and amplitude=6.4e-3, gradient=1.0.

    Args:
      shape: pixels (ny, nx), or one integer for both.
      amplitude: of the drive fields along x and y [T].
      gradient: of the selection field along x and y [T/m]; z has twice of it.
      field_of_view: side of the image, edge to edge [m].
      phase: of the drive fields [turns], 0: sine, 1/4: cosine.
      tracer: None for MPIRF's (30 nm, 8e5 A/m, 20 C).
      oversample: see Receiver; at 1 harmonics beyond 1.25 MHz fold back, 3.3 % of the
        system matrix.

    Examples:
      >>> s = paper(64)
      >>> s.channels, s.samples, s.grid.shape
      (2, 1632, (64, 64))
    """
    return Scanner(
        tracer=tracer or Tracer(),
        drive_field=DriveField(
            amplitude=(amplitude, amplitude, 0.0),
            divider=(102, 96, 0),
            phase=(phase, phase, 0.0),
        ),
        selection_field=SelectionField(
            array([-gradient, -gradient, 2 * gradient])[:, None] * np.eye(3)
        ),
        receiver=Receiver(
            np.eye(2, 3), oversample=check_count("oversample", oversample)
        ),
        grid=Grid(_shape(shape, 2), (field_of_view, field_of_view, 1e-3)),
    )


def mpirf(
    *,
    amplitude: tuple[float, float] = (12e-3, 12e-3),
    gradient: tuple[float, float] = (2.0, 2.0),
    core_diameter: Scalar = 30e-9,
    saturation_magnetisation: float = 8e5,
    temperature: float = 293.15,
) -> Scanner:
    """The MPIRF simulator's scanner with its own grid, samples and rounded constants.

    Pixels are 0.1 mm, centred on nodes from edge to edge, 1633 samples, not oversampled.
    Use with model="mpirf" to compare with files of that simulator; for anything else
    take `paper`. Source: XiaoYaoNet/MPIRF, ScannerBase.py, commit ab79bf5 (MIT).

    Args:
      amplitude: (x, y) [T] as given to MPIRF, which swaps the two axes.
      gradient: (x, y) [T/m], not swapped.
      core_diameter: [m].
      saturation_magnetisation: [A/m].
      temperature: [K].

    Examples:
      >>> s = mpirf(amplitude=(1.6e-3, 1.6e-3))
      >>> s.samples, s.grid.shape
      (1633, (17, 17))
    """
    ax, ay = amplitude[::-1]
    u0 = _MPIRF_VACUUM_PERMEABILITY
    half = [(a / u0) / (g / u0) for a, g in zip((ax, ay), gradient, strict=True)]
    # The float rounding of arange decides the number of nodes.
    nx, ny = (len(np.arange(-h, h + _MPIRF_STEP, _MPIRF_STEP)) for h in half)
    return Scanner(
        # Rounded pi and Boltzmann constant, as equal changes of these two.
        tracer=Tracer(
            core_diameter,
            saturation_magnetisation * (_MPIRF_PI / math.pi),
            temperature * (_MPIRF_BOLTZMANN / BOLTZMANN),
        ),
        drive_field=MPIRFDriveField((ax, ay, 0.0), (102, 96, 0)),
        selection_field=SelectionField(
            np.diag([-gradient[0], -gradient[1], gradient[0] + gradient[1]])
        ),
        receiver=Receiver(np.eye(2, 3)),
        grid=Grid(
            (ny, nx),
            (nx * _MPIRF_STEP, ny * _MPIRF_STEP, _MPIRF_STEP),
            (
                (nx - 1) / 2 * _MPIRF_STEP - half[0],
                half[1] - (ny - 1) / 2 * _MPIRF_STEP,
                0.0,
            ),
        ),
    )


def circular_coil(
    grid: Grid,
    *,
    radius: float,
    centre: Vector,
    axis: Vector,
    segments: SupportsIndex = 256,
) -> Float[np.ndarray, "3 P"]:
    """Sensitivity [3, P] T/A of one circular turn at the grid's pixels (Biot-Savart).

    Sums straight pieces of wire on the host in float64; stack the maps of C coils for a
    Receiver. On its axis a turn makes mu0 R^2 / (2 (R^2 + z^2)^(3/2)).

    Args:
      grid: whose pixel centres they are.
      radius: of the turn [m].
      centre: of the turn [3] m.
      axis: direction of its normal [3], of any length but 0.
      segments: pieces of wire, at least 3.

    Raises:
      ValueError: on a radius that isn't positive or looks like millimetres, fewer
        segments, or an axis of zeros.

    Examples:
      >>> grid = Grid((4, 4), (12e-3, 12e-3, 1e-3))
      >>> coil = circular_coil(grid, radius=0.05, centre=(0, 0, 0), axis=(0, 0, 1))
      >>> coil.shape
      (3, 16)
    """
    check_positive("radius", radius)
    LENGTH.check("radius", radius)
    DISTANCE.check("centre", centre)
    segments = check_count("segments", segments, 3)
    direction = np.asarray(axis, np.float64)
    expect(
        bool(direction.any()), "axis", "a direction, not all zero", direction.tolist()
    )
    normal = direction / np.linalg.norm(direction)
    across = np.cross(normal, np.eye(3)[np.argmin(np.abs(normal))])
    across /= np.linalg.norm(across)
    angle = 2 * np.pi * np.arange(segments)[:, None] / segments
    spoke = np.cos(angle) * across + np.sin(angle) * np.cross(normal, across)
    step = radius * 2 * np.pi / segments * np.cross(normal, spoke)
    points = np.asarray(grid.positions(), np.float64) - np.asarray(centre, np.float64)
    field = np.zeros_like(points)
    for wire, piece in zip(radius * spoke, step, strict=True):
        to = points - wire
        field += np.cross(piece, to) / np.linalg.norm(to, axis=1, keepdims=True) ** 3
    return VACUUM_PERMEABILITY / (4 * np.pi) * field.T


# Perimag's core size is not documented; 0.6 T/mu0 is bulk magnetite.
_PERIMAG = Tracer(30e-9, 0.6 / VACUUM_PERMEABILITY, 293.15)


def open_mpi_2d(
    shape: SupportsIndex | tuple[SupportsIndex, ...] = 37,
    *,
    field_of_view: tuple[float, float, float] = (37e-3, 37e-3, 0.5e-3),
    tracer: Tracer = _PERIMAG,
    oversample: SupportsIndex = 2,
) -> Scanner:
    """Open MPI Data's preclinical Bruker scanner, 2D sequence, receive channels x and y.

    12 mT, (-1, -1, 2) T/m, 2.5 MHz / (102, 96), cosine phase (Knopp et al. 2020, Data in
    Brief 28:104971). The grid defaults to one slice of calibration 5 (37 x 37 of 1 mm).

    Args:
      shape: pixels (ny, nx), or one integer for both.
      field_of_view: (x, y, slice) [m].
      tracer: perimag by default, with a core size that is not documented.
      oversample: see Receiver.

    Examples:
      >>> open_mpi_2d(19).grid.shape
      (19, 19)
    """
    return Scanner(
        tracer=tracer,
        drive_field=DriveField((12e-3, 12e-3, 0.0), (102, 96, 0), (0.25, 0.25, 0.0)),
        selection_field=SelectionField(np.diag([-1.0, -1.0, 2.0])),
        receiver=Receiver(
            np.eye(2, 3), oversample=check_count("oversample", oversample)
        ),
        grid=Grid(_shape(shape, 2), field_of_view),
    )


def open_mpi_3d(
    shape: SupportsIndex | tuple[SupportsIndex, ...] = 19,
    *,
    field_of_view: tuple[float, float, float] = (38e-3, 38e-3, 19e-3),
    tracer: Tracer = _PERIMAG,
    oversample: SupportsIndex = 2,
) -> Scanner:
    """Open MPI Data's 3D sequence: third axis at 2.5 MHz / 99, three channels.

    Args: as `open_mpi_2d`, with shape (nz, ny, nx) or one integer for all three.

    Examples:
      >>> s = open_mpi_3d(5)
      >>> s.channels, s.samples
      (3, 53856)
    """
    return Scanner(
        tracer=tracer,
        drive_field=DriveField((12e-3, 12e-3, 12e-3), (102, 96, 99), (0.25,) * 3),
        selection_field=SelectionField(np.diag([-1.0, -1.0, 2.0])),
        receiver=Receiver(np.eye(3), oversample=check_count("oversample", oversample)),
        grid=Grid(_shape(shape, 3), field_of_view),
    )
