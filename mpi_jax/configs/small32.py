"""`small64` at 32 x 32: what ships for the scanner of the demo."""

import dataclasses

from mpi_jax.configs import small64
from mpi_jax.configs.schema import ScannerConfig

CONFIG = dataclasses.replace(
    small64.CONFIG,
    name="small32",
    generator="unrolled32_dual",
    discriminator="df48_32",
    scanner=ScannerConfig(pixels=32),
    steps=3_000,
)
