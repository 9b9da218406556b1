"""Regularised Kaczmarz (ART) for batches of frames, exact and blocked.

Solves min_c ||S c - u||^2 + lambda ||c||^2 by projecting onto one row of the augmented
system [S, sqrt(lambda) I] [c; v] = u after the other, starting from zero:

    alpha = (u_i - S_i c - sqrt(lambda) v_i) / (||S_i||^2 + lambda)
    c    += alpha conj(S_i)          v_i += sqrt(lambda) alpha

with a projection (real, non-negative) after each sweep over all rows. The rows of a
block are not visited one by one: their alphas solve one triangular system,

    (tril(S_B S_B^H) + lambda I) alpha = u_B - S_B c - sqrt(lambda) v_B,

whose forward substitution is the row recursion itself. The iterates are those of the
row loop, up to rounding, for any block size; the work becomes matrix products.

Symbols (sizes as in the Magnetic Particle Imaging Data Format)
    M       rows: selected frequency components of all receive channels
    P       voxels (columns)
    F       frames, "..." in the public signatures: any leading axes
    S       [M, P]   system matrix, real or complex     [unit of u per unit of c]
    u       [..., M] measurement, real or complex as S  [V, or any unit shared with S]
    c       [..., P] concentration                      [unit of u / unit of S]
    lam     lambda, relative or absolute (see `solve`)  [1, or unit of S squared]
    v       [..., M] dual variable; stored here as sqrt(lambda) v, so that no root of
            lambda is needed and derivatives at lambda = 0 stay finite
    alpha   [..., m] step lengths of the m rows of a block

Sources: S. Kaczmarz (1937), Bull. Int. Acad. Pol. Sci. Lett. A 35; A. Dax (1993), SIAM
Rev. 35 (regularised row action); T. Knopp et al. (2010), Phys. Med. Biol. 55 (MPI).
Departure: with projections the limit is not the constrained Tikhonov minimiser (v is
not reset by them); this is the algorithm in use in the field, kept as it is.
"""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, Inexact, Integer, Num

# Without "highest" GPUs and TPUs multiply with ten or fewer mantissa bits.
_matmul = functools.partial(jnp.matmul, precision="highest")


def solve(
    S: Inexact[Array | np.ndarray, "M P"],
    u: Inexact[Array | np.ndarray, "*batch M"],
    *,
    lam: float | np.number | Num[Array | np.ndarray, "..."],
    iterations: int,
    real: bool = True,
    nonnegative: bool = True,
    relative: bool = True,
    order: Integer[Array | np.ndarray, " M"] | list | None = None,
    weights: Num[Array | np.ndarray, " M"] | list | None = None,
    block: int | None = None,
) -> Inexact[Array, "*batch P"]:
    """Concentration c [..., P] after `iterations` sweeps of regularised Kaczmarz.

    All frames share one row order, so that a batch equals a loop over its frames.
    Works inside jit, vmap and grad; `iterations`, flags and `block` are static.

    Args:
      S: system matrix [M, P]; rows without energy are left out.
      u: measurement [..., M], complex if and only if S is.
      lam: regularisation, >= 0. A vector [P], > 0, regularises voxel by voxel
        (sum_p lam_p |c_p|^2): the solver runs on S diag(lam^-1/2) with lambda = 1 and
        scales back. A constant vector gives the iterates of the scalar.
      iterations: number of sweeps over all rows, >= 1.
      real: drop the imaginary part after each sweep; the result is then real.
      nonnegative: set entries of negative (real) part to zero after each sweep; without
        `real`, the others keep their imaginary part.
      relative: lam is in units of sum_i w_i^2 ||S_i||^2 / P, for a vector each entry
        is; otherwise lam is absolute, in the unit of S squared (weights included).
      order: permutation of 0..M-1 in which rows are visited; None is 0, 1, .., M-1.
      weights: w [M], real and >= 0; solves diag(w) S c = diag(w) u. Weight 0 leaves the
        row out.
      block: rows per triangular system. It changes speed and rounding only. None takes
        20 for one frame (cache) and 64 for more (matrix products).

    Raises:
      ValueError: on bad shapes, kinds or options; on bad values (NaN, negative lam, no
        usable row, ...) where the argument is concrete rather than traced.
    """
    arrays, options = _checked(
        S, u, lam, iterations, real, nonnegative, relative, order, weights, block
    )
    return _run(*arrays, **options, keep=False)


