"""Physics against closed forms and finite differences in float64; checks at the door."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from support.complete_scanner import complete
from support.errors import nrms

from mpi_jax import noise, phantoms, physics, scanner, system_matrix


def reference_langevin(x):
    """L/x and L' where float64 does not cancel."""
    return (1 / np.tanh(x) - 1 / x) / x, 1 / x**2 - 1 / np.sinh(np.minimum(x, 300)) ** 2


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
        s = scanner.paper(9, oversample=1)  # the derivative at the samples
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
    receiver = dataclasses.replace(
        moment.receiver, sensitivity=p * np.eye(2, 3), scaling="si"
    )
    si = dataclasses.replace(moment, receiver=receiver)
    image = np.random.default_rng(2).random((8, 8))
    cell = 1.6e-3 * 1.6e-3 * 1e-3
    expected = -p * cell * moment.tracer.number_density
    u, v = physics.voltage(moment, image), physics.voltage(si, image)
    assert nrms(v, expected * np.asarray(u)) < 1e-6


@pytest.mark.parametrize("model", ["tensor", "mpirf"])
def test_gradients_are_finite_and_right(model):
    """Every parameter, with a pixel that the field-free point hits exactly."""
    image = np.random.default_rng(12).random((3, 3))

    def strong(s):
        """Leaves as arrays of one type each, so that steps don't compile again."""
        return jax.tree.map(lambda a: jnp.asarray(np.asarray(a)), s)

    @jax.jit
    @jax.value_and_grad
    def energy(s):
        return jnp.mean(physics.voltage(s, image, model=model) ** 2)

    gradient = energy(strong(complete()))[1]
    leaves = jax.tree_util.tree_leaves_with_path(gradient)
    assert len(leaves) == 15
    for path, leaf in leaves:
        assert np.isfinite(leaf).all(), path
    with jax.enable_x64(True):
        values, build = jax.tree.flatten(strong(complete()))
        value, exact = energy(build.unflatten(values))
        for k, (leaf, slope) in enumerate(
            zip(values, jax.tree.leaves(exact), strict=True)
        ):
            direction = np.random.default_rng(k).standard_normal(leaf.shape)
            # Steps relative to the leaf, or to a millimetre and millitesla where it's 0.
            size = float(np.max(np.abs(leaf))) or 1e-3
            ends = [
                energy(build.unflatten([*values[:k], leaf + d, *values[k + 1 :]]))[0]
                for d in (1e-5 * size * direction, -1e-5 * size * direction)
            ]
            difference = (ends[0] - ends[1]) / 2e-5
            # JAX's gradient of a complex leaf conjugates the direction's part.
            along = size * np.sum(np.real(slope * direction))
            np.testing.assert_allclose(
                along,
                difference,
                rtol=1e-5,
                atol=1e-7 * value,
                err_msg=str(leaves[k][0]),
            )


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
    s = scanner.paper(6, oversample=1)  # whole periods are not cut into blocks
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


def test_size_distribution():
    """<m beta D> by quadrature over the log-normal density, and iron per particle."""
    spread, median = 0.2, 15e-9
    tracer = scanner.Tracer(median, diameter_spread=spread)
    one = scanner.Tracer(median)

    def mean(function):
        def density(t):
            return function(np.exp(spread * t)) * np.exp(-(t**2) / 2)

        return scipy.integrate.quad(density, -9, 9, limit=200)[0] / np.sqrt(2 * np.pi)

    with jax.enable_x64(True):
        for x in (0.5, 3.0, 20.0):
            f, q = physics.tracer_kernel(tracer, jnp.array(x**2))
            across = mean(lambda r, x=x: r**6 * reference_langevin(r**3 * x)[0])
            along = mean(lambda r, x=x: r**6 * reference_langevin(r**3 * x)[1])
            np.testing.assert_allclose(f, across, rtol=1e-5)
            np.testing.assert_allclose(f + x**2 * q, along, rtol=1e-5)
        ratio = one.number_density / tracer.number_density
        np.testing.assert_allclose(ratio, mean(lambda r: r**3), rtol=1e-9)
        flat = scanner.Tracer(median, diameter_spread=0.0)
        z = jnp.array([0.0, 0.3, 50.0])
        for got, expected in zip(
            physics.tracer_kernel(flat, z), physics.langevin(z), strict=True
        ):
            np.testing.assert_allclose(got, expected, rtol=1e-14)


