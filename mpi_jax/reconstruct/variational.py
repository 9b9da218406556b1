"""Tikhonov, non-negative and total variation images in a truncated singular basis.

A system matrix is written S ~ scale * U diag(s) V^H once, on the host; afterwards an
image costs a few thin matrix products, for batches of measurements at a time. Complex
rows with real images are real rows: Re S above Im S.

The last functions choose a regularisation from residual and solution norms, whatever
the solver.

Symbols
    M      rows of S (samples or real components of all receive channels)
    P      voxels
    k      rank kept, <= min(M, P)
    S      [M, P]   system matrix, real or complex [unit of u per unit of x]
    u      [..., M] measurement                    [V, or any unit shared with S]
    x      [..., P] concentration                  [unit of u / unit of S]
    U, V   [M, k], [P, k] orthonormal columns      [1]; [2M, k] for stacked rows
    s      [k]      singular values over the largest, 1 = s_1 >= s_2 >= ...  [1]
    scale  []       largest singular value         [unit of S]
    lam    regularisation, relative to scale^2     [1]
    rho    penalty of the splitting, likewise      [1]
    lam_tv weight of total variation, relative to scale^2  [unit of x]
    L      candidates: values of lam, or iterates

System matrices of Magnetic Particle Imaging have entries near 1e-10, whose squares and
normal equations leave the range where float32 is comfortable: hence `scale` apart.
"""

import dataclasses
import math
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax import lax
from jaxtyping import Array, Float, Inexact, Int

from mpi_jax.reconstruct import iterative

# Squares of singular values below this fraction of the largest drown in the rounding of
# a float64 Gram matrix.
_RESOLVED = 1e-7


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SpectralBasis:
    """Truncated singular value decomposition S ~ scale * U diag(s) V^H.

    `resolvent` = rho (V diag(s^2) V^T + rho I)^-1 [P, P] is there when one product with
    it costs no more than the two with V (P <= 2k), and None otherwise. Build it with
    `spectral_basis`, change rho with `with_rho`.
    """

    U: Inexact[Array, "*batch M k"]
    s: Float[Array, "*batch k"]
    V: Inexact[Array, "*batch P k"]
    scale: Float[Array, "*batch"]
    rho: Float[Array, "*batch"]
    resolvent: Float[Array, "*batch P P"] | None = None


def with_rho(basis: SpectralBasis, rho: float) -> SpectralBasis:
    """The basis with another penalty for `nonnegative`; ValueError unless rho > 0.

    Large rho: smooth early iterates, slow convergence; small rho: fast and noisy.
    """
    _expect(np.isfinite(rho) and rho > 0, "rho", "a number > 0", rho)
    voxels, rank = basis.V.shape
    resolvent = None
    if voxels <= 2 * rank and not jnp.iscomplexobj(basis.V):
        share = basis.s**2 / (basis.s**2 + rho)
        resolvent = jnp.eye(voxels, dtype=basis.V.dtype) - _matmul(
            basis.V * share[None], basis.V.T
        )
    rho = jnp.asarray(rho, basis.s.dtype)
    return dataclasses.replace(basis, rho=rho, resolvent=resolvent)


