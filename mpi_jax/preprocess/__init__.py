"""Two MDF files to one linear system: rows chosen, both files cleaned alike."""

from mpi_jax.preprocess.frames import spectral_leakage
from mpi_jax.preprocess.rows import select
from mpi_jax.preprocess.system import System, prepare

__all__ = [
    "System",
    "prepare",
    "select",
    "spectral_leakage",
]
