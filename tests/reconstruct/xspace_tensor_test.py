"""x-space with the matrices: trace, regression and deconvolution by other routes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from support.xspace_kernel import kernel

from mpi_jax import physics, scanner
from mpi_jax.noise import add_noise
from mpi_jax.reconstruct import xspace, xspace_tensor


def small(n=16, divider=(17, 16, 0), oversampling=2, half=2.4e-3, **changes):
    """The paper's field in a smaller rectangle, at some 24 samples per mm^2.

    Point samples, which are what these methods take a signal for: at so low a sampling
    rate a low pass takes much away.
    """
    s = dataclasses.replace(
        scanner.paper(n, field_of_view=2 * half, oversample=1),
        drive_field=scanner.DriveField(
            (2.0 * half, 2.0 * half, 0.0), divider, oversampling=oversampling
        ),
    )
    return dataclasses.replace(s, **changes)


@pytest.fixture(scope="module")
def plan():
    return xspace_tensor.tensor_plan(small())


@pytest.fixture(scope="module")
def letter():
    """P in strokes of two pixels, [16, 16]."""
    image = np.zeros((16, 16))
    image[3:13, 4:6] = image[3:9, 4:11] = 1
    image[5:7, 6:9] = 0
    return image


def kernel_matrix(s):
    """[P, P] of the trace kernel between pixels."""
    r = np.asarray(s.grid.positions(), float)[:, :2]
    x = float(s.tracer.beta) * 2.0 * np.linalg.norm(r[:, None] - r, axis=-1)
    return np.where(x == 0, 2 / 3, kernel(np.where(x == 0, 1.0, x)))


@pytest.mark.parametrize("model, width", [("tensor", 5.8284), ("mpirf", 4.1610)])
def test_trace_kernel(model, width):
    """Widths at half maximum in x; the closed form; 2/3 at 0."""
    peak = xspace_tensor.trace_kernel(np.zeros(1), model=model)
    np.testing.assert_allclose(peak, 2 / 3, rtol=1e-15)
    half = xspace_tensor.trace_kernel(np.array([width / 2]), model=model)
    np.testing.assert_allclose(half / peak, 0.5, atol=1e-5)
    x = np.geomspace(2e-3, 300, 200)
    if model == "tensor":
        np.testing.assert_allclose(xspace_tensor.trace_kernel(x), kernel(x), rtol=1e-9)
    # Away from the plane: f I + q xi xi^T without its third row and column.
    full = xspace_tensor.trace_kernel(np.array([1.2]), 0.7)
    z = 1.2**2 + 0.7**2
    f = (1 / np.tanh(np.sqrt(z)) - 1 / np.sqrt(z)) / np.sqrt(z)
    q = (kernel(np.sqrt(z)) - 2 * f) / z
    np.testing.assert_allclose(full, 2 * f + q * 1.2**2, rtol=1e-12)


def test_trace_of_a_point_is_the_kernel(plan):
    """In every direction alike, though samples are sparse and move along their path."""
    s = small()
    image = np.zeros((16, 16))
    image[6, 9] = 1
    got = np.asarray(xspace_tensor.trace(plan, physics.voltage(s, image)))
    expected = (kernel_matrix(s) @ image.reshape(-1)).reshape(16, 16)
    np.testing.assert_allclose(got, expected, atol=0.05)
    np.testing.assert_allclose(xspace_tensor.blur(plan, image), expected, atol=1e-6)


@pytest.mark.parametrize("min_frequency", [0.0, 0.06])
def test_trace_against_regression_by_hand(min_frequency):
    """Gaussian process of (A_xx, A_xy, A_yy) from the frequencies that are kept."""
    with jax.enable_x64(True):
        s = small(4, (5, 4, 0), 1)
        cut = min_frequency * 2.5e6
        lam, width = 1e-2, 1e-3
        plan = xspace_tensor.tensor_plan(s, width=width, lam=lam, min_frequency=cut)
        rng = np.random.default_rng(0)
        u = rng.standard_normal((3, 2, 20))
        got = np.asarray(xspace_tensor.trace(plan, u))
        rate = np.asarray(s.drive_field.field()[1])[:, :2]
        r = np.asarray(s.field_free_point()[0])[:, :2]
        pixels = np.asarray(s.grid.positions())[:, :2]

    def g(a, b):
        d2 = ((a[:, None] - b) ** 2).sum(axis=-1)
        return np.exp(-d2 / width**2 / 2)

    # u = H a, a = all A_xx, then A_xy, then A_yy at the samples; A_xy has half the
    # variance because it counts twice in the norm of a symmetric matrix.
    x, y, none = np.diag(rate[:, 0]), np.diag(rate[:, 1]), np.zeros((20, 20))
    H = np.block([[x, y, none], [none, x, y]])
    prior = np.kron(np.diag([1.0, 0.5, 1.0]), g(r, r))
    toward = np.concatenate([g(pixels, r), 0 * g(pixels, r), g(pixels, r)], axis=1)
    covariance = H @ prior @ H.T
    noise = lam * np.trace(covariance) / 40
    # Real and imaginary parts of what is kept.
    F = np.fft.rfft(np.eye(20), axis=0)[np.fft.rfftfreq(20, 1 / 2.5e6) >= cut]
    F = np.kron(np.eye(2), np.concatenate([F.real, F.imag]))
    F = F[np.abs(F).max(axis=1) > 1e-9]
    inverse = np.linalg.inv(F @ (covariance + noise * np.eye(40)) @ F.T)
    expected = toward @ H.T @ F.T @ inverse @ F @ u.reshape(3, 40).T
    scale = float(s.tracer.moment * s.tracer.beta)
    expected = expected.T.reshape(3, 4, 4) / scale
    np.testing.assert_allclose(
        got, expected, rtol=1e-8, atol=1e-8 * abs(expected).max()
    )


@pytest.mark.parametrize("min_frequency", [0.0, 75e3])
def test_deconvolution_against_non_negative_least_squares(min_frequency):
    """With the missing traces' amplitudes free, as further columns of both signs."""
    with jax.enable_x64(True):
        s = small(8, (9, 8, 0), 1)
        plan = xspace_tensor.tensor_plan(s, min_frequency=min_frequency, rho=1e-2)
        lost = np.asarray(plan.lost)
        # Two bins and DC in two channels; a constant signal leaves few traces.
        assert lost.shape[1] == 0 if min_frequency == 0 else 8 <= lost.shape[1] <= 10
        np.testing.assert_allclose(lost.T @ lost, np.eye(lost.shape[1]), atol=1e-12)
        rng = np.random.default_rng(1)
        K = kernel_matrix(s)
        # Not the trace of any image, so that the bound is active.
        data = K @ np.maximum(rng.standard_normal(64), 0)
        data += 0.3 * rng.standard_normal(64)
        got = xspace_tensor.deconvolve(plan, data.reshape(8, 8), iterations=10000)
        columns = np.concatenate([K, lost, -lost], axis=1)
    expected = scipy.optimize.nnls(columns, data, maxiter=10000)[0][:64]
    assert (expected == 0).sum() > 10
    np.testing.assert_allclose(got.reshape(-1), expected, atol=1e-6)


