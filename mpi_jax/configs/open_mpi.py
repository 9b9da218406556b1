"""The paper's training for real phantoms: signals S c + n of one plane of a calibration.

    mpi-jax train --config open_mpi --calibration.path 5.mdf --workdir runs/open_mpi

CPU minutes at 32 x 32. A plane's model of a body with depth is wrong by some per cent of
the signal: hence noise of 20 to 40 dB, and a basis of what is above it.
"""

import dataclasses

from mpi_jax.configs import small
from mpi_jax.configs.schema import DataConfig, PhysicsConfig, ScannerConfig

CONFIG = dataclasses.replace(
    small.CONFIG,
    name="open_mpi",
    generator="demo32_dual",
    scanner=ScannerConfig(preset="calibration", pixels=32),
    data=DataConfig(batch_size=12, snr_db=(20.0, 40.0), test_snr_db=30.0),
    physics=PhysicsConfig(rank=200, rho=1e-2, iterations=20),
)
