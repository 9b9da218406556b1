"""Methods made ready on validation images: settings chosen, masks' thresholds too."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from mpi_jax import data
from mpi_jax.methods import controls, tuning
from mpi_jax.methods.problem import Problem, Reconstruction, Solve
from mpi_jax.methods.table import Method


@dataclasses.dataclass(frozen=True)
class Ready:
    """A method that can be run on signals [B, ...].

    settings: as chosen; at_edge: those at an end of what was tried; threshold: of masks
    where the method gives none, as a fraction of each image's maximum.
    """

    method: Method
    solve: Solve
    settings: dict[str, Any]
    threshold: float
    at_edge: tuple[str, ...] = ()

    def mask(self, reconstruction: Reconstruction):
        """The masks of images: a network's own, or what is above the threshold."""
        if reconstruction.mask_logit is not None:
            return reconstruction.mask_logit > 0
        return tuning.threshold(reconstruction.image, self.threshold)


def ready(
    problem: Problem,
    method: Method,
    examples: data.Examples,
    settings: dict[str, Any] | None = None,
) -> Ready:
    """A method with the settings that serve these examples best.

    settings: given ones, where nothing is to be chosen. Networks have none to choose.
    """
    if method.kind == "learned" or settings is not None:
        solve = method.prepare(problem, settings)
        image = jnp.clip(solve(examples.voltage).image, 0, 1)
        every = method.complete(settings).items()
        settings = {n: v for n, v in every if n != "largest"}
        return Ready(method, solve, settings, tuning.tune_threshold(image, examples))
    tune = controls.tune if method.kind == "control" else tuning.tune
    tuned = tune(problem, method.name, examples)
    return Ready(
        method,
        method.prepare(problem, tuned.settings),
        tuned.settings,
        tuning.tune_threshold(tuned.image, examples),
        tuned.at_edge,
    )
