"""Strokes in closed form."""

import jax.numpy as jnp
import numpy as np
import pytest
from support.drawings import painted

from mpi_jax import phantoms


@pytest.mark.parametrize("thickest", [0.0, 0.1])
def test_stroke_is_a_capsule_and_its_chord(thickest):
    ends = jnp.array([[-0.2, 0.0]]), jnp.array([[0.2, 0.0]])
    radius = jnp.array([[0.1, 0.1]])
    one = jnp.arange(1)
    proposal = phantoms.strokes(*ends, radius, one, one == 0, thickest)
    concentration, coverage = painted(proposal)
    np.testing.assert_allclose(coverage.mean(), 0.4 * 0.2 + np.pi * 0.1**2, rtol=3e-3)
    if thickest:  # half chord / radius: half a disc across, half a ball at the ends
        volume = 0.4 * np.pi * 0.1 / 2 + 2 / 3 * np.pi * 0.1**2
        np.testing.assert_allclose(concentration.mean(), volume, rtol=1e-2)
    else:
        np.testing.assert_allclose(concentration, coverage, atol=1e-6)  # two roundings
