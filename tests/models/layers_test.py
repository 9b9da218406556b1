"""Layers against NumPy formulas written out independently."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.networks import normal

from mpi_jax.models import layers

TOLERANCE = dict(rtol=1e-5, atol=1e-6)


def drawn(module, x, size=0.5):
    """Parameters of the module for x, drawn here: large enough to matter, no zeros."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    generator = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: size * generator.standard_normal(leaf.shape, np.float32), shapes
    )


def run(module, variables, x):
    return np.asarray(jax.jit(module.apply)(variables, x))


def dense(params, x):
    return x @ np.asarray(params["kernel"]) + np.asarray(params.get("bias", 0.0))


def test_pixel_norm_formula():
    x = 3 * normal(0, 2, 5, 7)
    expected = np.asarray(x) / np.sqrt(np.mean(np.asarray(x) ** 2, -1)[..., None])
    module = layers.PixelNorm()
    assert not drawn(module, x)
    np.testing.assert_allclose(run(module, {}, x), expected, **TOLERANCE)
    slope = jax.jit(jax.grad(lambda x: module.apply({}, x).sum()))(0 * x)
    assert np.all(np.isfinite(slope))


def test_normalisation_names_its_kinds():
    # TypeError: the annotation, where calls are checked against annotations.
    with pytest.raises((ValueError, TypeError), match="batch"):
        layers.normalisation("batch", "float32", "norm")


def test_relative_bias_of_each_pair_comes_from_its_offset():
    w, heads = 3, 2
    table = normal(0, 2 * w - 1, 2 * w - 1, heads)
    bias = np.asarray(jax.jit(layers.relative_bias)(table))
    assert bias.shape == (heads, w * w, w * w)
    for qy, qx, ky, kx in itertools.product(range(w), repeat=4):
        np.testing.assert_array_equal(
            bias[:, qy * w + qx, ky * w + kx], table[ky - qy + w - 1, kx - qx + w - 1]
        )


def test_relative_bias_does_not_change_when_query_and_key_move_together():
    w = 4
    table = normal(1, 2 * w - 1, 2 * w - 1, 1)
    bias = np.asarray(jax.jit(layers.relative_bias)(table))[0].reshape(w, w, w, w)
    np.testing.assert_array_equal(bias[:-1, :, :-1], bias[1:, :, 1:])
    np.testing.assert_array_equal(bias[:, :-1, :, :-1], bias[:, 1:, :, 1:])


def test_attention_over_a_whole_map_is_softmax_attention_with_bias():
    w, heads, channels = 4, 2, 6
    x = normal(0, 3, 1, w * w, channels)
    module = layers.Attention(heads, w)
    variables = drawn(module, x)
    params = variables["params"]
    assert "bias" not in params["qkv"] and "bias" in params["out"]

    table = np.asarray(params["relative"])
    expected = np.zeros(x.shape)
    width = channels // heads
    for image in range(len(x)):
        qkv = dense(params["qkv"], np.asarray(x[image, 0], np.float64))
        q, k, v = np.split(qkv, 3, axis=-1)
        mixed = []
        for head in range(heads):
            own = slice(head * width, (head + 1) * width)
            scores = q[:, own] @ k[:, own].T / np.sqrt(width)
            for query, key in itertools.product(range(w * w), repeat=2):
                dy, dx = key // w - query // w, key % w - query % w
                scores[query, key] += table[dy + w - 1, dx + w - 1, head]
            weights = np.exp(scores)
            weights /= weights.sum(-1)[:, None]
            mixed.append(weights @ v[:, own])
        expected[image, 0] = dense(params["out"], np.concatenate(mixed, -1))
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(
        run(module, variables, x), expected, rtol=1e-4, atol=1e-5
    )


def test_attention_stays_inside_its_cell():
    stage = layers.Stage(depth=2, heads=2, window=2)
    x = normal(0, 1, 4, 6, 4)
    variables = drawn(stage, x)
    change = run(stage, variables, x.at[0, 1, 3].add(1.0)) - run(stage, variables, x)
    changed = np.abs(change[0]).max(-1) > 0
    expected = np.zeros((4, 6), bool)
    expected[0:2, 2:4] = True
    np.testing.assert_array_equal(changed, expected)


