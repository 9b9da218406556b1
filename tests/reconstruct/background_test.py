"""Background solved with the image: against joint solves."""

import inspect

import numpy as np
import pytest
import scipy.optimize
from support.rejects import assert_rejects
from support.row_systems import adjoint_holds, ridge, system

from mpi_jax.reconstruct import background, iterative, kaczmarz, operators


def scans(complex_rows=False):
    S, u = system(complex_rows)
    rng = np.random.default_rng(7)
    drift = rng.normal(size=(2, 20)) + (1j if complex_rows else 0)
    frames = rng.normal(size=(9, 2)) @ drift + 0.01 * rng.normal(size=(9, 20))
    return S, u + 2 * drift[0], frames


@pytest.mark.parametrize("complex_rows", [False, True])
def test_dictionary_spans_the_strongest_background(complex_rows, x64):
    _, _, frames = scans(complex_rows)
    B = np.asarray(background.background_dictionary(frames))
    U, s, _ = np.linalg.svd(frames.T)
    expected = (U[:, :2] * (s[:2] / s[0])) @ U[:, :2].conj().T
    assert B.shape == (20, 2)
    np.testing.assert_allclose(B @ B.conj().T, expected, atol=1e-10)


@pytest.mark.parametrize("complex_rows", [False, True])
def test_eliminated_background_equals_the_joint_solve(complex_rows, x64):
    S, u, frames = scans(complex_rows)
    B = np.asarray(background.background_dictionary(frames))
    lam, beta = 0.05, 0.2
    # The augmented system [S / sqrt(lam), B / sqrt(beta)] with ridge 1.
    G = np.concatenate([S / np.sqrt(lam), B / np.sqrt(beta)], axis=1)
    y = ridge(G, u, 1.0)
    c, d = y[:, :12] / np.sqrt(lam), y[:, 12:] / np.sqrt(beta)
    white, right = background.eliminate_background(S, u, B, beta)
    options = {"lam": lam, "real": not complex_rows}
    found = iterative.cgnr(white, right, iterations=40, **options)
    np.testing.assert_allclose(found, c, atol=1e-9)
    options |= {"nonnegative": False, "relative": False}
    found = kaczmarz.solve(white, right, iterations=2000, **options)
    np.testing.assert_allclose(found, c, atol=1e-8)
    found = background.background_coefficients(S, u, c, B, beta)
    np.testing.assert_allclose(found, d, atol=1e-9)


def test_projection_with_a_background_touches_c_only(x64):
    S, u, frames = scans()
    B = np.asarray(background.background_dictionary(frames))
    beta = 0.2
    # nnls over (c, d+, d-) with rows for beta ||d||^2.
    joint = np.concatenate([S, B, -B], axis=1)
    penalty = np.sqrt(beta) * np.concatenate(
        [np.zeros((2, 12)), np.eye(2), -np.eye(2)], 1
    )
    rows = np.concatenate([joint, penalty])
    right = np.concatenate([u, np.zeros((2, 2))], axis=1)
    exact = np.stack([scipy.optimize.nnls(rows, frame)[0] for frame in right])
    white = background.eliminate_background(operators.as_operator(S), u, B, beta)
    c = iterative.elastic_net(*white, iterations=3000, nonnegative=True)
    np.testing.assert_allclose(c, exact[:, :12], atol=1e-8)
    d = background.background_coefficients(S, u, c, B, beta)
    np.testing.assert_allclose(d, exact[:, 12:14] - exact[:, 14:], atol=1e-8)
    assert np.any(np.asarray(d) < 0)


def test_free_background_is_taken_out(x64):
    S, u, frames = scans()
    B = np.concatenate([background.background_dictionary(frames), np.zeros((20, 1))], 1)
    white, right = background.eliminate_background(S, u, B, 0.0)
    np.testing.assert_allclose(B.T @ white, 0, atol=1e-12)
    expected = np.linalg.lstsq(np.concatenate([S, B[:, :2]], 1), u.T)[0].T
    found = iterative.cgnr(white, right, iterations=60)
    np.testing.assert_allclose(found, expected[:, :12], atol=1e-8)
    adjoint_holds(
        background.eliminate_background(operators.as_operator(S), u, B, 0.3)[0]
    )


# The annotations, checked only in tests, would answer before the code does.
eliminate = inspect.unwrap(background.eliminate_background)


dictionary = inspect.unwrap(background.background_dictionary)


def test_background_rejects():
    S, u = np.eye(3, dtype=np.float32), np.ones((2, 3), np.float32)
    assert_rejects(
        {
            "B": [lambda: eliminate(S, u, np.ones((2, 1), np.float32), 1.0)],
            "beta": [lambda: eliminate(S, u, S[:, :1], -1.0)],
            "frames": [lambda: dictionary(u[:1]), lambda: dictionary(0 * u)],
        }
    )