def spectral_basis(
    S: Inexact[Array | np.ndarray, "M P"],
    rank: int | None = None,
    rho: float = 3e-4,
    *,
    real: bool = True,
) -> SpectralBasis:
    """The `rank` largest singular triplets of S [M, P], all resolved ones for None.

    In the precision of S, double only where JAX runs with x64. Computed in double on
    the host from the eigenvalues of the smaller Gram matrix, hence not differentiable
    in S.

    real: images are real. A complex S then gives the basis of its rows' real above
    their imaginary parts [2M, P], for minimisers over real x; `project` stacks complex
    measurements to match. False keeps a complex S complex, for complex Tikhonov images.

    Raises:
      ValueError: if S is not a finite, non-zero matrix, or if `rank` is not an integer
        between 1 and the number of singular values above 1e-7 of the largest.
    """
    S = np.asarray(S)
    good = S.ndim == 2 and np.issubdtype(S.dtype, np.inexact)
    _expect(good, "S", "a matrix [M, P]", f"shape {S.shape}, {S.dtype}")
    _expect(S.size > 0, "S", "at least one row and column", f"shape {S.shape}")
    _expect(np.isfinite(S).all(), "S", "finite numbers", "NaN or infinity")
    _expect(isinstance(real, (bool, np.bool_)), "real", "True or False", repr(real))
    if real and np.iscomplexobj(S):
        S = np.concatenate([S.real, S.imag])
    peak = float(np.abs(S).max())
    _expect(peak > 0, "S", "a non-zero entry", "all zero")
    size = min(S.shape)
    count = size if rank is None else _count("rank", rank)
    _expect(count <= size, "rank", f"at most min(M, P) = {size}", rank)

    wide = S.shape[0] <= S.shape[1]
    matrix = S.astype(np.result_type(S, np.float64)) / peak
    adjoint = matrix.conj().T
    gram = matrix @ adjoint if wide else adjoint @ matrix
    values, vectors = scipy.linalg.eigh(
        gram,
        subset_by_index=(size - count, size - 1),
        overwrite_a=True,
        check_finite=False,
    )
    # The eigenvalues come in ascending order.
    values, near = np.sqrt(np.maximum(values[::-1], 0)), vectors[:, ::-1]
    resolved = int(np.sum(values > _RESOLVED * values[0]))
    if rank is None:
        count, values, near = resolved, values[:resolved], near[:, :resolved]
    _expect(
        resolved == count,
        "rank",
        f"at most {resolved}, the singular values above {_RESOLVED} of the largest",
        rank,
    )
    far = (adjoint @ near if wide else matrix @ near) / values
    U, V = (near, far) if wide else (far, near)
    s = values / values[0]
    dtype = jax.dtypes.canonicalize_dtype(S.dtype)
    real_dtype = jnp.finfo(dtype).dtype
    s, scale = (jnp.asarray(a, real_dtype) for a in (s, values[0] * peak))
    basis = SpectralBasis(jnp.asarray(U, dtype), s, jnp.asarray(V, dtype), scale, scale)
    return with_rho(basis, rho)


def project(
    basis: SpectralBasis, u: Inexact[Array | np.ndarray, "*batch M"]
) -> Inexact[Array, "*batch k"]:
    """Coefficients U^H u [..., k] of measurements u [..., M]; [unit of u].

    Raises:
      ValueError: if the last axis of u is not M long, or u is of another kind than S.
    """
    return _matmul(_measurement(basis, u), basis.U.conj())


def noise_level(
    basis: SpectralBasis, u: Inexact[Array | np.ndarray, "*batch M"]
) -> Float[Array, "*batch"]:
    """Standard deviation [unit of u] of white noise in u [..., M], frame by frame.

    From the part of u outside of the span of U; signal of singular values that the
    basis leaves out counts as noise. A standard deviation per real number: for complex
    u on a real basis it is that of the real and of the imaginary parts.

    Raises:
      ValueError: as in `project`, and if the basis spans all rows.
    """
    u = _measurement(basis, u)
    rows, rank = basis.U.shape
    _expect(rank < rows, "basis", f"a rank below the {rows} rows", rank)
    outside = u - _matmul(_matmul(u, basis.U.conj()), basis.U.T)
    return _norm(outside) / math.sqrt(rows - rank)


def tikhonov(
    basis: SpectralBasis,
    u: Inexact[Array | np.ndarray, "*batch M"],
    lam: float | np.floating | Float[Array | np.ndarray, "..."],
) -> Inexact[Array, "..."]:
    """Tikhonov images V diag(s / (s^2 + lam)) U^H u / scale; [unit of u / unit of S].

    The minimiser of ||S x - u||^2 + lam scale^2 ||x||^2 over the kept rank.

    Args:
      u: measurements [..., M].
      lam: >= 0, relative to the largest singular value squared. A number gives
        [..., P]; L numbers [L] give L images per measurement, [..., L, P].

    Raises:
      ValueError: on wrong shapes, or a concrete lam that is negative or not finite.
    """
    lam = jnp.asarray(lam, basis.s.dtype)
    _expect(lam.ndim <= 1, "lam", "a number or a vector [L]", f"shape {lam.shape}")
    _check_lam(lam)
    coefficients = project(basis, u) / basis.scale
    batch, (P, k) = coefficients.shape[:-1], basis.V.shape
    s = basis.s[None]
    filters = s / (s**2 + lam.reshape(-1, 1))  # [L, k]
    images = _matmul(coefficients.reshape(-1, 1, k) * filters[None], basis.V.T)
    return images.reshape(*batch, *lam.shape, P)


