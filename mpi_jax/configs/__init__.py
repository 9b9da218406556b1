"""Runs as typed, frozen settings: one module per run with a `CONFIG`, or per table of
runs with `ROWS` by name.

A run is a name of CONFIGS; every field can be overridden (`mpi-jax train --help`).
Plain numbers and strings only: a config is JSON beside the weights it made.
"""

from __future__ import annotations

from mpi_jax.configs.names import CONFIGS, LEARNED, SHIPPED, TABLES, get
from mpi_jax.configs.preprocessing import Preprocessing
from mpi_jax.configs.schema import (
    CalibrationConfig,
    Config,
    DataConfig,
    LossConfig,
    OptimiserConfig,
    PhysicsConfig,
    ScannerConfig,
    from_dict,
    to_dict,
)

__all__ = [
    "CONFIGS",
    "LEARNED",
    "SHIPPED",
    "TABLES",
    "CalibrationConfig",
    "Config",
    "DataConfig",
    "LossConfig",
    "OptimiserConfig",
    "PhysicsConfig",
    "Preprocessing",
    "ScannerConfig",
    "from_dict",
    "get",
    "to_dict",
]
