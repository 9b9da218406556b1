"""Cosine transforms against SciPy's."""

import numpy as np
import pytest
import scipy.fft

from mpi_jax import _linalg


@pytest.mark.parametrize("kind", [1, 2, 3, 4])
def test_cosine_transforms_are_scipys(kind):
    name = ["DCT-I", "DCT-II", "DCT-III", "DCT-IV"][kind - 1]
    values = np.random.default_rng(0).normal(size=(2, 3, 1, 5, 2)) @ [1, 1j]
    forth = scipy.fft.dctn(values, kind, axes=(1, 3), norm="ortho")
    np.testing.assert_allclose(_linalg.dct(values, name), forth, atol=1e-12)
    np.testing.assert_allclose(
        _linalg.dct(forth, name, inverse=True), values, atol=1e-12
    )


@pytest.mark.parametrize("samples", [1, 2, 5, 8])
def test_one_half_of_a_spectrum_holds_all_of_the_energy(samples):
    """Parseval's identity, where bins that stand for two frequencies count twice."""
    u = np.random.default_rng(0).normal(size=samples)
    energy = np.abs(np.fft.rfft(u)) ** 2 * (1 + _linalg.two_sided(samples))
    np.testing.assert_allclose(energy.sum() / samples, np.sum(u**2), rtol=1e-12)