def nonnegative(
    basis: SpectralBasis,
    u: Inexact[Array | np.ndarray, "*batch M"],
    *,
    iterations: int,
    start: Float[Array | np.ndarray, "*batch P"] | None = None,
) -> Float[Array, "*batch P"]:
    """Non-negative images [..., P]: towards min over x >= 0 of ||S x - u||^2.

    ADMM (Boyd et al. 2011) with the splitting x = z >= 0, penalty rho scale^2 and
    over-relaxation 1.6. Its linear step is exact in the singular basis, so that weak
    singular values converge as fast as strong ones: projected gradient steps need some
    thirty times as many iterations for the same image. Few iterations regularise (early
    stopping); S is the kept rank.

    Args:
      u: measurements [..., M], unit as in `tikhonov`, result too.
      iterations: number of steps, static; each costs two products with V [P, k] or one
        with the resolvent [P, P].
      start: first z [..., P], zero if None. From a good image few iterations repair
        what contradicts the measurement and keep the rest.

    Raises:
      ValueError: on wrong shapes, iterations < 1 or a complex basis.
    """
    iterations = _count("iterations", iterations)
    target = _back_projection(basis, u)
    batch, P = target.shape[:-1], target.shape[-1]
    target = target.reshape(-1, P)
    resolve = _resolver(basis)
    fixed = resolve(target / basis.rho)

    def step(state, _):
        z, w = state
        x = 1.6 * (fixed + resolve(z - w)) - 0.6 * z
        z = jnp.maximum(x + w, 0)
        return (z, w + x - z), None

    zero = z = jnp.zeros_like(target)
    if start is not None:
        good = start.shape == (*batch, P)
        _expect(good, "start", f"shape {(*batch, P)}", f"shape {start.shape}")
        z = jnp.maximum(jnp.asarray(start, target.dtype), 0).reshape(target.shape)
    (z, _), _ = lax.scan(step, (z, zero), length=iterations)
    return z.reshape(*batch, P)


