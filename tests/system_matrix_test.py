"""The matrix agrees with the matrix-free signal, in both domains, within its memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpi_jax import physics, scanner, system_matrix


@pytest.mark.parametrize("model", ["tensor", "mpirf"])
@pytest.mark.parametrize("x64, tolerance", [(False, 1e-6), (True, 1e-14)])
def test_product_equals_voltage(model, x64, tolerance):
    with jax.enable_x64(x64):
        s = scanner.paper((10, 14))
        images = np.random.default_rng(0).random((3, 10, 14))
        matrix = system_matrix.simulate(s, model=model)
        assert matrix.shape == (2, 1632, 140)
        u = system_matrix.forward(matrix, images)
        expected = np.asarray(physics.voltage(s, images, model=model))
        error = np.linalg.norm(u - expected) / np.linalg.norm(expected)
        assert error < tolerance
        flat = system_matrix.forward(matrix, images.reshape(3, -1))
        np.testing.assert_array_equal(flat, u)


def nrms(a, b):
    return float(np.linalg.norm(np.asarray(a) - b) / np.linalg.norm(b))


def everything(shape, relaxation_time=1e-6):
    """A short 2D scan with all that is off by default, no two pixels alike."""
    rng = np.random.default_rng(5)
    transfer = rng.standard_normal((2, 2, 41))
    coil = rng.standard_normal((2, 3, shape[0] * shape[1]))
    return scanner.Scanner(
        scanner.Tracer(25e-9, diameter_spread=0.1, relaxation_time=relaxation_time),
        scanner.DriveField((12e-3, 9e-3, 0.0), (16, 5, 0), base_frequency=4e5),
        scanner.SelectionField(np.diag([-2.0, -2.0, 4.0])),
        scanner.Receiver(coil, "si", transfer[0] + 1j * transfer[1], oversample=3),
        scanner.Grid(shape, (12e-3, 9e-3, 1e-3)),
    )


@pytest.mark.parametrize("x64, tolerance", [(False, 2e-6), (True, 1e-13)])
def test_everything_on(monkeypatch, x64, tolerance):
    """Time domain, rows, energies and matrix-free signal tell one story, in chunks."""
    monkeypatch.setattr(system_matrix, "_CHUNK", 2 * 240 * 3)  # 3 of 10 pixels a time
    with jax.enable_x64(x64):
        s, rng = everything((2, 5)), np.random.default_rng(6)
        matrix = np.asarray(system_matrix.simulate(s), np.float64)
        assert matrix.shape == (2, 80, 10)
        images = rng.random((3, 2, 5))
        u = physics.voltage(s, images)
        assert (
            nrms(u, np.einsum("ctp,bp->bct", matrix, images.reshape(3, -1))) < tolerance
        )
        spectra = np.fft.rfft(matrix, axis=1)
        frequency_selection = rng.random((2, 41)) < 0.5
        frequency_selection[:, [0, -1]] = True  # also bins that have no phase
        rows = system_matrix.simulate_rows(s, frequency_selection)
        assert nrms(rows, spectra[frequency_selection]) < tolerance
        energies = system_matrix.row_energies(s)
        assert nrms(energies, np.mean(np.abs(spectra) ** 2, axis=2)) < tolerance
        some = system_matrix.row_energies(s, stride=2)
        taken = spectra.reshape(2, 41, 2, 5)[:, :, 1:2, 1::2].reshape(2, 41, 2)
        assert nrms(some, np.mean(np.abs(taken) ** 2, axis=2)) < tolerance
        measured = system_matrix.forward(rows, images)
        assert nrms(measured, np.fft.rfft(u)[:, frequency_selection]) < tolerance


def test_three_dimensions():
    """Rows of a 3D calibration from the matrix-free signal's spectrum."""
    s = scanner.open_mpi_3d((3, 2, 2))
    image = np.random.default_rng(1).random((3, 2, 2))
    u = np.asarray(physics.voltage(s, image), np.float64)
    assert u.shape == (3, 53856)
    energies = system_matrix.row_energies(s)
    band = system_matrix.frequency_selection(s, min_frequency=80e3)
    frequency_selection = system_matrix.strongest(energies, 300, band)
    assert frequency_selection.sum() == 300 and not np.any(frequency_selection & ~band)
    assert np.min(energies[frequency_selection]) >= np.max(
        np.where(band & ~frequency_selection, energies, 0)
    )
    rows = system_matrix.simulate_rows(s, frequency_selection)
    assert rows.shape == (300, 12) and rows.dtype == jnp.complex64
    assert (
        nrms(system_matrix.forward(rows, image), np.fft.rfft(u)[frequency_selection])
        < 1e-5
    )
    # Strong rows lie on the lines 528 mx + 561 my + 544 mz of few harmonics: all of the
    # strongest 300 are far above the noise of float32.
    assert np.min(energies[frequency_selection]) > 1e-6 * np.max(energies)


