"""Examples are functions of their index, at the promised signal-to-noise ratio."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.forward_model import SIZE

from mpi_jax import data, phantoms, physics


def test_examples_are_what_they_claim(forward):
    """Voltage against the matrix-free physics of the phantoms, at the promised SNR."""
    made = data.draw(forward, "test", 12, SIZE, 40.0)
    assert set(np.asarray(made.family)) == set(range(len(phantoms.FAMILIES)))
    assert 0 <= np.min(made.image) and 0.5 < np.max(made.image) <= 1
    assert np.min(np.where(made.mask, made.image, 1)) > 0
    u = np.asarray(physics.voltage(forward.scanner, made.image))
    noise = np.asarray(made.voltage) - u
    snr = 10 * np.log10(np.mean(u**2, (1, 2)) / np.mean(noise**2, (1, 2)))
    np.testing.assert_allclose(snr, 40.0, atol=0.5)


def test_an_example_depends_on_its_index_alone(forward):
    first = data.draw(forward, "train", 0, SIZE, (20.0, 60.0), jax.random.key(3))
    later = data.draw(forward, "train", 4, SIZE, (20.0, 60.0), jax.random.key(3))
    for a, b in zip(first, later, strict=True):
        np.testing.assert_array_equal(a[4:], b[:-4])
    other = data.draw(forward, "train", 0, SIZE, (20.0, 60.0), jax.random.key(4))
    np.testing.assert_array_equal(other.image, first.image)
    assert not np.array_equal(other.voltage, first.voltage)


def test_batches_are_joined_to_whole_ones(forward):
    """5 of batches of 4 from 6 on: 6 ... 13, as they are in batches of another size."""
    joined = data.draw_batches(forward, "test", 5, 4, 40.0, start=6)
    once = data.draw(forward, "test", 6, 8, 40.0)
    for a, b in zip(joined, once, strict=True):
        assert len(a) == 8
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * np.abs(b).max())
    with pytest.raises(ValueError, match="count, size: expected whole numbers >= 1"):
        data.draw_batches(forward, "test", 0, 4, 40.0)


def test_pictures_are_rounded_phantoms(forward, monkeypatch):
    """To the nearest of 0 ... 255, whatever the mask; and back in `observe`."""
    image = jnp.array([[[0.0, 0.4999, 0.5001], [1.0, 127.5001, 254.6]]]) / 255
    mask = jnp.array([[[1.0, 0, 0], [1, 0, 1]]])
    given = image, mask, jnp.array([3])
    monkeypatch.setattr(data.examples.phantoms, "batch", lambda *_: given)
    made = data.pictures(0, 0, 1, forward.scanner.grid)
    assert made.image.dtype == np.uint8 and made.mask.dtype == bool
    np.testing.assert_array_equal(made.image, [[[0, 0, 1], [1, 128, 255]]])
    np.testing.assert_array_equal(made.mask, mask > 0)
    monkeypatch.undo()
    seen = data.draw(forward, "test", 12, SIZE, 40.0)
    levels = 255 * np.asarray(seen.image, np.float64)
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-4)
    drawn = data.draw_pictures(2, 12, SIZE, forward.scanner.grid)
    np.testing.assert_array_equal(np.rint(levels), drawn.image)


def test_infinite_snr_means_no_noise(forward):
    made = data.draw(forward, "validation", 0, SIZE, np.inf)
    u = physics.voltage(forward.scanner, made.image)
    assert np.linalg.norm(made.voltage - u) < 1e-5 * np.linalg.norm(u)