def total_variation(
    basis: SpectralBasis,
    u: Inexact[Array | np.ndarray, "*batch M"],
    grid: tuple[int, ...],
    *,
    lam_tv: float | np.number | Float[Array | np.ndarray, "..."],
    iterations: int,
    lam: float | np.number | Float[Array, ""] = 0.0,
    isotropic: bool = True,
) -> Float[Array, "*batch P"]:
    """Piecewise constant, non-negative images [..., P]: towards the minimiser of

        1/2 ||S x - u||^2 / scale^2 + lam_tv TV(x) + 1/2 lam ||x||^2   over x >= 0.

    TV sums, over voxels, the norm of the forward differences along the grid's axes
    (2-norm; 1-norm if not isotropic), per voxel and not per metre.

    ADMM (Boyd et al. 2011) on copies of one image v, all with penalty rho scale^2 and
    over-relaxation 1.6: x = v meets the data, exactly in the singular basis, y = D v
    the TV and z = v the sign; v itself is a sum of them divided by 2 + D^T D, which
    cosines diagonalise. So neither weak singular values nor long ranges slow it down,
    and nothing [P, P] has to be factorised. Result: z. rho acts on speed as in
    `nonnegative`.

    Args:
      u: measurements [..., M], unit as in `tikhonov`, result too.
      grid: shape of the image in C order of its P voxels: (ny, nx), (nz, ny, nx), ...
      lam_tv: >= 0, relative to scale^2 [unit of x]; a number, or one for each frame.
        The noise sets it: a few times noise_level(basis, u)^2 / scale^2 for images
        near 1.
      iterations: number of steps, static, of the cost of one of `nonnegative` and a
        cosine transform to and fro.
      lam: >= 0, as in `tikhonov`.

    Raises:
      ValueError: on wrong shapes or options, a complex basis, or concrete lam_tv or lam
        that are negative or not finite.
    """
    iterations = _count("iterations", iterations)
    target = _back_projection(basis, u)
    batch, P = target.shape[:-1], target.shape[-1]
    target = target.reshape(-1, P)
    differences = iterative.gradient(grid)
    axes = len(grid)
    _expect(math.prod(grid) == P, "grid", f"a shape of P = {P} voxels", grid)
    dtype, rho = target.dtype, basis.rho
    lam, lam_tv = jnp.asarray(lam, dtype), jnp.asarray(lam_tv, dtype)
    _expect(lam.ndim == 0, "lam", "a number", f"shape {lam.shape}")
    good = lam_tv.shape in ((), batch)
    _expect(good, "lam_tv", f"a number or shape {batch}", f"shape {lam_tv.shape}")
    _check_lam(lam)
    _check_lam(lam_tv, "lam_tv")
    good = isinstance(isotropic, (bool, np.bool_))
    _expect(good, "isotropic", "True or False", repr(isotropic))
    threshold = jnp.broadcast_to(lam_tv / rho, batch).reshape(-1, 1, 1)

    def shrink(y):
        y = y.reshape(-1, axes, P)
        energy = jnp.square(y)
        if isotropic:
            energy = jnp.sum(energy, axis=1, keepdims=True)
        large = energy > threshold**2  # no root of 0, for the sake of derivatives
        length = jnp.sqrt(jnp.where(large, energy, 1))
        return jnp.where(large, y - y * (threshold / length), 0).reshape(-1, axes * P)

    cosines = [_cosines(n, dtype) for n in grid]
    curvature = sum(
        np.reshape(2 - 2 * np.cos(np.pi * np.arange(n) / n), (-1,) + (1,) * after)
        for n, after in zip(grid, range(axes - 1, -1, -1), strict=True)
    )
    filters = jnp.asarray(1 / (2 + curvature), dtype)[None]

    def smooth(v):
        v = v.reshape(-1, *grid)
        # Each product takes the first axis away and puts its transform last.
        for matrix in cosines:
            v = jnp.tensordot(v, matrix, (1, 1), precision="highest")
        v = v * filters
        for matrix in cosines:
            v = jnp.tensordot(v, matrix, (1, 0), precision="highest")
        return v.reshape(-1, P)

    resolve = _resolver(basis)
    fixed = resolve(target / rho)

    def step(state, _):
        v, slopes, (a, b, d), _ = state
        z = jnp.maximum(v - d, 0) * (rho / (rho + lam))
        x = 1.6 * (fixed + resolve(v - a)) - 0.6 * v + a
        y = 1.6 * shrink(slopes - b) - 0.6 * slopes + b
        w = 1.6 * z - 0.6 * v + d
        v = smooth(x + w + differences.adjoint(y))
        slopes = differences.forward(v)
        return (v, slopes, (x - v, y - slopes, w - v), z), None

    zero, flat = jnp.zeros_like(target), jnp.zeros((len(target), axes * P), dtype)
    state = (zero, flat, (zero, flat, zero), zero)
    (*_, z), _ = lax.scan(step, state, length=iterations)
    return z.reshape(*batch, P)


class LCurve(NamedTuple):
    """Residual norms, solution norms, curvature [..., L] and the corner's index [...].

    The curvature is that of (log residual, log solution); the ends have none, -inf.
    """

    residual: Float[Array, "*batch L"]
    solution: Float[Array, "*batch L"]
    curvature: Float[Array, "*batch L"]
    index: Int[Array, "*batch"]


def norms(
    S: Inexact[Array | np.ndarray, "M P"] | iterative.LinearOperator,
    u: Inexact[Array | np.ndarray, "*batch M"],
    c: Inexact[Array | np.ndarray, "*batch L P"],
) -> tuple[Float[Array, "*batch L"], Float[Array, "*batch L"]]:
    """||S c - u|| and ||c|| [..., L] of L candidates c [..., L, P] for one u [..., M]:
    what `tikhonov` with a vector and `iterative.cgnr` with a path give.

    Raises:
      ValueError: on shapes that do not go together.
    """
    S, u, c = iterative.as_operator(S), jnp.asarray(u), jnp.asarray(c)
    M, P = S.shape
    good = u.ndim > 0 and u.shape[-1] == M
    _expect(good, "u", f"shape [..., {M}]", f"shape {u.shape}")
    good = c.ndim == u.ndim + 1 and (*c.shape[:-2], c.shape[-1]) == (*u.shape[:-1], P)
    _expect(good, "c", f"shape {(*u.shape[:-1], 'L', P)}", f"shape {c.shape}")
    return _norm(S.forward(c) - u[..., None, :]), _norm(c)


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
    """
    residuals, sigma = jnp.asarray(residuals), jnp.asarray(sigma)
    good = residuals.ndim > 0 and residuals.shape[-1] > 0
    _expect(good, "residuals", "shape [..., L]", f"shape {residuals.shape}")
    good = sigma.shape in ((), residuals.shape[:-1])
    expected = f"a number or shape {residuals.shape[:-1]}"
    _expect(good, "sigma", expected, f"shape {sigma.shape}")
    _check_positive("sigma", sigma)
    _check_positive("tau", jnp.asarray(tau))
    level = tau * jnp.sqrt(_count("rows", rows)) * sigma
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
    """
    arrays = [jnp.asarray(a) for a in (lams, residuals, solutions)]
    lams, residuals, solutions = arrays
    good = lams.ndim == 1 and lams.size >= 3
    _expect(good, "lams", "shape [L], L >= 3", f"shape {lams.shape}")
    for name, array in (("residuals", residuals), ("solutions", solutions)):
        good = array.ndim > 0 and array.shape[-1:] == lams.shape
        good &= array.shape == residuals.shape
        _expect(good, name, f"shape [..., {lams.size}]", f"shape {array.shape}")
    for name, array in zip(("lams", "residuals", "solutions"), arrays, strict=True):
        _check_positive(name, array)
    if not isinstance(lams, jax.core.Tracer):
        steps = np.diff(lams)
        good = (steps > 0).all() or (steps < 0).all()
        _expect(good, "lams", "values that rise or fall", lams)

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