def one_dimensional(relaxation_time=None, **receiver):
    return scanner.Scanner(
        scanner.Tracer(relaxation_time=relaxation_time),
        scanner.DriveField((12.8e-3, 0.0, 0.0), (102, 0, 0)),
        scanner.SelectionField(np.diag([-2.0, -2.0, 4.0])),
        scanner.Receiver(np.eye(1, 3), **receiver),
        scanner.Grid((1, 1), (1e-3,) * 3, (2e-3, 0.0, 0.0)),
    )


def test_relaxation_solves_its_equation():
    """tau dM/dt = M_eq - M, integrated for three periods; dM/dt of the last one."""
    tau, period, fine = 3e-6, 102 / 2.5e6, 32
    with jax.enable_x64(True):
        tracer = scanner.Tracer()
        beta, moment = float(tracer.beta), float(tracer.moment)

        def equilibrium(t):
            x = beta * (12.8e-3 * np.sin(2 * np.pi * t / period) - 2.0 * 2e-3)
            return moment * (1 / np.tanh(x) - 1 / x)

        t = (2 + np.arange(102 * fine) / (102 * fine)) * period
        m = scipy.integrate.solve_ivp(
            lambda t, m: (equilibrium(t) - m) / tau,
            (0, 3 * period),
            [0.0],
            "DOP853",
            t,
            rtol=1e-10,
            atol=1e-28,
        ).y[0]
        spectrum = np.fft.rfft((equilibrium(t) - m) / tau)[:52] / fine
        u = physics.voltage(one_dimensional(tau, oversample=4), np.ones((1, 1)))
        assert nrms(u[0], np.fft.irfft(spectrum, 102)) < 1e-6
        with pytest.warns(UserWarning, match="Receiver.oversample: .* relaxation"):
            sampled = physics.voltage(one_dimensional(tau), np.ones((1, 1)))
        assert 1e-3 < nrms(sampled[0], np.fft.irfft(spectrum, 102)) < 0.05


def test_low_pass_and_transfer_function():
    """Against NumPy's transforms of a finely sampled signal."""
    with jax.enable_x64(True):
        plain = one_dimensional()
        fine = dataclasses.replace(
            plain, drive_field=dataclasses.replace(plain.drive_field, oversampling=8)
        )
        u = np.asarray(physics.voltage(fine, np.ones((1, 1))))
        assert u.shape == (1, 816)
        rng = np.random.default_rng(6)
        a = rng.standard_normal((1, 52)) + 1j * rng.standard_normal((1, 52))
        expected = np.fft.irfft(a * np.fft.rfft(u)[:, :52] / 8, 102)
        both = one_dimensional(oversample=8, transfer_function=a)
        assert nrms(physics.voltage(both, np.ones((1, 1))), expected) < 1e-12
        # Point sampling folds harmonics beyond 1.25 MHz back.
        alone = one_dimensional(oversample=8)
        folded = physics.voltage(plain, np.ones((1, 1)))
        assert nrms(physics.voltage(alone, np.ones((1, 1))), folded) > 1e-3


def test_coil_map():
    """Each pixel's signal is its coil vector times the three field directions."""
    rng = np.random.default_rng(7)
    plain, coil = scanner.paper((2, 3)), rng.standard_normal((2, 3, 6))

    def with_coil(sensitivity):
        receiver = scanner.Receiver(sensitivity)
        return dataclasses.replace(plain, receiver=receiver)

    directions = np.asarray(system_matrix.simulate(with_coil(np.eye(3))))
    expected = np.einsum("ckp,ktp->ctp", coil, directions)
    assert nrms(system_matrix.simulate(with_coil(coil)), expected) < 1e-6
    image = rng.random((2, 3))
    assert (
        nrms(physics.voltage(with_coil(coil), image), expected @ image.ravel()) < 1e-6
    )


def test_field_free_line():
    """Nothing changes along the line, whichever way the particles are shifted."""
    s = dataclasses.replace(
        scanner.paper(),
        selection_field=scanner.SelectionField(np.diag([-2.0, 2.0, 0.0])),
        grid=scanner.Grid((3, 2, 2), (4e-3, 4e-3, 9e-3)),
    )
    matrix = np.asarray(system_matrix.simulate(s)).reshape(2, 1632, 3, 4)
    assert np.max(np.abs(matrix)) > 0
    np.testing.assert_allclose(matrix, matrix[:, :, :1].repeat(3, axis=2), rtol=1e-6)


