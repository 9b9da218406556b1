"""Physics against closed forms, finite differences in float64 and reference vectors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpi_jax import physics, scanner, system_matrix


def nrms(a, b):
    return float(np.linalg.norm(np.asarray(a) - b) / np.linalg.norm(b))


def reference_langevin(x):
    """L/x and L' where float64 does not cancel."""
    return (1 / np.tanh(x) - 1 / x) / x, 1 / x**2 - 1 / np.sinh(x) ** 2


@pytest.mark.parametrize("x64, rtol", [(False, 4e-6), (True, 1e-12)])
def test_langevin_values(x64, rtol):
    x = np.concatenate([np.linspace(0.3, 20, 500), [0.9999, 1.0, 1.0001]])
    f, derivative = reference_langevin(x)
    with jax.enable_x64(x64):
        got_f, got_q = physics.langevin(jnp.asarray(x) ** 2)
        np.testing.assert_allclose(got_f, f, rtol=rtol)
        np.testing.assert_allclose(got_f + x**2 * got_q, derivative, rtol=10 * rtol)


def test_langevin_limits():
    f, q = physics.langevin(jnp.array([0.0, 1e-30, 1e12]))
    np.testing.assert_allclose(f, [1 / 3, 1 / 3, 1e-6], rtol=1e-5)
    np.testing.assert_allclose(q[:2], [-2 / 45, -2 / 45], rtol=1e-6)
    # Second derivatives through both branches are finite at 0 and far out.
    second = jax.vmap(jax.grad(jax.grad(lambda z: sum(physics.langevin(z)))))
    assert np.isfinite(second(jnp.array([0.0, 0.5, 1.0, 4.0, 1e8]))).all()


def test_kernel_widths():
    """Full widths at half maximum in x (closed form of the point-spread function)."""
    x = np.linspace(1e-3, 12, 200_001)
    with jax.enable_x64(True):
        f, q = (np.asarray(a) for a in physics.langevin(jnp.asarray(x) ** 2))
    slope = f + x**2 * q
    for kernel, width in (
        (slope, 4.1610),
        (f, 9.4666),
        (slope + f, 5.8284),
        (slope + 2 * f, 6.7756),
    ):
        half = x[np.argmin(np.abs(kernel - kernel[0] / 2))]
        np.testing.assert_allclose(2 * half, width, atol=2e-4)


def test_tensor_model_is_the_derivative_of_the_magnetisation():
    """Against a central difference of m(t) for a random 9 x 9 image, in float64."""
    with jax.enable_x64(True):
        s = scanner.paper(9)
        image = np.random.default_rng(0).random((9, 9))
        positions = np.asarray(s.grid.positions())
        amplitude, f = np.array([12.8e-3, 12.8e-3, 0]), 2.5e6 / np.array([102, 96, 1])

        def magnetisation(t):
            drive = amplitude * np.sin(2 * np.pi * f * t[:, None])
            b = drive[:, None] + positions @ np.asarray(s.selection_field.gradient)
            x = s.tracer.beta * np.linalg.norm(b, axis=-1, keepdims=True)
            m = s.tracer.moment * reference_langevin(x)[0] * s.tracer.beta * b
            return np.einsum("tpk,p->kt", m, image.reshape(-1))[:2]

        t, h = np.arange(1632) / 2.5e6, 2e-9
        expected = (
            8 * (magnetisation(t + h) - magnetisation(t - h))
            - (magnetisation(t + 2 * h) - magnetisation(t - 2 * h))
        ) / (12 * h)
        u = physics.voltage(s, image)
        assert nrms(u, expected) < 1e-8
        # The scalar model isn't a derivative of it: PHYSICS states 0.60 for such images.
        assert nrms(physics.voltage(s, image, model="mpirf"), expected) > 0.3


@pytest.mark.parametrize("x64, rtol", [(False, 1e-6), (True, 1e-8)])
@pytest.mark.parametrize(
    "model, norm, x100, y100",
    [
        ("tensor", 9.6588927244e-11, 5.2577872542e-12, 4.8586551591e-12),
        ("mpirf", 3.5799010705e-11, 4.8397960343e-13, 5.0049995784e-13),
    ],
)
def test_reference_numbers(x64, rtol, model, norm, x100, y100):
    image = np.zeros((128, 128))
    image[32, 42] = 1
    with jax.enable_x64(x64):
        u = physics.voltage(scanner.paper(), image, model=model)
        np.testing.assert_allclose(np.linalg.norm(u), norm, rtol=rtol)
        np.testing.assert_allclose(u[:, 100], [x100, y100], rtol=5 * rtol)


