"""Non-negative and total variation images in a truncated singular basis.

A system matrix is written S ~ scale * U diag(s) V^H once, on the host; afterwards an
image costs a few thin matrix products, for batches of measurements at a time. Complex
rows with real images are real rows: Re S above Im S.

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

import math

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Inexact

from mpi_jax._checks import (
    check_count,
    check_finite,
    check_flags,
    check_not_negative,
    check_positive,
    expect,
)
from mpi_jax._linalg import dct_matrix, matmul
from mpi_jax.reconstruct import operators
from mpi_jax.reconstruct.spectral import SpectralBasis, project


def nonnegative(
    basis: SpectralBasis,
    u: Inexact[Array | np.ndarray, "*batch M"],
    *,
    iterations: int,
    start: Float[Array | np.ndarray, "*batch P"] | None = None,
    rho: float | np.number | Float[Array | np.ndarray, "..."] | None = None,
) -> Float[Array, "*batch P"]:
    """Non-negative images [..., P]: towards min over x >= 0 of ||S x - u||^2.

    ADMM (Boyd et al. 2011) with the splitting x = z >= 0, penalty rho scale^2 and
    over-relaxation 1.6. Its linear step is exact in the singular basis, so that weak
    singular values converge as fast as strong ones: projected gradient steps need some
    thirty times as many iterations for the same image. S is the kept rank.

    Few iterations regularise, and then rho and their number decide, not the minimum:
    where s^2 >> rho the image is that of non-negative least squares after a handful of
    steps, where s^2 << rho it moves by about s^2 / rho a step, so that after n steps
    these parts have arrived by a share of n s^2 / rho at most. It is not
    scipy.optimize.nnls there, and is not meant to be: that would amplify the noise by
    1 / s. Noise of a variance v (relative to scale^2 and to the brightest voxel squared)
    asks for rho of some v.

    Args:
      u: measurements [..., M], unit as in `tikhonov`, result too.
      iterations: number of steps, static; each costs two products with V [P, k] or one
        with the resolvent [P, P].
      start: first z [..., P], zero if None. From a good image few iterations repair
        what contradicts the measurement and keep the rest.
      rho: > 0, the penalty, in place of the basis' own; a number, or one for each frame.

    Raises:
      ValueError: on wrong shapes, iterations < 1, a complex basis, or a concrete rho that
        is not positive or finite.

    Examples:
      >>> from mpi_jax.reconstruct import spectral
      >>> import numpy as np
      >>> S = np.array([[2.0, 1.0], [0.0, 1.0], [1.0, 0.0]])  # [M, P]
      >>> c = np.array([1.0, 3.0])
      >>> basis = spectral.spectral_basis(S)
      >>> print(np.asarray(nonnegative(basis, S @ c, iterations=200), float).round(2))
      [1. 3.]
      >>> print(nonnegative(basis, S @ -c, iterations=200))
      [0. 0.]
    """
    iterations = check_count("iterations", iterations)
    coefficients = _coefficients(basis, u)
    batch, P = coefficients.shape[:-1], basis.V.shape[0]
    penalty, resolve = _resolver(basis, rho, batch)
    fixed = _ridge(basis, coefficients, penalty)

    def step(state, _):
        z, w = state
        x = 1.6 * (fixed + resolve(z - w)) - 0.6 * z
        z = jnp.maximum(x + w, 0)
        return (z, w + x - z), None

    zero = z = jnp.zeros_like(fixed)
    if start is not None:
        holds = start.shape == (*batch, P)
        expect(holds, "start", f"shape {(*batch, P)}", f"shape {start.shape}")
        check_finite("start", start)
        z = jnp.maximum(jnp.asarray(start, fixed.dtype), 0).reshape(fixed.shape)
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
    rho: float | np.number | Float[Array | np.ndarray, "..."] | None = None,
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
        The noise sets it: a few times estimate_noise(basis, u)^2 / scale^2 for
        images near 1.
      iterations: number of steps, static, of the cost of one of `nonnegative` and a
        cosine transform to and fro.
      lam: >= 0, as in `tikhonov`.
      rho: > 0, the penalty, in place of the basis' own; a number, or one for each frame.
        About a quarter of estimate_noise(basis, u) / scale, for images near 1, is fast.

    Raises:
      ValueError: on wrong shapes or options, a complex basis, or concrete lam_tv or lam
        that are negative or not finite.

    Examples:
      >>> import numpy as np
      >>> from mpi_jax.reconstruct import spectral
      >>> c = np.zeros((4, 4))
      >>> c[1:3, 1:3] = 1
      >>> S = np.random.default_rng(0).normal(size=(40, 16))
      >>> basis = spectral.spectral_basis(S)
      >>> image = total_variation(
      ...     basis, S @ c.ravel(), (4, 4), lam_tv=1e-6, iterations=300
      ... ).reshape(4, 4)
      >>> bool(np.abs(image - c).max() < 0.01)
      True
    """
    iterations = check_count("iterations", iterations)
    coefficients = _coefficients(basis, u)
    batch, P = coefficients.shape[:-1], basis.V.shape[0]
    differences = operators.gradient(grid)
    axes = len(grid)
    expect(math.prod(grid) == P, "grid", f"a shape of P = {P} voxels", grid)
    dtype = basis.s.dtype
    rho, resolve = _resolver(basis, rho, batch)
    lam, lam_tv = jnp.asarray(lam, dtype), jnp.asarray(lam_tv, dtype)
    expect(lam.ndim == 0, "lam", "a number", f"shape {lam.shape}")
    holds = lam_tv.shape in ((), batch)
    expect(holds, "lam_tv", f"a number or shape {batch}", f"shape {lam_tv.shape}")
    check_not_negative("lam", lam)
    check_not_negative("lam_tv", lam_tv)
    check_flags(isotropic=isotropic)
    each = jnp.broadcast_to(lam_tv, batch).reshape(-1, 1) / rho
    threshold = each[..., None]

    def shrink(y):
        y = y.reshape(-1, axes, P)
        energy = jnp.square(y)
        if isotropic:
            energy = jnp.sum(energy, axis=1, keepdims=True)
        large = energy > threshold**2  # no root of 0, for the sake of derivatives
        length = jnp.sqrt(jnp.where(large, energy, 1))
        return jnp.where(large, y - y * (threshold / length), 0).reshape(-1, axes * P)

    # Of reflecting edges.
    cosines = [jnp.asarray(dct_matrix("DCT-II", n), dtype) for n in grid]
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

    fixed = _ridge(basis, coefficients, rho)

    def step(state, _):
        v, slopes, (a, b, d), _ = state
        z = jnp.maximum(v - d, 0) * (rho / (rho + lam))
        x = 1.6 * (fixed + resolve(v - a)) - 0.6 * v + a
        y = 1.6 * shrink(slopes - b) - 0.6 * slopes + b
        w = 1.6 * z - 0.6 * v + d
        v = smooth(x + w + differences.adjoint(y))
        slopes = differences.forward(v)
        return (v, slopes, (x - v, y - slopes, w - v), z), None

    zero, flat = jnp.zeros_like(fixed), jnp.zeros((len(fixed), axes * P), dtype)
    state = (zero, flat, (zero, flat, zero), zero)
    (*_, z), _ = lax.scan(step, state, length=iterations)
    return z.reshape(*batch, P)


