"""`open_mpi` at 64 x 64: CPU hours, GPU minutes."""

import dataclasses

from mpi_jax.configs import open_mpi
from mpi_jax.configs.schema import ScannerConfig

CONFIG = dataclasses.replace(
    open_mpi.CONFIG,
    name="open_mpi64",
    generator="demo64_dual",
    discriminator="df48_64",
    scanner=ScannerConfig(preset="calibration", pixels=64),
    steps=20_000,
    checkpoint_every=1000,
)
