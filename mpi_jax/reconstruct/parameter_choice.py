"""The regularisation parameter from the data: L-curve, discrepancy."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact, Int

from mpi_jax._checks import check_count, check_finite, check_positive, expect
from mpi_jax._linalg import norm
from mpi_jax.reconstruct import operators


class LCurve(NamedTuple):
    """Residual norms, solution norms, curvature [..., L] and the index of the corner [...].

    The curvature is that of (log residual, log solution); the ends have none, -inf.
    """

    residual: Float[Array, "*batch L"]
    solution: Float[Array, "*batch L"]
    curvature: Float[Array, "*batch L"]
    corner: Int[Array, "*batch"]


def norms(
    S: Inexact[Array | np.ndarray, "M P"] | operators.LinearOperator,
    u: Inexact[Array | np.ndarray, "*batch M"],
    c: Inexact[Array | np.ndarray, "*batch L P"],
) -> tuple[Float[Array, "*batch L"], Float[Array, "*batch L"]]:
    """||S c - u|| and ||c|| [..., L] of L candidates c [..., L, P] for one u [..., M]:
    what `tikhonov` with a vector and `iterative.cgnr` with a path give.

    Raises:
      ValueError: on shapes that do not go together.

    Examples:
      >>> import numpy as np
      >>> S = np.array([[2.0, 1.0], [0.0, 1.0], [1.0, 0.0]])  # [M, P]
      >>> c = np.array([1.0, 3.0])
      >>> candidates = np.stack([c, 0 * c])
      >>> residual, solution = norms(S, S @ c, candidates)
      >>> print(np.asarray(residual, float).round(3), np.asarray(solution, float).round(3))
      [0.    5.916] [3.162 0.   ]
    """
    S, u, c = operators.as_operator(S), jnp.asarray(u), jnp.asarray(c)
    M, P = S.shape
    holds = u.ndim > 0 and u.shape[-1] == M
    expect(holds, "u", f"shape [..., {M}]", f"shape {u.shape}")
    holds = c.ndim == u.ndim + 1 and (*c.shape[:-2], c.shape[-1]) == (*u.shape[:-1], P)
    expect(holds, "c", f"shape {(*u.shape[:-1], 'L', P)}", f"shape {c.shape}")
    check_finite("u", u)
    check_finite("c", c)
    return norm(S.forward(c) - u[..., None, :]), norm(c)


def discrepancy(
    residuals: Float[Array | np.ndarray, "*batch L"],
    sigma: float | np.number | Float[Array | np.ndarray, "..."],
    rows: int,
    *,
    tau: float = 1.0,
) -> Int[Array, "*batch"]:
    """Index [...] of the first residual norm that is at most tau sigma sqrt(rows).

    Candidates stand from much to little regularisation: falling lam, or iterates in
    order. Where none meets the level the index is -1, which picks the last of them.

    Args:
      residuals: ||S c - u|| [..., L].
      sigma: > 0, standard deviation of the noise [unit of u], of complex numbers for
        complex u; a number or one per frame [...].
      rows: number M of entries of u.
      tau: >= 1 where sigma is right; above it, safely smooth.

    Raises:
      ValueError: on wrong shapes, or concrete values that are not positive or finite.

    Examples:
      >>> import numpy as np
      >>> residuals = np.array([9.0, 4.0, 1.9, 1.0])  # lam falls
      >>> int(discrepancy(residuals, sigma=0.2, rows=100))  # 0.2 * sqrt(100) = 2
      2
    """
    residuals, sigma = jnp.asarray(residuals), jnp.asarray(sigma)
    holds = residuals.ndim > 0 and residuals.shape[-1] > 0
    expect(holds, "residuals", "shape [..., L]", f"shape {residuals.shape}")
    holds = sigma.shape in ((), residuals.shape[:-1])
    expected = f"a number or shape {residuals.shape[:-1]}"
    expect(holds, "sigma", expected, f"shape {sigma.shape}")
    check_positive("sigma", sigma)
    check_positive("tau", jnp.asarray(tau))
    level = tau * jnp.sqrt(check_count("rows", rows)) * sigma
    met = residuals <= jnp.broadcast_to(level[..., None], residuals.shape)
    return jnp.where(met.any(-1), jnp.argmax(met, axis=-1), -1)


def l_curve(
    lams: Float[Array | np.ndarray, " L"],
    residuals: Float[Array | np.ndarray, "*batch L"],
    solutions: Float[Array | np.ndarray, "*batch L"],
) -> LCurve:
    """The corner of the L-curve (Hansen 1992): where its curvature is largest.

    Keep lams within the squared singular values: outside of them the curve stands
    still, and there, or between singular values far apart, small bends can be sharper
    than the corner. Where the noise is known, `discrepancy` is the safer choice.

    Args:
      lams: > 0, rising or falling; 1 / n serves for iterates n = 1, 2, ...
      residuals, solutions: ||S c - u|| and ||c|| [..., L], > 0.

    Raises:
      ValueError: on wrong shapes or fewer than three candidates, or on concrete values
        that are not positive, finite and (lams) in order.

    Examples:
      >>> import numpy as np
      >>> from mpi_jax.reconstruct import spectral
      >>> random = np.random.default_rng(0)
      >>> S = random.normal(size=(60, 20)) * 10.0 ** -np.linspace(0, 3, 20)
      >>> u = S @ np.ones(20) + 1e-2 * random.normal(size=60)
      >>> lams = 10.0 ** -np.arange(1.0, 7)
      >>> images = spectral.tikhonov(spectral.spectral_basis(S), u, lams)
      >>> curve = l_curve(lams, *norms(S, u, images))
      >>> 0 < int(curve.corner) < 5
      True
    """
    arrays = [jnp.asarray(a) for a in (lams, residuals, solutions)]
    lams, residuals, solutions = arrays
    holds = lams.ndim == 1 and lams.size >= 3
    expect(holds, "lams", "shape [L], L >= 3", f"shape {lams.shape}")
    for name, array in (("residuals", residuals), ("solutions", solutions)):
        holds = array.ndim > 0 and array.shape[-1:] == lams.shape
        holds &= array.shape == residuals.shape
        expect(holds, name, f"shape [..., {lams.size}]", f"shape {array.shape}")
    for name, array in zip(("lams", "residuals", "solutions"), arrays, strict=True):
        check_positive(name, array)
    if not isinstance(lams, jax.core.Tracer):
        steps = np.diff(lams)
        ordered = (steps > 0).all() or (steps < 0).all()
        expect(ordered, "lams", "values that rise or fall", lams)

    t, x, y = (jnp.log(array) for array in arrays)
    t = jnp.broadcast_to(t.reshape((1,) * (x.ndim - 1) + t.shape), x.shape)
    before, after = t[..., 1:-1] - t[..., :-2], t[..., 2:] - t[..., 1:-1]

    def derivatives(f):
        """First and second at the inner points, exact for parabolas."""
        left = (f[..., 1:-1] - f[..., :-2]) / before
        right = (f[..., 2:] - f[..., 1:-1]) / after
        first = (left * after + right * before) / (before + after)
        return first, 2 * (right - left) / (before + after)

    (dx, ddx), (dy, ddy) = derivatives(x), derivatives(y)
    speed = jnp.square(dx) + jnp.square(dy)
    still = speed == 0  # two candidates alike
    bend = (dx * ddy - dy * ddx) / jnp.where(still, 1, speed) ** 1.5
    bend = jnp.where(still, -jnp.inf, bend)
    ends = jnp.full((*x.shape[:-1], 1), -jnp.inf, bend.dtype)
    curvature = jnp.concatenate([ends, bend, ends], axis=-1)
    return LCurve(residuals, solutions, curvature, jnp.argmax(curvature, axis=-1))
