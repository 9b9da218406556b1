"""Conjugate gradients and elastic net against LSQR, active sets and closed forms."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.sparse.linalg
from jax.test_util import check_grads
from support.rejects import assert_rejects
from support.row_systems import circulant, ridge, stacked, system

from mpi_jax.reconstruct import iterative, operators

KINDS = [(False, True), (True, False), (True, True)]  # (complex rows, real images)


@pytest.mark.parametrize("complex_rows, real", KINDS)
@pytest.mark.parametrize("lam", [0.0, 0.03])
def test_cgnr_reaches_the_closed_form(complex_rows, real, lam, x64):
    S, u = system(complex_rows)
    expected = ridge(*stacked(S, u), lam) if complex_rows and real else ridge(S, u, lam)
    result = iterative.cgnr(S, u, lam=lam, iterations=40, real=real)
    assert jnp.iscomplexobj(result) == (not real)
    np.testing.assert_allclose(result, expected, atol=1e-9)


@pytest.mark.parametrize("lam", [0.0, 0.03])
def test_cgnr_iterates_are_those_of_lsqr(lam, x64):
    S, u = system()
    path = iterative.cgnr(S, u, lam=lam, iterations=7, path=True)
    assert path.shape == (2, 7, 12)
    for n in (1, 3, 7):
        for frame in range(2):
            expected = scipy.sparse.linalg.lsqr(
                S, u[frame], damp=np.sqrt(lam), iter_lim=n, atol=0, btol=0
            )[0]
            np.testing.assert_allclose(path[frame, n - 1], expected, atol=1e-10)


def test_cgnr_of_an_operator_is_that_of_its_matrix(x64):
    rng = np.random.default_rng(3)
    operator, matrix = circulant(rng.normal(size=9) + 1j * rng.normal(size=9))
    u = rng.normal(size=(2, 9)) + 1j * rng.normal(size=(2, 9))

    @jax.jit
    def solve(operator, u):
        return iterative.cgnr(operator, u, lam=0.1, iterations=9)

    expected = ridge(*stacked(matrix, u), 0.1)
    np.testing.assert_allclose(solve(operator, u), expected, atol=1e-9)


def test_cgnr_projects_once_at_the_end(x64):
    S, u = system(True)
    free = np.asarray(iterative.cgnr(S, u, iterations=5, real=False))
    kept = iterative.cgnr(S, u, iterations=5, real=False, nonnegative=True)
    np.testing.assert_allclose(kept, np.where(free.real > 0, free, 0), rtol=1e-12)
    assert np.any(free.real < 0)


def test_small_voltages_in_single_precision_and_after_convergence():
    S, u = system()
    expected = ridge(S, u, 0.01)
    S, u = (np.float32(3e-13) * a.astype(np.float32) for a in (S, u))
    lam = np.float32(0.01 * 9e-26)
    result = iterative.cgnr(S, u, lam=lam, iterations=60)
    np.testing.assert_allclose(result, expected, atol=2e-5)
    result = iterative.elastic_net(S, u, l2=lam, iterations=400)
    np.testing.assert_allclose(result, expected, atol=2e-4)
    assert not np.any(iterative.cgnr(S, 0 * u, iterations=3))
    assert not np.any(iterative.elastic_net(S, 0 * u, iterations=3))


def test_frames_are_independent(x64):
    S, u = system()
    u = u * np.array([[1.0], [1e-4]])
    for solve in (iterative.cgnr, iterative.elastic_net):
        batch = solve(S, u, iterations=6)
        mapped = jax.vmap(lambda frame, solve=solve: solve(S, frame, iterations=6))(u)
        np.testing.assert_allclose(mapped, batch, rtol=1e-10)
        np.testing.assert_allclose(solve(S, u[1], iterations=6), batch[1], rtol=1e-10)


def test_derivatives_are_those_of_the_iterate(x64):
    S, u = system(rows=6, voxels=4)

    def cg(S, u, lam):
        return iterative.cgnr(S, u, lam=lam, iterations=2)

    check_grads(cg, (S, u[0], 0.1), order=1, modes=["rev"], rtol=1e-5)

    def net(u, l1, l2):
        return iterative.elastic_net(S, u, l1=l1, l2=l2, iterations=5)

    check_grads(net, (u[0], 0.05, 0.1), order=1, modes=["rev"], rtol=1e-5)


@pytest.mark.parametrize("nonnegative", [False, True])
def test_elastic_net_equals_coordinate_descent(nonnegative, x64):
    S, u = system()
    l1, l2 = 0.02, 0.03
    expected = np.zeros((2, 12))
    for c, frame in zip(expected, u, strict=True):
        for _ in range(3000):
            for p, column in enumerate(S.T):
                rest = column @ (frame - S @ c + column * c[p])
                if nonnegative:
                    rest = max(rest, 0)
                shrunk = np.sign(rest) * max(abs(rest) - l1, 0)
                c[p] = shrunk / (column @ column + l2)
    options = {"l1": l1, "l2": l2, "iterations": 600, "nonnegative": nonnegative}
    result = iterative.elastic_net(S, u, **options)
    assert 0.1 < np.mean(expected == 0) < 0.9  # both penalties matter
    np.testing.assert_allclose(result, expected, atol=1e-9)
    np.testing.assert_array_equal(result == 0, expected == 0)


def test_complex_elastic_net_meets_the_optimality_conditions(x64):
    S, u = system(True)
    l1, l2 = 0.1, 0.03
    c = iterative.elastic_net(S, u, l1=l1, l2=l2, iterations=800, real=False)
    c = np.asarray(c)
    slope = (u - c @ S.T) @ S.conj() - l2 * c
    used = c != 0
    assert 0.1 < used.mean() < 0.95
    np.testing.assert_allclose(slope[used], l1 * c[used] / abs(c[used]), atol=1e-9)
    assert abs(slope[~used]).max() <= l1


@pytest.mark.parametrize("complex_rows", [False, True])
def test_non_negative_least_squares(complex_rows, x64):
    S, u = system(complex_rows)
    rows, right = stacked(S, u)
    expected = np.stack([scipy.optimize.nnls(rows, frame)[0] for frame in right])
    result = iterative.elastic_net(S, u, iterations=1500, nonnegative=True)
    assert np.mean(expected == 0) > 0.2
    np.testing.assert_allclose(result, expected, atol=1e-9)
    path = iterative.elastic_net(S, u, iterations=3, nonnegative=True, path=True)
    third = iterative.elastic_net(S, u, iterations=3, nonnegative=True)
    np.testing.assert_allclose(path[:, -1], third, rtol=1e-12)


def test_step_length_of_a_flat_and_of_a_hidden_spectrum(x64):
    """No momentum blows up: the norm is found for equal and for nearly equal values."""
    rng = np.random.default_rng(5)
    for values in (np.ones(12), np.linspace(0.97, 1, 12)):
        U, _ = np.linalg.qr(rng.normal(size=(12, 12)))
        S = U * values
        u = rng.normal(size=12)
        result = iterative.elastic_net(S, u, iterations=100)
        np.testing.assert_allclose(result, np.linalg.solve(S, u), atol=1e-8)


# The annotations, checked only in tests, would answer before the code does.
cgnr = inspect.unwrap(iterative.cgnr)


elastic_net = inspect.unwrap(iterative.elastic_net)


def test_solvers_reject():
    S, u = np.eye(3, dtype=np.float32), np.ones((2, 3), np.float32)
    wrong = operators.LinearOperator(lambda c: c, lambda u: u[..., :2], (3, 3))
    assert_rejects(
        {
            "S": [
                lambda: cgnr(S[0], u, iterations=1),
                lambda: cgnr(np.eye(3, dtype=int), u, iterations=1),
                lambda: cgnr(np.zeros((0, 3), np.float32), u, iterations=1),
                lambda: cgnr(np.inf * np.ones_like(S), u, iterations=1),
                lambda: cgnr(wrong, u, iterations=1),
            ],
            "u": [
                lambda: cgnr(S, u[:, :2], iterations=1),
                lambda: cgnr(S, u + 1j, iterations=1),
                lambda: cgnr(S, u + 1j, iterations=1, real=False),
                lambda: cgnr(S + 0j, u, iterations=1),
                lambda: cgnr(S, u * np.nan, iterations=1),
                lambda: elastic_net(S, u[:0], iterations=1),
            ],
            "lam": [
                lambda: cgnr(S, u, iterations=1, lam=-1.0),
                lambda: cgnr(S, u, iterations=1, lam=np.nan),
                lambda: cgnr(S, u, iterations=1, lam=np.ones(3)),
            ],
            "l1": [lambda: elastic_net(S, u, iterations=1, l1=-1.0)],
            "l2": [lambda: elastic_net(S, u, iterations=1, l2=np.inf)],
            "iterations": [
                lambda: cgnr(S, u, iterations=0),
                lambda: elastic_net(S, u, iterations=1.5),
            ],
            "real": [lambda: cgnr(S, u, iterations=1, real=1)],
            "nonnegative": [
                lambda: elastic_net(S, u, iterations=1, real=False, nonnegative=True)
            ],
        }
    )
