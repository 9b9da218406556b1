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

import dataclasses
import functools
import math
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float, Inexact

# The norm of an operator: steps of the power method, and what they may fall short by.
_POWER_STEPS = 40
_SHORT = 1.02


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LinearOperator:
    """S as two functions, for whole batches: c [..., P] -> u [..., M] and its adjoint.

    To hand one over to a jitted function, give its arrays through
    jax.tree_util.Partial(function, arrays): they are then traced, not compiled in.
    """

    forward: Callable
    adjoint: Callable
    shape: tuple[int, int] = dataclasses.field(metadata={"static": True})


Matrix = Inexact[Array | np.ndarray, "M P"]


def as_operator(S: Array | np.ndarray | LinearOperator) -> LinearOperator:
    """A matrix S [M, P] as an operator; operators with their functions as Partial.

    Raises:
      ValueError: if S is neither, is empty, or has values that are not finite.
    """
    if isinstance(S, LinearOperator):
        return LinearOperator(_partial(S.forward), _partial(S.adjoint), S.shape)
    S = jnp.asarray(S)
    good = S.ndim == 2 and S.size > 0 and jnp.issubdtype(S.dtype, jnp.inexact)
    expected = "a LinearOperator or a matrix [M, P] of floating or complex numbers"
    _expect(good, "S", expected, f"shape {S.shape}, {S.dtype}")
    _check_finite("S", S)
    return LinearOperator(Partial(_rows, S), Partial(_columns, S), S.shape)


def _partial(function):
    return function if isinstance(function, Partial) else Partial(function)


def _rows(S, c):
    return jnp.matmul(c, S.T, precision="highest")


def _columns(S, u):
    return jnp.matmul(u, S.conj(), precision="highest")


def gradient(grid: tuple[int, ...]) -> LinearOperator:
    """Forward differences of an image of `grid` voxels, one row per axis and voxel.

    c [..., P] in C order of the grid -> [..., axes * P], axis by axis; 0 in the last
    voxel of each axis (reflecting edge), in units of c per voxel.

    Raises:
      ValueError: if grid is not a tuple of integers >= 1.
    """
    grid = tuple(_count("grid", n) for n in grid)
    _expect(len(grid) > 0, "grid", "at least one axis", grid)
    size, axes = math.prod(grid), range(-len(grid), 0)

    def forward(c):
        image = c.reshape(*c.shape[:-1], *grid)
        parts = [_pad(jnp.diff(image, axis=axis), axis, 0) for axis in axes]
        return jnp.stack(parts, -1 - len(grid)).reshape(*c.shape[:-1], -1)

    def adjoint(y):
        y = y.reshape(*y.shape[:-1], len(grid), *grid)
        total = 0
        for part, axis in enumerate(axes):
            one = lax.index_in_dim(y, part, y.ndim - len(grid) - 1, keepdims=False)
            inner = lax.slice_in_dim(one, 0, grid[axis] - 1, axis=one.ndim + axis)
            total = total - jnp.diff(_pad(inner, axis, 1), axis=axis)
        return total.reshape(*y.shape[: -1 - len(grid)], size)

    return LinearOperator(Partial(forward), Partial(adjoint), (len(grid) * size, size))


def _pad(array, axis, before):
    widths = [(0, 0)] * array.ndim
    widths[axis] = (before, 1)
    return jnp.pad(array, widths)


def mean_energy(S: Matrix) -> Float[Array, ""]:
    """||S||_F^2 / P [unit of S squared], the unit of a relative lam of `kaczmarz.solve`.

    In float32 it is 0 for entries below 1e-22; ValueError unless S is a matrix.
    """
    S = jnp.asarray(S)
    _expect(S.ndim == 2, "S", "a matrix [M, P]", f"shape {S.shape}")
    return jnp.sum(jnp.square(S.real) + jnp.square(S.imag)) / S.shape[1]


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
    """
    S, u = _system(S, u)
    iterations = _count("iterations", iterations)
    lam = _parameter("lam", lam, u)
    _check_flags(real=real, nonnegative=nonnegative, path=path)
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
    (c, *_), kept = lax.scan(step, state, length=iterations)
    scale = size / unit
    if path:
        c, scale = jnp.moveaxis(kept, 0, -2), scale[..., None]
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
    poor condition `variational.nonnegative` gets there sooner.

    Args:
      S, u, real, path: as in `cgnr`.
      iterations: number of steps, static, two products with S each.
      l1: >= 0, [unit of S times unit of u].
      l2: >= 0, [unit of S squared].
      nonnegative: needs `real`.

    Raises:
      ValueError: as in `cgnr`, and on `nonnegative` without `real`.
    """
    S, u = _system(S, u)
    iterations = _count("iterations", iterations)
    l1, l2 = _parameter("l1", l1, u), _parameter("l2", l2, u)
    _check_flags(real=real, nonnegative=nonnegative, path=path)
    _expect(real or not nonnegative, "nonnegative", "real=True with it", "real=False")
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
    (c, *_), kept = lax.scan(step, state, length=iterations)
    scale = size / norm
    if path:
        c, scale = jnp.moveaxis(kept, 0, -2), scale[..., None]
    return c * scale