def _matmul(a, b):
    """Product in full precision, also on devices that multiply in less."""
    return jnp.matmul(a, b, precision="highest")


def _measurement(basis, u):
    """u in the kind and layout of the rows of the basis, or a ValueError."""
    u = jnp.asarray(u)
    rows = basis.U.shape[0]
    if jnp.iscomplexobj(u) and not jnp.iscomplexobj(basis.U):
        good = u.ndim > 0 and 2 * u.shape[-1] == rows
        expected = f"real, shape [..., {rows}]"
        if rows % 2 == 0:
            expected += f", or complex, shape [..., {rows // 2}]"
        _expect(good, "u", expected, f"{u.dtype}, shape {u.shape}")
        return jnp.concatenate([u.real, u.imag], axis=-1)
    kind = jnp.iscomplexobj(u) == jnp.iscomplexobj(basis.U)
    _expect(kind, "u", "complex numbers like S", u.dtype)
    good = u.ndim > 0 and u.shape[-1] == rows
    _expect(good, "u", f"shape [..., {rows}]", f"shape {u.shape}")
    return u


def _back_projection(basis, u):
    """S^T u / scale^2 [..., P] of a real basis."""
    good = not jnp.iscomplexobj(basis.V)
    _expect(good, "basis", "a real one: spectral_basis(..., real=True)", basis.V.dtype)
    coefficients = project(basis, u) / basis.scale
    s = basis.s.reshape((1,) * (coefficients.ndim - 1) + (-1,))
    return _matmul(coefficients * s, basis.V.T)


def _resolver(basis):
    """x [F, P] -> rho (S^T S / scale^2 + rho)^-1 x."""

    def resolve(x):
        if basis.resolvent is not None:
            return _matmul(x, basis.resolvent)
        share = jnp.square(basis.s) / (jnp.square(basis.s) + basis.rho)
        return x - _matmul(_matmul(x, basis.V) * share[None], basis.V.T)

    return resolve


def _cosines(n, dtype):
    """Orthonormal cosine transform [frequency, position] for reflecting edges."""
    k, j = np.arange(n)[:, None], np.arange(n)[None]
    matrix = np.cos(np.pi * k * (j + 0.5) / n) * np.sqrt(np.where(k == 0, 1, 2) / n)
    return jnp.asarray(matrix, dtype)


def _norm(x):
    """2-norm over the last axis, also where squares would underflow."""
    peak = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    peak = lax.stop_gradient(jnp.where(peak > 0, peak, 1))
    x = x / peak
    energy = jnp.sum(jnp.square(x.real) + jnp.square(x.imag), axis=-1)
    root = jnp.sqrt(jnp.where(energy > 0, energy, 1))
    return jnp.where(energy > 0, root, 0) * peak[..., 0]


def _check_lam(lam, name="lam"):
    if not isinstance(lam, jax.core.Tracer):
        values = np.asarray(lam)
        good = np.isfinite(values).all() and (values >= 0).all()
        _expect(good, name, "finite numbers >= 0", values)


def _check_positive(name, array):
    if not isinstance(array, jax.core.Tracer):
        values = np.asarray(array)
        good = np.isfinite(values).all() and (values > 0).all()
        _expect(good, name, "finite numbers > 0", values)


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