def test_patches_and_colours():
    """Stacked rows of shifted patches, stacked columns of two tracers."""
    base = scanner.paper((4, 6), field_of_view=12e-3)
    pitch = 2e-3  # along x: an offset of gradient x pitch moves the patch one column
    grid = dataclasses.replace(base.grid, field_of_view=(12e-3, 8e-3, 1e-3))

    def patch(offset):
        field = scanner.SelectionField(base.selection_field.gradient, offset)
        return dataclasses.replace(base, selection_field=field, grid=grid)

    offsets = jnp.array([[0.0, 0, 0], [2.0 * pitch, 0, 0]])
    first, second = jax.vmap(lambda o: system_matrix.simulate(patch(o)))(offsets)
    moved = np.asarray(second).reshape(2, 1632, 4, 6)
    still = np.asarray(first).reshape(2, 1632, 4, 6)
    # Field +2 T/m * pitch with gradient -2 T/m: the patch moves by one column to +x.
    np.testing.assert_allclose(
        moved[..., 1:], still[..., :-1], atol=2e-5 * np.abs(still).max()
    )
    image = np.random.default_rng(3).random((4, 6))
    joint = jnp.concatenate([first, second])
    u = system_matrix.forward(joint, image)
    assert nrms(u[2:], physics.voltage(patch((4e-3, 0.0, 0.0)), image)) < 1e-5

    small = dataclasses.replace(base, tracer=scanner.Tracer(20e-9))
    columns = [system_matrix.simulate(s) for s in (base, small)]
    both = jnp.concatenate(columns, axis=-1)
    pair = np.random.default_rng(4).random((2, 4, 6))
    expected = sum(
        np.asarray(physics.voltage(s, c))
        for s, c in zip((base, small), pair, strict=True)
    )
    assert nrms(system_matrix.forward(both, pair), expected) < 1e-6


@pytest.mark.parametrize("rows", [(3, 7), (5,)])
@pytest.mark.parametrize("kind", [float, complex])
def test_forward_adjoint(rows, kind):
    """Re <A c, w> = <c, Re A^H w> in float64."""
    rng = np.random.default_rng(7)

    def draw(shape):
        a = rng.standard_normal(shape)
        return a + 1j * rng.standard_normal(shape) if kind is complex else a

    with jax.enable_x64(True):
        matrix, images, weight = (
            draw((*rows, 6)),
            rng.random((4, 2, 3)),
            draw((4, *rows)),
        )
        u, back = jax.vjp(lambda c: system_matrix.forward(matrix, c), images)
        expected = np.einsum("...p,bp->b...", matrix, images.reshape(4, 6))
        np.testing.assert_allclose(u, expected, rtol=1e-12)
        adjoint = back(jnp.asarray(weight).conj())[0]
        product = np.sum((np.asarray(u) * weight.conj()).real)
        np.testing.assert_allclose(np.sum(adjoint * images), product, rtol=1e-12)