def psnr(image, truth):
    return -10 * np.log10(np.mean((np.asarray(image, float) - truth) ** 2))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_reconstruct_tensor(letter, dtype):
    """A letter comes back in its own units, far closer than without the matrices."""
    with jax.enable_x64(dtype == np.float64):
        s = small()
        plan = xspace_tensor.tensor_plan(s)
        u = physics.voltage(s, letter)
        u = np.asarray(add_noise(jax.random.key(0), u, 40.0))
        image = xspace_tensor.reconstruct_tensor(plan, np.stack([u, 2 * u]))
        assert image.dtype == dtype and image.min() >= 0
        assert psnr(image[0], letter) > 22
        assert psnr(xspace.reconstruct(s, u), letter) < 15
        # A single signal; homogeneous, up to the rounding of the samples' weights.
        tolerance = 0.05 if dtype == np.float32 else 1e-6
        single = xspace_tensor.reconstruct_tensor(plan, u)
        np.testing.assert_allclose(single, image[0], atol=tolerance)
        np.testing.assert_allclose(image[1], 2 * image[0], atol=2 * tolerance)


def test_recovers_missing_frequencies(letter):
    """Without what lies below 80 kHz, 97 % of the power, on the paper's scan."""
    s, letter = scanner.paper(32), np.kron(letter, np.ones((2, 2)))
    plan = xspace_tensor.tensor_plan(s, min_frequency=80e3)
    whole = physics.voltage(s, letter)
    spectrum = np.fft.rfft(np.asarray(whole, float))
    spectrum[:, s.frequencies() < 80e3] = 0
    u = np.fft.irfft(spectrum, s.samples)
    assert np.sum(u**2) < 0.1 * np.sum(np.square(whole))
    image = np.asarray(xspace_tensor.reconstruct_tensor(plan, u))
    assert psnr(image, letter) > 18.5 > 10 > psnr(xspace.reconstruct(s, whole), letter)
    # What the low bins hold makes no difference; that they are missing is known.
    same = xspace_tensor.reconstruct_tensor(plan, whole)
    np.testing.assert_allclose(same, image, atol=0.02)
    # The trace that was lost is back.
    expected = np.asarray(xspace_tensor.blur(plan, letter))
    left = np.linalg.norm(np.asarray(xspace_tensor.trace(plan, u)) - expected)
    error = np.linalg.norm(np.asarray(xspace_tensor.blur(plan, image)) - expected)
    assert left > 0.5 * np.linalg.norm(expected) and error < 0.25 * left


