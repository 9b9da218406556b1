"""Regularised Kaczmarz (ART) for batches of frames, exact and blocked.

Solves min_c ||S c - u||^2 + lambda ||c||^2 by projecting onto one row of the augmented
system `[S, sqrt(lambda) I] [c; v] = u` after the other, starting from zero:

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

Row orders

    fixed        0, 1, .., M-1, or a given permutation, in every sweep
    shuffled     the permutation jax.random.permutation(key, M), in every sweep
    randomised   each sweep visits k = round(fraction M) rows, drawn without replacement
                 with probability ~ ||S_i||^2
    greedy       each sweep takes k steps; the row of a step is drawn with probability
                 ~ |r_i|^2 among the rows with the largest distances |r_i|^2 / e_i,
                 r = u - S c - sqrt(lambda) v,   e_i = ||S_i||^2 + lambda:
                 |r_i|^2 / e_i >= theta max_j |r_j|^2 / e_j + (1 - theta) ||r||^2 / sum_j e_j
Draws are races: row i arrives at x_i / weight_i, x_i exponential noise from the key
folded with the sweep (and then the step) number; the first to arrive are drawn. Every
frame meets the same noise, so that a batch equals a loop over its frames.

Sources: S. Kaczmarz (1937), Bull. Int. Acad. Pol. Sci. Lett. A 35; A. Dax (1993), SIAM
Rev. 35 (regularised row action); T. Knopp et al. (2010), Phys. Med. Biol. 55 (MPI);
T. Strohmer, R. Vershynin (2009), J. Fourier Anal. Appl. 15 (randomised); Z.-Z. Bai,
W.-T. Wu (2018), SIAM J. Sci. Comput. 40 (greedy randomised, theta: Appl. Math. Lett. 83).
Departure: with projections the limit is not the constrained Tikhonov minimiser (v is
not reset by them); this is the algorithm in use in the field, kept as it is.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, Inexact, Integer, Key, Num, UInt32

from mpi_jax._checks import expect
from mpi_jax._linalg import matmul
from mpi_jax.reconstruct._kaczmarz_arguments import checked, row_energies


def solve(
    S: Inexact[Array | np.ndarray, "M P"],
    u: Inexact[Array | np.ndarray, "*batch M"],
    *,
    lam: float | np.number | Num[Array | np.ndarray, "..."],
    iterations: int,
    real: bool = True,
    nonnegative: bool = True,
    relative: bool = True,
    order: str | Integer[Array | np.ndarray, " M"] | list | None = None,
    weights: Num[Array | np.ndarray, " M"] | list | None = None,
    key: Key[Array, ""] | UInt32[Array, "..."] | None = None,
    fraction: float | np.number | None = None,
    theta: float | np.number | None = None,
    block: int | None = None,
    every_sweep: bool = False,
) -> Inexact[Array, "*iterations_batch P"]:
    """Concentration c [..., P] after `iterations` sweeps of regularised Kaczmarz.

    A batch equals a loop over its frames, in every order. Works inside jit, vmap and
    grad; the options other than lam, weights, key, theta and a permutation are static.

    Args:
      S: system matrix [M, P]; rows without energy are left out.
      u: measurement [..., M], complex if and only if S is.
      lam: regularisation, >= 0. A vector [P], > 0, regularises voxel by voxel
        (sum_p lam_p |c_p|^2): the solver runs on S diag(lam^-1/2) with lambda = 1 and
        scales back. A constant vector gives the iterates of the scalar.
      iterations: number of sweeps, >= 1. After each the projections are applied.
      real: drop the imaginary part after each sweep; the result is then real.
      nonnegative: set entries of negative (real) part to zero after each sweep; without
        `real`, the others keep their imaginary part.
      relative: lam is in units of sum_i w_i^2 ||S_i||^2 / P, for a vector each entry
        is; otherwise lam is absolute, in the unit of S squared (weights included).
      order: in which rows are visited: "fixed" (None is the same), a permutation of
        0..M-1, "shuffled", "randomised" or "greedy" (see the top of this file). Greedy
        takes memory and time for S S^H [M, M], and its steps are not blocked.
      weights: w [M], real and >= 0; solves diag(w) S c = diag(w) u. Weight 0 leaves the
        row out.
      key: of jax.random, for the last three orders and only for them.
      fraction: of rows visited in a sweep, in (0, 1], at least one row; only for
        randomised and greedy. None is 0.15.
      theta: how greedy, in [0, 1]: 1 draws among the farthest rows only. None is 0.5.
      block: rows per triangular system. It changes speed and rounding only; greedy has
        none. None takes 10 for one frame (cache) and for randomised (its triangles are
        new in each sweep), else 64 (matrix products).
      every_sweep: return the iterate after each sweep, [iterations, ..., P].

    Raises:
      ValueError: on bad shapes, kinds or options; on bad values (NaN, negative lam, no
        usable row, ...) where the argument is concrete rather than traced.

    Examples:
      >>> import numpy as np
      >>> S = np.array([[2.0, 1.0], [0.0, 1.0], [1.0, 0.0]])  # [M, P]
      >>> c = np.array([1.0, 3.0])
      >>> print(np.asarray(solve(S, S @ c, lam=0.0, iterations=50), float).round(3))
      [1. 3.]
      >>> frames = np.stack([S @ c, 2 * (S @ c)])  # a batch is matrix products
      >>> solve(S, frames, lam=1e-3, iterations=20).shape
      (2, 2)
    """
    return _run(**checked(**locals()))


sweeps = functools.partial(solve, every_sweep=True)
"""The iterate after each sweep, c [iterations, ..., P]; arguments as in `solve`.

