"""`table64` at 32 x 32 and in a few steps: seconds, for tests of every row."""

import dataclasses

from mpi_jax.configs import PhysicsConfig, ScannerConfig, table, table64

BASE = dataclasses.replace(
    table64.BASE,
    name="table32",
    generator="tiny32_dual",
    discriminator="df48_32",
    steps=4,
    scanner=ScannerConfig(pixels=32),
    data=dataclasses.replace(table64.BASE.data, batch_size=16),
    optimiser=dataclasses.replace(table64.BASE.optimiser, warmup=1),
    log_every=2,
    checkpoint_every=2,
    validation_images=12,
)
PHYSICS = PhysicsConfig(rank=64, iterations=5, refine=2)
ROWS = table.rows(BASE, "tiny32_{}", "demo32_{}", PHYSICS, 32)
