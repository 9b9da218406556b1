"""The fixed arrays of a run: how images become signals and signals become inputs."""

from __future__ import annotations

import dataclasses

import jax
from jaxtyping import Array, Bool, Float

from mpi_jax import scanner
from mpi_jax.reconstruct import spectral


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ForwardModel:
    """The fixed arrays of a run: how images become signals and signals become inputs.

    matrix [C, V, P] in the receiver's unit; scale [C, 1]: standard deviation of the
    noise-free training signals of each channel, which the network's signals are divided
    by (one number a channel, never one a signal, so that concentration survives);
    whitening [C V, C V]: what these are multiplied by then, None where nothing;
    basis: truncated SVD of the matrix, None without physics features. frequency_selection [C, K]: the
    frequencies that signals and their noise have, None where these are all.
    """

    scanner: scanner.Scanner | scanner.CalibratedScanner
    matrix: Float[Array, "C V P"]
    scale: Float[Array, "C 1"]
    basis: spectral.SpectralBasis | None
    lams: Float[Array, " L"]
    iterations: int = dataclasses.field(metadata={"static": True})
    refine: int = dataclasses.field(metadata={"static": True})
    frequency_selection: Bool[Array, "C K"] | None = None
    whitening: Float[Array, "M M"] | None = None