def background_dictionary(
    frames: Inexact[Array | np.ndarray, "F M"], rank: int = 2
) -> Inexact[Array, "M L"]:
    """Dictionary B [M, rank] of empty frames [F, M]: their first left singular vectors,
    each times the root of its singular value over the largest.

    Raises:
      ValueError: unless frames is a finite, non-zero matrix of `rank` frames or more.
    """
    frames, rank = jnp.asarray(frames), _count("rank", rank)
    good = frames.ndim == 2 and min(frames.shape) >= rank
    expected = f"a matrix [F, M] with F, M >= rank = {rank}"
    _expect(good, "frames", expected, f"shape {frames.shape}")
    _check_finite("frames", frames)
    if not isinstance(frames, jax.core.Tracer):
        _expect(jnp.any(frames != 0), "frames", "a non-zero entry", "all zero")
    U, s, _ = jnp.linalg.svd((frames / jnp.max(jnp.abs(frames))).T, full_matrices=False)
    return U[:, :rank] * jnp.sqrt(s[:rank] / s[0])[None]


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
    """
    linear, u = _system(S, u)
    B = _dictionary(B, linear)
    beta = _parameter("beta", beta, u)
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
    """
    linear, u = _system(S, u)
    B = _dictionary(B, linear)
    beta = _parameter("beta", beta, u)
    expected = (*u.shape[:-1], linear.shape[1])
    _expect(c.shape == expected, "c", f"shape {expected}", f"shape {c.shape}")
    gram = _columns(B, B.T) + beta * jnp.eye(B.shape[1], dtype=B.dtype)
    right = _columns(B, u - linear.forward(jnp.asarray(c)))
    right = right.reshape(-1, B.shape[1])
    found = jnp.linalg.solve(gram.T, right.T).T
    return found.reshape(*u.shape[:-1], B.shape[1])


def _dictionary(B, S):
    B = jnp.asarray(B)
    good = B.ndim == 2 and B.shape[0] == S.shape[0] and B.size > 0
    _expect(good, "B", f"shape [{S.shape[0]}, L]", f"shape {B.shape}")
    _check_finite("B", B)
    return B


def _whiten(Q, lost, u):
    return u - _rows(Q, _columns(Q, u) * lost.reshape((1,) * (u.ndim - 1) + (-1,)))


def _chain(first, second, x):
    return second(first(x))


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


def _system(S, u):
    """Operator and u as arrays, or a ValueError that names the argument."""
    S, u = as_operator(S), jnp.asarray(u)
    M, P = S.shape
    good = u.ndim > 0 and u.shape[-1] == M and u.size > 0
    _expect(good, "u", f"shape [..., {M}]", f"shape {u.shape}")
    good = jnp.issubdtype(u.dtype, jnp.inexact)
    _expect(good, "u", "floating or complex numbers", u.dtype)
    # Real images tell the kind of S.
    c = jax.ShapeDtypeStruct((*u.shape[:-1], P), jnp.finfo(u.dtype).dtype)
    made, back = jax.eval_shape(S.forward, c), jax.eval_shape(S.adjoint, u)
    expected, got = (u.shape, c.shape), (made.shape, back.shape)
    _expect(got == expected, "S", f"products of shapes {expected}", got)
    kinds = [jnp.iscomplexobj(array) for array in (made, back, u)]
    expected = f"the kind of S ({made.dtype}): both real or both complex"
    _expect(len(set(kinds)) == 1, "u", expected, u.dtype)
    _check_finite("u", u)
    return S, u


def _parameter(name, value, u):
    value = jnp.asarray(value)
    good = value.ndim == 0 and not jnp.iscomplexobj(value)
    _expect(good, name, "a real number", f"shape {value.shape}, {value.dtype}")
    if not isinstance(value, jax.core.Tracer):
        good = np.isfinite(value) and value >= 0
        _expect(good, name, "a finite number >= 0", value)
    return value.astype(jnp.finfo(u.dtype).dtype)


def _check_flags(**flags):
    for name, flag in flags.items():
        _expect(isinstance(flag, (bool, np.bool_)), name, "True or False", repr(flag))


def _check_finite(name, array):
    if not isinstance(array, jax.core.Tracer):
        good = bool(jnp.isfinite(array).all())
        _expect(good, name, "finite numbers", "NaN or infinity")


def _count(name, value):
    try:
        count = None if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        count = None
    _expect(count is not None and count >= 1, name, "an integer >= 1", repr(value))
    return count


def _expect(holds, name, expected, got):
    if not holds:
        raise ValueError(f"{name}: expected {expected}, got {got}")
