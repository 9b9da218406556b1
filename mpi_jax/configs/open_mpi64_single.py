"""`open_mpi64` with the reconstruction task alone."""

import dataclasses

from mpi_jax.configs import open_mpi64

CONFIG = dataclasses.replace(
    open_mpi64.CONFIG, name="open_mpi64_single", generator="demo64_single"
)
