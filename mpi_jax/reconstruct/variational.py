"""Tikhonov and non-negative least squares in a truncated singular basis.

A real system matrix is written S ~ scale * U diag(s) V^T once, on the host; afterwards
an image costs a few thin matrix products, for batches of measurements at a time.

Symbols
    M      rows of S (samples or real components of all receive channels)
    P      voxels
    k      rank kept, <= min(M, P)
    S      [M, P]   real system matrix             [unit of u per unit of x]
    u      [..., M] measurement                    [V, or any unit shared with S]
    x      [..., P] concentration                  [unit of u / unit of S]
    U, V   [M, k], [P, k] orthonormal columns      [1]
    s      [k]      singular values over the largest, 1 = s_1 >= s_2 >= ...  [1]
    scale  []       largest singular value         [unit of S]
    lam    regularisation, relative to scale^2     [1]

System matrices of Magnetic Particle Imaging have entries near 1e-10, whose squares and
normal equations leave the range where float32 is comfortable: hence `scale` apart.
"""

import dataclasses
import operator

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax import lax
from jaxtyping import Array, Float

# Squares of singular values below this fraction of the largest drown in the rounding of
# a float64 Gram matrix.
_RESOLVED = 1e-7


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SpectralBasis:
    """Truncated singular value decomposition S ~ scale * U diag(s) V^T.

    `normal` = V diag(s^2) V^T [P, P] is there when one product with it costs no more
    than the two with V (P <= 2k), and None otherwise. Build it with `spectral_basis`.
    """

    U: Float[Array, "*batch M k"]
    s: Float[Array, "*batch k"]
    V: Float[Array, "*batch P k"]
    scale: Float[Array, "*batch"]
    normal: Float[Array, "*batch P P"] | None = None


def spectral_basis(S: Float[Array | np.ndarray, "M P"], rank: int) -> SpectralBasis:
    """The `rank` largest singular triplets of a real S [M, P].

    In the precision of S, float64 only where JAX runs with x64.

    Computed in float64 on the host from the eigenvalues of the smaller Gram matrix.

    Raises:
      ValueError: if S is not a real, finite, non-zero matrix, or if `rank` is not an
        integer between 1 and the number of singular values above 1e-7 of the largest.
    """
    S = np.asarray(S)
    real = S.ndim == 2 and np.issubdtype(S.dtype, np.floating)
    _expect(real, "S", "a real matrix [M, P]", f"shape {S.shape}, {S.dtype}")
    _expect(S.size > 0, "S", "at least one row and column", f"shape {S.shape}")
    _expect(np.isfinite(S).all(), "S", "finite numbers", "NaN or infinity")
    peak = float(np.abs(S).max())
    _expect(peak > 0, "S", "a non-zero entry", "all zero")
    rank, size = _count("rank", rank), min(S.shape)
    _expect(rank <= size, "rank", f"at most min(M, P) = {size}", rank)

    wide = S.shape[0] <= S.shape[1]
    matrix = S.astype(np.float64) / peak
    gram = matrix @ matrix.T if wide else matrix.T @ matrix
    values, vectors = scipy.linalg.eigh(
        gram,
        subset_by_index=(size - rank, size - 1),
        overwrite_a=True,
        check_finite=False,
    )
    # The eigenvalues come in ascending order.
    values, near = np.sqrt(np.maximum(values[::-1], 0)), vectors[:, ::-1]
    resolved = int(np.sum(values > _RESOLVED * values[0]))
    _expect(
        resolved == rank,
        "rank",
        f"at most {resolved}, the singular values above {_RESOLVED} of the largest",
        rank,
    )
    far = (matrix.T @ near if wide else matrix @ near) / values
    U, V = (near, far) if wide else (far, near)
    s = values / values[0]
    normal = (V * s**2) @ V.T if S.shape[1] <= 2 * rank else None
    dtype = jax.dtypes.canonicalize_dtype(S.dtype)
    fields = U, s, V, values[0] * peak, normal
    return SpectralBasis(
        *(None if field is None else jnp.asarray(field, dtype) for field in fields)
    )


