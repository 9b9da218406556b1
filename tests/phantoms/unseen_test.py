"""Shapes that no network is trained on, and vessels by space colonisation."""

import jax
import numpy as np
import pytest
from scipy import ndimage

from mpi_jax import phantoms, scanner

GRID = scanner.paper(32).grid


@pytest.mark.parametrize("name", phantoms.unseen.NAMES)
def test_shapes_are_plausible_and_the_same_on_every_grid(name):
    images = phantoms.unseen.batch(name, 8, GRID)
    assert images.shape == (8, 32, 32) and images.dtype == np.float32
    assert images.min() >= 0 and images.max() <= 1
    most = images.max(axis=(1, 2), keepdims=True)
    assert most.min() > 0.1
    fill = np.mean(images > 0.1 * most, axis=(1, 2))
    assert fill.min() > 0.005 and fill.max() < 0.5
    # Another key, another picture; the first eight of more are the same eight.
    assert len({image.tobytes() for image in images}) == 8
    np.testing.assert_array_equal(phantoms.unseen.batch(name, 3, GRID), images[:3])
    # Soft edges: the mean of a finer picture is the coarse one, whatever its size.
    fine = np.asarray(GRID.average(phantoms.unseen.batch(name, 2, GRID.refined(2))))
    assert np.abs(fine - images[:2]).mean() < 0.01 * most[:2].max()


def test_other_names_and_volumes_are_refused():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="name: expected one of star, .* got 'moon'"):
        phantoms.unseen.sample(key, GRID, "moon")
    with pytest.raises(ValueError, match="grid.shape"):
        phantoms.unseen.sample(key, scanner.open_mpi_3d(3).grid, "star")


def test_a_rectangle_of_pixels_keeps_shapes_round():
    """A star on a grid with twice the width: as many pixels along x as along y."""
    grid = scanner.Grid((64, 128), (25.6e-3, 12.8e-3, 1e-3))
    image = phantoms.unseen.sample(jax.random.key(3), grid, "star") > 0
    rows, columns = np.any(image, axis=1), np.any(image, axis=0)
    assert abs(rows.sum() - columns.sum()) <= 3


def test_colonies_are_connected_trees_that_reach_their_attractors():
    attractors = np.random.default_rng(5).uniform(-0.4, 0.4, (40, 2))
    root = np.array([0.0, -0.45])
    step, kill = 0.02, 0.05
    nodes, parents = phantoms.unseen.colonise(attractors, root, step=step, kill=kill)
    again = phantoms.unseen.colonise(attractors, root, step=step, kill=kill)
    np.testing.assert_array_equal(nodes, again[0])
    np.testing.assert_array_equal(parents, again[1])
    number = np.arange(len(nodes))
    assert parents[0] == 0 and np.all(parents[1:] < number[1:])
    length = np.linalg.norm(nodes - nodes[parents], axis=1)
    np.testing.assert_allclose(length[1:], step, rtol=1e-9)
    # Attractors go only where a node came near; few may be left between two branches.
    near = np.linalg.norm(attractors[:, None] - nodes[None], axis=-1).min(axis=1)
    assert np.mean(near <= kill) > 0.9
    assert np.bincount(parents[1:]).max() >= 2  # it branches


def test_drawn_colonies_are_one_piece():
    grid = GRID.refined(8)
    for index in range(3):
        image = phantoms.unseen.batch("colony", index + 1, grid)[index]
        # Down to 1/20: chords are dark towards the edge of a tube.
        pieces, count = ndimage.label(image > 0.05 * image.max(), np.ones((3, 3)))
        assert count == 1


def test_radii_follow_murray():
    #     0 - 1 - 2 - 3, 2 - 4, 1 - 5
    parents = np.array([0, 0, 1, 2, 2, 1])
    radius = phantoms.unseen.murray_radii(parents, 0.5)
    expected = 0.5 * np.cbrt([3, 3, 2, 1, 1, 1])
    np.testing.assert_allclose(radius, expected, rtol=1e-12)