def _coefficients(basis, u):
    """U^T u / scale [..., k] of a real basis."""
    holds = not jnp.iscomplexobj(basis.V)
    expect(holds, "basis", "a real one: spectral_basis(..., real=True)", basis.V.dtype)
    return project(basis, u) / basis.scale


def _ridge(basis, coefficients, penalty):
    """(S^T S / scale^2 + rho)^-1 S^T u / scale^2 [F, P], without cancellation: the same
    out of `_resolver` would lose the digits of 1 / rho.
    """
    s = basis.s[None]
    filtered = coefficients.reshape(-1, len(basis.s)) * (s / (s**2 + penalty))
    return matmul(filtered, basis.V.T)


def _resolver(basis, rho, batch):
    """The penalty, [F, 1] for one of each frame, and with it
    x [F, P] -> rho (S^T S / scale^2 + rho)^-1 x.
    """
    resolvent = basis.resolvent if rho is None else None
    penalty = basis.rho
    if rho is not None:
        rho = jnp.asarray(rho, basis.s.dtype)
        holds = rho.shape in ((), batch)
        expect(holds, "rho", f"a number or shape {batch}", f"shape {rho.shape}")
        check_positive("rho", rho)
        penalty = jnp.broadcast_to(rho, batch).reshape(-1, 1)

    def resolve(x):
        if resolvent is not None:
            return matmul(x, resolvent)
        energy = jnp.square(basis.s)[None]
        share = energy / (energy + penalty)
        return x - matmul(matmul(x, basis.V) * share, basis.V.T)

    return penalty, resolve
