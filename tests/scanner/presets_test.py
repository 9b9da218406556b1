"""Presets have the numbers of their sources."""

import jax
import numpy as np
import pytest

from mpi_jax import scanner


def test_paper_numbers():
    s = scanner.paper()
    assert (s.samples, s.channels, s.grid.shape) == (1632, 2, (128, 128))
    assert s.samples * s.channels == 3264
    np.testing.assert_allclose(s.tracer.moment, 1.130973355e-17, rtol=1e-9)
    np.testing.assert_allclose(s.tracer.beta, 2794.339644, rtol=1e-9)
    speed = np.linalg.norm(s.field_free_point()[1], axis=1)
    np.testing.assert_allclose([speed.min(), speed.max()], [74.9, 1438], rtol=1e-3)
    frequencies = s.frequencies()
    assert frequencies.shape == (817,)
    np.testing.assert_allclose(frequencies[16], 2.5e6 / 102)  # x is 16 x the basic one
    np.testing.assert_allclose(frequencies[17], 2.5e6 / 96)


@pytest.mark.parametrize(
    "preset, samples", [("open_mpi_2d", 1632), ("open_mpi_3d", 53856)]
)
def test_open_mpi_periods(preset, samples):
    assert getattr(scanner, preset)().samples == samples


def test_circular_coil():
    """On the axis in closed form; far away a dipole."""
    radius, mu0 = 0.03, scanner.VACUUM_PERMEABILITY
    grid = scanner.Grid((5, 1, 1), (1e-3, 1e-3, 50e-3), (0.01, -0.02, 0.0))
    with jax.enable_x64(True):
        z = np.asarray(grid.positions())[:, 2]
        field = scanner.circular_coil(
            grid, radius=radius, centre=(0.01, -0.02, 0.0), axis=(0, 0, 2.0)
        )
        far = scanner.Grid((1, 1), (1e-3,) * 3, (1.0, 2.0, -2.0))
        dipole = scanner.circular_coil(
            far, radius=radius, centre=(0, 0, 0), axis=(0, 1, 0)
        )
    expected = mu0 * radius**2 / (2 * (radius**2 + z**2) ** 1.5)
    np.testing.assert_allclose(field[2], expected, rtol=1e-3)
    np.testing.assert_allclose(field[:2], 0, atol=1e-12 * expected.max())
    m, r = np.pi * radius**2 * np.array([0, 1, 0]), np.array([1.0, 2.0, -2.0])
    expected = mu0 / (4 * np.pi * 27) * (3 * r * (m @ r) / 9 - m)
    np.testing.assert_allclose(dipole[:, 0], expected, rtol=2e-3)
