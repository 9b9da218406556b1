"""Spectral basis and Tikhonov images against dense solvers."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.rejects import assert_rejects
from support.spectral_systems import SCALE, nnls, system

from mpi_jax.reconstruct import admm, spectral


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (24, 24)])
def test_basis_is_orthonormal_and_rebuilds_the_matrix(shape, x64):
    S, _ = system(*shape)
    basis = spectral.spectral_basis(S, min(shape))
    eye = np.eye(min(shape))
    np.testing.assert_allclose(basis.U.T @ basis.U, eye, atol=1e-10)
    np.testing.assert_allclose(basis.V.T @ basis.V, eye, atol=1e-10)
    rebuilt = basis.scale * (basis.U * basis.s[None]) @ basis.V.T
    np.testing.assert_allclose(rebuilt, S, atol=1e-12 * SCALE)
    assert basis.s[0] == 1 and np.all(np.diff(basis.s) <= 0)


def test_basis_truncates_to_the_largest_singular_values():
    S, _ = system()
    basis = spectral.spectral_basis(S.astype(np.float32), 7)
    expected = np.linalg.svd(S, compute_uv=False)[:7]
    assert basis.U.dtype == jnp.float32 and basis.resolvent is None
    np.testing.assert_allclose(basis.s * basis.scale, expected, rtol=1e-6)


def test_project_is_the_adjoint_of_expansion(x64):
    S, u = system()
    basis = spectral.spectral_basis(S, 9)
    z = np.random.default_rng(1).normal(size=9)
    left = np.sum(spectral.project(basis, u[0]) * z)
    np.testing.assert_allclose(left, np.sum(u[0] * (basis.U @ z)), rtol=1e-12)


@pytest.mark.parametrize("shape", [(40, 24), (24, 40)])
@pytest.mark.parametrize("lam", [1e-1, 1e-4])
def test_tikhonov_equals_the_dense_solve(shape, lam, x64):
    S, u = system(*shape)
    basis = spectral.spectral_basis(S, min(shape))
    absolute = lam * np.linalg.norm(S, 2) ** 2
    expected = np.linalg.solve(S.T @ S + absolute * np.eye(shape[1]), S.T @ u.T).T
    result = spectral.tikhonov(basis, u, lam)
    np.testing.assert_allclose(result, expected, atol=1e-9 * np.abs(expected).max())


def test_tikhonov_without_lam_finds_the_truth_in_float32():
    S, _ = system()
    truth = np.random.default_rng(3).normal(size=(5, 24))
    basis = spectral.spectral_basis(S.astype(np.float32), 24)
    result = spectral.tikhonov(basis, (truth @ S.T).astype(np.float32), 0.0)
    np.testing.assert_allclose(result, truth, atol=2e-4)


def test_several_lam_stack_before_the_voxels():
    S, u = (array.astype(np.float32) for array in system())
    basis = spectral.spectral_basis(S, 20)
    lams = np.asarray([1e-1, 1e-3, 1e-5], np.float32)
    result = spectral.tikhonov(basis, u, lams)
    assert result.shape == (2, 3, 24)
    for index, lam in enumerate(lams):
        one = spectral.tikhonov(basis, u, lam)
        np.testing.assert_allclose(result[:, index], one, atol=1e-5)
        frame = jax.jit(spectral.tikhonov)(basis, u[0], lam)
        np.testing.assert_allclose(frame, one[0], atol=1e-5)


def test_resolvent_is_the_inverse(x64):
    S, _ = system()
    basis = spectral.with_rho(spectral.spectral_basis(S, 24), 0.05)
    normal = S.T @ S / np.linalg.norm(S, 2) ** 2
    expected = 0.05 * np.linalg.inv(normal + 0.05 * np.eye(24))
    np.testing.assert_allclose(basis.resolvent, expected, atol=1e-12)


def complex_system(seed=4):
    """20 complex rows, 12 voxels, real images, two frames."""
    S, u = system(40, 12, seed)
    return S[:20] + 1j * S[20:], u[:, :20] + 1j * u[:, 20:]


@pytest.mark.parametrize("real", [True, False])
def test_complex_rows(real, x64):
    S, u = complex_system()
    basis = spectral.spectral_basis(S, real=real)
    assert jnp.iscomplexobj(basis.V) == (not real) and basis.V.shape == (12, 12)
    rows, right = S, u
    if real:
        rows = np.concatenate([S.real, S.imag])
        right = np.concatenate([u.real, u.imag], axis=1)
    lams = np.array([1e-1, 1e-3])
    found = spectral.tikhonov(basis, u, lams)
    for n, lam in enumerate(lams * np.linalg.norm(rows, 2) ** 2):
        gram = rows.conj().T @ rows + lam * np.eye(12)
        expected = np.linalg.solve(gram, rows.conj().T @ right.T).T
        np.testing.assert_allclose(found[:, n], expected, atol=1e-9)
    if real:
        images = admm.nonnegative(basis, u, iterations=4000)
        np.testing.assert_allclose(images, nnls(rows, right), atol=1e-6)


def test_basis_of_all_resolved_values(x64):
    S, _ = system(40, 24)
    low = S[:, :9] @ np.random.default_rng(0).normal(size=(9, 24))
    assert spectral.spectral_basis(low).s.shape == (9,)
    assert spectral.spectral_basis(S).s.shape == (24,)


def test_noise_level_is_that_of_the_part_outside():
    S, u = system(400, 24)
    u = (np.random.default_rng(5).normal(size=(200, 400)) * SCALE).astype(np.float32)
    basis = spectral.spectral_basis(S.astype(np.float32), 24)
    u[:100] += (1e3 * u[:100, :24] @ S.T / SCALE).astype(np.float32)
    found = np.asarray(spectral.estimate_noise(basis, u)) / SCALE
    # 376 degrees of freedom: 3.6 % a frame, 0.26 % for the mean of 200.
    np.testing.assert_allclose(np.sqrt(np.mean(found**2)), 1, atol=0.01)
    np.testing.assert_allclose(found, 1, atol=0.2)


# The annotations, checked only in tests, would answer before the code does.
basis_of = inspect.unwrap(spectral.spectral_basis)


project = inspect.unwrap(spectral.project)


tikhonov = inspect.unwrap(spectral.tikhonov)


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


def test_spectral_solvers_reject():
    S, u = np.eye(3, dtype=np.float32), np.ones((2, 3), np.float32)
    basis = spectral.spectral_basis(S, 3)
    twisted = spectral.spectral_basis(S * 1j, 3, real=False)
    assert_rejects(
        {
            "u": [
                lambda: project(basis, u[:, :2]),
                lambda: project(basis, np.float32(1)),
                lambda: project(basis, u + 1j),
                lambda: project(twisted, u),
            ],
            "basis": [lambda: spectral.estimate_noise(basis, u)],
            "real": [lambda: basis_of(S, 3, real=0)],
            "lam": [
                lambda: tikhonov(basis, u, -1.0),
                lambda: tikhonov(basis, u, np.nan),
                lambda: tikhonov(basis, u, np.ones((1, 2), np.float32)),
            ],
            "rho": [
                lambda: spectral.with_rho(basis, 0.0),
                lambda: spectral.with_rho(basis, np.nan),
            ],
        }
    )
