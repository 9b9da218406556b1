"""Training: networks of a config, the pure step with its one pmap, the loop around them."""

from mpi_jax.train import checkpoint, losses
from mpi_jax.train.loop import run
from mpi_jax.train.networks import (
    Networks,
    check_signal,
    has_statistics,
    make_networks,
    predict,
)
from mpi_jax.train.step import (
    Batch,
    Optimisers,
    data_parallel,
    init_state,
    make_batch,
    make_optimisers,
    replicate,
    train_step,
    with_weights,
)
from mpi_jax.train.validation import make_validation

__all__ = [
    "Batch",
    "Networks",
    "Optimisers",
    "check_signal",
    "checkpoint",
    "data_parallel",
    "has_statistics",
    "init_state",
    "losses",
    "make_batch",
    "make_networks",
    "make_optimisers",
    "make_validation",
    "predict",
    "replicate",
    "run",
    "train_step",
    "with_weights",
]