def test_swapped_axes_give_the_transposed_image(letter):
    """x for y mirrors an image about the line x = y."""
    image = letter[:, ::-1] + np.triu(letter)

    def mirror(a):
        return np.asarray(a)[::-1, ::-1].T

    def reconstructed(s, image):
        return xspace_tensor.reconstruct_tensor(
            xspace_tensor.tensor_plan(s), physics.voltage(s, image)
        )

    with jax.enable_x64(True):
        one = reconstructed(small(), image)
        other = reconstructed(small(divider=(16, 17, 0)), mirror(image))
    np.testing.assert_allclose(mirror(other), one, atol=1e-6)


def test_scalar_model_and_si_scaling(letter):
    s = small()
    plan = xspace_tensor.tensor_plan(s, model="mpirf")
    u = physics.voltage(s, letter, model="mpirf")
    assert psnr(xspace_tensor.reconstruct_tensor(plan, u), letter) > 22
    with jax.enable_x64(True):
        coils = scanner.Receiver(3e-4 * np.eye(2, 3), scaling="si")
        si = dataclasses.replace(s, receiver=coils)
        got, expected = (
            np.asarray(
                xspace_tensor.trace(
                    xspace_tensor.tensor_plan(a), physics.voltage(a, letter)
                )
            )
            for a in (si, s)
        )
    np.testing.assert_allclose(got, expected, atol=1e-8 * expected.max())


