"""Solvers that need S only as products: conjugate gradients and proximal gradients.

S is a matrix [M, P] or a `LinearOperator` of two functions. Batches of measurements
share it, so that a step is two matrix products for all frames.

Symbols

    M, P    rows of S; voxels
    S       [M, P]   system matrix or operator, real or complex  [unit of u per unit of c]
    u       [..., M] measurement, complex if and only if S is    [V, or shared with S]
    c       [..., P] concentration                               [unit of u / unit of S]
    lam     ridge parameter, absolute                            [unit of S squared]
    B       [M, L]   background dictionary                       [1]
    d       [..., L] background coefficients                     [unit of u]

`real` asks for the minimiser over real c, also where S and u are complex: the adjoint
is then Re S^H, which is the same as stacking real above imaginary rows and unlike
dropping the imaginary part of a complex solution.

Parameters here are absolute, because an operator does not know its entries. Multiply by
`mean_energy(S)` for the relative ones of `kaczmarz.solve`.

Sources: M. Hestenes, E. Stiefel (1952), J. Res. NBS 49 (conjugate gradients); A. Beck,
M. Teboulle (2009), SIAM J. Imaging Sci. 2 (accelerated proximal gradients);
B. O'Donoghue, E. Candes (2015), Found. Comput. Math. 15 (restart).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Inexact

from mpi_jax._checks import check_count, check_flags, expect
from mpi_jax.reconstruct.operators import LinearOperator, Matrix, parameter, system

# The norm of an operator: steps of the power method, and what they may fall short by.
_POWER_STEPS = 40
_SHORT = 1.02


def cgnr(
    S: Matrix | LinearOperator,
    u: Inexact[Array | np.ndarray, "*batch M"],
    *,
    iterations: int,
    lam: float | np.number | Float[Array, ""] = 0.0,
    real: bool = True,
    nonnegative: bool = False,
    path: bool = False,
) -> Inexact[Array, "..."]:
    """Conjugate gradients for min ||S c - u||^2 + lam ||c||^2 from c = 0; [..., P].

    In the form that updates the residual u - S c beside c, which is the same in exact
    arithmetic as conjugate gradients on the normal equations and loses less to
    rounding. jax.scipy.sparse.linalg.cg does not serve here: it forms the normal
    equations, keeps no iterates, takes a batch for one vector, and its derivatives are
    those of the converged solution, while stopping early is how this method
    regularises. Derivatives here are those of the iterate returned.

    Args:
      S: matrix [M, P] or operator.
      u: measurement [..., M]; every frame has its own step lengths.
      iterations: number of steps, static; few regularise, P reach the minimiser but for
        rounding.
      lam: >= 0, absolute.
      real: minimise over real c (see above).
      nonnegative: set entries of negative (real) part to 0, once and at the end: not the
        minimiser over c >= 0, for which see `elastic_net`.
      path: keep the result of every step, [..., iterations, P].

    Raises:
      ValueError: on wrong shapes, kinds or options, and on bad values where the
        argument is concrete.

    Examples:
      >>> import numpy as np
      >>> S = np.array([[2.0, 1.0], [0.0, 1.0], [1.0, 0.0]])  # [M, P]
      >>> c = np.array([1.0, 3.0])
      >>> print(np.asarray(cgnr(S, S @ c, iterations=2), float).round(3))
      [1. 3.]
      >>> cgnr(S, S @ c, iterations=2, path=True).shape  # an image of each step
      (2, 2)
    """
    S, u = system(S, u)
    iterations = check_count("iterations", iterations)
    lam = parameter("lam", lam, u)
    check_flags(real=real, nonnegative=nonnegative, path=path)
    options = {"real": real, "nonnegative": nonnegative, "path": path}
    return _cgnr(S, u, lam, iterations=iterations, **options)


_static = ("iterations", "real", "nonnegative", "path")


@functools.partial(jax.jit, static_argnames=_static)
def _cgnr(S, u, lam, *, iterations, real, nonnegative, path):
    # Scales of u and S, so that no square leaves the range of float32.
    size = _peak(u)
    u = u / size
    start = _adjoint(S, u, real)
    unit = _peak(start)
    ridge = lam / unit / unit

    def step(state, _):
        c, residual, direction, energy = state
        image = S.forward(direction) / unit
        alpha = _ratio(energy, _energy(image) + ridge * _energy(direction))
        c = c + alpha * direction
        residual = residual - alpha * image
        slope = _adjoint(S, residual, real) / unit - ridge * c
        grown = _energy(slope)
        direction = slope + _ratio(grown, energy) * direction
        return (c, residual, direction, grown), c if path else None

    slope = start / unit
    state = (jnp.zeros_like(slope), u, slope, _energy(slope))
    c, scale = _iterated(step, state, iterations, path, size / unit)
    return _clipped(c, nonnegative) * scale


def elastic_net(
    S: Matrix | LinearOperator,
    u: Inexact[Array | np.ndarray, "*batch M"],
    *,
    iterations: int,
    l1: float | np.number | Float[Array, ""] = 0.0,
    l2: float | np.number | Float[Array, ""] = 0.0,
    real: bool = True,
    nonnegative: bool = False,
    path: bool = False,
) -> Inexact[Array, "..."]:
    """min 1/2 ||S c - u||^2 + l1 sum_p |c_p| + 1/2 l2 ||c||^2 from c = 0; c [..., P].

    With `nonnegative` over c >= 0; with l1 = l2 = 0 too this is non-negative least
    squares. Accelerated proximal gradients, restarted frame by frame where the momentum
    points uphill. Weak singular values converge slowly (1/s^2 steps): for a matrix of
    poor condition `admm.nonnegative` gets there sooner.

    Args:
      S, u, real, path: as in `cgnr`.
      iterations: number of steps, static, two products with S each.
      l1: >= 0, [unit of S times unit of u].
      l2: >= 0, [unit of S squared].
      nonnegative: needs `real`.

    Raises:
      ValueError: as in `cgnr`, and on `nonnegative` without `real`.

    Examples:
      >>> import numpy as np
      >>> S = np.array([[2.0, 1.0], [0.0, 1.0], [1.0, 0.0]])  # [M, P]
      >>> c = np.array([1.0, 3.0])
      >>> print(np.asarray(elastic_net(S, S @ c, iterations=100, nonnegative=True), float).round(3))
      [1. 3.]
      >>> print(elastic_net(S, S @ c, iterations=100, l1=100.0))  # too much of it
      [0. 0.]
    """
    S, u = system(S, u)
    iterations = check_count("iterations", iterations)
    l1, l2 = parameter("l1", l1, u), parameter("l2", l2, u)
    check_flags(real=real, nonnegative=nonnegative, path=path)
    expect(real or not nonnegative, "nonnegative", "real=True with it", "real=False")
    options = {"real": real, "nonnegative": nonnegative, "path": path}
    return _elastic_net(S, u, l1, l2, iterations=iterations, **options)


@functools.partial(jax.jit, static_argnames=_static)
def _elastic_net(S, u, l1, l2, *, iterations, real, nonnegative, path):
    size = _peak(u)
    u = u / size
    norm = _norm(S, u, real)
    ridge = l2 / norm / norm
    shrink = 1 / (1 + ridge)  # the step: the inverse of the largest curvature
    threshold = l1 / norm / size * shrink

    def proximal(c):
        if nonnegative:
            return jnp.maximum(c - threshold, 0)
        magnitude = jnp.abs(c)
        large = magnitude > threshold
        return jnp.where(large, c - c / jnp.where(large, magnitude, 1) * threshold, 0)

    def step(state, _):
        c, ahead, momentum = state
        slope = _adjoint(S, S.forward(ahead) / norm - u, real) / norm + ridge * ahead
        new = proximal(ahead - shrink * slope)
        # Restart: the step taken and the way since the last iterate disagree.
        uphill = jnp.sum((ahead - new).conj() * (new - c), -1, keepdims=True).real > 0
        momentum = jnp.where(uphill, 1, momentum)
        grown = (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2
        ahead = new + (momentum - 1) / grown * (new - c)
        return (new, ahead, grown), new if path else None

    zero = jnp.zeros_like(_adjoint(S, u, real))
    state = (zero, zero, jnp.ones_like(size))
    c, scale = _iterated(step, state, iterations, path, size / norm)
    return c * scale


def _iterated(step, state, iterations, path, scale):
    """c of the last step, or with `path` of every one [..., iterations, P]; its scale."""
    (c, *_), iterates = lax.scan(step, state, length=iterations)
    return (jnp.moveaxis(iterates, 0, -2), scale[..., None]) if path else (c, scale)


def _adjoint(S, u, real):
    c = S.adjoint(u)
    return c.real if real else c


def _norm(S, u, real):
    """The largest singular value of S, slightly above rather than below it; []."""
    zero = jnp.zeros_like(_adjoint(S, u, real)).reshape(-1, S.shape[1])[0]
    # A fixed pseudo-random start, not orthogonal to what a system matrix amplifies.
    phase = np.arange(1, S.shape[1] + 1) * 0.6180339887498949 % 1
    start = zero + jnp.asarray(0.5 + phase, zero.real.dtype)

    def step(state, _):
        v, _ = state
        first = S.forward(v)
        one = _peak(first)
        second = _adjoint(S, first / one, real)
        two = _peak(second)
        second = second / two
        root = jnp.sqrt(_energy(second))
        return (second / root, one * two * root), None

    start = start / jnp.sqrt(_energy(start))
    (v, _), _ = lax.scan(step, (start, _energy(start)), length=_POWER_STEPS)
    image = S.forward(v)
    peak = _peak(image)
    norm = _SHORT * peak * jnp.sqrt(_energy(image / peak))
    # It sets a step length; the limit does not depend on it.
    return lax.stop_gradient(norm[0])


def _peak(x):
    """max |x| over the last axis, [..., 1], 1 where it is 0; a unit, not a variable."""
    peak = jnp.max(jnp.abs(lax.stop_gradient(x)), axis=-1, keepdims=True)
    return jnp.where(peak > 0, peak, 1)


def _energy(x):
    return jnp.sum(jnp.square(x.real) + jnp.square(x.imag), axis=-1, keepdims=True)


def _ratio(a, b):
    """a / b, and 0 where nothing is left to do."""
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)


def _clipped(c, nonnegative):
    return jnp.where(c.real > 0, c, 0) if nonnegative else c
