"""Settings chosen frame by frame, against solves by hand."""

import dataclasses

import numpy as np
import pytest
from support.two_files import NX, NY, pair

from mpi_jax import methods, preprocess
from mpi_jax.configs import Preprocessing
from mpi_jax.methods import choice, problem

pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture
def system(tmp_path):
    """A measurement of 6 frames, which the calibration doesn't explain."""
    settings = Preprocessing(background="mean", row_norm=True)
    return preprocess.prepare(*pair(tmp_path), settings)


def solve(system, method, **settings):
    ready = methods.METHODS[method].prepare(methods.from_system(system), settings)
    return ready(problem.weighted(system))


def test_the_corner_of_the_l_curve(system):
    made = solve(system, "tikhonov", lam="l_curve")
    chosen, lams = made.choice, np.array(choice.CANDIDATES["lam"])
    np.testing.assert_array_equal(chosen.candidates, lams)
    assert (chosen.setting, chosen.rule) == ("lam", "l_curve")
    assert not chosen.unmet.any()
    rows = system.weights[:, None] * system.system_matrix
    data = system.weights * system.measurement
    rows = np.concatenate([rows.real, rows.imag])
    data = np.concatenate([data.real, data.imag], axis=1)
    energy = np.linalg.norm(rows) ** 2 / (NY * NX)
    for f, u in enumerate(data):
        for i, lam in enumerate(lams):
            gram = rows.T @ rows + lam * energy * np.eye(NY * NX)
            c = np.linalg.solve(gram, rows.T @ u)
            found = chosen.curve.residual[f, i], chosen.curve.solution[f, i]
            expected = np.linalg.norm(rows @ c - u), np.linalg.norm(c)
            np.testing.assert_allclose(found, expected, rtol=1e-6)
            image = np.asarray(chosen.images[f, i]).reshape(-1)
            np.testing.assert_allclose(image, np.maximum(c, 0), atol=1e-9 * energy)
        index = np.argmax(chosen.curve.curvature[f])
        assert chosen.values[f] == lams[index]
        np.testing.assert_array_equal(made.image[f], chosen.images[f, index])


def test_the_discrepancy_principle(system):
    def by_hand(system, chosen):
        level = np.linalg.norm(system.weights * system.noise)
        for f, residuals in enumerate(np.asarray(chosen.curve.residual)):
            met = residuals <= level
            assert chosen.unmet[f] == (not met.any())
            if not met.any():  # as near as it gets
                met = residuals <= 1.02 * residuals.min()
            yield chosen.candidates[np.argmax(met)]

    settings = {"lam": "discrepancy", "iterations": 3}
    chosen = solve(system, "kaczmarz", **settings).choice
    assert chosen.values.tolist() == list(by_hand(system, chosen))
    for index in (2, 6):
        one = solve(
            system, "kaczmarz", lam=chosen.candidates[index].item(), iterations=3
        )
        np.testing.assert_allclose(chosen.images[:, index], one.image, rtol=1e-9)
    loud = dataclasses.replace(system, noise=system.noise * 1e3)
    chosen = solve(loud, "kaczmarz", **settings).choice
    assert (chosen.values == choice.CANDIDATES["lam"][0]).all()
    assert not chosen.unmet.any()
    # Quieter than any image explains: within 2 % of the least residual, and marked.
    still = dataclasses.replace(system, noise=system.noise * 1e-3)
    chosen = solve(still, "kaczmarz", **settings).choice
    assert chosen.unmet.all()
    assert chosen.values.tolist() == list(by_hand(still, chosen))


def test_iterations_stop_by_a_rule(system):
    made = solve(system, "nonnegative", iterations="discrepancy", rho=1e-3)
    chosen = made.choice
    assert chosen.setting == "iterations"
    for f, value in enumerate(chosen.values):
        one = solve(system, "nonnegative", iterations=int(value), rho=1e-3)
        np.testing.assert_allclose(made.image[f], one.image[f], rtol=1e-9, atol=1e-12)


def test_other_rules_are_refused(system):
    with pytest.raises(ValueError, match="lam: expected a number or one of l_curve"):
        solve(system, "kaczmarz", lam="gcv")