def test_peak_memory():
    """Full size, compiled but not run: temporaries stay below the result itself."""
    s = scanner.paper()
    memory = system_matrix._simulate.lower(s, "tensor").compile().memory_analysis()
    result = 2 * 1632 * 128 * 128 * 4
    assert memory.output_size_in_bytes == result
    assert memory.temp_size_in_bytes < result


def test_differentiable(monkeypatch):
    """Rows and time-domain matrix in size spread and relaxation, float64."""
    monkeypatch.setattr(system_matrix, "_CHUNK", 2 * 240 * 3)
    frequency_selection = np.ones((2, 41), bool)

    @jax.jit
    def energy(tau, diameter):
        s = everything((2, 2), tau)
        s = dataclasses.replace(
            s, tracer=dataclasses.replace(s.tracer, core_diameter=diameter)
        )
        rows = system_matrix.simulate_rows(s, frequency_selection)
        matrix = system_matrix.simulate(s)
        return jnp.sum(jnp.abs(rows) ** 2) + jnp.sum(matrix**2 * weight)

    with jax.enable_x64(True):
        weight = np.random.default_rng(8).random((2, 80, 4))
        at = (1e-6, 25e-9)
        exact = jax.jit(jax.grad(energy, (0, 1)))(*at)
        for k, h in enumerate((1e-11, 1e-13)):
            up, down = ([*at[:k], at[k] + d, *at[k + 1 :]] for d in (h, -h))
            difference = (energy(*up) - energy(*down)) / (2 * h)
            np.testing.assert_allclose(exact[k], difference, rtol=1e-5)


def test_frequency_domain():
    s = scanner.paper(6)
    matrix = system_matrix.simulate(s)
    spectra = system_matrix.to_frequency(matrix)
    assert spectra.shape == (2, 817, 36)
    np.testing.assert_allclose(
        spectra,
        np.fft.rfft(np.asarray(matrix, np.float64), axis=1),
        atol=1e-5 * np.abs(spectra).max(),
    )
    frequency_selection = system_matrix.frequency_selection(s, min_frequency=80e3)
    assert (
        frequency_selection.shape == (2, 817)
        and not frequency_selection[:, s.frequencies() < 80e3].any()
    )
    rows = system_matrix.select_rows(spectra, frequency_selection, axis=1)
    image = np.random.default_rng(2).random((4, 6, 6))
    u = system_matrix.select_rows(
        physics.spectrum(physics.voltage(s, image)), frequency_selection
    )
    product = image.reshape(4, -1) @ np.asarray(rows).T
    assert np.linalg.norm(u - product) < 1e-5 * np.linalg.norm(product)
    # Frequency fastest, then channel.
    first = np.flatnonzero(frequency_selection[0])
    np.testing.assert_array_equal(rows[: len(first)], spectra[0][first])


def test_bad_input():
    s = scanner.paper(6)
    matrix = system_matrix.simulate(s)
    with pytest.raises(ValueError, match="36 pixels in all"):
        system_matrix.forward(matrix, np.ones((5, 6)))
    with pytest.raises(ValueError, match="expected a band"):
        system_matrix.frequency_selection(s, min_frequency=1e9)
    with pytest.raises(ValueError, match="at least one selected"):
        system_matrix.select_rows(np.ones((2, 5), complex), np.zeros((2, 5), bool))
    with pytest.raises(ValueError, match="frequency_selection: expected shape"):
        system_matrix.select_rows(np.ones((2, 5), complex), np.ones((2, 4), bool))
    with pytest.raises(
        ValueError, match=r"frequency_selection: expected shape \(2, 817\)"
    ):
        system_matrix.simulate_rows(s, np.ones((2, 816), bool))
    with pytest.raises(ValueError, match="boolean, got"):
        system_matrix.simulate_rows(s, np.ones((2, 817)))
    with pytest.raises(ValueError, match="stride: expected"):
        system_matrix.row_energies(s, stride=0)
    with pytest.raises(ValueError, match="count: expected 1 to 3"):
        system_matrix.strongest(np.ones((1, 4)), 4, np.array([[True] * 3 + [False]]))
