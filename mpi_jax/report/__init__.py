"""Tables, figures and one page out of the files of a work folder; knows no JAX."""

from mpi_jax.report.comparisons import claims
from mpi_jax.report.compose import write
from mpi_jax.report.generalisation import write_generalisation
from mpi_jax.report.images import example_figure, save_images, save_l_curve
from mpi_jax.report.measured import write_measured
from mpi_jax.report.pages import END, fill, readme_table
from mpi_jax.report.read import SAMPLES_SHOWN, Run, read

__all__ = [
    "END",
    "SAMPLES_SHOWN",
    "Run",
    "claims",
    "example_figure",
    "fill",
    "read",
    "readme_table",
    "save_images",
    "save_l_curve",
    "write",
    "write_generalisation",
    "write_measured",
]
