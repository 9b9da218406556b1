"""Settings chosen on validation images: candidates whose best is known."""

import jax.numpy as jnp
import numpy as np
import pytest

from mpi_jax import data, methods, scanner
from mpi_jax.methods import tuning

TRUTH = jnp.asarray(np.random.default_rng(0).uniform(0.2, 0.8, (3, 4, 5)), jnp.float32)
EXAMPLES = data.Examples(
    image=TRUTH,
    mask=(TRUTH > 0.5).astype(jnp.float32),
    voltage=jnp.zeros((3, 1, 8)),
    family=jnp.zeros(3, int),
)
PROBLEM = methods.from_matrix(
    np.random.default_rng(1).normal(size=(1, 8, 20)),
    scanner.Grid((4, 5), (1e-2, 1e-2, 1e-3)),
)


def off_by(error):
    """Images of a PSNR of -20 log10(error)."""
    return TRUTH + error


def test_a_setting_that_costs_more_has_to_be_worth_it():
    """10^(0.01 / 20) in the error is 0.01 dB, below what counts."""
    little, much = 0.1, 0.1 / 10 ** (0.01 / 20)
    candidates = [
        ({"iterations": 100}, off_by(much)),
        ({"iterations": 20}, off_by(little)),
        ({"iterations": 5}, off_by(0.2)),
    ]
    tuned = tuning.best(candidates, EXAMPLES)
    assert tuned.settings == {"iterations": 20}
    np.testing.assert_allclose(tuned.image, off_by(little), rtol=1e-6)
    candidates[0] = ({"iterations": 100}, off_by(0.1 / 10 ** (0.03 / 20)))
    assert tuning.best(candidates, EXAMPLES).settings == {"iterations": 100}
    # Of as many steps, the better one, and the order of candidates doesn't matter.
    same = [({"iterations": 5, "lam": x}, off_by(x)) for x in (0.1, 0.0999, 0.2)]
    for order in (same, same[::-1]):
        assert tuning.best(order, EXAMPLES).settings["lam"] == 0.0999


@pytest.mark.parametrize(
    "best, edges",
    [
        ((1e-2, 10), ()),
        ((1e-2, 200), ("iterations",)),
        ((1e-1, 10), ("lam",)),
        ((1e-3, 10), ("lam",)),
        ((1e-2, 1), ()),  # there are no fewer
        ((1e-1, 200), ("lam", "iterations")),
    ],
)
def test_ends_of_what_was_tried_are_marked(best, edges):
    candidates = [
        ({"lam": lam, "iterations": n}, off_by(0.01 if (lam, n) == best else 0.1))
        for lam in (1e-3, 1e-2, 1e-1)
        for n in (1, 10, 200)
    ]
    tuned = tuning.best(candidates, EXAMPLES)
    assert tuple(tuned.settings.values()) == best and tuned.at_edge == edges


def test_images_are_judged_as_tables_judge_them():
    """Clipped to [0, 1]."""
    bright = jnp.where(TRUTH > 0.7, 5.0, TRUTH)
    tuned = tuning.best([({"lam": 1.0}, bright)], EXAMPLES)
    assert float(tuned.image.max()) == 1 and tuned.at_edge == ()


def test_threshold_of_masks():
    """Masks are those of 0.5; images are brighter by two."""
    image = jnp.clip(TRUTH, 0, 0.8).at[:, 0, 0].set(0.8)
    examples = EXAMPLES._replace(mask=(image > 0.4).astype(jnp.float32))
    assert tuning.tune_threshold(2 * image, examples) == 0.5


def test_methods_without_settings_have_none_to_choose():
    with pytest.raises(ValueError, match="method zero: expected one with settings"):
        tuning.tune(PROBLEM, "zero", EXAMPLES)
    with pytest.raises(ValueError, match="did you mean kaczmarz"):
        tuning.tune(PROBLEM, "kaczmarcz", EXAMPLES)