def sweeps(
    S: Inexact[Array | np.ndarray, "M P"],
    u: Inexact[Array | np.ndarray, "*batch M"],
    *,
    lam: float | np.number | Num[Array | np.ndarray, "..."],
    iterations: int,
    real: bool = True,
    nonnegative: bool = True,
    relative: bool = True,
    order: Integer[Array | np.ndarray, " M"] | list | None = None,
    weights: Num[Array | np.ndarray, " M"] | list | None = None,
    block: int | None = None,
) -> Inexact[Array, "iterations *batch P"]:
    """The iterate after each sweep, c [iterations, ..., P]; arguments as in `solve`.

    The last one is what `solve` returns: for choosing the number of sweeps in one run.
    """
    arrays, options = _checked(
        S, u, lam, iterations, real, nonnegative, relative, order, weights, block
    )
    return _run(*arrays, **options, keep=True)


def row_norm_weights(S: Inexact[Array | np.ndarray, "M P"]) -> Float[Array, " M"]:
    """Weights 1/||S_i|| [1 / unit of S], which give all rows the same norm; 0 for zero
    rows.

    Raises:
      ValueError: if S is not a matrix.
    """
    S = jnp.asarray(S)
    _expect(S.ndim == 2, "S", "a matrix [M, P]", f"shape {S.shape}")
    # Divide by the largest entry first: squares of small voltages underflow in float32.
    peak = jnp.max(jnp.abs(S), axis=1)
    used = peak > 0
    peak = jnp.where(used, peak, 1)
    energy = jnp.sum(jnp.abs(S / peak[:, None]) ** 2, axis=1)
    return jnp.where(used, 1 / (peak * jnp.sqrt(jnp.where(used, energy, 1))), 0)


@functools.partial(
    jax.jit,
    static_argnames=("iterations", "real", "nonnegative", "relative", "block", "keep"),
)
def _run(
    S, u, lam, order, weights, *, iterations, real, nonnegative, relative, block, keep
):
    """Scan over blocks inside scan over sweeps; [P] results, all sweeps if `keep`."""
    batch, (M, P) = u.shape[:-1], S.shape
    if weights is not None:
        S, u = S * weights[:, None], u * weights.reshape((1,) * len(batch) + (M,))
    if order is not None:
        S, u = S[order], u[..., order]

    S, u = _padded(S, -M % block, axis=0), _padded(u, -M % block, axis=-1)
    blocks = S.reshape(-1, block, P)
    u = u.reshape(-1, len(blocks), block).swapaxes(0, 1)  # [blocks, F, m]

    rows = _parts(blocks)
    if relative:
        lam = lam * jnp.sum(jnp.sum(jnp.square(rows), axis=-1)) / P
    unscale = jnp.ones(())
    if lam.ndim:
        unscale = lax.rsqrt(lam)
        rows, lam = rows * unscale[None, None], jnp.ones((), rows.dtype)
    inverses = _inverse_triangles(rows, lam, jnp.iscomplexobj(S))

    def visit(c, block_data):
        rows, inverse, u, dual = block_data
        alpha = _matmul(u - _times(c, rows) - dual, inverse.T)
        return _step(c, alpha, rows), dual + lam * alpha

    def sweep(state, _):
        c, dual = state
        c, dual = lax.scan(visit, c, (rows, inverses, u, dual))
        c = _projected(c, real, nonnegative)
        return (c, dual), _result(c, real) if keep else None

    # Reverse mode keeps one state per sweep and repeats the blocks: memory, not time,
    # is what limits it.
    c = (jnp.zeros((u.shape[1], P), rows.dtype),) * (2 if jnp.iscomplexobj(S) else 1)
    (c, _), kept = lax.scan(
        jax.checkpoint(sweep, prevent_cse=False),
        (c, jnp.zeros_like(u)),
        length=iterations,
    )
    c = kept if keep else _result(c, real)
    c = c * unscale.reshape((1,) * (c.ndim - unscale.ndim) + unscale.shape)
    return c.reshape(*c.shape[:-2], *batch, P)


