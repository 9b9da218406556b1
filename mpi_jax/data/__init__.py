"""What networks are trained on: examples made on the device from an index, and what a
network is given of them.
"""

from mpi_jax.data import calibrated
from mpi_jax.data.examples import (
    Examples,
    draw,
    draw_batches,
    draw_pictures,
    fixed_noise,
    observe,
    pictures,
    training_keys,
)
from mpi_jax.data.features import Inputs, inputs, refine, scaled
from mpi_jax.data.forward_model import ForwardModel
from mpi_jax.data.setup import PRESETS, build, check_voltage, make_scanner, simulator
from mpi_jax.data.stream import Shards, training_pictures, validation_pictures
from mpi_jax.data.tfds import Reader

__all__ = [
    "Examples",
    "ForwardModel",
    "Inputs",
    "PRESETS",
    "Reader",
    "Shards",
    "build",
    "calibrated",
    "check_voltage",
    "draw",
    "draw_batches",
    "draw_pictures",
    "fixed_noise",
    "inputs",
    "make_scanner",
    "observe",
    "pictures",
    "refine",
    "scaled",
    "simulator",
    "training_keys",
    "training_pictures",
    "validation_pictures",
]
