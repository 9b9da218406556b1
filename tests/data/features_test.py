"""What networks are given: inputs are what the modules say they are."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from support.forward_model import SIZE

from mpi_jax import data, system_matrix
from mpi_jax.reconstruct import spectral


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
