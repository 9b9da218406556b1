"""The forward model of the config `test`, six images a batch."""

import dataclasses

from mpi_jax import configs, data

SIZE = 6


def build():
    config = configs.get("test")
    small = dataclasses.replace(config.data, batch_size=SIZE)
    return data.build(dataclasses.replace(config, data=small))
