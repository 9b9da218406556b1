"""Images by split and index: ranges, masks, families, batches, errors."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpi_jax import phantoms


def grid(ny: int, nx: int | None = None, fov=(0.0128, 0.0128, 0.0128)):
    return types.SimpleNamespace(shape=(ny, nx or ny), field_of_view=np.array(fov))


G32 = grid(32)


@jax.jit
def batch32(split, start):
    """One compiled batch serves every split and start."""
    return phantoms.batch(split, start, 48, G32)


@pytest.fixture(scope="module")
def many():
    """Images, masks, families of the first 192 of every split, [3, 192, ...]."""
    splits = [
        [np.asarray(part) for part in batch32(jnp.int32(s), jnp.int32(48 * b))]
        for s in range(3)
        for b in range(4)
    ]
    return [
        np.stack(p).reshape(3, 192, *p[0].shape[1:]) for p in zip(*splits, strict=True)
    ]


def test_range_masks_families_and_fill(many):
    images, masks, families = many
    assert images.dtype == np.float32 and masks.dtype == np.float32
    assert np.isfinite(images).all() and images.min() >= 0 and images.max() <= 1
    assert set(np.unique(masks)) == {0.0, 1.0}
    assert (masks.sum(axis=(2, 3)) > 0).all()
    for split in families:
        np.testing.assert_array_equal(np.bincount(split, minlength=6), [32] * 6)
    # FILL bounds the coverage, which no image outweighs and every mask is near.
    assert (images.mean(axis=(2, 3)) < phantoms.FILL[1] + 0.01).all()
    assert (masks.mean(axis=(2, 3)) < phantoms.FILL[1] + 0.05).all()
    assert (masks.mean(axis=(2, 3)) > phantoms.FILL[0] / 2).all()


def test_margin_and_touching(many):
    images = many[0].reshape(-1, 32, 32)
    rim = np.ones((32, 32), bool)
    rim[1:-1, 1:-1] = False
    touching = (images[:, rim] > 0).any(axis=1).mean()
    assert 0.05 < touching < 0.16


def test_splits_do_not_share_an_image(many):
    images = many[0].reshape(-1, 32, 32)
    seen = {np.round(image * 255).astype(np.uint8).tobytes() for image in images}
    assert len(seen) == len(images)


def test_batch_is_the_images():
    images, _, families = batch32(jnp.int32(1), jnp.int32(101))
    one = jax.jit(lambda i: phantoms.image("validation", i, G32))
    for k in range(0, 48, 7):  # 7 = 6 + 1: every family in turn
        assert int(families[k]) == (101 + k) % 6
        np.testing.assert_allclose(images[k], one(jnp.int32(101 + k)), atol=1e-5)


@pytest.mark.parametrize("split", range(3))
def test_batch_from_any_start(split, many):
    """The same index from another start, hence in another place of another vmap."""
    shifted = batch32(jnp.int32(split), jnp.int32(5))
    for got, expected in zip(shifted, many, strict=True):
        np.testing.assert_allclose(got, expected[split, 5:53], atol=1e-5)


def test_same_picture_at_two_sizes_and_scales():
    key = jax.random.key(3)
    coarse = phantoms.sample(key, grid(32), "triangles")
    fine = phantoms.sample(key, grid(64, fov=(0.037, 0.037, 0.02)), "triangles")
    mean = fine.reshape(32, 2, 32, 2).mean(axis=(1, 3))
    assert coarse.max() > 0
    np.testing.assert_allclose(mean, coarse, atol=0.03)


def test_masks_from_the_image_agree_with_coverage(many):
    images, masks, _ = (part.reshape(-1, *part.shape[2:]) for part in many)
    got = np.asarray(phantoms.mask(jnp.asarray(images)))
    dice = 2 * (got * masks).sum((1, 2)) / (got.sum((1, 2)) + masks.sum((1, 2)))
    assert np.median(dice) > 0.95
    assert not phantoms.mask(jnp.zeros((8, 8))).any()


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
@pytest.mark.parametrize("families", [phantoms.FAMILIES, ("vessels", "bars")])
@pytest.mark.parametrize("images", [None, 25])
def test_positions_of_a_stream(kind, families, images):
    """Families in turn, each from its own first image again: a loop, in both libraries."""
    turn = [i for i, name in enumerate(phantoms.FAMILIES) if name in families]
    left = {number: [] for number in turn}
    expected = []
    for n in range(32):
        number = turn[n % len(turn)]
        if not left[number]:
            left[number] = list(range(number, images or 1000, len(phantoms.FAMILIES)))
        expected.append(left[number].pop(0))
    got = phantoms.indices(kind(np.arange(32).reshape(4, 8)), families, images)
    np.testing.assert_array_equal(got, np.reshape(expected, (4, 8)))


def test_errors_name_what_came():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="family: expected one of bars.*got 'blob'"):
        phantoms.sample(key, G32, "blob")
    with pytest.raises(ValueError, match="split: expected one of train.*got 'dev'"):
        phantoms.batch("dev", 0, 6, G32)
    with pytest.raises(ValueError, match="grid.shape: expected"):
        phantoms.sample(key, types.SimpleNamespace(shape=(8,), field_of_view=(1, 1, 1)))
