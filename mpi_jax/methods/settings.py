"""Settings of the reconstruction methods: one name, one unit, one text for each."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a reconstruction; None is the method's own default.

    A method takes those of its row in METHODS and refuses the others.
    """

    lam: float | Literal["l_curve", "discrepancy"] | None = None
    """Ridge regularisation [1], in `lam_unit`; l_curve or discrepancy: chosen for each
    frame. Defaults: kaczmarz 1e-2, cgnr 0, tikhonov 1e-2, elastic_net 1e-3."""
    lam_unit: Literal["energy", "sigma1"] | None = None
    """What lam is relative to: energy, the mean energy of the system matrix per voxel
    ||S||_F^2 / P (as in RegularizedLeastSquares.jl), or sigma1, its largest singular
    value squared. Default: energy."""
    lam_tv: float | Literal["noise", "l_curve", "discrepancy"] | None = None
    """Weight of the total variation [1], relative to the largest singular value squared,
    for a frame with 1 as its brightest voxel; noise: `factor` times the variance of the
    frame's noise; l_curve or discrepancy: chosen for each frame. Default: noise."""
    factor: float | None = None
    """Weight of the total variation over the noise variance [1], where lam_tv is noise.
    Default: 3."""
    l1: float | None = None
    """Weight of the sparsity [1], relative to the one that leaves nothing. Default: 0."""
    rho: float | Literal["noise"] | None = None
    """Penalty of the splitting [1], relative to the largest singular value squared;
    noise: from the noise of each frame. Defaults: nonnegative and tv noise,
    xspace_tensor 3e-3."""
    iterations: int | Literal["l_curve", "discrepancy"] | None = None
    """Sweeps (kaczmarz) or steps; for nonnegative also l_curve or discrepancy: its stop,
    chosen for each frame. Defaults: kaczmarz and cgnr 10, nonnegative 20,
    xspace_tensor 50, tv 100, elastic_net 200."""
    width: float | None = None
    """Standard deviation of the gridding Gaussian (xspace), correlation length of the
    signal's tensor (xspace_tensor) [m]. Default: from the gaps of the path."""
    gain: float | None = None
    """What the x-space image is multiplied by [1]. Default: 1."""
