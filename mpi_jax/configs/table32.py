"""`table64` at 32 x 32 and half its images: small enough for several seeds of a row."""

import dataclasses

from mpi_jax.configs import table, table64
from mpi_jax.configs.schema import PhysicsConfig, ScannerConfig

BASE = dataclasses.replace(
    table64.BASE,
    name="table32",
    generator="tiny32_dual",
    discriminator="df48_32",
    steps=700,
    scanner=ScannerConfig(pixels=32),
    checkpoint_every=350,
)
PHYSICS = PhysicsConfig(rank=1000, rho=1e-3, iterations=30)
ROWS = table.rows(BASE, "tiny32_{}", "demo32_{}", PHYSICS, 32)
