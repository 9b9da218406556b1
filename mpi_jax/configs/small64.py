"""64 x 64 in CPU hours: convolutions at full resolution, unrolled against the signal.

It learns from signals of 30 to 60 dB, so that it knows more than
one noise level, and is tested at 40 dB like the others.
"""

import dataclasses

from mpi_jax.configs import DataConfig, PhysicsConfig, ScannerConfig, small

CONFIG = dataclasses.replace(
    small.CONFIG,
    name="small64",
    generator="unrolled64_dual",
    discriminator="df48_64",
    scanner=ScannerConfig(pixels=64),
    data=DataConfig(batch_size=16, snr_db=(30.0, 60.0), test_snr_db=40.0),
    physics=PhysicsConfig(rank=1024, rho=3e-4, iterations=20, refine=0),
    optimiser=dataclasses.replace(small.CONFIG.optimiser, warmup=100, ema=0.999),
    steps=30_000,
    checkpoint_every=500,
    validation_images=96,
)