def _inverse_triangles(rows, lam, is_complex):
    """Inverse of tril(B B^H) + lam I for each block, [blocks, m, m].

    The inverse, because for many frames a product per visit is twice as fast as a
    substitution, and as accurate on these triangles. A zero row never moves c; it only must not make the
    triangle singular where lam = 0.
    """
    gram = _matmul(rows, rows.swapaxes(1, 2))
    if is_complex:
        m = rows.shape[1] // 2
        gram = lax.complex(
            gram[:, :m, :m] + gram[:, m:, m:], gram[:, m:, :m] - gram[:, :m, m:]
        )
    identity = jnp.eye(gram.shape[-1], dtype=gram.dtype)
    energy = jnp.einsum("bii->bi", gram).real
    shift = jnp.where(energy + lam > 0, lam, 1).astype(gram.dtype)
    triangle = jnp.tril(gram) + shift[:, None, :] * identity[None]
    return solve_triangular(
        triangle, jnp.broadcast_to(identity, triangle.shape), lower=True
    )


# Complex products as real ones: rows stacked as [Re B; Im B], c as (Re c, Im c). XLA's
# real products are the faster ones on CPU. Real problems have one part only.


def _parts(blocks):
    """[blocks, m, P] as it is if real, else [blocks, 2m, P]."""
    if not jnp.iscomplexobj(blocks):
        return blocks
    return jnp.concatenate([blocks.real, blocks.imag], axis=1)


def _times(c, rows):
    """c B^T [F, m]."""
    if len(c) == 1:
        return _matmul(c[0], rows.T)
    m = rows.shape[0] // 2
    re, im = (_matmul(part, rows.T) for part in c)
    return lax.complex(re[:, :m] - im[:, m:], re[:, m:] + im[:, :m])


def _step(c, alpha, rows):
    """c + alpha conj(B), for alpha [F, m]."""
    if len(c) == 1:
        return (c[0] + _matmul(alpha, rows),)
    re = jnp.concatenate([alpha.real, alpha.imag], axis=1)
    im = jnp.concatenate([alpha.imag, -alpha.real], axis=1)
    steps = jnp.split(_matmul(jnp.concatenate([re, im]), rows), 2)
    return c[0] + steps[0], c[1] + steps[1]


def _projected(c, real, nonnegative):
    keep = c[0] > 0 if nonnegative else jnp.ones_like(c[0], bool)
    re, *im = (jnp.where(keep, part, 0) for part in c)
    return re, *(jnp.zeros_like(part) if real else part for part in im)


def _result(c, real):
    return c[0] if real or len(c) == 1 else lax.complex(*c)


def _padded(array, rows, axis):
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, rows)
    return jnp.pad(array, widths)


