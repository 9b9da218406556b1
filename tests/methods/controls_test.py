"""Controls against solves and searches by hand."""

import numpy as np
import pytest

from mpi_jax.methods import controls


def test_ridge_is_least_squares_with_extra_rows():
    rng = np.random.default_rng(0)
    y, x = rng.normal(size=(40, 12)), rng.normal(size=(40, 5))
    parts = [controls.moments(y[i : i + 15], x[i : i + 15]) for i in (0, 15, 30)]
    gram, cross = (sum(p) for p in zip(*parts, strict=True))
    got = controls.ridge(gram, cross, 0.3)
    # |Y C - X|^2 + mu |C|^2 is least squares with rows sqrt(mu) I below Y.
    mu = 0.3 * np.mean(np.sum(y**2, axis=0))
    rows = np.concatenate([y, np.sqrt(mu) * np.eye(12)])
    expected = np.linalg.lstsq(rows, np.concatenate([x, np.zeros((12, 5))]))[0]
    np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-12)
    for lam in (0.0, -1.0, np.inf):
        with pytest.raises(ValueError, match="lam: expected a number > 0"):
            controls.ridge(gram, cross, lam)
    with pytest.raises(ValueError, match="as many of each"):
        controls.moments(y, x[1:])


def test_nearest_is_the_nearest():
    rng = np.random.default_rng(1)
    known = rng.normal(size=(30, 7)).astype(np.float32)
    images = rng.uniform(size=(30, 4, 3)).astype(np.float32)
    signals = rng.normal(size=(9, 7)).astype(np.float32)
    apart = np.linalg.norm(signals[:, None] - known, axis=-1)
    got = controls.nearest(known, images, signals)
    np.testing.assert_array_equal(got, images[apart.argmin(1)])
    # Amplitudes count: twice a known signal may be nearer to another one.
    np.testing.assert_array_equal(controls.nearest(known, images, known), images)
    with pytest.raises(ValueError, match="expected 7 samples, got 6"):
        controls.nearest(known, images, signals[:, 1:])


def test_max_normalised():
    image = np.array(
        [[[0.0, 0.5], [-1.0, 0.25]], [[0.0, 0.0], [0.0, -1.0]]], np.float32
    )
    got = controls.max_normalised(image)
    np.testing.assert_array_equal(got[0], [[0, 1], [0, 0.5]])
    np.testing.assert_array_equal(got[1], 0)
