"""The forward model of the config `test`, with the batches that all its tests compile."""

from mpi_jax import configs, data

CONFIG = configs.get("test")
SIZE = CONFIG.data.batch_size


def build():
    return data.build(CONFIG)
