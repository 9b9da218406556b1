"""Arguments of Kaczmarz's method, checked."""

import numbers

import jax
import jax.numpy as jnp
import numpy as np

from mpi_jax._checks import (
    brief,
    check_count,
    check_finite,
    check_flags,
    concrete,
    expect,
)
from mpi_jax._linalg import matmul

_ORDERS = ("fixed", "shuffled", "randomised", "greedy")


def checked(
    S,
    u,
    lam,
    iterations,
    real,
    nonnegative,
    relative,
    order,
    weights,
    key,
    fraction,
    theta,
    block,
    every_sweep,
):
    """The arguments of `_run`, or a ValueError that names the argument."""
    S, u, lam = jnp.asarray(S), jnp.asarray(u), jnp.asarray(lam)
    expect(S.ndim == 2, "S", "a matrix [M, P]", f"shape {S.shape}")
    M, P = S.shape
    expect(M > 0 and P > 0, "S", "at least one row and one column", f"{S.shape}")
    expect(
        u.ndim > 0 and u.shape[-1] == M,
        "u",
        f"shape [..., M] with M = {M}, the rows of S",
        f"shape {u.shape}",
    )
    expect(0 not in u.shape, "u", "at least one frame", f"shape {u.shape}")
    for name, array in (("S", S), ("u", u)):
        inexact = jnp.issubdtype(array.dtype, jnp.inexact)
        expect(inexact, name, "floating or complex numbers", f"{array.dtype}")
    expect(
        jnp.iscomplexobj(S) == jnp.iscomplexobj(u),
        "u",
        f"the kind of S ({S.dtype}): both real or both complex",
        f"{u.dtype}",
    )
    dtype = jnp.result_type(S, u)
    S, u = S.astype(dtype), u.astype(dtype)

    check_flags(
        real=real, nonnegative=nonnegative, relative=relative, every_sweep=every_sweep
    )
    iterations = check_count("iterations", iterations)
    expect(
        lam.shape in ((), (P,)),
        "lam",
        f"a number, or a vector [P] with P = {P}",
        f"shape {lam.shape}",
    )
    expect(not jnp.iscomplexobj(lam), "lam", "real numbers", f"{lam.dtype}")
    if (values := concrete(lam)) is not None:
        lowest = values.min()
        expect(np.isfinite(values).all(), "lam", "finite numbers", brief(values))
        bound, holds = (">= 0", lowest >= 0) if lam.ndim == 0 else ("> 0", lowest > 0)
        expect(holds, "lam", f"{bound} everywhere", f"{lowest}")
    real_dtype = jnp.finfo(dtype).dtype
    lam = lam.astype(real_dtype)

    named = isinstance(order, str)
    permutation, order = (None, order) if named else (order, "fixed")
    expect(order in _ORDERS, "order", f"a permutation or one of {_ORDERS}", repr(order))
    if permutation is not None:
        permutation = jnp.asarray(permutation)
        expect(
            permutation.shape == (M,)
            and jnp.issubdtype(permutation.dtype, jnp.integer),
            "order",
            f"a permutation of 0..{M - 1}: {M} integers",
            f"shape {permutation.shape}, {permutation.dtype}",
        )
        if (values := concrete(permutation)) is not None:
            permutes = np.array_equal(np.sort(values), np.arange(M))
            expect(permutes, "order", f"a permutation of 0..{M - 1}", brief(values))
    for name, value, users in (
        ("key", key, ("shuffled", "randomised", "greedy")),
        ("fraction", fraction, ("randomised", "greedy")),
        ("theta", theta, ("greedy",)),
        ("block", block, ("fixed", "shuffled", "randomised")),
    ):
        used = value is None or order in users
        expect(used, name, f"None with order {order!r}", repr(value))
    if order in ("shuffled", "randomised", "greedy"):
        expect(_is_key(key), "key", f"a key of jax.random for {order!r}", repr(key))
    count = M
    if order in ("randomised", "greedy"):
        fraction = _share("fraction", 0.15 if fraction is None else fraction)
        expect(fraction > 0, "fraction", "a number above 0", f"{fraction}")
        count = max(1, round(fraction * M))
    if order == "greedy":
        theta = _share("theta", 0.5 if theta is None else theta)
    if order == "shuffled":
        permutation, key, order = jax.random.permutation(key, M), None, "fixed"
    if block is None:
        block = 10 if u.size == M or order == "randomised" else 64
    block = check_count("block", block)
    if weights is not None:
        weights = jnp.asarray(weights)
        expect(
            weights.shape == (M,) and not jnp.iscomplexobj(weights),
            "weights",
            f"{M} real numbers, one for each row of S",
            f"shape {weights.shape}, {weights.dtype}",
        )
        if (values := concrete(weights)) is not None:
            holds = np.isfinite(values).all() and values.min() >= 0
            expect(holds, "weights", "finite numbers >= 0", brief(values))
            expect(values.any(), "weights", "a weight > 0", "all zero")
        weights = weights.astype(real_dtype)

    check_finite("u", u)
    energy = row_energies(S, weights)
    if (values := concrete(energy)) is not None:
        expect(
            np.isfinite(values).all(),
            "S",
            f"finite numbers with squares that fit {real_dtype}",
            "NaN, infinity or overflow",
        )
        least = 1e6 * np.finfo(real_dtype).tiny
        expect(
            values.max() > least,
            "S",
            f"a row (of weight > 0) of energy sum |S_i|^2 above {least:.0e}",
            f"at most {values.max():.2g}: zero, or so small that S and u should be "
            "divided by a common factor",
        )
    return {
        "S": S,
        "u": u,
        "energy": energy,
        "lam": lam,
        "permutation": permutation,
        "weights": weights,
        "key": key,
        "theta": theta,
        "iterations": iterations,
        "real": bool(real),
        "nonnegative": bool(nonnegative),
        "relative": bool(relative),
        "order": order,
        "count": count,
        "block": block,
        "every_sweep": bool(every_sweep),
    }


@jax.jit
def row_energies(S, weights):
    """w_i^2 ||S_i||^2 [M]."""
    if weights is not None:
        S = S * weights[:, None]
    # A product with ones: several times faster than a sum on CPU.
    return matmul(jnp.square(S.real) + jnp.square(S.imag), jnp.ones_like(S[0].real))


def _share(name, value):
    number = isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_))
    expect(number and 0 <= value <= 1, name, "a number in [0, 1]", repr(value))
    return float(value)


def _is_key(key):
    """One key of jax.random, typed or raw."""
    if not isinstance(key, jax.Array):
        return False
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return key.ndim == 0 if typed else key.ndim == 1 and key.dtype == jnp.uint32