The last one is what `solve` returns: for choosing the number of sweeps in one run.
"""


def row_norm_weights(S: Inexact[Array | np.ndarray, "M P"]) -> Float[Array, " M"]:
    """Weights 1/||S_i|| [1 / unit of S], which give all rows the same norm; 0 for zero
    rows.

    Raises:
      ValueError: if S is not a matrix.

    Examples:
      >>> import numpy as np
      >>> S = np.array([[2.0, 1.0], [0.0, 1.0], [1.0, 0.0]])  # [M, P]
      >>> c = np.array([1.0, 3.0])
      >>> print(np.asarray(row_norm_weights(S), float).round(3))
      [0.447 1.    1.   ]
      >>> image = solve(S, S @ c, lam=1e-3, iterations=20, weights=row_norm_weights(S))
    """
    S = jnp.asarray(S)
    expect(S.ndim == 2, "S", "a matrix [M, P]", f"shape {S.shape}")
    # Divide by the largest entry first: squares of small voltages underflow in float32.
    peak = jnp.max(jnp.abs(S), axis=1)
    used = peak > 0
    peak = jnp.where(used, peak, 1)
    energy = jnp.sum(jnp.abs(S / peak[:, None]) ** 2, axis=1)
    return jnp.where(used, 1 / (peak * jnp.sqrt(jnp.where(used, energy, 1))), 0)


@functools.partial(
    jax.jit,
    static_argnames=(
        "iterations",
        "real",
        "nonnegative",
        "relative",
        "order",
        "count",
        "block",
        "every_sweep",
    ),
)
def _run(
    S,
    u,
    energy,
    lam,
    permutation,
    weights,
    key,
    theta,
    *,
    iterations,
    real,
    nonnegative,
    relative,
    order,
    count,
    block,
    every_sweep,
):
    """Scan over sweeps of the named order, each a function (t, c, dual) -> (c, dual).

    c is (Re c, Im c), each [F, P], or (c,) if real; dual is sqrt(lambda) v, [F, M], in
    fixed order the [blocks, F, m] of its visits.
    """
    batch, (M, P) = u.shape[:-1], S.shape
    if weights is not None:
        S, u = S * weights[:, None], u * weights.reshape((1,) * len(batch) + (M,))
    u = u.reshape(-1, M)
    frames = len(u)
    if relative:
        lam = lam * jnp.sum(energy) / P
    unscale = jnp.ones((), energy.dtype)
    if lam.ndim:
        unscale = lax.rsqrt(lam)
        S, lam = S * unscale[None], jnp.ones((), energy.dtype)
        energy = row_energies(S, None)

    if order == "fixed":
        index = _in_blocks(
            jnp.arange(M) if permutation is None else permutation, block, M
        )
        system, u = _system(S, index, lam), _columns(u, index)

        def visit(t, c, dual):
            return _visit_blocks(system, u, lam, c, dual)

    elif order == "randomised":

        def visit(t, c, dual):
            arrivals = _arrivals(jax.random.fold_in(key, t), energy)
            index = _in_blocks(lax.top_k(-arrivals, count)[1], block, M)
            drawn = _system(S, index, lam), _columns(u, index)
            c, new = _visit_blocks(*drawn, lam, c, _columns(dual, index))
            return c, dual.at[:, index].set(jnp.moveaxis(new, 0, 1), mode="drop")

    else:
        rows = _parts(S)
        gram = matmul(S.conj(), S.T)  # row i: what a step along i takes from r
        gram = gram + lam * jnp.eye(M, dtype=S.dtype)

        def visit(t, c, dual):
            r = u - _times(c, rows) - dual
            steps = functools.partial(
                _greedy_steps,
                gram,
                energy,
                lam,
                theta,
                jax.random.fold_in(key, t),
                count,
            )
            alpha = jax.vmap(steps)(r)
            return _step(c, alpha, rows), dual + lam * alpha

    def sweep(state, t):
        c, dual = visit(t, *state)
        c = _projected(c, real, nonnegative)
        return (c, dual), _result(c, real) if every_sweep else None

    # Reverse mode keeps one state per sweep and repeats the sweep: memory, not time, is
    # what limits it.
    zero = jnp.zeros((frames, P), energy.dtype)
    (c, _), kept = lax.scan(
        jax.checkpoint(sweep, prevent_cse=False),
        ((zero, zero) if jnp.iscomplexobj(S) else (zero,), jnp.zeros_like(u)),
        jnp.arange(iterations),
    )
    c = kept if every_sweep else _result(c, real)
    c = c * unscale.reshape((1,) * (c.ndim - unscale.ndim) + unscale.shape)
    return c.reshape(*c.shape[:-2], *batch, P)


def _in_blocks(rows, block, M):
    """Row numbers as [blocks, m], filled up with M, which stands for a zero row."""
    block = min(block, len(rows))
    return jnp.pad(rows, (0, -len(rows) % block), constant_values=M).reshape(-1, block)


def _columns(array, index):
    """Columns of u or dual [F, M] as [blocks, F, m]."""
    return jnp.moveaxis(array.at[:, index].get(mode="fill", fill_value=0), 1, 0)


def _system(S, index, lam):
    """Blocks of rows [blocks, 2m, P] (real: [blocks, m, P]) and what residuals become
    step lengths by: the transposed inverses of the triangles tril(B B^H) + lam I, as real
    matrices [blocks, 2m, 2m] for (Re, Im) side by side (real: [blocks, m, m]).

    The inverse, because for many frames a product per visit is twice as fast as a
    substitution, and as accurate on these triangles. A zero row never moves c; it only
    must not make the triangle singular where lam = 0.
    """
    rows = jax.vmap(_parts)(S.at[index].get(mode="fill", fill_value=0))
    # One by one: XLA's batched product of small matrices is several times slower.
    gram = lax.map(lambda block: matmul(block, block.T), rows)
    if jnp.iscomplexobj(S):
        m = index.shape[1]
        gram = lax.complex(
            gram[:, :m, :m] + gram[:, m:, m:], gram[:, m:, :m] - gram[:, :m, m:]
        )
    identity = jnp.eye(gram.shape[-1], dtype=gram.dtype)
    energy = jnp.einsum("bii->bi", gram).real
    shift = jnp.where(energy + lam > 0, lam, 1).astype(gram.dtype)
    triangle = jnp.tril(gram) + shift[:, None, :] * identity[None]
    inverse = solve_triangular(
        triangle, jnp.broadcast_to(identity, triangle.shape), lower=True
    ).mT
    if not jnp.iscomplexobj(S):
        return rows, inverse
    re, im = inverse.real, inverse.imag
    return rows, jnp.block([[re, im], [-im, re]])


def _visit_blocks(system, u, lam, c, dual):
    """Visit all rows of the system once; u and dual are [blocks, F, m]."""

    def visit(c, block):
        rows, inverse, u, dual = block
        alpha = _lengths(u - _times(c, rows) - dual, inverse)
        return _step(c, alpha, rows), dual + lam * alpha

    return lax.scan(visit, c, (*system, u, dual))


def _greedy_steps(gram, energy, lam, theta, key, count, r):
    """Sum of the step lengths of each row [M] after `count` greedy steps of one frame.

    The residual r [M] is carried along, c is not needed on the way.
    """
    used = energy > 0
    scale = jnp.where(used, energy + lam, 1)

    def step(s, state):
        r, alpha = state
        power = jnp.square(jnp.abs(r))
        distance = power / scale
        farthest = jnp.max(distance)
        mean = jnp.sum(power) / jnp.sum(jnp.where(used, scale, 0))
        # The farthest is at least the mean; `minimum` keeps it so after rounding.
        bound = jnp.minimum(theta * farthest + (1 - theta) * mean, farthest)
        candidates = jnp.where(distance >= bound, power, 0)
        i = jnp.argmin(_arrivals(jax.random.fold_in(key, s), candidates))
        length = r[i] / scale[i]
        return r - length * gram[i], alpha.at[i].add(length)

    r = jnp.where(used, r, 0)
    return lax.fori_loop(0, count, step, (r, jnp.zeros_like(r)))[1]


def _arrivals(key, weights):
    """Times of a race [M]: i is first with probability weight_i / sum of weights, and
    the order of arrival is that of draws without replacement. Never for weight 0."""
    weights = weights / jnp.maximum(jnp.max(weights), jnp.finfo(weights.dtype).tiny)
    noise = jax.random.exponential(key, weights.shape, weights.dtype)
    return jnp.where(weights > 0, noise / jnp.where(weights > 0, weights, 1), jnp.inf)


# Complex products as real ones: rows stacked as [Re B; Im B], c as (Re c, Im c). XLA's
# real products are the faster ones on CPU. Real problems have one part only.


def _parts(rows):
    """[m, P] as it is if real, else [2m, P]."""
    if not jnp.iscomplexobj(rows):
        return rows
    return jnp.concatenate([rows.real, rows.imag])


def _times(c, rows):
    """c B^T [F, m]."""
    if len(c) == 1:
        return matmul(c[0], rows.T)
    m = rows.shape[0] // 2
    re, im = (matmul(part, rows.T) for part in c)
    return lax.complex(re[:, :m] - im[:, m:], re[:, m:] + im[:, :m])


def _lengths(r, inverse):
    """Residuals [F, m] to step lengths [F, m], by a matrix of `_system`."""
    if not jnp.iscomplexobj(r):
        return matmul(r, inverse)
    m = r.shape[1]
    alpha = matmul(jnp.concatenate([r.real, r.imag], axis=1), inverse)
    return lax.complex(alpha[:, :m], alpha[:, m:])


def _step(c, alpha, rows):
    """c + alpha conj(B), for alpha [F, m].

    In two products: with one frame they are matrix-vector products, which XLA's CPU
    code takes straight from the stack of blocks; for a joint one it would copy them.
    """
    if len(c) == 1:
        return (c[0] + matmul(alpha, rows),)
    re = jnp.concatenate([alpha.real, alpha.imag], axis=1)
    im = jnp.concatenate([alpha.imag, -alpha.real], axis=1)
    return c[0] + matmul(re, rows), c[1] + matmul(im, rows)


def _projected(c, real, nonnegative):
    keep = c[0] > 0 if nonnegative else jnp.ones_like(c[0], bool)
    re, *im = (jnp.where(keep, part, 0) for part in c)
    return re, *(jnp.zeros_like(part) if real else part for part in im)


def _result(c, real):
    return c[0] if real or len(c) == 1 else lax.complex(*c)
