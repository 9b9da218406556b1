"""A setting chosen frame by frame: by the corner of the L-curve or by the noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from mpi_jax.methods.problem import Problem, Reconstruction, Solve
from mpi_jax.reconstruct import parameter_choice

# What is chosen from, in turn from much to little regularisation.
CANDIDATES: dict[str, tuple[float | int, ...]] = {
    "lam": tuple(10.0 ** (k / 2) for k in range(2, -13, -1)),
    "lam_tv": tuple(10.0 ** (k / 2) for k in range(-2, -17, -1)),
    "iterations": (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100),
}
RULES = ("l_curve", "discrepancy")


class Choice(NamedTuple):
    """Which value a setting got in each frame.

    candidates [L]; curve: residual and solution norms [B, L] and the corner [B], which is
    what was taken; images [B, L, *grid] of all of them; unmet [B]: frames in which no
    candidate left as little as the noise.
    """

    setting: str
    rule: str
    candidates: Float[np.ndarray, " L"]
    curve: parameter_choice.LCurve
    images: Array
    unmet: Bool[np.ndarray, " B"]

    @property
    def values(self) -> Float[np.ndarray, " B"]:
        """What was taken, frame by frame."""
        return self.candidates[np.asarray(self.curve.corner)]


def solver(
    problem: Problem,
    setting: str,
    rule: str,
    columns: Callable[[Any, Array], Array],
) -> Solve:
    """What solves with that setting chosen for each frame, out of CANDIDATES.

    rule: l_curve, the corner; discrepancy, the most regularisation whose residual is no
    larger than the noise (`Problem.sigma`) or, where the method never gets there, within
    2 % of the least. columns: value, right-hand sides [B, M] -> solutions [B, P].
    """
    values = CANDIDATES[setting]
    candidates = np.array(values, float)
    order = 1 / candidates if setting == "iterations" else candidates

    def solve(u):
        data = problem.measure(u)
        c = jnp.stack([columns(value, data) for value in values], axis=1)
        norms = parameter_choice.norms(problem.rows, data, c)
        curve = parameter_choice.l_curve(order, *norms)
        unmet = np.zeros(len(data), bool)
        if rule == "discrepancy":
            rows = data.shape[1]
            sigma = problem.sigma(data) * np.sqrt(2)  # of complex numbers
            index = parameter_choice.discrepancy(curve.residual, sigma, rows)
            unmet = np.asarray(index < 0)
            floor = 1.02 * jnp.min(curve.residual, axis=1) / np.sqrt(rows)
            near = parameter_choice.discrepancy(curve.residual, floor, rows)
            curve = curve._replace(corner=jnp.where(index < 0, near, index))
        images = problem.images(c).reshape(*c.shape[:2], *problem.shape)
        image = images[jnp.arange(len(data)), curve.corner]
        choice = Choice(setting, rule, candidates, curve, images, unmet)
        return Reconstruction(image, choice=choice)

    return solve
