"""Images of a linear system of rows, by the name of a method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mpi_jax.preprocess import System
from mpi_jax.reconstruct import (
    admm,
    iterative,
    kaczmarz,
    operators,
    parameter_choice,
    spectral,
)

# --- Solving

METHODS = {
    "kaczmarz": {"lam": 1e-2, "iterations": 10},
    "cgnr": {"lam": 0.0, "iterations": 10},
    "tikhonov": {"lam": 1e-4},
    "nonnegative": {"rho": 3e-4, "iterations": 20},
    "tv": {"lam_tv": 1e-6, "rho": 3e-4, "iterations": 100},
    "elastic_net": {"lam": 1e-3, "l1": 0.0, "iterations": 200},
}
LAMS = tuple(10.0 ** (k / 2) for k in range(2, -13, -1))  # to choose from
RANK = 1024  # of the singular basis, at most
_BRIGHTEST = 1e-3  # lam of the image that tells how bright the brightest voxel is


def reconstruct(system: System, method: str, **settings: Any) -> Array:
    """Images [F, *grid.shape], real and >= 0, of a prepared system.

    [F, A, *grid.shape] where it is of several tracers. settings: see METHODS for those of
    each method and their defaults. lam is relative: to the energy of all rows per voxel
    (kaczmarz, cgnr, elastic_net), to the largest singular value squared (tikhonov); l1
    to the smallest that leaves a frame's image empty; lam_tv to that value squared, for a
    frame with 1 as its brightest voxel. Raises ValueError for unknown methods and
    settings.
    """
    chosen = _chosen(method, settings)
    shape = system.grid.shape
    if system.tracers is not None:
        if method == "tv":
            raise ValueError("method tv: expected a system of one calibration")
        shape = (system.tracers, *shape)
    if method == "kaczmarz":
        c = kaczmarz.solve(
            system.system_matrix, system.measurement, weights=system.weights, **chosen
        )
        return c.reshape(-1, *shape)
    rows, data = _weighted(system)
    if method == "cgnr":
        lam = chosen.pop("lam") * operators.mean_energy(rows)
        c = iterative.cgnr(rows, data, lam=lam, nonnegative=True, **chosen)
    elif method == "elastic_net":
        l2 = chosen.pop("lam") * operators.mean_energy(rows)
        # Images scale with the data and l1 together: every frame has its own unit.
        slope = jnp.matmul(data, rows.conj(), precision="highest").real
        unit = jnp.max(slope, axis=1, keepdims=True)
        unit = jnp.where(unit > 0, unit, 1)
        c = unit * iterative.elastic_net(
            rows, data / unit, l2=l2, nonnegative=True, **chosen
        )
    else:
        basis = _basis(rows, chosen.pop("rho", None))
        if method == "tikhonov":
            c = jnp.maximum(spectral.tikhonov(basis, data, chosen["lam"]), 0)
        elif method == "nonnegative":
            c = admm.nonnegative(basis, data, **chosen)
        else:
            # The same for frames of any strength: the unit is about the brightest voxel.
            c = spectral.tikhonov(basis, data, _BRIGHTEST)
            unit = jnp.max(jnp.abs(c), axis=1, keepdims=True)
            unit = jnp.where(unit > 0, unit, 1)
            c = unit * admm.total_variation(basis, data / unit, shape, **chosen)
    return c.reshape(-1, *shape)


def choose_lam(
    system: System,
    method: str,
    lams: Sequence[float] | Float[np.ndarray, " L"] = LAMS,
    *,
    rule: str = "l_curve",
    **settings: Any,
) -> tuple[Float[np.ndarray, " F"], parameter_choice.LCurve, Array]:
    """A lam for each frame [F], out of `lams`, the L-curve [F, L] it was found on, and the
    images of every lam [F, L, ...] as `reconstruct` makes them.

    rule: "l_curve", the corner; or "discrepancy", the largest lam whose residual is no
    larger than the noise of the background frames (System.noise; the smallest lam where
    none is). The index in the curve is that of the rule. lams: falling. settings: the
    others of the method. Raises ValueError where the method has no lam.
    """
    chosen = _chosen(method, {"lam": 0.0, **settings})
    lams = np.asarray(lams, float)
    if lams.ndim != 1 or len(lams) < 3 or np.any(np.diff(lams) >= 0) or lams[-1] <= 0:
        raise ValueError(
            f"lams: expected three or more falling numbers > 0, got {lams}"
        )
    if rule not in ("l_curve", "discrepancy"):
        raise ValueError(f"rule: expected l_curve or discrepancy, got {rule!r}")
    if rule == "discrepancy" and system.noise is None:
        raise ValueError(
            "rule: expected l_curve, because noise is not known: prepare with a background "
            "of 2 frames or more (background, joint_background or whitening)"
        )
    rows, data = _weighted(system)
    if method == "tikhonov":
        images = jnp.maximum(spectral.tikhonov(_basis(rows), data, lams), 0)
    else:
        images = [
            reconstruct(system, method, **(chosen | {"lam": lam})) for lam in lams
        ]
        images = jnp.stack([c.reshape(len(data), -1) for c in images], axis=1)
    curve = parameter_choice.l_curve(lams, *parameter_choice.norms(rows, data, images))
    if rule == "discrepancy":
        noise = (
            system.noise if system.weights is None else system.noise * system.weights
        )
        sigma = float(np.sqrt(np.mean(np.square(noise))))
        index = parameter_choice.discrepancy(curve.residual, sigma, len(rows))
        curve = curve._replace(index=jnp.where(index < 0, len(lams) - 1, index))
    shape = system.grid.shape
    if system.tracers is not None:
        shape = (system.tracers, *shape)
    return (
        lams[np.asarray(curve.index)],
        curve,
        images.reshape(*images.shape[:2], *shape),
    )


def _chosen(method, settings):
    if method not in METHODS:
        raise ValueError(
            f"method: expected one of {', '.join(METHODS)}; got {method!r}"
        )
    unknown = set(settings) - set(METHODS[method])
    if unknown:
        raise ValueError(
            f"method {method}: expected settings out of {', '.join(METHODS[method])}; "
            f"got {', '.join(sorted(unknown))}"
        )
    return {**METHODS[method], **settings}


def _weighted(system):
    rows, data = jnp.asarray(system.system_matrix), jnp.asarray(system.measurement)
    if system.weights is None:
        return rows, data
    weights = jnp.asarray(system.weights, data.real.dtype)
    return weights[:, None] * rows, weights[None] * data


def _basis(rows, rho=None):
    """The singular basis of rows, real above imaginary parts, cut at RANK."""
    options = {} if rho is None else {"rho": rho}
    if min(2 * len(rows), rows.shape[1]) > RANK:
        try:
            return spectral.spectral_basis(rows, RANK, **options)
        except ValueError:
            pass  # fewer singular values than that are resolved
    return spectral.spectral_basis(rows, **options)
