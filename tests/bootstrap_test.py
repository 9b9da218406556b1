"""Intervals against the normal theory of a mean, differences against doing it by hand."""

import numpy as np
import pytest

from mpi_jax import bootstrap


def test_interval_of_a_mean_is_that_of_theory():
    values = np.random.default_rng(0).normal(3, 2, 400)
    low, high = bootstrap.interval(values, draws=4000)
    half = 1.96 * values.std() / 20  # sigma / sqrt(400)
    np.testing.assert_allclose(
        [low, high], values.mean() + half * np.array([-1, 1]), atol=0.1 * half
    )
    assert bootstrap.interval(values, draws=4000) == (low, high)
    assert bootstrap.interval(values, draws=4000, seed=1) != (low, high)
    wide = bootstrap.interval(values, draws=4000, level=0.99)
    assert wide[0] < low and high < wide[1]


def test_interval_covers():
    """95 % of the intervals of 200 samples hold the true mean."""
    rng = np.random.default_rng(1)
    hits = 0
    for values in rng.exponential(1, (200, 100)):
        low, high = bootstrap.interval(values, draws=300)
        hits += low < 1 < high
    assert 0.88 < hits / 200 < 0.99


def test_images_of_both_are_the_same():
    """A constant difference has no spread however much the images differ."""
    a = np.random.default_rng(2).normal(0, 10, 50)
    found = bootstrap.paired(a + 0.5, a)
    np.testing.assert_allclose(list(found.values()), 0.5, atol=1e-12)
    b = np.random.default_rng(3).permutation(a)
    other = bootstrap.paired(a, b)
    assert other["low"] < other["difference"] < other["high"]
    np.testing.assert_allclose(
        other["high"] - other["low"], 2 * 1.96 * (a - b).std() / 50**0.5, rtol=0.12
    )


def test_seeds_add_their_own_spread():
    """Runs that differ by constants: all spread is theirs, and their number's."""
    offsets = np.array([-1.0, 0.0, 1.0])
    runs = np.tile(np.linspace(4, 6, 30), (3, 1)) * 0 + 5 + offsets[:, None]
    found = bootstrap.means(runs, draws=6000)[0]
    np.testing.assert_allclose(found.mean(), 5, atol=0.03)
    np.testing.assert_allclose(found.std(), np.sqrt(2 / 3 / 3), rtol=0.04)
    one = bootstrap.interval(runs[:1])
    np.testing.assert_allclose(one, 4, atol=1e-12)
    found = bootstrap.paired(runs, runs[1])
    # All three runs the same one: 1 in 27, more than the tail of 2.5 %.
    np.testing.assert_allclose([found["low"], found["high"]], [-1, 1])


def test_infinite_values_and_bad_shapes():
    assert np.isnan(bootstrap.interval(np.array([1.0, np.inf]))).all()
    with pytest.raises(ValueError, match="same N images"):
        bootstrap.paired(np.ones(3), np.ones(4))
    with pytest.raises(ValueError, match="N >= 1"):
        bootstrap.interval(np.ones(0))
