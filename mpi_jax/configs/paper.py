"""The paper's experiment: 1 x 3264 signal to 128 x 128 image and mask, 638,137 images.

Ten epochs of batches of 64, about 50 GFLOP an image and step with the discriminator:
made for an accelerator. A CPU runs it too, a few images a minute (choose a smaller
data.batch_size there). What the paper leaves open of its network follows the TransGAN
line, see mpi_jax.models.transgan; inputs, loss weights and optimiser are the recipe of
`table32`, found at 32 x 32 (the paper's own loss weights are 20, 5, 5: the defaults of
LossConfig). ROWS: the learned methods of its Table 1 in equal steps on equal data.
"""

import dataclasses

from mpi_jax.configs import table, table32
from mpi_jax.configs.schema import Config, PhysicsConfig

CONFIG = Config(
    name="paper",
    generator="tg128_dual",
    discriminator="df192",
    steps=10 * table32.BASE.steps,
    data=table32.BASE.data,
    loss=table32.BASE.loss,
    optimiser=dataclasses.replace(table32.BASE.optimiser, warmup=1000),
    remat=True,
    log_every=50,
    checkpoint_every=1000,
)
ROWS = table.rows(CONFIG, "tg128_{}", "tg128_{}_physics", PhysicsConfig(rank=1024), 128)
