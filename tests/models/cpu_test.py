"""Convolution and attention for the CPU, and their slopes, against loops and float64."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.networks import normal

from mpi_jax.models import cpu, layers


@pytest.mark.parametrize("shape", [(3, 7, 5, 9, 11), (2, 4, 4, 8, 8), (2, 6, 6, 2, 9)])
def test_convolution_and_its_slopes_against_loops(shape):
    batch, ny, nx, inputs, outputs = shape
    x = np.asarray(normal(0, batch, ny, nx, inputs), np.float64)
    kernel = np.asarray(normal(1, 3, 3, inputs, outputs), np.float64)
    slope = np.asarray(normal(2, batch, ny, nx, outputs), np.float64)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    out, to_kernel, to_padded = 0.0, np.zeros_like(kernel), np.zeros_like(padded)
    for i, j in itertools.product(range(3), range(3)):
        seen = np.s_[:, i : i + ny, j : j + nx]
        out = out + padded[seen] @ kernel[i, j]
        to_kernel[i, j] = np.einsum("bync,bynk->ck", padded[seen], slope)
        to_padded[seen] += slope @ kernel[i, j].T

    module = layers.conv3x3(outputs, "float32", "conv")

    def apply(kernel, x):
        params = {"kernel": kernel, "bias": jnp.zeros(outputs)}
        return module.apply({"params": params}, x)

    @jax.jit
    def both(kernel, x, slope):
        found, back = jax.vjp(apply, kernel, x)
        return found, *back(slope)

    found = both(*(jnp.asarray(a, jnp.float32) for a in (kernel, x, slope)))
    expected = out, to_kernel, to_padded[:, 1:-1, 1:-1]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("rows", [(5,), (2, 700), (3, 4, 512), (2, 1031)])
def test_product_and_its_slopes_in_float64(rows):
    """Few rows, some for each part of the sum, many, and a number without divisors."""
    x = np.asarray(normal(0, *rows, 6), np.float64)
    kernel = np.asarray(normal(1, 6, 5), np.float64)
    slope = np.asarray(normal(2, *rows, 5), np.float64)
    expected = [x @ kernel, slope @ kernel.T]
    expected.append(np.einsum("ri,ro->io", x.reshape(-1, 6), slope.reshape(-1, 5)))
    module = layers.dense(5, use_bias=False)

    @jax.jit
    def both(x, kernel, slope):
        out, back = jax.vjp(
            lambda x, kernel: module.apply({"params": {"kernel": kernel}}, x), x, kernel
        )
        return out, *back(slope)

    given = (jnp.asarray(a, jnp.float32) for a in (x, kernel, slope))
    for ours, exact in zip(both(*given), expected, strict=True):
        np.testing.assert_allclose(ours, exact, atol=3e-6 * np.abs(exact).max())


@pytest.mark.parametrize("window, stride, padding", [(8, 4, 2), (8, 8, 0), (4, 2, 1)])
def test_patches_are_a_convolution_in_value_and_slopes(window, stride, padding):
    """Against XLA's, and the slope of a slope (WGAN-GP)."""
    x, kernel = normal(0, 2, 16, 16, 3), normal(1, window, window, 3, 5)
    ours = layers.strided(5, window, stride, padding, "float32", "view")
    plain = ours.clone(conv_general_dilated=None)
    assert ours.conv_general_dilated is cpu.convolve_patches

    def values(module):
        def apply(x, kernel):
            params = {"kernel": kernel, "bias": jnp.zeros(5)}
            return (module.apply({"params": params}, x) ** 3).sum()

        def steepness(x, kernel):
            return sum((g**2).sum() for g in jax.grad(apply, (0, 1))(x, kernel))

        slopes = jax.grad(apply, (0, 1))(x, kernel)
        return apply(x, kernel), slopes, jax.grad(steepness, (0, 1))(x, kernel)

    found, expected = (jax.jit(lambda m=m: values(m))() for m in (ours, plain))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a, b, rtol=2e-4, atol=2e-4 * abs(b).max()
        ),
        found,
        expected,
    )


@pytest.mark.parametrize("chunk", [1, 600, 2**20])
def test_attention_in_chunks_and_its_slopes_in_float64(chunk, monkeypatch):
    """One cell at a time, two, all: values, slopes, and the slope of a slope (WGAN-GP)."""
    monkeypatch.setattr(cpu, "CHUNK", chunk)
    shape, tokens = (6, 3, 9, 4), 9
    parts = [3 * np.asarray(normal(n, *shape), np.float64) for n in range(4)]
    bias = np.asarray(normal(4, 1, 3, tokens, tokens), np.float64)
    query, key, value, slope = parts
    scores = query @ key.swapaxes(2, 3) + bias
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    back = slope @ value.swapaxes(2, 3)
    back = weights * (back - (back * weights).sum(-1, keepdims=True))
    expected = [weights @ value, back @ key, back.swapaxes(2, 3) @ query]
    expected += [weights.swapaxes(2, 3) @ slope, back.sum(0, keepdims=True)]

    arguments = [jnp.asarray(a, jnp.float32) for a in (query, key, value, bias)]
    given = jnp.asarray(slope, jnp.float32)

    @jax.jit
    def both(*arguments):
        found, vjp = jax.vjp(cpu.attend_in_chunks, *arguments)
        return found, *vjp(given)

    for found, wanted in zip(both(*arguments), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=3e-6 * np.abs(wanted).max())

    def steepness(attend, *arguments):
        slopes = jax.grad(lambda *a: (attend(*a) ** 3).sum(), (0, 1, 2, 3))(*arguments)
        return sum((slope**2).sum() for slope in slopes)

    def twice(attend):
        return jax.jit(jax.grad(functools.partial(steepness, attend), (0, 1, 2, 3)))

    ours = twice(cpu.attend_in_chunks)(*arguments)
    for found, wanted in zip(ours, twice(cpu.attend)(*arguments), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())
