"""Tables, figures and one page out of the files of a work folder; knows no JAX."""

from mpi_jax.report.comparisons import claims
from mpi_jax.report.compose import write
from mpi_jax.report.generalisation import write_generalisation
from mpi_jax.report.images import example_figure, save_images, save_l_curve
from mpi_jax.report.measured import write_measured
from mpi_jax.report.read import SAMPLES_SHOWN, read, read_lines
from mpi_jax.report.readme import END, fill, readme_table

__all__ = [
    "END",
    "SAMPLES_SHOWN",
    "claims",
    "example_figure",
    "fill",
    "read",
    "read_lines",
    "readme_table",
    "save_images",
    "save_l_curve",
    "write",
    "write_generalisation",
    "write_measured",
]