def test_derivative_in_the_signal(letter):
    with jax.enable_x64(True):
        s = small()
        plan = xspace_tensor.tensor_plan(s)
        u = np.asarray(physics.voltage(s, letter))
        unit = u.std()
        toward = np.random.default_rng(2).standard_normal(u.shape) * unit

        def value(step):
            image = xspace_tensor.reconstruct_tensor(
                plan, u + step * toward, iterations=5
            )
            return (image**2).sum()

        h = 1e-6
        expected = (value(h) - value(-h)) / (2 * h)
        got = jax.grad(value)(0.0)
    np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_with_rho_is_a_new_plan(plan):
    changed = xspace_tensor.with_rho(plan, 1e-2)
    fresh = xspace_tensor.tensor_plan(small(), rho=1e-2)
    for a, b in zip(jax.tree.leaves(changed), jax.tree.leaves(fresh), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_bad_input_to_the_plan(plan):
    s = small()
    for name in ("width", "lam", "rho"):
        with pytest.raises(ValueError, match=f"{name}: expected finite numbers > 0"):
            xspace_tensor.tensor_plan(s, **{name: 0.0})
    with pytest.raises(ValueError, match="min_frequency: expected 0 to"):
        xspace_tensor.tensor_plan(s, min_frequency=1e9)
    with pytest.raises(ValueError, match="model"):
        xspace_tensor.tensor_plan(s, model="debye")
    with pytest.raises(ValueError, match="2D grid"):
        xspace_tensor.tensor_plan(scanner.open_mpi_3d(4))
    with pytest.raises(ValueError, match="plane of constant z"):
        xspace_tensor.tensor_plan(small(4, (5, 4, 0), 1, drive_field=scanner.DriveField(
            (1e-3, 1e-3, 1e-3), (5, 4, 3))))  # fmt: skip
    with pytest.raises(ValueError, match="path meets"):
        away = scanner.Grid((4, 4), (1e-3, 1e-3, 1e-3), (0.1, 0.0, 0.0))
        xspace_tensor.tensor_plan(small(grid=away))
    with pytest.raises(ValueError, match=r"u: expected shape \[..., 2, 544\]"):
        xspace_tensor.reconstruct_tensor(plan, np.ones((2, 545)))
    with pytest.raises(ValueError, match=r"blurred: expected shape \[..., 16, 16\]"):
        xspace_tensor.deconvolve(plan, np.ones((16, 15)))
    with pytest.raises(ValueError, match="iterations: expected an integer >= 1"):
        xspace_tensor.reconstruct_tensor(plan, np.ones((2, 544)), iterations=0)
    with pytest.raises(ValueError, match="rho"):
        xspace_tensor.with_rho(plan, -1.0)


def line():
    """Pixels of a scan whose field vanishes along y."""
    field = scanner.SelectionField(np.diag([-2.0, 0.0, 2.0]))
    return dataclasses.replace(scanner.paper(8), selection_field=field)


def beside(z, **changes):
    s = scanner.paper(8)
    grid = scanner.Grid((8, 8), s.grid.field_of_view, (0.0, 0.0, z))
    return dataclasses.replace(s, grid=grid, **changes)


def test_a_field_free_line_has_no_x_space_image():
    """Outside and inside of jit; it gave NaN."""
    s, u = line(), np.ones((2, 1632), np.float32)
    for door in (
        lambda: xspace.reconstruct(s, u),
        lambda: jax.jit(lambda u: xspace.reconstruct(s, u))(u),
        lambda: xspace_tensor.tensor_plan(s),
    ):
        with pytest.raises(ValueError, match="field-free line"):
            door()


def test_a_slice_beside_the_scanned_plane_has_no_x_space_image():
    """It gave the picture of another slice. The tensor's plan knows the slice."""
    u = np.ones((2, 1632), np.float32)
    up = scanner.SelectionField(np.diag([-2.0, -2.0, 4.0]), (0.0, 0.0, 4e-3))
    for s in (
        beside(1e-3),
        beside(0.0, selection_field=up),
        beside(0.0, drive_field=scanner.open_mpi_3d(4).drive_field),
    ):
        signal = np.ones((2, s.samples), np.float32)
        with pytest.raises(ValueError, match="within the grid's slice"):
            xspace.reconstruct(s, signal)
        with pytest.raises(ValueError, match="within the grid's slice"):
            jax.jit(lambda u, s=s: xspace.reconstruct(s, u))(signal)
        device = jax.tree.map(jnp.asarray, s)
        with pytest.raises(ValueError, match="within the grid's slice"):
            jax.jit(lambda u, s=device: xspace.reconstruct(s, u))(signal)
    # Where the offset moves the scanned plane into the slice, and a hair beside it.
    for s in (beside(-1e-3, selection_field=up), beside(1e-5)):
        assert np.isfinite(xspace.reconstruct(s, u)).all()
    assert np.isfinite(xspace_tensor.tensor_plan(small(4), width=1e-3).kernel).all()


@pytest.mark.parametrize("bad, words", [(np.nan, "finite"), (1j, "real")])
def test_signals_that_are_no_signals(unannotated, plan, bad, words):
    s = scanner.paper(8)
    u, short = np.full((2, 1632), bad), np.full((2, 544), bad)
    image = np.full((16, 16), bad)
    for door in (
        lambda: xspace.reconstruct(s, u),
        lambda: xspace.native_signal(s, u),
        lambda: xspace_tensor.reconstruct_tensor(plan, short),
        lambda: xspace_tensor.trace(plan, short),
        lambda: xspace_tensor.blur(plan, image),
        lambda: xspace_tensor.deconvolve(plan, image),
    ):
        with pytest.raises(ValueError, match=f"expected {words} numbers"):
            door()


def test_a_width_in_millimetres_is_named():
    with pytest.raises(ValueError, match=r"width: expected metres .* mean 0.5e-3\?"):
        xspace.reconstruct(scanner.paper(8), np.ones((2, 1632)), width=0.5)
