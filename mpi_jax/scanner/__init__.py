"""The scanner: its parts in SI units, the grid of voxels, scanners by name."""

from mpi_jax.scanner._pytree import BOLTZMANN, VACUUM_PERMEABILITY, array
from mpi_jax.scanner.components import (
    CalibratedScanner,
    DriveField,
    Receiver,
    Scanner,
    SelectionField,
    Tracer,
)
from mpi_jax.scanner.grid import Grid
from mpi_jax.scanner.presets import (
    MPIRFDriveField,
    circular_coil,
    mpirf,
    open_mpi_2d,
    open_mpi_3d,
    paper,
)

__all__ = [
    "BOLTZMANN",
    "CalibratedScanner",
    "DriveField",
    "Grid",
    "MPIRFDriveField",
    "Receiver",
    "Scanner",
    "SelectionField",
    "Tracer",
    "VACUUM_PERMEABILITY",
    "array",
    "circular_coil",
    "mpirf",
    "open_mpi_2d",
    "open_mpi_3d",
    "paper",
]