def _checked(S, u, lam, iterations, real, nonnegative, relative, order, weights, block):
    """Arrays and static options of `_run`, or a ValueError that names the argument."""
    S, u, lam = jnp.asarray(S), jnp.asarray(u), jnp.asarray(lam)
    _expect(S.ndim == 2, "S", "a matrix [M, P]", f"shape {S.shape}")
    M, P = S.shape
    _expect(M > 0 and P > 0, "S", "at least one row and one column", f"{S.shape}")
    _expect(
        u.ndim > 0 and u.shape[-1] == M,
        "u",
        f"shape [..., M] with M = {M}, the rows of S",
        f"shape {u.shape}",
    )
    _expect(0 not in u.shape, "u", "at least one frame", f"shape {u.shape}")
    for name, array in (("S", S), ("u", u)):
        inexact = jnp.issubdtype(array.dtype, jnp.inexact)
        _expect(inexact, name, "floating or complex numbers", f"{array.dtype}")
    _expect(
        jnp.iscomplexobj(S) == jnp.iscomplexobj(u),
        "u",
        f"the kind of S ({S.dtype}): both real or both complex",
        f"{u.dtype}",
    )
    dtype = jnp.result_type(S, u)
    S, u = S.astype(dtype), u.astype(dtype)

    for name, flag in (
        ("real", real),
        ("nonnegative", nonnegative),
        ("relative", relative),
    ):
        _expect(isinstance(flag, (bool, np.bool_)), name, "True or False", repr(flag))
    iterations = _count("iterations", iterations)
    if block is None:
        block = 20 if u.size == M else 64
    block = min(_count("block", block), M)

    _expect(
        lam.shape in ((), (P,)),
        "lam",
        f"a number, or a vector [P] with P = {P}",
        f"shape {lam.shape}",
    )
    _expect(not jnp.iscomplexobj(lam), "lam", "real numbers", f"{lam.dtype}")
    if (values := _concrete(lam)) is not None:
        lowest = values.min()
        _expect(np.isfinite(values).all(), "lam", "finite numbers", _brief(values))
        bound, good = (">= 0", lowest >= 0) if lam.ndim == 0 else ("> 0", lowest > 0)
        _expect(good, "lam", f"{bound} everywhere", f"{lowest}")
    real_dtype = jnp.finfo(dtype).dtype
    lam = lam.astype(real_dtype)

    if order is not None:
        order = jnp.asarray(order)
        _expect(
            order.shape == (M,) and jnp.issubdtype(order.dtype, jnp.integer),
            "order",
            f"a permutation of 0..{M - 1}: {M} integers",
            f"shape {order.shape}, {order.dtype}",
        )
        if (values := _concrete(order)) is not None:
            permutes = np.array_equal(np.sort(values), np.arange(M))
            _expect(permutes, "order", f"a permutation of 0..{M - 1}", _brief(values))
    if weights is not None:
        weights = jnp.asarray(weights)
        _expect(
            weights.shape == (M,) and not jnp.iscomplexobj(weights),
            "weights",
            f"{M} real numbers, one for each row of S",
            f"shape {weights.shape}, {weights.dtype}",
        )
        if (values := _concrete(weights)) is not None:
            good = np.isfinite(values).all() and values.min() >= 0
            _expect(good, "weights", "finite numbers >= 0", _brief(values))
            _expect(values.any(), "weights", "a weight > 0", "all zero")
        weights = weights.astype(real_dtype)

    if (values := _concrete(u)) is not None:
        _expect(np.isfinite(values).all(), "u", "finite numbers", "NaN or infinity")
    if _concrete(S) is not None and (weights is None or _concrete(weights) is not None):
        energy = np.asarray(_weighted_energy(S, weights))
        _expect(
            np.isfinite(energy).all(),
            "S",
            f"finite numbers with squares that fit {real_dtype}",
            "NaN, infinity or overflow",
        )
        least = 1e6 * np.finfo(real_dtype).tiny
        _expect(
            energy.max() > least,
            "S",
            f"a row (of weight > 0) of energy sum |S_i|^2 above {least:.0e}",
            f"at most {energy.max():.2g}: zero, or so small that S and u should be "
            "divided by a common factor",
        )
    return (S, u, lam, order, weights), {
        "iterations": iterations,
        "real": bool(real),
        "nonnegative": bool(nonnegative),
        "relative": bool(relative),
        "block": block,
    }


@jax.jit
def _weighted_energy(S, weights):
    """w_i^2 ||S_i||^2 [M]."""
    if weights is not None:
        S = S * weights[:, None]
    return jnp.sum(jnp.square(S.real) + jnp.square(S.imag), axis=1)


def _concrete(array):
    """The values as a NumPy array, or None while JAX traces them."""
    return None if isinstance(array, jax.core.Tracer) else np.asarray(array)


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


def _brief(values):
    return np.array2string(values, threshold=6, edgeitems=2, precision=4)
