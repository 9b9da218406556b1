"""Non-negative and total-variation images against active sets and dual ascent."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.rejects import assert_rejects
from support.spectral_systems import nnls, system

from mpi_jax.reconstruct import admm, parameter_choice, spectral


# Rank 24 of 24 or 40 voxels uses the resolvent; rank 24 of 60 the two thin products.
@pytest.mark.parametrize("shape", [(40, 24), (60, 40)])
@pytest.mark.parametrize("rho", [1e-2, 1e-3])
def test_nonnegative_equals_nnls(shape, rho, x64):
    S, u = system(*shape)
    basis = spectral.spectral_basis(S, min(shape), rho)
    assert basis.resolvent is not None
    expected = nnls(S, u)
    assert np.mean(expected == 0) > 0.2  # the constraint matters
    result = admm.nonnegative(basis, u, iterations=4000)
    np.testing.assert_allclose(result, expected, atol=1e-7)


def test_nonnegative_meets_the_optimality_conditions(x64):
    S, u = system(24, 60)
    basis = spectral.spectral_basis(S, 24, 1e-2)
    assert basis.resolvent is None
    x = np.asarray(admm.nonnegative(basis, u, iterations=8000))
    gradient = (x @ S.T - u) @ S / np.linalg.norm(S, 2) ** 2
    assert x.min() >= 0
    assert gradient.min() > -1e-4  # no entry would gain by growing
    np.testing.assert_allclose(x * gradient, 0, atol=1e-4)  # nor by shrinking


def test_start_is_where_it_starts(x64):
    """From the solution nothing moves but the dual variable; a bad start is forgotten."""
    S, u = system()
    basis = spectral.spectral_basis(S, 24, 1e-2)
    exact = nnls(S, u)
    one = admm.nonnegative(basis, u, iterations=1, start=exact)
    cold = admm.nonnegative(basis, u, iterations=1)
    assert np.linalg.norm(one - exact) < 0.2 * np.linalg.norm(cold - exact)
    far = admm.nonnegative(basis, u, iterations=4000, start=exact + 1)
    np.testing.assert_allclose(far, exact, atol=1e-7)


def test_both_forms_of_the_step_agree():
    S, u = (array.astype(np.float32) for array in system())
    dense = spectral.spectral_basis(S, 24)
    thin = dataclasses.replace(dense, resolvent=None)
    results = [admm.nonnegative(b, u, iterations=50) for b in (dense, thin)]
    np.testing.assert_allclose(results[0], results[1], atol=1e-3)


def test_splitting_beats_projected_gradient(x64):
    S, u = system()
    basis = spectral.spectral_basis(S, 24, 1e-2)
    scaled, target = S / np.linalg.norm(S, 2), u / np.linalg.norm(S, 2)
    plain = np.zeros((2, 24))
    for _ in range(50):
        plain = np.maximum(plain - (plain @ scaled.T - target) @ scaled, 0)
    fast = np.asarray(admm.nonnegative(basis, u, iterations=50))
    exact = nnls(S, u)
    assert np.linalg.norm(fast - exact) < 0.2 * np.linalg.norm(plain - exact)


def test_frames_are_independent_and_derivatives_finite():
    S, u = (array.astype(np.float32) for array in system())
    basis = spectral.spectral_basis(S, 24)

    def image(frame):
        return admm.nonnegative(basis, frame, iterations=30)

    batch = image(u)
    np.testing.assert_allclose(jax.vmap(image)(u), batch, atol=1e-4)
    np.testing.assert_allclose(image(u[1]), batch[1], atol=1e-4)
    gradient = jax.grad(lambda frame: jnp.sum(image(frame) ** 2))(jnp.asarray(u))
    assert np.isfinite(gradient).all() and np.any(gradient != 0)


def difference_matrix(grid):
    """Forward differences [axes, P, P] from Kronecker products."""
    parts = []
    for axis, size in enumerate(grid):
        one = np.eye(size, k=1) - np.eye(size)
        one[-1] = 0
        before, after = (
            np.eye(int(np.prod(g))) for g in (grid[:axis], grid[axis + 1 :])
        )
        parts.append(np.kron(np.kron(before, one), after))
    return np.stack(parts)


def dual_ascent(S, u, grid, lam_tv, lam, isotropic, steps=8000):
    """Total variation by accelerated projected gradients on the dual, in NumPy.

    For q in the ball of lam_tv and n >= 0 the best image is
    x = (S^T S + lam)^-1 (S^T u - D^T q + n). Returns max(x, 0) and the duality gap.
    """
    D = difference_matrix(grid)
    flat, right = D.reshape(-1, D.shape[-1]), S.T @ u
    inverse = np.linalg.inv(S.T @ S + lam * np.eye(S.shape[1]))
    length = 1 / ((4 * len(grid) + 1) * np.linalg.norm(inverse, 2))

    def image(q, n):
        return inverse @ (right - flat.T @ q.ravel() + n)

    def into_ball(q):
        size = np.linalg.norm(q, axis=0, keepdims=True) if isotropic else abs(q)
        return q / np.maximum(1, size / lam_tv)

    q, n = np.zeros(D.shape[:2]), np.zeros(S.shape[1])
    last, momentum = (q, n), 1.0
    for _ in range(steps):
        x = image(q, n)
        new = (
            into_ball(q + length * (flat @ x).reshape(q.shape)),
            np.maximum(n - length * x, 0),
        )
        uphill = sum(
            np.sum((a - b) * (b - c)) for a, b, c in zip((q, n), new, last, strict=True)
        )
        momentum = 1.0 if uphill > 0 else momentum
        grown = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        q, n = (
            b + (momentum - 1) / grown * (b - c) for b, c in zip(new, last, strict=True)
        )
        last, momentum = new, grown
    x = image(*last)
    dual = 0.5 * u @ u - 0.5 * x @ np.linalg.solve(inverse, x)
    return np.maximum(x, 0), dual


def objective(x, S, u, grid, lam_tv, lam, isotropic):
    slopes = difference_matrix(grid) @ x
    size = np.linalg.norm(slopes, axis=0) if isotropic else abs(slopes)
    return 0.5 * np.sum((S @ x - u) ** 2) + lam_tv * np.sum(size) + 0.5 * lam * x @ x


_total_variation = jax.jit(
    admm.total_variation, static_argnames=("grid", "iterations", "isotropic")
)


@pytest.mark.parametrize(
    "grid, isotropic, lam",
    [
        ((4, 6), True, 0.0),
        ((6, 4), False, 0.02),
        ((2, 3, 4), True, 0.02),
        ((24,), True, 0.0),
    ],
)
def test_total_variation_has_no_duality_gap(grid, isotropic, lam, x64):
    S, u = system()
    basis = spectral.spectral_basis(S, 24, 1e-2)
    lam_tv, options = 0.02, {"iterations": 4000, "isotropic": isotropic}
    found = _total_variation(basis, u, grid, lam_tv=lam_tv, lam=lam, **options)
    found = np.asarray(found)
    assert found.min() == 0 and np.mean(found == 0) > 0.1  # the sign matters
    norm = np.linalg.norm(S, 2)
    for x, frame in zip(found, u / norm, strict=True):
        problem = (S / norm, frame, grid, lam_tv, lam, isotropic)
        expected, dual = dual_ascent(*problem)
        gap = objective(x, *problem) - dual
        assert -1e-9 < gap < 1e-7 * dual
        np.testing.assert_allclose(x, expected, atol=1e-4)
        edges = abs(difference_matrix(grid) @ x) > 1e-6
        assert 0 < np.mean(edges) < 0.7  # TV matters: flat places


def test_total_variation_in_its_limits(x64):
    S, u = system()
    basis = spectral.spectral_basis(S, 24, 1e-2)
    options = {"grid": (4, 6), "iterations": 4000}
    weights = np.array([0.0, 1e3])
    found = np.asarray(_total_variation(basis, abs(u), lam_tv=weights, **options))
    np.testing.assert_allclose(found[0], nnls(S, abs(u[:1]))[0], atol=1e-6)
    # One value everywhere.
    image = S.sum(1)
    level = max(image @ abs(u[1]) / (image @ image), 0)
    np.testing.assert_allclose(found[1], level, atol=1e-6)
    single = _total_variation(basis, abs(u[1]), lam_tv=1e3, **options)
    np.testing.assert_allclose(single, found[1], atol=1e-9)


def test_total_variation_of_frames_in_single_precision():
    S, u = (array.astype(np.float32) for array in system())
    basis = spectral.spectral_basis(S, 24, 1e-2)

    @jax.jit
    def image(frame):
        return admm.total_variation(basis, frame, (4, 6), lam_tv=0.02, iterations=40)

    batch = image(u)
    np.testing.assert_allclose(jax.jit(jax.vmap(image))(u), batch, atol=1e-4)
    np.testing.assert_allclose(image(u[1]), batch[1], atol=1e-4)
    gradient = jax.jit(jax.grad(lambda frame: jnp.sum(image(frame) ** 2)))(u)
    assert np.isfinite(gradient).all() and np.any(gradient != 0)
    zero = jax.jit(jax.grad(lambda frame: jnp.sum(image(frame))))(0 * u)
    assert np.isfinite(zero).all()


# The annotations, checked only in tests, would answer before the code does.
nonnegative = inspect.unwrap(admm.nonnegative)


total_variation = inspect.unwrap(admm.total_variation)


def test_solvers_reject():
    S, u = np.eye(3, dtype=np.float32), np.ones((2, 3), np.float32)
    basis = spectral.spectral_basis(S, 3)
    twisted = spectral.spectral_basis(S * 1j, 3, real=False)

    def tv(basis=basis, u=u, grid=(3,), lam_tv=1.0, iterations=1, **options):
        options |= {"lam_tv": lam_tv, "iterations": iterations}
        return total_variation(basis, u, grid, **options)

    assert_rejects(
        {
            "basis": [
                lambda: nonnegative(twisted, u + 0j, iterations=1),
                lambda: tv(twisted, u + 0j),
            ],
            "grid": [lambda: tv(grid=(2, 2)), lambda: tv(grid=(3, 0))],
            "lam_tv": [
                lambda: tv(lam_tv=-1.0),
                lambda: tv(lam_tv=np.nan),
                lambda: tv(lam_tv=np.ones(3)),
            ],
            "isotropic": [lambda: tv(isotropic=1)],
            "lam": [lambda: tv(lam=-1.0), lambda: tv(lam=u[0])],
            "iterations": [
                lambda: nonnegative(basis, u, iterations=0),
                lambda: nonnegative(basis, u, iterations=True),
                lambda: tv(iterations=0),
            ],
            "start": [lambda: nonnegative(basis, u, iterations=1, start=u[0])],
        }
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_measurements_and_images_that_are_not_finite(bad):
    rng = np.random.default_rng(3)
    basis = spectral.spectral_basis(rng.standard_normal((9, 4)))
    u = jnp.asarray(np.where(np.arange(9) == 2, bad, 1.0))
    for door in (
        lambda: spectral.project(basis, u),
        lambda: spectral.tikhonov(basis, u, 1e-3),
        lambda: spectral.estimate_noise(basis, u),
        lambda: admm.nonnegative(basis, u, iterations=1),
        lambda: admm.total_variation(basis, u, (2, 2), lam_tv=1e-3, iterations=1),
        lambda: parameter_choice.norms(np.ones((9, 4)), u, jnp.ones((1, 4))),
    ):
        with pytest.raises(ValueError, match="u: expected finite numbers"):
            door()
    start = jnp.full(4, bad)
    with pytest.raises(ValueError, match="start: expected finite numbers"):
        admm.nonnegative(basis, jnp.ones(9), iterations=1, start=start)


@pytest.mark.parametrize("method", ["nonnegative", "total_variation"])
@pytest.mark.parametrize("shape", [(40, 24), (60, 40)])
def test_a_penalty_for_each_frame_equals_a_loop_over_frames(method, shape, x64):
    """Also for weights of the total variation, and batches of two axes."""
    S, u = system(*shape)
    basis = spectral.spectral_basis(S, 24)
    u = np.stack([u[0], 2 * u[0], 0.1 * u[0], u[0]]).reshape(2, 2, -1)
    rho = np.array([[1e-2, 1e-3], [1e-1, 3e-4]])
    lam_tv = np.array([[1e-3, 0.0], [1e-4, 1e-2]])

    def solve(u, rho, lam_tv):
        if method == "nonnegative":
            return admm.nonnegative(basis, u, rho=rho, iterations=7)
        options = {"lam_tv": lam_tv, "rho": rho, "iterations": 7}
        return admm.total_variation(basis, u, (4, shape[1] // 4), **options)

    together = solve(u, rho, lam_tv)
    for place in np.ndindex(2, 2):
        alone = solve(u[place], float(rho[place]), float(lam_tv[place]))
        np.testing.assert_allclose(together[place], alone, rtol=1e-8, atol=1e-10)
