"""A background that is reconstructed together with the image."""

from typing import overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Inexact

from mpi_jax._checks import check_count, check_finite, expect
from mpi_jax.reconstruct.operators import (
    LinearOperator,
    Matrix,
    columns,
    parameter,
    rows,
    system,
)


def background_dictionary(
    frames: Inexact[Array | np.ndarray, "F M"], rank: int = 2
) -> Inexact[Array, "M L"]:
    """Dictionary B [M, rank] of empty frames [F, M]: their first left singular vectors,
    each times the root of its singular value over the largest.

    Raises:
      ValueError: unless frames is a finite, non-zero matrix of `rank` frames or more.

    Examples:
      >>> import numpy as np
      >>> random = np.random.default_rng(0)
      >>> hum = random.normal(size=30)  # what an empty scanner receives
      >>> empty = random.normal(size=(10, 1)) * hum + 0.01 * random.normal(size=(10, 30))
      >>> B = background_dictionary(empty, rank=1)
      >>> B.shape  # [M, rank]
      (30, 1)
      >>> bool(abs(B[:, 0] @ hum) > 0.99 * np.linalg.norm(hum))
      True
    """
    frames, rank = jnp.asarray(frames), check_count("rank", rank)
    holds = frames.ndim == 2 and min(frames.shape) >= rank
    expected = f"a matrix [F, M] with F, M >= rank = {rank}"
    expect(holds, "frames", expected, f"shape {frames.shape}")
    check_finite("frames", frames)
    if not isinstance(frames, jax.core.Tracer):
        expect(jnp.any(frames != 0), "frames", "a non-zero entry", "all zero")
    U, s, _ = jnp.linalg.svd((frames / jnp.max(jnp.abs(frames))).T, full_matrices=False)
    return U[:, :rank] * jnp.sqrt(s[:rank] / s[0])[None]


@overload
def eliminate_background(
    S: LinearOperator,
    u: Inexact[Array | np.ndarray, "*batch M"],
    B: Inexact[Array | np.ndarray, "M L"],
    beta: float | np.number | Float[Array, ""],
) -> tuple[LinearOperator, Inexact[Array, "*batch M"]]: ...


@overload
def eliminate_background(
    S: Matrix,
    u: Inexact[Array | np.ndarray, "*batch M"],
    B: Inexact[Array | np.ndarray, "M L"],
    beta: float | np.number | Float[Array, ""],
) -> tuple[Inexact[Array, "M P"], Inexact[Array, "*batch M"]]: ...


def eliminate_background(
    S: Matrix | LinearOperator,
    u: Inexact[Array | np.ndarray, "*batch M"],
    B: Inexact[Array | np.ndarray, "M L"],
    beta: float | np.number | Float[Array, ""],
) -> tuple[Inexact[Array, "M P"] | LinearOperator, Inexact[Array, "*batch M"]]:
    """W S and W u, whose solution c is that of S and u jointly with a background.

    Over d alone, min ||S c + B d - u||^2 + beta ||d||^2 is ||W (S c - u)||^2 with
    W = (I + B B^H / beta)^(-1/2). So every solver can have W S for S and W u for u, with
    any penalty and any projection, and these then touch c only. beta = 0 leaves the
    background free: W removes the span of B. S keeps its form, matrix or operator;
    d is found by `background_coefficients`.

    Departure: MPIReco.jl solves for (c, d) at once, on the rows of [S / sqrt(lam),
    B / sqrt(beta)]. The minimiser is the same, early iterates are not.

    Raises:
      ValueError: on wrong shapes or kinds, or a concrete beta that is negative or not
        finite.

    Examples:
      >>> import numpy as np
      >>> random = np.random.default_rng(0)
      >>> hum = random.normal(size=30)  # what an empty scanner receives
      >>> empty = random.normal(size=(10, 1)) * hum + 0.01 * random.normal(size=(10, 30))
      >>> B = background_dictionary(empty, rank=1)
      >>> S, c = random.normal(size=(30, 5)), np.arange(5.0)
      >>> u = S @ c + 3 * hum
      >>> rows, data = eliminate_background(S, u, B, beta=0.0)
      >>> image = np.linalg.lstsq(np.asarray(rows), np.asarray(data), rcond=None)[0]
      >>> bool(np.abs(image - c).max() < 0.1)
      True
    """
    linear, u = system(S, u)
    B = _dictionary(B, linear)
    beta = parameter("beta", beta, u)
    Q, s, _ = jnp.linalg.svd(B, full_matrices=False)
    # A zero column of B takes nothing away, beta = 0 included.
    energy = jnp.where(s > 0, s**2, 0) + beta
    kept = jnp.sqrt(jnp.where(energy > 0, beta / jnp.where(energy > 0, energy, 1), 1))
    whiten = Partial(_whiten, Q, 1 - kept)
    if isinstance(S, LinearOperator):
        forward = Partial(_chain, S.forward, whiten)
        adjoint = Partial(_chain, whiten, S.adjoint)
        return LinearOperator(forward, adjoint, S.shape), whiten(u)
    return whiten(jnp.asarray(S).T).T, whiten(u)


def background_coefficients(
    S: Matrix | LinearOperator,
    u: Inexact[Array | np.ndarray, "*batch M"],
    c: Inexact[Array | np.ndarray, "*batch P"],
    B: Inexact[Array | np.ndarray, "M L"],
    beta: float | np.number | Float[Array, ""],
) -> Inexact[Array, "*batch L"]:
    """d [..., L]: min ||S c + B d - u||^2 + beta ||d||^2 for a given c; the background
    is d B^T. beta = 0 needs independent columns of B. Errors as above.

    Examples:
      >>> import numpy as np
      >>> random = np.random.default_rng(0)
      >>> hum = random.normal(size=30)  # what an empty scanner receives
      >>> empty = random.normal(size=(10, 1)) * hum + 0.01 * random.normal(size=(10, 30))
      >>> B = background_dictionary(empty, rank=1)
      >>> S, c = random.normal(size=(30, 5)), np.arange(5.0)
      >>> u = S @ c + 3 * hum
      >>> d = background_coefficients(S, u, c, B, beta=0.0)
      >>> bool(np.abs(B @ d - 3 * hum).max() < 0.1)
      True
    """
    linear, u = system(S, u)
    B = _dictionary(B, linear)
    beta = parameter("beta", beta, u)
    expected = (*u.shape[:-1], linear.shape[1])
    expect(c.shape == expected, "c", f"shape {expected}", f"shape {c.shape}")
    check_finite("c", c)
    gram = columns(B, B.T) + beta * jnp.eye(B.shape[1], dtype=B.dtype)
    right = columns(B, u - linear.forward(jnp.asarray(c)))
    right = right.reshape(-1, B.shape[1])
    coefficients = jnp.linalg.solve(gram.T, right.T).T
    return coefficients.reshape(*u.shape[:-1], B.shape[1])


def _dictionary(B, S):
    B = jnp.asarray(B)
    holds = B.ndim == 2 and B.shape[0] == S.shape[0] and B.size > 0
    expect(holds, "B", f"shape [{S.shape[0]}, L]", f"shape {B.shape}")
    check_finite("B", B)
    return B


def _whiten(Q, lost, u):
    return u - rows(Q, columns(Q, u) * lost.reshape((1,) * (u.ndim - 1) + (-1,)))


def _chain(first, second, x):
    return second(first(x))