def test_finer_phantom_converges():
    """A smooth blob on refined grids: the error falls with the square of the pitch."""

    def signal(factor):
        s = dataclasses.replace(
            scanner.paper(8, gradient=1.0, amplitude=6.4e-3),
            receiver=scanner.Receiver(np.eye(2, 3), "si"),
        )
        grid = s.grid.refined(factor)
        x, y, _ = np.asarray(grid.positions()).T
        blob = np.exp(-(((x - 1e-3) ** 2 + (y + 2e-3) ** 2) / 1.5e-3**2))
        s = dataclasses.replace(s, grid=grid)
        return physics.voltage(s, blob.reshape(grid.shape))

    best = np.asarray(signal(8))
    coarse, fine = nrms(signal(1), best), nrms(signal(2), best)
    assert fine < coarse / 3 and fine < 0.01


def test_adjoints():
    """<A c, w> = <c, A^T w> for the matrix-free signal with everything on."""
    with jax.enable_x64(True):
        s, rng = complete(), np.random.default_rng(8)
        image, weight = rng.random((3, 3)), rng.standard_normal((2, 80))
        u, back = jax.vjp(lambda c: physics.voltage(s, c), image)
        np.testing.assert_allclose(
            np.sum(u * weight), np.sum(back(weight)[0] * image), rtol=1e-12
        )


def test_bad_input():
    s = scanner.paper(8)
    with pytest.raises(
        ValueError, match=r"concentration: expected shape \[..., 8, 8\]"
    ):
        physics.voltage(s, np.ones((8, 9)))
    with pytest.raises(ValueError, match="model: expected one of"):
        physics.voltage(s, np.ones((8, 8)), model="debye")


@pytest.mark.parametrize(
    "bad, words", [(np.nan, "finite"), (np.inf, "finite"), (1j, "real")]
)
def test_numbers_that_would_spread_in_silence(unannotated, bad, words):
    """NaN, infinity and complex numbers stop at every door that takes a signal."""
    s, key = scanner.paper(4), jax.random.key(0)
    image = np.where(np.eye(4) > 0, bad, np.ones((4, 4)))
    u = jnp.asarray(np.where(np.arange(1632) == 5, bad, np.ones((2, 1632))))
    drive = jnp.full((2, 3), bad)
    matrix = np.ones((2, 1632, 16))
    spectra = np.where(np.arange(817) == 5, np.nan, np.ones((2, 817), complex))
    doors = [
        lambda: physics.voltage(s, image),
        lambda: physics.response(s, drive, jnp.ones((2, 3))),
        lambda: physics.response(s, jnp.ones((2, 3)), drive),
        lambda: physics.spectrum(u),
        lambda: system_matrix.forward(matrix, image),
        lambda: system_matrix.to_frequency(u[..., None]),
        lambda: system_matrix.strongest(u, 3),
        lambda: s.grid.average(image),
        lambda: noise.add_noise(key, u, 40.0),
        lambda: noise.noise_level(u, 40.0),
        lambda: noise.band_noise(key, u, np.ones((2, 817), bool)),
        lambda: noise.coloured_noise(key, u, 40.0, noise.pink(1632)),
        lambda: noise.signals(s, s, image[None], "tensor"),
        lambda: noise.measure(key, u[None], jnp.ones((2, 2, 1632))),
        lambda: noise.measure(key, jnp.ones((1, 2, 1632)), jnp.stack([u, u])),
        lambda: noise.feed_through(s, bad * np.ones((2, 3, 1)), np.ones((2, 3, 1))),
        lambda: phantoms.mask(jnp.asarray(image)),
    ]
    if words == "finite":
        doors += [
            lambda: system_matrix.select_rows(spectra, np.ones((2, 817), bool)),
            lambda: physics.signal(s, spectra),
            lambda: noise.add_noise(key, jnp.ones((2, 8)), np.nan),
        ]
    for door in doors:
        with pytest.raises(ValueError, match=f"expected .*{words}|numbers .dB."):
            door()