def test_all_ones_image():
    u = physics.voltage(scanner.paper(), np.ones((128, 128)))
    np.testing.assert_allclose(np.linalg.norm(u), 8.7444534678e-07, rtol=1e-6)


def test_period_mean_is_zero():
    u = physics.voltage(scanner.paper(32), np.random.default_rng(1).random((32, 32)))
    rms = np.sqrt(np.mean(np.asarray(u) ** 2))
    assert np.max(np.abs(np.mean(u, axis=-1))) < 1e-5 * rms


def test_cosine_phase_retraces():
    u = np.asarray(physics.voltage(scanner.paper(16, phase=0.25), np.eye(16)))
    back = np.roll(u[:, ::-1], 1, axis=1)
    np.testing.assert_allclose(back, -u, atol=2e-6 * np.abs(u).max())


def test_si_scaling():
    """Volts: minus the sensitivity times cell volume times number density."""
    moment = scanner.paper(8)
    p = 0.3  # [T/A]
    si = dataclasses.replace(
        moment, receiver=scanner.Receiver(p * np.eye(2, 3), scaling="si")
    )
    image = np.random.default_rng(2).random((8, 8))
    cell = 1.6e-3 * 1.6e-3 * 1e-3
    expected = -p * cell * moment.tracer.number_density
    u, v = physics.voltage(moment, image), physics.voltage(si, image)
    assert nrms(v, expected * np.asarray(u)) < 1e-6


@pytest.mark.parametrize("model", ["tensor", "mpirf"])
def test_gradients_are_finite_and_right(model):
    """Every parameter, with pixels that the field-free point hits exactly."""
    s = scanner.paper(9)  # the centre pixel sees B = 0 at sample 0
    image = jnp.ones((9, 9))

    def energy(s):
        return jnp.sum((1e9 * physics.voltage(s, image, model=model)) ** 2)

    gradient = jax.grad(energy)(jax.tree.map(jnp.asarray, s))
    leaves = jax.tree_util.tree_leaves_with_path(gradient)
    assert len(leaves) == 12
    for path, leaf in leaves:
        assert np.isfinite(leaf).all(), path
    with jax.enable_x64(True):

        def at(diameter, amplitude):
            tracer = scanner.Tracer(core_diameter=diameter)
            return energy(scanner.paper(9, tracer=tracer, amplitude=amplitude))

        for k, (value, h) in enumerate(((30e-9, 1e-13), (12.8e-3, 1e-8))):
            exact = jax.grad(at, k)(30e-9, 12.8e-3)
            args = [30e-9, 12.8e-3]
            ends = [[*args[:k], value + d, *args[k + 1 :]] for d in (h, -h)]
            difference = (at(*ends[0]) - at(*ends[1])) / (2 * h)
            np.testing.assert_allclose(exact, difference, rtol=1e-5)


def test_linear_and_batched():
    s = scanner.paper(12)
    images = np.random.default_rng(3).random((2, 3, 12, 12))
    u = physics.voltage(s, images)
    assert u.shape == (2, 3, 2, 1632)
    assert nrms(physics.voltage(s, images[1, 2]), u[1, 2]) < 1e-6
    assert (
        nrms(physics.voltage(s, images[0, 0] + 2 * images[0, 1]), u[0, 0] + 2 * u[0, 1])
        < 1e-6
    )


def test_blocks_cover_the_period(monkeypatch):
    """Time blocks that don't divide the period, against one single block."""
    s = scanner.paper(6)
    image = np.random.default_rng(4).random((6, 6))
    whole = physics._voltage.__wrapped__(s, jnp.asarray(image, jnp.float32), "tensor")
    matrix = system_matrix._simulate.__wrapped__(s, "tensor")
    monkeypatch.setattr(physics, "_BLOCK", 36 * 100)
    assert len(physics.block_starts(s)[0]) == 17
    blocks = physics._voltage.__wrapped__(s, jnp.asarray(image, jnp.float32), "tensor")
    np.testing.assert_allclose(
        blocks, whole, rtol=1e-4, atol=1e-6 * np.abs(whole).max()
    )
    again = system_matrix._simulate.__wrapped__(s, "tensor")
    np.testing.assert_allclose(again, matrix, atol=1e-6 * np.abs(matrix).max())


