"""Dual-task TransGAN with physics features in CPU minutes: what `mpi-jax demo` trains."""

from mpi_jax.configs.schema import (
    Config,
    DataConfig,
    LossConfig,
    OptimiserConfig,
    PhysicsConfig,
    ScannerConfig,
)

CONFIG = Config(
    name="small",
    generator="unrolled32_dual",
    discriminator="df48_32",
    steps=900,
    scanner=ScannerConfig(pixels=32),
    data=DataConfig(batch_size=12, snr_db=(40.0, 40.0), test_snr_db=40.0),
    physics=PhysicsConfig(rank=1000, rho=1e-3, iterations=30, refine=10),
    loss=LossConfig(bce=1.0, dice=0.1, adversarial=0.01),  # see small64
    optimiser=OptimiserConfig(
        learning_rate=2e-3, schedule="cosine", warmup=50, b1=0.9, b2=0.999, ema=0.99
    ),
    checkpoint_every=450,
    validation_images=60,
)
