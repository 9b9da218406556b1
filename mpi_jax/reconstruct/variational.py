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
    rho    penalty of the splitting, likewise      [1]

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

    `resolvent` = rho (V diag(s^2) V^T + rho I)^-1 [P, P] is there when one product with
    it costs no more than the two with V (P <= 2k), and None otherwise. Build it with
    `spectral_basis`, change rho with `with_rho`.
    """

    U: Float[Array, "*batch M k"]
    s: Float[Array, "*batch k"]
    V: Float[Array, "*batch P k"]
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
    if voxels <= 2 * rank:
        share = basis.s**2 / (basis.s**2 + rho)
        resolvent = jnp.eye(voxels, dtype=basis.V.dtype) - _matmul(
            basis.V * share[None], basis.V.T
        )
    rho = jnp.asarray(rho, basis.s.dtype)
    return dataclasses.replace(basis, rho=rho, resolvent=resolvent)


def spectral_basis(
    S: Float[Array | np.ndarray, "M P"], rank: int, rho: float = 3e-4
) -> SpectralBasis:
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
    dtype = jax.dtypes.canonicalize_dtype(S.dtype)
    arrays = (U, s, V, np.asarray(values[0] * peak), np.asarray(rho))
    basis = SpectralBasis(*(jnp.asarray(array, dtype) for array in arrays))
    return with_rho(basis, rho)


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
      ValueError: on wrong shapes or iterations < 1.
    """
    iterations = _count("iterations", iterations)
    coefficients = project(basis, u)
    batch, (P, k) = coefficients.shape[:-1], basis.V.shape
    coefficients = coefficients.reshape(-1, k) / basis.scale * basis.s[None]
    target = _matmul(coefficients, basis.V.T)

    def resolve(x):
        if basis.resolvent is not None:
            return _matmul(x, basis.resolvent)
        share = jnp.square(basis.s) / (jnp.square(basis.s) + basis.rho)
        return x - _matmul(_matmul(x, basis.V) * share[None], basis.V.T)

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
