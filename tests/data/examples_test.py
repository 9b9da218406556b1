"""Examples are functions of their index; inputs are what the modules say they are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpi_jax import configs, data, phantoms, physics, scanner, system_matrix
from mpi_jax.reconstruct import spectral

SIZE = 6


@pytest.fixture(scope="module")
def forward():
    config = configs.get("test")
    small = dataclasses.replace(config.data, batch_size=SIZE)
    return data.build(dataclasses.replace(config, data=small))


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
        np.testing.assert_array_equal(a[4:], b[:2])
    other = data.draw(forward, "train", 0, SIZE, (20.0, 60.0), jax.random.key(4))
    np.testing.assert_array_equal(other.image, first.image)
    assert not np.array_equal(other.voltage, first.voltage)


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


def test_inputs(forward):
    made = data.draw(forward, "train", 0, SIZE, np.inf)
    inputs = data.inputs(forward, made.voltage)
    assert inputs.signal.shape == (SIZE, 3264)
    # One number a channel: about unit size, and concentration survives.
    assert 0.3 < np.std(inputs.signal) < 3
    double = data.inputs(forward, 2 * made.voltage)
    np.testing.assert_allclose(double.signal, 2 * inputs.signal, rtol=1e-6)
    assert inputs.features.shape == (SIZE, 32, 32, 5)
    flat = made.voltage.reshape(SIZE, -1)
    for k, lam in enumerate(np.asarray(forward.lams)):
        image = spectral.tikhonov(forward.basis, flat, float(lam))
        expected = image.reshape(SIZE, 32, 32)
        np.testing.assert_allclose(inputs.features[..., k], expected, atol=1e-4)
    np.testing.assert_array_equal(inputs.features[..., 4], inputs.base)
    assert inputs.base.min() >= 0


def test_refine_moves_towards_the_measurement(forward):
    made = data.draw(forward, "test", 0, SIZE, np.inf)
    start = jnp.full_like(made.image, 0.1)
    scale = forward.scale[None]

    def residual(image):
        u = system_matrix.forward(forward.matrix, image)
        return np.linalg.norm((u - made.voltage) / scale)

    refined = data.refine(dataclasses.replace(forward, refine=5), made.voltage, start)
    assert residual(refined) < 0.5 * residual(start) and refined.min() >= 0
    kept = data.refine(dataclasses.replace(forward, refine=0), made.voltage, start)
    np.testing.assert_array_equal(kept, start)


def test_without_physics_only_the_signal(forward):
    plain = dataclasses.replace(forward, basis=None)
    inputs = data.inputs(plain, jnp.ones((2, 2, 1632)))
    assert inputs.features is None and inputs.base is None


@pytest.mark.parametrize("shape", [(2, 1632), (3264,), (5, 2, 1632), (5, 3264)])
def test_voltages_in_any_layout(shape):
    u = data.check_voltage(scanner.paper(8), np.ones(shape))
    assert u.shape[1:] == (2, 1632) and u.dtype == np.float32


@pytest.mark.parametrize(
    "voltage, words",
    [
        (np.ones((2, 1633)), r"expected \[N, 2, 1632\] or \[N, 3264\]"),
        (np.full((2, 1632), np.nan), "3264 NaN"),
        (np.ones((2, 1632), complex), "real numbers"),
        (np.ones((2, 1632), int), "real numbers"),
    ],
)
def test_bad_voltages(voltage, words):
    with pytest.raises(ValueError, match=words):
        data.check_voltage(scanner.paper(8), voltage)
