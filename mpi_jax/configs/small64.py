"""`small` at 64 x 64: CPU hours, GPU minutes."""

import dataclasses

from mpi_jax.configs import ScannerConfig, small

CONFIG = dataclasses.replace(
    small.CONFIG,
    name="small64",
    generator="demo64_dual",
    discriminator="df48_64",
    scanner=ScannerConfig(pixels=64),
    steps=20_000,
    checkpoint_every=1000,
)