def test_traced_signals_pass():
    """Inside jit there are no values to look at: NaN stays NaN, nothing else changes."""
    s = scanner.paper(4)
    image = jnp.full((4, 4), jnp.nan)
    assert np.isnan(jax.jit(lambda c: physics.voltage(s, c))(image)).all()
    with pytest.raises(ValueError, match="concentration: expected finite"):
        physics.voltage(s, image)


def stacked(**changes):
    s = scanner.paper(4)
    return dataclasses.replace(s, tracer=dataclasses.replace(s.tracer, **changes))


@pytest.mark.parametrize("size", [2, 16, 1632])
def test_a_map_of_a_tracer_parameter_is_refused(size):
    """[P] as a map in one function and as something else in another: no more."""
    s = stacked(core_diameter=np.linspace(20e-9, 30e-9, size))
    selected = system_matrix.frequency_selection(s)
    words = r"Tracer.core_diameter: expected a number, .* got shape \(" + str(size)
    for door in (
        lambda s: physics.voltage(s, np.ones((4, 4))),
        system_matrix.simulate,
        lambda s: system_matrix.simulate_rows(s, selected),
        system_matrix.row_energies,
        lambda s: physics.pixel_spectra(s, jnp.arange(2)),
    ):
        with pytest.raises(ValueError, match=words):
            door(s)
        with pytest.raises(ValueError, match=words):  # shapes are known inside jit, too
            jax.jit(door)(s)


def test_a_stack_of_scanners_goes_through_vmap():
    diameter = np.array([20e-9, 30e-9])
    several = stacked(core_diameter=diameter)
    axes = jax.tree.map(lambda leaf: 0 if np.shape(leaf) == (2,) else None, several)
    image = np.eye(4)
    u = jax.vmap(lambda s: physics.voltage(s, image), in_axes=(axes,))(several)
    matrices = jax.vmap(system_matrix.simulate, in_axes=(axes,))(several)
    selected = system_matrix.frequency_selection(scanner.paper(4))
    rows = jax.vmap(
        lambda s: system_matrix.simulate_rows(s, selected), in_axes=(axes,)
    )(several)
    for k, d in enumerate(diameter):
        one = stacked(core_diameter=d)
        assert nrms(u[k], physics.voltage(one, image)) < 1e-6
        assert nrms(matrices[k], system_matrix.simulate(one)) < 1e-6
        assert nrms(rows[k], system_matrix.simulate_rows(one, selected)) < 1e-6


def test_models_are_checked_everywhere():
    s = scanner.paper(4)
    field, rate = s.drive_field.field()
    for door in (
        lambda: physics.response(s, field, rate, "debye"),
        lambda: physics.pixel_spectra(s, jnp.arange(2), "debye"),
        lambda: system_matrix.simulate(s, "debye"),
        lambda: system_matrix.row_energies(s, "debye"),
    ):
        with pytest.raises(ValueError, match="model: expected one of"):
            door()


def test_oversampling_takes_the_aliasing_away():
    """The paper's matrix at 1, 2 and 8 times the sampling rate: 3.3 % and 0.01 %."""
    fine = np.asarray(system_matrix.simulate(scanner.paper(16, oversample=8)))
    once, twice = (
        nrms(system_matrix.simulate(scanner.paper(16, oversample=n)), fine)
        for n in (1, 2)
    )
    assert 0.02 < once < 0.05 and twice < 3e-4
    assert nrms(system_matrix.simulate(scanner.paper(16)), fine) == twice


@pytest.mark.parametrize("filters", ["relaxation", "transfer function"])
def test_filters_without_oversampling_warn(filters):
    s = scanner.paper(4, oversample=1)
    if filters == "relaxation":
        tracer = dataclasses.replace(s.tracer, relaxation_time=1e-6)
        s = dataclasses.replace(s, tracer=tracer)
    else:
        transfer = np.ones((2, 817), complex)
        receiver = dataclasses.replace(s.receiver, transfer_function=transfer)
        s = dataclasses.replace(s, receiver=receiver)
    words = f"Receiver.oversample: expected 2 or more with .*{filters}"
    for door in (lambda s: physics.voltage(s, np.ones((4, 4))), system_matrix.simulate):
        with pytest.warns(UserWarning, match=words) as caught:
            door(s)
        assert len(caught) == 1 and "\n" not in str(caught[0].message)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            receiver = dataclasses.replace(s.receiver, oversample=2)
            door(dataclasses.replace(s, receiver=receiver))