def test_cells_are_tiles_of_the_map_in_reading_order():
    x = normal(0, 2, 4, 6, 3)
    cells = layers.to_cells(x, 2)
    assert cells.shape == (2, 6, 4, 3)
    for cell, (row, column) in enumerate(itertools.product(range(2), range(3))):
        tile = x[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        np.testing.assert_array_equal(cells[:, cell], tile.reshape(2, 4, 3))
    np.testing.assert_array_equal(layers.from_cells(cells, 4, 6), x)
    with pytest.raises(ValueError, match="divisor of 4 and 6, got 4"):
        layers.to_cells(x, 4)


def test_block_is_two_residual_steps():
    x = np.asarray(normal(0, 1, 2, 4, 8))
    module = layers.Block(heads=2, window=2)
    variables = drawn(module, x)
    params = variables["params"]
    attention = layers.Attention(2, 2)

    def unit(x):
        return x / np.sqrt(np.mean(np.square(x), -1, keepdims=True))

    y = x + run(attention, {"params": params["attention"]}, unit(x))
    z = dense(params["mlp"]["widen"], unit(y))
    error = np.asarray(jax.scipy.special.erf(z / np.sqrt(2)))
    expected = y + dense(params["mlp"]["narrow"], z * (1 + error) / 2)
    result = run(module, variables, x)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)


def test_attention_names_what_does_not_fit():
    x = normal(0, 1, 1, 4, 6)
    with pytest.raises(ValueError, match="divisor of 6 channels, got 4"):
        drawn(layers.Attention(4, 2), x)
    with pytest.raises(ValueError, match="cells of 9 tokens, got 4"):
        drawn(layers.Attention(2, 3), x)


def test_pixel_shuffle_against_loops():
    x = np.asarray(normal(0, 2, 3, 4, 8))
    expected = np.zeros((2, 6, 8, 2), x.dtype)
    for y, column, c, i, j in itertools.product(
        range(3), range(4), range(2), range(2), range(2)
    ):
        expected[:, 2 * y + i, 2 * column + j, c] = x[:, y, column, 4 * c + 2 * i + j]
    np.testing.assert_array_equal(layers.pixel_shuffle(jnp.asarray(x)), expected)
    with pytest.raises(ValueError, match="fours, got 6"):
        layers.pixel_shuffle(jnp.zeros((1, 2, 2, 6)))


def test_bicubic_keeps_linear_images_away_from_edges():
    # Cubic interpolation is exact on straight lines; new pixel centres lie a quarter
    # pixel left and right of the old ones.
    x = jnp.broadcast_to(jnp.arange(8.0)[None, None, :, None], (1, 8, 8, 1))
    y = run(layers.Upsample(channels=1, shuffle=False), {}, x)
    expected = (np.arange(16) + 0.5) / 2 - 0.5
    np.testing.assert_allclose(y[0, 8, 4:12, 0], expected[4:12], atol=1e-5)


@pytest.mark.parametrize(
    ("shuffle", "came", "channels", "dense_out"),
    [(False, 6, 6, None), (False, 6, 4, 4), (True, 8, 2, None), (True, 8, 3, 12)],
)
def test_upsample_adds_a_dense_only_where_widths_differ(
    shuffle, came, channels, dense_out
):
    module = layers.Upsample(channels, shuffle)
    y, variables = jax.eval_shape(
        module.init_with_output, jax.random.key(0), jnp.zeros((1, 4, 4, came))
    )
    assert y.shape == (1, 8, 8, channels)
    if dense_out is None:
        assert not variables
    else:
        assert variables["params"]["width"]["kernel"].shape == (came, dense_out)


def test_average_pool_is_the_mean_of_blocks():
    x = np.asarray(normal(0, 2, 8, 8, 3))
    pooled = layers.average_pool(jnp.asarray(x), 2)
    np.testing.assert_allclose(pooled[:, 1, 0], x[:, 4:, :4].mean((1, 2)), **TOLERANCE)
    with pytest.raises(ValueError, match="got 3"):
        layers.average_pool(jnp.asarray(x), 3)
