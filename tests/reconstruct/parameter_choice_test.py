"""Discrepancy and L-curve against their definitions."""

import inspect

import jax
import numpy as np
import pytest
from support.rejects import assert_rejects
from support.spectral_systems import system

from mpi_jax.reconstruct import iterative, parameter_choice, spectral


def test_discrepancy_picks_the_first_that_meets_the_noise():
    residuals = np.array([[9.0, 4.0, 2.0, 1.0], [9.0, 8.0, 7.0, 6.0]])
    pick = parameter_choice.discrepancy
    np.testing.assert_array_equal(pick(residuals, 0.5, 16), [2, -1])
    np.testing.assert_array_equal(pick(residuals, 0.5, 16, tau=2.0), [1, -1])
    sigma = np.array([0.25, 2.0])
    np.testing.assert_array_equal(pick(residuals, sigma, 16), [3, 1])
    assert jax.jit(lambda r: pick(r, 0.5, 16))(residuals[0]) == 2


@pytest.mark.parametrize("falling", [False, True])
def test_l_curve_of_a_known_curvature(falling, x64):
    """(t, cosh(t - a)) bends by 1 / cosh(t - a)^2, for any spacing."""
    t = np.linspace(-2, 2, 161) + 0.005 * np.sin(np.arange(161))
    shift = np.array([[0.0], [0.5]])
    residuals = np.exp(np.broadcast_to(t, (2, 161)))
    solutions = np.exp(np.cosh(t - shift))
    curves = [np.exp(2 * t), residuals, solutions]
    if falling:
        curves = [curve[..., ::-1] for curve in curves]
    found = parameter_choice.l_curve(*curves)
    expected = 1 / np.cosh(t - shift) ** 2
    expected = expected[:, ::-1] if falling else expected
    np.testing.assert_allclose(
        found.curvature[:, 1:-1], expected[:, 1:-1], rtol=5e-3, atol=5e-3
    )
    corner = np.log(np.take_along_axis(curves[1], np.asarray(found.corner)[:, None], 1))
    np.testing.assert_allclose(corner, shift, atol=0.1)
    assert np.all(found.curvature[:, [0, -1]] == -np.inf)


def test_discrepancy_serves_every_solver(x64):
    """Tikhonov along lam and conjugate gradients along their steps."""
    rng = np.random.default_rng(6)
    S, _ = system()
    clean = rng.uniform(size=(2, 24)) @ S.T
    sigma = 0.01 * np.sqrt(np.mean(clean**2))
    u = clean + sigma * rng.normal(size=clean.shape)
    lams = np.geomspace(1, 1e-8, 33)
    candidates = [
        spectral.tikhonov(spectral.spectral_basis(S), u, lams),
        iterative.cgnr(S, u, iterations=24, path=True),
    ]
    for c in candidates:
        residuals, solutions = parameter_choice.norms(S, u, c)
        expected = np.linalg.norm(np.asarray(c) @ S.T - u[:, None], axis=-1)
        np.testing.assert_allclose(residuals, expected, rtol=1e-10)
        np.testing.assert_allclose(solutions, np.linalg.norm(c, axis=-1), rtol=1e-10)
        index = np.asarray(parameter_choice.discrepancy(residuals, sigma, 40))
        for frame, n in enumerate(index):
            level = sigma * np.sqrt(40)
            assert expected[frame, n] <= level < expected[frame, n - 1]


# The annotations, checked only in tests, would answer before the code does.
norms = inspect.unwrap(parameter_choice.norms)


l_curve = inspect.unwrap(parameter_choice.l_curve)


discrepancy = inspect.unwrap(parameter_choice.discrepancy)


def test_choices_reject():
    S, u = np.eye(3, dtype=np.float32), np.ones((2, 3), np.float32)
    assert_rejects(
        {
            "u": [lambda: norms(S, u[:, :2], u[:, None])],
            "c": [lambda: norms(S, u, u)],
            "residuals": [
                lambda: discrepancy(np.float32(1), 1.0, 3),
                lambda: l_curve(u[0] + np.arange(3), 0 * u, u),
            ],
            "sigma": [
                lambda: discrepancy(u, 0.0, 3),
                lambda: discrepancy(u, u[0], 3),
            ],
            "tau": [lambda: discrepancy(u, 1.0, 3, tau=-1.0)],
            "rows": [lambda: discrepancy(u, 1.0, 0)],
            "lams": [lambda: l_curve(u[0, :2], u, u), lambda: l_curve(u[0], u, u)],
            "solutions": [lambda: l_curve(u[0] + np.arange(3), u, u[0])],
        }
    )
