"""Branches by Murray's law."""

import jax.numpy as jnp
import numpy as np

from mpi_jax import phantoms


def test_murray():
    share = jnp.array([0.5, 0.7, 0.9])
    (first, angle), (second, other) = phantoms.murray(share), phantoms.murray(1 - share)
    np.testing.assert_allclose(first**3 + second**3, 1, rtol=1e-5)
    # Equal branches: cos a = 2^(-1/3), about 37.5 degrees to either side.
    np.testing.assert_allclose(jnp.cos(angle[0]), 2 ** (-1 / 3), rtol=1e-5)
    assert (other[1:] > angle[1:]).all()  # the thin branch turns more
