"""`paper` with the system matrix inside: classical images at every stage, 40 dB."""

import dataclasses

from mpi_jax.configs import DataConfig, PhysicsConfig, paper

CONFIG = dataclasses.replace(
    paper.CONFIG,
    name="paper_physics",
    generator="tg128_dual_physics",
    data=DataConfig(snr_db=(40.0, 40.0)),
    physics=PhysicsConfig(rank=1024),
)
