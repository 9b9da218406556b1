"""`small` with the reconstruction task alone: the control of the dual-task claim."""

import dataclasses

from mpi_jax.configs import small

CONFIG = dataclasses.replace(
    small.CONFIG, name="small_single", generator="unrolled32_single"
)