def test_noise_meets_its_snr():
    u = physics.voltage(scanner.paper(16), np.random.default_rng(5).random((3, 16, 16)))
    snr = jnp.array([10.0, 30.0, 40.0])
    noisy = physics.add_noise(jax.random.key(0), u, snr)
    power = np.mean(np.asarray(u) ** 2, axis=(1, 2))
    noise = np.mean((np.asarray(noisy) - np.asarray(u)) ** 2, axis=(1, 2))
    # 3264 samples: the realised SNR scatters by about 0.1 dB.
    np.testing.assert_allclose(10 * np.log10(power / noise), snr, atol=0.4)
    clean = physics.add_noise(jax.random.key(0), u, np.inf)
    np.testing.assert_array_equal(clean, u)


def test_bad_input():
    s = scanner.paper(8)
    with pytest.raises(
        ValueError, match=r"concentration: expected shape \[..., 8, 8\]"
    ):
        physics.voltage(s, np.ones((8, 9)))
    with pytest.raises(ValueError, match="model: expected one of"):
        physics.voltage(s, np.ones((8, 8)), model="debye")


# Cases as handed to the unmodified simulator (amplitude X, Y before its axis swap).
MPIRF_CASES = {
    "p17": dict(amplitude=(1.6e-3, 1.6e-3), gradient=(2.0, 2.0)),
    "rand17_asym": dict(
        amplitude=(1.6e-3, 1.2e-3),
        gradient=(2.0, 1.0),
        core_diameter=25e-9,
        saturation_magnetisation=4.74e5,
        temperature=310.0,
    ),
    "dot33": dict(amplitude=(3.2e-3, 3.2e-3), gradient=(2.0, 2.0)),
}


@pytest.fixture(scope="module")
def golden(shared):
    return np.load(shared / "golden" / "mpirf_cases.npz", allow_pickle=False)


def largest(got, expected):
    return float(np.max(np.abs(np.asarray(got) - expected)) / np.max(np.abs(expected)))


@pytest.mark.parametrize("case", MPIRF_CASES)
def test_mpirf_files_float64(golden, case):
    def ref(key):
        return golden[f"{case}/{key}"]

    with jax.enable_x64(True):
        s = scanner.mpirf(**MPIRF_CASES[case])
        assert s.grid.shape == (ref("n_rows_y"), ref("n_cols_x"))
        x, y, _ = s.grid.axes()
        np.testing.assert_allclose(x, ref("grid_x_cols_m"), atol=1e-15)
        np.testing.assert_allclose(y, ref("grid_y_rows_m"), atol=1e-15)
        np.testing.assert_allclose(s.tracer.moment, ref("moment_Am2"), rtol=1e-12)
        u0 = float(golden["const/U0"])
        np.testing.assert_allclose(s.tracer.beta * u0, ref("beta_m_per_A"), rtol=1e-12)
        drive, rate = s.drive_field.field()
        assert largest(drive[:, :2].T, u0 * ref("H_drive_A_per_m")) < 1e-12
        assert largest(rate[:, :2].T, u0 * ref("dHdt_A_per_m_s")) < 1e-12
        assert (
            largest(
                physics.voltage(s, ref("phantom"), model="mpirf"), ref("voltage_xy")
            )
            < 1e-6
        )
        matrix = system_matrix.simulate(s, model="mpirf")[
            :, :, ref("system_matrix_cols")
        ]
        expected = np.stack([ref("system_matrix_time_x"), ref("system_matrix_time_y")])
        assert largest(matrix, expected) < (5e-6 if case == "rand17_asym" else 1e-6)


@pytest.mark.parametrize("case", MPIRF_CASES)
def test_mpirf_files_float32(golden, case):
    s = scanner.mpirf(**MPIRF_CASES[case])
    u = physics.voltage(s, golden[f"{case}/phantom"], model="mpirf")
    assert nrms(u, golden[f"{case}/voltage_xy"]) < 1e-6
