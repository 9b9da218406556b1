"""What methods work with, and the grids their settings are chosen from."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Array, Float

from mpi_jax import data, system_matrix
from mpi_jax.configs import Config
from mpi_jax.reconstruct import spectral

LABELS = {
    "xspace": "x-space",
    "xspace_tensor": "x-space (tensor, deconvolved)",
    "kaczmarz": "System matrix (Kaczmarz)",
    "tikhonov": "System matrix (Tikhonov)",
    "nonnegative": "System matrix (non-negative)",
    "tv": "System matrix (non-negative, TV)",
    "transgan": "Dual-task TransGAN",
}
METHODS = tuple(LABELS)
LABELS |= {
    "zero": "All-zero image",
    "mean": "Mean training image",
    "nearest": "Nearest training signal",
    "ridge": "Linear ridge",
    "xspace_max": "x-space, over its maximum",
    "kaczmarz_max": "System matrix (Kaczmarz), over its maximum",
}
# Of the lines of a table: controls first, each beside what it controls.
ORDER = (
    *("zero", "mean", "nearest", "ridge", "xspace_max", "xspace", "xspace_tensor"),
    *("kaczmarz_max", "kaczmarz", "tikhonov", "nonnegative", "tv", "transgan"),
)
# What is evaluated unless methods are named: the others take their time.
USUAL = tuple(m for m in METHODS if m not in ("xspace_tensor", "tv"))

# Grids that the settings are chosen from.
KACZMARZ_LAMS = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
KACZMARZ_SWEEPS = (1, 2, 5, 10, 20, 50, 100, 200)
TIKHONOV_LAMS = tuple(10.0 ** (-k / 2) for k in range(2, 13))
RHOS = (1e-4, 3e-4, 1e-3, 3e-3)
STEPS = (10, 20, 50, 100)
FACTORS = (1.5, 3.0, 6.0, 12.0)
TV_STEPS = (100, 200)
WIDTHS = (0.5, 1.0, 2.0)  # of the default gridding width
PLAN_WIDTHS = (None, 0.9e-3, 1.2e-3)  # [m]; None: as the path's gaps ask for
PLAN_RHOS = (1e-3, 3e-3, 1e-2)
PLAN_STEPS = (20, 50, 100)
THRESHOLDS = tuple(np.arange(1, 16) / 20)
CHUNK = 120  # test images at once, rounded up to whole batches
RANK = 1024  # of the basis where a config has none

Images = Float[Array, "B ny nx"]


@dataclasses.dataclass(frozen=True)
class Problem:
    """What classical methods work with. Rows are scaled to unit signals: the moments of
    particles square to numbers near the end of float32.
    """

    config: Config
    forward: data.ForwardModel
    basis: spectral.SpectralBasis
    rows: Array  # [M, P] complex, all frequencies of all channels but DC
    frequency_selection: np.ndarray  # [C, K]
    plans: dict = dataclasses.field(default_factory=dict)  # width [m] -> TensorPlan


def problem(config: Config, forward: data.ForwardModel) -> Problem:
    """The frequency rows and the spectral basis of a run's system matrix."""
    matrix = forward.matrix
    basis = forward.basis
    if forward.frequency_selection is None:
        frequency_selection = system_matrix.frequency_selection(forward.scanner)
    else:
        frequency_selection = np.asarray(forward.frequency_selection)
    if basis is None:
        rank = min(RANK, forward.scanner.grid.size, 2 * int(frequency_selection.sum()))
        basis = spectral.spectral_basis(matrix.reshape(-1, matrix.shape[-1]), rank)
    scaled = matrix / forward.scale[..., None]
    rows = system_matrix.select_rows(
        system_matrix.to_frequency(scaled), frequency_selection, axis=1
    )
    return Problem(config, forward, basis, rows, frequency_selection)
