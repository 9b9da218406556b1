"""The matrix agrees with the matrix-free signal, in both domains, within its memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpi_jax import physics, scanner, system_matrix


@pytest.mark.parametrize("model", ["tensor", "mpirf"])
@pytest.mark.parametrize("x64, tolerance", [(False, 1e-6), (True, 1e-14)])
def test_product_equals_voltage(model, x64, tolerance):
    with jax.enable_x64(x64):
        s = scanner.paper((10, 14))
        images = np.random.default_rng(0).random((3, 10, 14))
        matrix = system_matrix.simulate(s, model=model)
        assert matrix.shape == (2, 1632, 140)
        u = system_matrix.forward(matrix, images)
        expected = np.asarray(physics.voltage(s, images, model=model))
        error = np.linalg.norm(u - expected) / np.linalg.norm(expected)
        assert error < tolerance
        flat = system_matrix.forward(matrix, images.reshape(3, -1))
        np.testing.assert_array_equal(flat, u)


def test_three_dimensions():
    s = scanner.open_mpi_3d((3, 2, 2))
    matrix = system_matrix.simulate(s)
    assert matrix.shape == (3, 53856, 12)
    image = np.random.default_rng(1).random((3, 2, 2))
    u = physics.voltage(s, image)
    error = np.linalg.norm(system_matrix.forward(matrix, image) - u)
    assert error < 1e-6 * np.linalg.norm(u)


def test_peak_memory():
    """Full size, compiled but not run: temporaries stay below the result itself."""
    s = scanner.paper()
    memory = system_matrix._simulate.lower(s, "tensor").compile().memory_analysis()
    result = 2 * 1632 * 128 * 128 * 4
    assert memory.output_size_in_bytes == result
    assert memory.temp_size_in_bytes < result


def test_differentiable():
    image = jnp.ones((5, 5))

    def energy(diameter):
        s = scanner.paper(5, tracer=scanner.Tracer(core_diameter=diameter))
        return 1e15 * jnp.sum(
            system_matrix.forward(system_matrix.simulate(s), image) ** 2
        )

    with jax.enable_x64(True):
        exact, h = jax.grad(energy)(30e-9), 1e-13
        difference = (energy(30e-9 + h) - energy(30e-9 - h)) / (2 * h)
        np.testing.assert_allclose(exact, difference, rtol=1e-5)


def test_frequency_domain():
    s = scanner.paper(6)
    matrix = system_matrix.simulate(s)
    spectra = system_matrix.to_frequency(matrix)
    assert spectra.shape == (2, 817, 36)
    np.testing.assert_allclose(
        spectra,
        np.fft.rfft(np.asarray(matrix, np.float64), axis=1),
        atol=1e-5 * np.abs(spectra).max(),
    )
    keep = system_matrix.frequency_selection(s, min_frequency=80e3)
    assert keep.shape == (2, 817) and not keep[:, s.frequencies() < 80e3].any()
    rows = system_matrix.select_rows(spectra, keep, axis=1)
    image = np.random.default_rng(2).random((4, 6, 6))
    u = system_matrix.select_rows(physics.spectrum(physics.voltage(s, image)), keep)
    product = image.reshape(4, -1) @ np.asarray(rows).T
    assert np.linalg.norm(u - product) < 1e-5 * np.linalg.norm(product)
    # Frequency fastest, then channel.
    first = np.flatnonzero(keep[0])
    np.testing.assert_array_equal(rows[: len(first)], spectra[0][first])


def test_bad_input():
    s = scanner.paper(6)
    matrix = system_matrix.simulate(s)
    with pytest.raises(ValueError, match="36 pixels in all"):
        system_matrix.forward(matrix, np.ones((5, 6)))
    with pytest.raises(ValueError, match="expected a band"):
        system_matrix.frequency_selection(s, min_frequency=1e9)
    with pytest.raises(ValueError, match="at least one selected"):
        system_matrix.select_rows(np.ones((2, 5), complex), np.zeros((2, 5), bool))
    with pytest.raises(ValueError, match="keep: expected shape"):
        system_matrix.select_rows(np.ones((2, 5), complex), np.ones((2, 4), bool))
