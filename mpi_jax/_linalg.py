"""Small linear algebra that more than one solver needs: products, norms, cosine transforms."""

from __future__ import annotations

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

TRANSFORMS = ("DCT-I", "DCT-II", "DCT-III", "DCT-IV")


def dct(values: np.ndarray, kind: str, *, inverse: bool = False) -> np.ndarray:
    """Orthonormal cosine transform DCT-I to DCT-IV over all axes but the first."""
    if kind not in TRANSFORMS:
        raise ValueError(f"kind: expected one of {TRANSFORMS}, got {kind!r}")
    for axis, n in enumerate(values.shape[1:], 1):
        if n > 1:
            matrix = _dct_matrix(kind, n)
            matrix = matrix.T if inverse else matrix
            values = np.moveaxis(np.moveaxis(values, axis, -1) @ matrix.T, -1, axis)
    return values


def _dct_matrix(kind, n):
    i = np.arange(n)
    end = np.where(i == 0, np.sqrt(0.5), 1.0)
    if kind == "DCT-I":
        end = np.where(i == n - 1, np.sqrt(0.5), end)
        wave = np.cos(np.pi * np.outer(i, i) / (n - 1))
        return np.sqrt(2 / (n - 1)) * end[:, None] * wave * end
    if kind == "DCT-IV":
        return np.sqrt(2 / n) * np.cos(np.pi * np.outer(2 * i + 1, 2 * i + 1) / (4 * n))
    second = np.sqrt(2 / n) * end[:, None]
    second = second * np.cos(np.pi * np.outer(i, 2 * i + 1) / (2 * n))
    return second if kind == "DCT-II" else second.T


# Without "highest" GPUs and TPUs multiply with ten or fewer mantissa bits.
matmul = functools.partial(jnp.matmul, precision="highest")


def norm(x):
    """2-norm over the last axis, also where squares would underflow."""
    peak = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    peak = lax.stop_gradient(jnp.where(peak > 0, peak, 1))
    x = x / peak
    energy = jnp.sum(jnp.square(x.real) + jnp.square(x.imag), axis=-1)
    root = jnp.sqrt(jnp.where(energy > 0, energy, 1))
    return jnp.where(energy > 0, root, 0) * peak[..., 0]


def check_lam(lam, name="lam"):
    if not isinstance(lam, jax.core.Tracer):
        values = np.asarray(lam)
        good = np.isfinite(values).all() and (values >= 0).all()
        expect(good, name, "finite numbers >= 0", values)


def check_positive(name, array):
    if not isinstance(array, jax.core.Tracer):
        values = np.asarray(array)
        good = np.isfinite(values).all() and (values > 0).all()
        expect(good, name, "finite numbers > 0", values)


def _count(name, value):
    try:
        count = None if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        count = None
    expect(count is not None and count >= 1, name, "an integer >= 1", repr(value))
    return count


def expect(holds, name, expected, got):
    if not holds:
        raise ValueError(f"{name}: expected {expected}, got {got}")
