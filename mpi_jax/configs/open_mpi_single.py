"""`open_mpi` with the reconstruction task alone: the control of the dual-task claim."""

import dataclasses

from mpi_jax.configs import open_mpi

CONFIG = dataclasses.replace(
    open_mpi.CONFIG, name="open_mpi_single", generator="demo32_single"
)
