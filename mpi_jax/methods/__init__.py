"""A reconstruction method: voltages to images, by name.

    Problem(rows, grid, ...)        a scanner and its calibration, simulated or measured
    METHODS[name].prepare(problem, settings) -> solve
    solve(u [B, ...]) -> Reconstruction(image, mask_logit, interval)

`reconstruct`, `evaluate`, robustness suites and Figure 3 take this one table, so that
the same data, matrix, name and settings give the same image through each of them.
Networks join it under the names of their runs (`networks.of_run`).

Names are loaded as they are asked for: the table itself costs no JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

from mpi_jax.methods.settings import Settings
from mpi_jax.methods.table import METHODS, Method, get

if TYPE_CHECKING:
    from mpi_jax.methods.choice import Choice
    from mpi_jax.methods.controls import Training
    from mpi_jax.methods.problem import (
        Problem,
        Reconstruction,
        from_forward,
        from_system,
    )
    from mpi_jax.methods.tuning import Tuned, tune, tune_threshold

_HOMES = {
    "Choice": "choice",
    "Problem": "problem",
    "Reconstruction": "problem",
    "Ready": "prepared",
    "Training": "controls",
    "Tuned": "tuning",
    "from_forward": "problem",
    "from_matrix": "problem",
    "from_system": "problem",
    "ready": "prepared",
    "tune": "tuning",
    "tune_threshold": "tuning",
}
__all__ = [
    "METHODS",
    "Choice",
    "Method",
    "Problem",
    "Ready",
    "Reconstruction",
    "Settings",
    "Training",
    "Tuned",
    "from_forward",
    "from_matrix",
    "from_system",
    "get",
    "ready",
    "tune",
    "tune_threshold",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
