"""Operators, conjugate gradients, elastic net and background against other routes."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.sparse.linalg
from jax.test_util import check_grads
from jax.tree_util import Partial

from mpi_jax.reconstruct import background, iterative, kaczmarz, operators

KINDS = [(False, True), (True, False), (True, True)]  # (complex rows, real images)


def system(complex_rows=False, rows=20, voxels=12, seed=0):
    """S with singular values from 1 to 1e-1 and two noisy frames."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        part = rng.normal(size=shape)
        return part + 1j * rng.normal(size=shape) if complex_rows else part

    U, _ = np.linalg.qr(normal(rows, min(rows, voxels)))
    V, _ = np.linalg.qr(normal(voxels, min(rows, voxels)))
    S = (U * np.geomspace(1, 1e-1, U.shape[1])) @ V.conj().T
    u = rng.normal(size=(2, voxels)) @ S.T
    return S, u + 0.1 * normal(*u.shape)


def stacked(S, u):
    """Real rows: real above imaginary parts."""
    return np.concatenate([S.real, S.imag]), np.concatenate([u.real, u.imag], -1)


def ridge(S, u, lam):
    gram = S.conj().T @ S + lam * np.eye(S.shape[1])
    return np.linalg.solve(gram, S.conj().T @ u.T).T


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def circulant(kernel):
    """Convolution by FFT, and the matrix that it stands for."""
    size = len(kernel)

    def forward(spectrum, c):
        return jnp.fft.ifft(
            jnp.fft.fft(c) * spectrum.reshape((1,) * (c.ndim - 1) + (-1,))
        )

    def adjoint(spectrum, u):
        return forward(spectrum.conj(), u)

    spectrum = jnp.fft.fft(jnp.asarray(kernel))
    matrix = np.stack([np.roll(kernel, n) for n in range(size)], axis=1)
    functions = Partial(forward, spectrum), Partial(adjoint, spectrum)
    return operators.LinearOperator(*functions, (size, size)), matrix


def adjoint_holds(operator, seed=0, complex_rows=False):
    rng = np.random.default_rng(seed)
    c, u = (rng.normal(size=(3, n)) for n in operator.shape[::-1])
    if complex_rows:
        c, u = c + 1j * rng.normal(size=c.shape), u + 1j * rng.normal(size=u.shape)
    left = np.sum(operator.forward(c) * u.conj(), -1)
    right = np.sum(c * np.conj(operator.adjoint(u)), -1)
    np.testing.assert_allclose(left, right, rtol=1e-11)


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


def test_mean_energy():
    S, _ = system(True)
    expected = np.linalg.norm(S) ** 2 / 12
    found = operators.mean_energy(S.astype(np.complex64))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


# The annotations, checked only in tests, would answer before the code does.
cgnr, elastic_net, eliminate, dictionary, as_operator, gradient = (
    inspect.unwrap(f)
    for f in (
        iterative.cgnr,
        iterative.elastic_net,
        background.eliminate_background,
        background.background_dictionary,
        operators.as_operator,
        operators.gradient,
    )
)


def test_solvers_reject():
    S, u = np.eye(3, dtype=np.float32), np.ones((2, 3), np.float32)
    wrong = operators.LinearOperator(lambda c: c, lambda u: u[..., :2], (3, 3))
    calls = {
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
        "B": [lambda: eliminate(S, u, np.ones((2, 1), np.float32), 1.0)],
        "beta": [lambda: eliminate(S, u, S[:, :1], -1.0)],
        "frames": [lambda: dictionary(u[:1]), lambda: dictionary(0 * u)],
        "grid": [lambda: gradient((0, 3)), lambda: gradient(())],
    }
    for name, group in calls.items():
        for call in group:
            with pytest.raises(ValueError, match=f"^{name}: expected .*, got"):
                call()
