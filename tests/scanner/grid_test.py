"""Grids: pixel centres and refinement."""

import numpy as np
import pytest

from mpi_jax import scanner


def test_pixel_centres():
    grid = scanner.Grid((4, 2), (2e-3, 8e-3, 1e-3), (1e-3, 0.0, 5e-3))
    positions = np.asarray(grid.positions()).reshape(4, 2, 3)
    np.testing.assert_allclose(positions[0, 0], [0.5e-3, 3e-3, 5e-3], rtol=1e-6)
    np.testing.assert_allclose(positions[3, 1], [1.5e-3, -3e-3, 5e-3], rtol=1e-6)
    volume = scanner.Grid((2, 1, 1), (1.0, 1.0, 2.0)).positions()
    np.testing.assert_allclose(volume[:, 2], [-0.5, 0.5])  # z ascends


def test_refined_grid_averages_back():
    for shape in ((3, 4), (2, 3, 4)):
        grid = scanner.Grid(shape, (4e-3, 3e-3, 2e-3), (1e-3, 0.0, 0.0))
        fine = grid.refined(3)
        assert fine.shape == tuple(3 * n for n in shape)
        for axis in np.asarray(fine.positions()).T:
            mean = grid.average(axis.reshape(1, *fine.shape))
            assert mean.shape == (1, *shape)
            coarse = np.asarray(grid.positions()).T
            assert np.min([np.max(np.abs(mean.ravel() - c)) for c in coarse]) < 1e-9
    with pytest.raises(ValueError, match="fine: expected trailing axes"):
        grid.average(np.ones((3, 3, 4)))
    with pytest.raises(ValueError, match="factor: expected"):
        grid.refined(0)
