"""The truncated singular basis of a system matrix, and Tikhonov images in it."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float, Inexact

from mpi_jax._checks import (
    check_count,
    check_finite,
    check_flags,
    check_not_negative,
    expect,
)
from mpi_jax._linalg import matmul, norm

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

    Examples:
      >>> import numpy as np
      >>> S = np.array([[2.0, 1.0], [0.0, 1.0], [1.0, 0.0]])  # [M, P]
      >>> c = np.array([1.0, 3.0])
      >>> basis = spectral_basis(S)
      >>> float(with_rho(basis, 1e-2).rho) == float(np.float32(1e-2))
      True
    """
    expect(np.isfinite(rho) and rho > 0, "rho", "a number > 0", rho)
    voxels, rank = basis.V.shape
    resolvent = None
    if voxels <= 2 * rank and not jnp.iscomplexobj(basis.V):
        share = basis.s**2 / (basis.s**2 + rho)
        resolvent = jnp.eye(voxels, dtype=basis.V.dtype) - matmul(
            basis.V * share[None], basis.V.T
        )
    penalty = jnp.asarray(rho, basis.s.dtype)
    return dataclasses.replace(basis, rho=penalty, resolvent=resolvent)


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

    Examples:
      >>> import numpy as np
      >>> S = np.array([[2.0, 1.0], [0.0, 1.0], [1.0, 0.0]])  # [M, P]
      >>> c = np.array([1.0, 3.0])
      >>> basis = spectral_basis(S, rank=2)
      >>> basis.V.shape, basis.s.shape
      ((2, 2), (2,))
      >>> error = basis.scale * basis.U @ np.diag(basis.s) @ basis.V.T - S
      >>> bool(np.abs(error).max() < 1e-5)
      True
    """
    S = np.asarray(S)
    holds = S.ndim == 2 and np.issubdtype(S.dtype, np.inexact)
    expect(holds, "S", "a matrix [M, P]", f"shape {S.shape}, {S.dtype}")
    expect(S.size > 0, "S", "at least one row and column", f"shape {S.shape}")
    check_finite("S", S)
    check_flags(real=real)
    if real and np.iscomplexobj(S):
        S = np.concatenate([S.real, S.imag])
    peak = float(np.abs(S).max())
    expect(peak > 0, "S", "a non-zero entry", "all zero")
    size = min(S.shape)
    count = size if rank is None else check_count("rank", rank)
    expect(count <= size, "rank", f"at most min(M, P) = {size}", rank)

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
    expect(
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

    Examples:
      >>> import numpy as np
      >>> S = np.array([[2.0, 1.0], [0.0, 1.0], [1.0, 0.0]])  # [M, P]
      >>> c = np.array([1.0, 3.0])
      >>> basis = spectral_basis(S)
      >>> project(basis, S @ c).shape  # coefficients [k]
      (2,)
    """
    return matmul(_measurement(basis, u), basis.U.conj())


def estimate_noise(
    basis: SpectralBasis, u: Inexact[Array | np.ndarray, "*batch M"]
) -> Float[Array, "*batch"]:
    """Standard deviation [unit of u] of white noise in u [..., M], frame by frame.

    From the part of u outside of the span of U; signal of singular values that the
    basis leaves out counts as noise. A standard deviation per real number: for complex
    u on a real basis it is that of the real and of the imaginary parts.

    Raises:
      ValueError: as in `project`, and if the basis spans all rows.

    Examples:
      >>> import numpy as np
      >>> random = np.random.default_rng(0)
      >>> S = random.normal(size=(400, 20))
      >>> u = S @ np.ones(20) + 0.1 * random.normal(size=400)
      >>> round(float(estimate_noise(spectral_basis(S), u)), 2)
      0.1
    """
    u = _measurement(basis, u)
    rows, rank = basis.U.shape
    expect(rank < rows, "basis", f"a rank below the {rows} rows", rank)
    outside = u - matmul(matmul(u, basis.U.conj()), basis.U.T)
    return norm(outside) / math.sqrt(rows - rank)


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

    Examples:
      >>> import numpy as np
      >>> S = np.array([[2.0, 1.0], [0.0, 1.0], [1.0, 0.0]])  # [M, P]
      >>> c = np.array([1.0, 3.0])
      >>> basis = spectral_basis(S)
      >>> print(np.asarray(tikhonov(basis, S @ c, 0.0), float).round(3))
      [1. 3.]
      >>> lams = np.array([1e-1, 1e-2, 1e-3])  # of the largest singular value squared
      >>> tikhonov(basis, S @ c, lams).shape
      (3, 2)
    """
    lam = jnp.asarray(lam, basis.s.dtype)
    expect(lam.ndim <= 1, "lam", "a number or a vector [L]", f"shape {lam.shape}")
    check_not_negative("lam", lam)
    coefficients = project(basis, u) / basis.scale
    batch, (P, k) = coefficients.shape[:-1], basis.V.shape
    s = basis.s[None]
    filters = s / (s**2 + lam.reshape(-1, 1))  # [L, k]
    images = matmul(coefficients.reshape(-1, 1, k) * filters[None], basis.V.T)
    return images.reshape(*batch, *lam.shape, P)


def _measurement(basis, u):
    """u in the kind and layout of the rows of the basis, or a ValueError."""
    check_finite("u", u)
    u = jnp.asarray(u)
    rows = basis.U.shape[0]
    if jnp.iscomplexobj(u) and not jnp.iscomplexobj(basis.U):
        holds = u.ndim > 0 and 2 * u.shape[-1] == rows
        expected = f"real, shape [..., {rows}]"
        if rows % 2 == 0:
            expected += f", or complex, shape [..., {rows // 2}]"
        expect(holds, "u", expected, f"{u.dtype}, shape {u.shape}")
        return jnp.concatenate([u.real, u.imag], axis=-1)
    kind = jnp.iscomplexobj(u) == jnp.iscomplexobj(basis.U)
    expect(kind, "u", "complex numbers like S", u.dtype)
    holds = u.ndim > 0 and u.shape[-1] == rows
    expect(holds, "u", f"shape [..., {rows}]", f"shape {u.shape}")
    return u
