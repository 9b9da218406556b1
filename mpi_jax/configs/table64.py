"""The learned methods of the paper's Table 1 at 64 x 64 and 40 dB, half a CPU hour each.

33,600 images in batches of 24: six families, so that none is drawn in vain. The recipe
for networks that see the voltage alone is table32's, where it was found.
"""

from mpi_jax.configs import table
from mpi_jax.configs.schema import (
    Config,
    DataConfig,
    LossConfig,
    OptimiserConfig,
    PhysicsConfig,
    ScannerConfig,
)

BASE = Config(
    name="table64",
    generator="plain64_dual",
    discriminator="df48_64",
    steps=1_400,
    scanner=ScannerConfig(pixels=64),
    data=DataConfig(
        batch_size=24, snr_db=(40.0, 40.0), test_snr_db=40.0, signal_norm="pca"
    ),
    loss=LossConfig(bce=1.0, dice=0.1, adversarial=0.01),
    optimiser=OptimiserConfig(
        learning_rate=1e-3, schedule="cosine", warmup=100, b1=0.9, b2=0.999, ema=0.995
    ),
    log_every=50,
    checkpoint_every=500,
)
PHYSICS = PhysicsConfig(rank=1024, rho=3e-4, iterations=20)
ROWS = table.rows(BASE, "plain64_{}", "unrolled64_{}", PHYSICS, 64)
