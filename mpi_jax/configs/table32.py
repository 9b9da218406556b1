"""The learned methods of the paper's Table 1 at 32 x 32 and 40 dB on the paper's number of
images: one epoch of its 638,137, a CPU hour or two each.

What a plain network needs to leave the all-zero image was found in pilots of 32,000
images (docs/results.md): signals by principal components (PSNR 20.8 dB, by channel 18.9),
light mask terms (see small64), a stem that holds most of the parameters.
"""

import dataclasses

from mpi_jax.configs import table, table64
from mpi_jax.configs.schema import PhysicsConfig, ScannerConfig

IMAGES = 638_137  # the paper's training set
BASE = dataclasses.replace(
    table64.BASE,
    name="table32",
    generator="plain32_dual",
    discriminator="df48_32",
    steps=-(-IMAGES // 64),
    scanner=ScannerConfig(pixels=32),
    data=dataclasses.replace(table64.BASE.data, batch_size=64, images=IMAGES),
    optimiser=dataclasses.replace(table64.BASE.optimiser, ema=0.999),
    checkpoint_every=250,
    validation_images=240,
)
PHYSICS = PhysicsConfig(rank=1000, rho=1e-3, iterations=30)
ROWS = table.rows(BASE, "plain32_{}", "demo32_{}", PHYSICS, 32)
