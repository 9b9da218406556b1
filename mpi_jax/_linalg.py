"""Small linear algebra that more than one module needs: products, norms, transforms."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax

from mpi_jax._checks import expect

TRANSFORMS = ("DCT-I", "DCT-II", "DCT-III", "DCT-IV")


def dct(values: np.ndarray, kind: str, *, inverse: bool = False) -> np.ndarray:
    """Orthonormal cosine transform DCT-I to DCT-IV over all axes but the first."""
    expect(kind in TRANSFORMS, "kind", f"one of {TRANSFORMS}", repr(kind))
    for axis, n in enumerate(values.shape[1:], 1):
        if n > 1:
            matrix = dct_matrix(kind, n)
            matrix = matrix.T if inverse else matrix
            values = np.moveaxis(np.moveaxis(values, axis, -1) @ matrix.T, -1, axis)
    return values


def dct_matrix(kind: str, n: int) -> np.ndarray:
    """Orthonormal cosine transform [frequency, position] of n numbers."""
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


def two_sided(samples: int) -> np.ndarray:
    """Which rfft bins of a period stand for two frequencies, [samples // 2 + 1]: all but
    DC and, for an even number of samples, the last.
    """
    return np.arange(samples // 2 + 1) % (samples / 2) != 0


def matmul(a, b):
    """Product in full precision: GPUs and TPUs multiply with ten mantissa bits or fewer."""
    return jnp.matmul(a, b, precision="highest")


def norm(x):
    """2-norm over the last axis, also where squares would underflow."""
    peak = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    peak = lax.stop_gradient(jnp.where(peak > 0, peak, 1))
    x = x / peak
    energy = jnp.sum(jnp.square(x.real) + jnp.square(x.imag), axis=-1)
    root = jnp.sqrt(jnp.where(energy > 0, energy, 1))
    return jnp.where(energy > 0, root, 0) * peak[..., 0]