def project(
    basis: SpectralBasis, u: Float[Array | np.ndarray, "*batch M"]
) -> Float[Array, "*batch k"]:
    """Coefficients U^T u [..., k] of measurements u [..., M]; [unit of u].

    Raises:
      ValueError: if the last axis of u is not M long.
    """
    u = jnp.asarray(u)
    M = basis.U.shape[0]
    good = u.ndim > 0 and u.shape[-1] == M
    _expect(good, "u", f"shape [..., {M}]", f"shape {u.shape}")
    return _matmul(u, basis.U)


def tikhonov(
    basis: SpectralBasis,
    u: Float[Array | np.ndarray, "*batch M"],
    lam: float | np.floating | Float[Array | np.ndarray, "..."],
) -> Float[Array, "..."]:
    """Tikhonov images V diag(s / (s^2 + lam)) U^T u / scale; [unit of u / unit of S].

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
    u: Float[Array | np.ndarray, "*batch M"],
    *,
    iterations: int,
    lam: float | np.floating | Float[Array, ""] = 0.0,
    start: Float[Array | np.ndarray, "*batch P"] | None = None,
) -> Float[Array, "*batch P"]:
    """Non-negative images: min over x >= 0 of ||S x - u||^2 + lam scale^2 ||x||^2.

    Accelerated projected gradient (Nesterov 1983; FISTA, Beck and Teboulle 2009) with
    step 1 / (1 + lam), the inverse of the largest curvature, and momentum restarted
    image by image when it points uphill (O'Donoghue and Candes 2015). S is the kept
    rank, so that one step is two products with V [P, k], or one with [P, P].

    Args:
      u: measurements [..., M], unit as in `tikhonov`, result too.
      iterations: number of steps, static. Few steps regularise (early stopping).
      lam: >= 0, relative to the largest singular value squared.
      start: first iterate [..., P], zero if None; e.g. `tikhonov(...)`, clipped here.

    Raises:
      ValueError: on wrong shapes, iterations < 1, or a concrete lam that is negative or
        not finite.
    """
    iterations = _count("iterations", iterations)
    lam = jnp.asarray(lam, basis.s.dtype)
    _expect(lam.ndim == 0, "lam", "one number", f"shape {lam.shape}")
    _check_lam(lam)
    coefficients = project(basis, u)
    batch, (P, k) = coefficients.shape[:-1], basis.V.shape
    coefficients = coefficients.reshape(-1, k) / basis.scale
    target = _matmul(coefficients * basis.s[None], basis.V.T)
    if start is None:
        x = jnp.zeros_like(target)
    else:
        x = jnp.maximum(jnp.asarray(start, target.dtype), 0)
        _expect(x.shape == (*batch, P), "start", f"shape {(*batch, P)}", x.shape)
        x = x.reshape(target.shape)
    rate = 1 / (1 + lam)

    def curvature(x):
        if basis.normal is not None:
            return _matmul(x, basis.normal)
        return _matmul(_matmul(x, basis.V) * jnp.square(basis.s)[None], basis.V.T)

    def step(state, _):
        x, ahead, time = state
        gradient = curvature(ahead) - target + lam * ahead
        moved = jnp.maximum(ahead - rate * gradient, 0)
        uphill = jnp.sum((ahead - moved) * (moved - x), axis=-1, keepdims=True) > 0
        time = jnp.where(uphill, 1, time)
        later = (1 + jnp.sqrt(1 + 4 * jnp.square(time))) / 2
        ahead = moved + (time - 1) / later * (moved - x)
        return (moved, ahead, later), None

    time = jnp.ones_like(x[:, :1])
    (x, _, _), _ = lax.scan(step, (x, x, time), length=iterations)
    return x.reshape(*batch, P)


def _matmul(a, b):
    """Product in full precision, also on devices that multiply in less."""
    return jnp.matmul(a, b, precision="highest")


def _check_lam(lam):
    if not isinstance(lam, jax.core.Tracer):
        values = np.asarray(lam)
        good = np.isfinite(values).all() and (values >= 0).all()
        _expect(good, "lam", "finite numbers >= 0", values)


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
