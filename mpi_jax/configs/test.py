"""`small` in seconds: a few steps, for tests, CI and a first look."""

import dataclasses

from mpi_jax.configs import small
from mpi_jax.configs.schema import DataConfig, PhysicsConfig

CONFIG = dataclasses.replace(
    small.CONFIG,
    name="test",
    generator="demo32_dual",  # sooner compiled
    steps=6,
    data=DataConfig(batch_size=16, snr_db=(40.0, 40.0)),
    physics=PhysicsConfig(rank=64, iterations=5, refine=2),
    optimiser=dataclasses.replace(small.CONFIG.optimiser, warmup=2),
    log_every=2,
    checkpoint_every=3,
    validation_images=12,
)
