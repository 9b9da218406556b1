"""Spectral basis, Tikhonov and non-negative images against dense solvers."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpi_jax.reconstruct import variational

SCALE = 3e-10  # voltages of real scanners are about this small


def system(rows=40, voxels=24, seed=0):
    """A matrix with singular values from 1 to 1e-2 times SCALE, and two frames."""
    rng = np.random.default_rng(seed)
    U, _ = np.linalg.qr(rng.normal(size=(rows, min(rows, voxels))))
    V, _ = np.linalg.qr(rng.normal(size=(voxels, min(rows, voxels))))
    S = SCALE * (U * np.geomspace(1, 1e-2, U.shape[1])) @ V.T
    u = rng.normal(size=(2, voxels)) @ S.T
    return S, u + 0.05 * SCALE * rng.normal(size=u.shape)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (24, 24)])
def test_basis_is_orthonormal_and_rebuilds_the_matrix(shape, x64):
    S, _ = system(*shape)
    basis = variational.spectral_basis(S, min(shape))
    eye = np.eye(min(shape))
    np.testing.assert_allclose(basis.U.T @ basis.U, eye, atol=1e-10)
    np.testing.assert_allclose(basis.V.T @ basis.V, eye, atol=1e-10)
    rebuilt = basis.scale * (basis.U * basis.s[None]) @ basis.V.T
    np.testing.assert_allclose(rebuilt, S, atol=1e-12 * SCALE)
    assert basis.s[0] == 1 and np.all(np.diff(basis.s) <= 0)


def test_basis_truncates_to_the_largest_singular_values():
    S, _ = system()
    basis = variational.spectral_basis(S.astype(np.float32), 7)
    expected = np.linalg.svd(S, compute_uv=False)[:7]
    assert basis.U.dtype == jnp.float32 and basis.resolvent is None
    np.testing.assert_allclose(basis.s * basis.scale, expected, rtol=1e-6)


def test_project_is_the_adjoint_of_expansion(x64):
    S, u = system()
    basis = variational.spectral_basis(S, 9)
    z = np.random.default_rng(1).normal(size=9)
    left = np.sum(variational.project(basis, u[0]) * z)
    np.testing.assert_allclose(left, np.sum(u[0] * (basis.U @ z)), rtol=1e-12)


@pytest.mark.parametrize("shape", [(40, 24), (24, 40)])
@pytest.mark.parametrize("lam", [1e-1, 1e-4])
def test_tikhonov_equals_the_dense_solve(shape, lam, x64):
    S, u = system(*shape)
    basis = variational.spectral_basis(S, min(shape))
    absolute = lam * np.linalg.norm(S, 2) ** 2
    expected = np.linalg.solve(S.T @ S + absolute * np.eye(shape[1]), S.T @ u.T).T
    result = variational.tikhonov(basis, u, lam)
    np.testing.assert_allclose(result, expected, atol=1e-9 * np.abs(expected).max())


def test_tikhonov_without_lam_finds_the_truth_in_float32():
    S, _ = system()
    truth = np.random.default_rng(3).normal(size=(5, 24))
    basis = variational.spectral_basis(S.astype(np.float32), 24)
    result = variational.tikhonov(basis, (truth @ S.T).astype(np.float32), 0.0)
    np.testing.assert_allclose(result, truth, atol=2e-4)


def test_several_lam_stack_before_the_voxels():
    S, u = (array.astype(np.float32) for array in system())
    basis = variational.spectral_basis(S, 20)
    lams = np.asarray([1e-1, 1e-3, 1e-5], np.float32)
    result = variational.tikhonov(basis, u, lams)
    assert result.shape == (2, 3, 24)
    for index, lam in enumerate(lams):
        one = variational.tikhonov(basis, u, lam)
        np.testing.assert_allclose(result[:, index], one, atol=1e-5)
        frame = jax.jit(variational.tikhonov)(basis, u[0], lam)
        np.testing.assert_allclose(frame, one[0], atol=1e-5)


def nnls(S, u):
    """Exact active-set solution, frame by frame."""
    optimize = pytest.importorskip("scipy.optimize")
    norm = np.linalg.norm(S, 2)
    return np.stack([optimize.nnls(S / norm, frame / norm)[0] for frame in u])


# Rank 24 of 24 or 40 voxels uses the resolvent; rank 24 of 60 the two thin products.
@pytest.mark.parametrize("shape", [(40, 24), (60, 40)])
@pytest.mark.parametrize("rho", [1e-2, 1e-3])
def test_nonnegative_equals_nnls(shape, rho, x64):
    S, u = system(*shape)
    basis = variational.spectral_basis(S, min(shape), rho)
    assert basis.resolvent is not None
    expected = nnls(S, u)
    assert np.mean(expected == 0) > 0.2  # the constraint matters
    result = variational.nonnegative(basis, u, iterations=4000)
    np.testing.assert_allclose(result, expected, atol=1e-7)


def test_nonnegative_meets_the_optimality_conditions(x64):
    S, u = system(24, 60)
    basis = variational.spectral_basis(S, 24, 1e-2)
    assert basis.resolvent is None
    x = np.asarray(variational.nonnegative(basis, u, iterations=8000))
    gradient = (x @ S.T - u) @ S / np.linalg.norm(S, 2) ** 2
    assert x.min() >= 0
    assert gradient.min() > -1e-4  # no entry would gain by growing
    np.testing.assert_allclose(x * gradient, 0, atol=1e-4)  # nor by shrinking


def test_start_is_where_it_starts(x64):
    """From the solution nothing moves but the dual variable; a bad start is forgotten."""
    S, u = system()
    basis = variational.spectral_basis(S, 24, 1e-2)
    exact = nnls(S, u)
    one = variational.nonnegative(basis, u, iterations=1, start=exact)
    cold = variational.nonnegative(basis, u, iterations=1)
    assert np.linalg.norm(one - exact) < 0.2 * np.linalg.norm(cold - exact)
    far = variational.nonnegative(basis, u, iterations=4000, start=exact + 1)
    np.testing.assert_allclose(far, exact, atol=1e-7)


def test_resolvent_is_the_inverse(x64):
    S, _ = system()
    basis = variational.with_rho(variational.spectral_basis(S, 24), 0.05)
    normal = S.T @ S / np.linalg.norm(S, 2) ** 2
    expected = 0.05 * np.linalg.inv(normal + 0.05 * np.eye(24))
    np.testing.assert_allclose(basis.resolvent, expected, atol=1e-12)


def test_both_forms_of_the_step_agree():
    S, u = (array.astype(np.float32) for array in system())
    dense = variational.spectral_basis(S, 24)
    thin = dataclasses.replace(dense, resolvent=None)
    results = [variational.nonnegative(b, u, iterations=50) for b in (dense, thin)]
    np.testing.assert_allclose(results[0], results[1], atol=1e-3)


def test_splitting_beats_projected_gradient(x64):
    S, u = system()
    basis = variational.spectral_basis(S, 24, 1e-2)
    scaled, target = S / np.linalg.norm(S, 2), u / np.linalg.norm(S, 2)
    plain = np.zeros((2, 24))
    for _ in range(50):
        plain = np.maximum(plain - (plain @ scaled.T - target) @ scaled, 0)
    fast = np.asarray(variational.nonnegative(basis, u, iterations=50))
    exact = nnls(S, u)
    assert np.linalg.norm(fast - exact) < 0.2 * np.linalg.norm(plain - exact)


def test_frames_are_independent_and_derivatives_finite():
    S, u = (array.astype(np.float32) for array in system())
    basis = variational.spectral_basis(S, 24)

    def image(frame):
        return variational.nonnegative(basis, frame, iterations=30)

    batch = image(u)
    np.testing.assert_allclose(jax.vmap(image)(u), batch, atol=1e-4)
    np.testing.assert_allclose(image(u[1]), batch[1], atol=1e-4)
    gradient = jax.grad(lambda frame: jnp.sum(image(frame) ** 2))(jnp.asarray(u))
    assert np.isfinite(gradient).all() and np.any(gradient != 0)


# The annotations, checked only in tests, would answer before the code does.
basis_of, tikhonov, nonnegative, project = (
    inspect.unwrap(f)
    for f in (
        variational.spectral_basis,
        variational.tikhonov,
        variational.nonnegative,
        variational.project,
    )
)


@pytest.mark.parametrize(
    "S, rank, name",
    [
        (np.ones(3), 1, "S"),
        (np.ones((3, 2), int), 1, "S"),
        (np.zeros((3, 2)), 1, "S"),
        (np.full((3, 2), np.nan), 1, "S"),
        (np.zeros((0, 2)), 1, "S"),
        (np.eye(3), 0, "rank"),
        (np.eye(3), 1.5, "rank"),
        (np.eye(3), 4, "rank"),
        (np.ones((3, 2)), 2, "rank"),  # of rank one
    ],
)
def test_basis_rejects(S, rank, name):
    with pytest.raises(ValueError, match=f"^{name}: expected .*, got"):
        basis_of(S, rank)


def test_solvers_reject():
    basis = variational.spectral_basis(np.eye(3, dtype=np.float32), 3)
    u = np.ones((2, 3), np.float32)
    calls = {
        "u": [lambda: project(basis, u[:, :2]), lambda: project(basis, np.float32(1))],
        "lam": [
            lambda: tikhonov(basis, u, -1.0),
            lambda: tikhonov(basis, u, np.nan),
            lambda: tikhonov(basis, u, np.ones((1, 2), np.float32)),
        ],
        "iterations": [
            lambda: nonnegative(basis, u, iterations=0),
            lambda: nonnegative(basis, u, iterations=True),
        ],
        "start": [lambda: nonnegative(basis, u, iterations=1, start=u[0])],
        "rho": [
            lambda: variational.with_rho(basis, 0.0),
            lambda: variational.with_rho(basis, np.nan),
        ],
    }
    for name, group in calls.items():
        for call in group:
            with pytest.raises(ValueError, match=f"^{name}: expected .*, got"):
                call()
