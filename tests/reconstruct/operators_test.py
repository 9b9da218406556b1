"""Linear operators: adjoint identities, differences, energy."""

import inspect

import numpy as np
import pytest
from support.rejects import assert_rejects
from support.row_systems import adjoint_holds, circulant, system

from mpi_jax.reconstruct import operators


@pytest.mark.parametrize("complex_rows", [False, True])
def test_matrix_as_operator(complex_rows, x64):
    S, u = system(complex_rows)
    operator = operators.as_operator(S)
    assert operator.shape == S.shape
    adjoint_holds(operator, complex_rows=complex_rows)
    np.testing.assert_allclose(operator.adjoint(u), u @ S.conj(), atol=1e-12)


def test_matrix_free_operator(x64):
    rng = np.random.default_rng(1)
    kernel = rng.normal(size=9) + 1j * rng.normal(size=9)
    operator, matrix = circulant(kernel)
    adjoint_holds(operator, complex_rows=True)
    c = rng.normal(size=(2, 9)) + 0j
    np.testing.assert_allclose(operator.forward(c), c @ matrix.T, atol=1e-12)


@pytest.mark.parametrize("grid", [(5,), (3, 4), (1, 4), (2, 3, 4)])
def test_gradient(grid, x64):
    operator = operators.gradient(grid)
    adjoint_holds(operator)
    image = np.random.default_rng(2).normal(size=(2, *grid))
    found = np.asarray(operator.forward(image.reshape(2, -1)))
    found = found.reshape(2, len(grid), *grid)
    for n in range(len(grid)):
        last = np.take(image, [-1], n + 1)
        expected = np.diff(image, axis=n + 1, append=last)
        np.testing.assert_array_equal(found[:, n], expected)


def test_mean_energy():
    S, _ = system(True)
    expected = np.linalg.norm(S) ** 2 / 12
    found = operators.mean_energy(S.astype(np.complex64))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_gradient_rejects():
    # The annotations, checked only in tests, would answer before the code does.
    gradient = inspect.unwrap(operators.gradient)
    assert_rejects({"grid": [lambda: gradient((0, 3)), lambda: gradient(())]})
