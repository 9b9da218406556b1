"""Magnetic Particle Imaging in JAX (MPI here is not the message-passing interface).

One line of data runs through the package, and its modules stand in that order:

    phantom  ->  signal  ->  reconstruction  ->  metrics  ->  report
    c [P]        u [C, V]    c^ [P], mask [P]    numbers      table, figures, page

The rooms of `__all__` are imported at their first use, so that `import mpi_jax` costs no
JAX and `mpi_jax.scanner.paper(64)` needs no further import:

    >>> import mpi_jax as mj
    >>> mj.scanner.paper(64).grid.shape
    (64, 64)
"""

import importlib
import types
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for type checkers and editors; at run time see __getattr__
    from mpi_jax import (
        bootstrap,
        cluster,
        configs,
        data,
        evaluation,
        mdf,
        methods,
        metrics,
        models,
        noise,
        open_mpi,
        phantoms,
        physics,
        preprocess,
        pretrained,
        reconstruct,
        report,
        results,
        runs,
        scanner,
        system_matrix,
        train,
    )

__version__ = "0.1.0"

__all__ = [
    "bootstrap",
    "cluster",
    "configs",
    "data",
    "evaluation",
    "mdf",
    "methods",
    "metrics",
    "models",
    "noise",
    "open_mpi",
    "phantoms",
    "physics",
    "preprocess",
    "pretrained",
    "reconstruct",
    "report",
    "results",
    "runs",
    "scanner",
    "system_matrix",
    "train",
]


def __getattr__(name: str) -> types.ModuleType:
    """A room, imported now; what it imports is then an attribute of the package."""
    if name not in __all__:
        raise AttributeError(
            f"module 'mpi_jax' has no attribute {name!r}; its rooms are "
            f"{', '.join(__all__)}"
        )
    return importlib.import_module(f"mpi_jax.{name}")


def __dir__() -> list[str]:
    """The door: the rooms and the version."""
    return sorted([*__all__, "__version__"])
