"""Spectral basis, Tikhonov and non-negative images against dense solvers."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpi_jax.reconstruct import admm, iterative, parameter_choice, spectral

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


def test_resolvent_is_the_inverse(x64):
    S, _ = system()
    basis = spectral.with_rho(spectral.spectral_basis(S, 24), 0.05)
    normal = S.T @ S / np.linalg.norm(S, 2) ** 2
    expected = 0.05 * np.linalg.inv(normal + 0.05 * np.eye(24))
    np.testing.assert_allclose(basis.resolvent, expected, atol=1e-12)


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
    corner = np.log(np.take_along_axis(curves[1], np.asarray(found.index)[:, None], 1))
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
basis_of, tikhonov, nonnegative, project, total_variation, norms = (
    inspect.unwrap(f)
    for f in (
        spectral.spectral_basis,
        spectral.tikhonov,
        admm.nonnegative,
        spectral.project,
        admm.total_variation,
        parameter_choice.norms,
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
    S = np.eye(3, dtype=np.float32)
    basis = spectral.spectral_basis(S, 3)
    twisted = spectral.spectral_basis(S * 1j, 3, real=False)
    u = np.ones((2, 3), np.float32)
    l_curve = inspect.unwrap(parameter_choice.l_curve)
    discrepancy = inspect.unwrap(parameter_choice.discrepancy)

    def tv(basis=basis, u=u, grid=(3,), lam_tv=1.0, iterations=1, **options):
        options |= {"lam_tv": lam_tv, "iterations": iterations}
        return total_variation(basis, u, grid, **options)

    calls = {
        "u": [
            lambda: project(basis, u[:, :2]),
            lambda: project(basis, np.float32(1)),
            lambda: project(basis, u + 1j),
            lambda: project(twisted, u),
            lambda: norms(S, u[:, :2], u[:, None]),
        ],
        "basis": [
            lambda: nonnegative(twisted, u + 0j, iterations=1),
            lambda: tv(twisted, u + 0j),
            lambda: spectral.estimate_noise(basis, u),
        ],
        "real": [lambda: basis_of(S, 3, real=0)],
        "grid": [lambda: tv(grid=(2, 2)), lambda: tv(grid=(3, 0))],
        "lam_tv": [
            lambda: tv(lam_tv=-1.0),
            lambda: tv(lam_tv=np.nan),
            lambda: tv(lam_tv=np.ones(3)),
        ],
        "isotropic": [lambda: tv(isotropic=1)],
        "c": [lambda: norms(S, u, u)],
        "residuals": [
            lambda: discrepancy(np.float32(1), 1.0, 3),
            lambda: l_curve(u[0] + np.arange(3), 0 * u, u),
        ],
        "sigma": [lambda: discrepancy(u, 0.0, 3), lambda: discrepancy(u, u[0], 3)],
        "tau": [lambda: discrepancy(u, 1.0, 3, tau=-1.0)],
        "rows": [lambda: discrepancy(u, 1.0, 0)],
        "lams": [lambda: l_curve(u[0, :2], u, u), lambda: l_curve(u[0], u, u)],
        "solutions": [lambda: l_curve(u[0] + np.arange(3), u, u[0])],
        "lam": [
            lambda: tv(lam=-1.0),
            lambda: tv(lam=u[0]),
            lambda: tikhonov(basis, u, -1.0),
            lambda: tikhonov(basis, u, np.nan),
            lambda: tikhonov(basis, u, np.ones((1, 2), np.float32)),
        ],
        "iterations": [
            lambda: nonnegative(basis, u, iterations=0),
            lambda: nonnegative(basis, u, iterations=True),
            lambda: tv(iterations=0),
        ],
        "start": [lambda: nonnegative(basis, u, iterations=1, start=u[0])],
        "rho": [
            lambda: spectral.with_rho(basis, 0.0),
            lambda: spectral.with_rho(basis, np.nan),
        ],
    }
    for name, group in calls.items():
        for call in group:
            with pytest.raises(ValueError, match=f"^{name}: expected .*, got"):
                call()


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
