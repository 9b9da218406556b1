"""The paper's experiment: 1 x 3264 signal to 128 x 128 image and mask, 638,137 images.

Ten epochs of batches of 64, about 50 GFLOP an image and step with the discriminator:
made for an accelerator. A CPU runs it too, a few images a minute (choose a smaller
data.batch_size there). What the paper leaves open (depths, optimiser, noise) follows
the TransGAN line, see mpi_jax.models.transgan. ROWS: the learned methods of its Table 1
in equal steps on equal data.
"""

from mpi_jax.configs import table
from mpi_jax.configs.schema import Config, PhysicsConfig

CONFIG = Config(
    name="paper",
    generator="tg128_dual",
    discriminator="df192",
    steps=99_710,
    remat=True,
    log_every=50,
    checkpoint_every=1000,
)
ROWS = table.rows(CONFIG, "tg128_{}", "tg128_{}_physics", PhysicsConfig(rank=1024), 128)
