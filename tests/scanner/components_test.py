"""Tracer, fields, receiver: units, exact sampling, checks at the door."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpi_jax import scanner


def test_iron_density():
    # PHYSICS: 50 mmol/L of 30 nm cores are 5.28e19 particles per m^3.
    np.testing.assert_allclose(
        scanner.Tracer(30e-9, iron_concentration=50.0).number_density,
        5.28e19,
        rtol=2e-3,
    )


def test_sampling_is_exact():
    """Integer phases against float64 time, late in the long 3D period."""
    drive = scanner.open_mpi_3d().drive_field
    with jax.enable_x64(True):
        field, rate = drive.field()
    t = np.arange(drive.samples) / 2.5e6
    f = 2.5e6 / np.array([102, 96, 99])
    angle = 2 * np.pi * (f * t[:, None] + 0.25)
    np.testing.assert_allclose(field, 12e-3 * np.sin(angle), atol=1e-13)
    np.testing.assert_allclose(
        rate, 12e-3 * 2 * np.pi * f * np.cos(angle), atol=1e-8, rtol=0
    )


def test_field_vanishes_at_field_free_point():
    s = scanner.paper(phase=0.1)
    s = dataclasses.replace(
        s,
        selection_field=scanner.SelectionField(
            np.diag([-1.0, -2.0, 3.0]), (1e-3, 2e-3, 0.0)
        ),
    )
    position, velocity = s.field_free_point()
    drive, rate = s.drive_field.field()
    gradient = s.selection_field.gradient
    b = drive + s.selection_field.offset[None] + position @ gradient
    assert np.max(np.abs(b)) < 1e-8
    np.testing.assert_allclose(velocity @ gradient, -rate, atol=1e-3)


def test_sine_and_cosine_paths():
    """The sine path crosses itself elsewhere than the cosine path, which retraces."""
    for phase, distinct in ((0.0, 1377), (0.25, 697)):
        position = scanner.paper(phase=phase).field_free_point()[0]
        assert len(np.unique(np.round(position * 1e7), axis=0)) == distinct


def test_pytree_under_transformations():
    s = scanner.paper(8)
    assert jax.tree.structure(s) == jax.tree.structure(jax.tree.map(jnp.asarray, s))
    stacked = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), s)
    beta = jax.vmap(lambda one: one.tracer.beta)(stacked)
    # beta ~ M d^3 / T
    np.testing.assert_allclose(beta[1] / beta[0], 8, rtol=1e-5)
    gradient = jax.grad(
        lambda a: scanner.paper(8, amplitude=a).drive_field.field()[0].max()
    )
    np.testing.assert_allclose(gradient(12.8e-3), 1.0, rtol=1e-3)


def test_one_dimensional_path():
    drive = scanner.DriveField((12e-3, 0.0, 0.0), (102, 0, 0), (0.25, 0.0, 0.0))
    field, rate = drive.field()
    assert field.shape == (102, 3) and not np.any(field[:, 1:])
    angle = 2 * np.pi * np.arange(102) / 102
    np.testing.assert_allclose(field[:, 0], 12e-3 * np.cos(angle), atol=1e-8)
    omega = 2 * np.pi * 2.5e6 / 102
    np.testing.assert_allclose(rate[:, 0], -12e-3 * omega * np.sin(angle), atol=1e-3)


@pytest.mark.parametrize("phase", [0.0, 0.25])
def test_cartesian_path(phase):
    """Six fast sine lines a slow triangle: period, places, derivatives, corners."""
    with jax.enable_x64(True):
        drive = scanner.DriveField(
            (8e-3, 4e-3, 0.0),
            (96, 6 * 96, 0),
            (phase, phase, 0.0),
            waveform=("sine", "triangle", "sine"),
        )
        s = scanner.paper()
        s = dataclasses.replace(s, drive_field=drive)
        field, rate, position = map(
            np.asarray, (*drive.field(), s.field_free_point()[0])
        )
    assert drive.samples == 576
    # Evenly spaced in y, edge to edge, up and down: 4 mT, 2 T/m.
    y = np.unique(np.round(position[:, 1], 12))
    np.testing.assert_allclose(y, np.linspace(-2e-3, 2e-3, 289), atol=1e-12)
    np.testing.assert_allclose(np.max(position[:, 0]), 4e-3, rtol=1e-12)
    # The fast line repeats, the slow axis turns half way.
    np.testing.assert_allclose(field[96:, 0], field[:-96, 0], atol=1e-15)
    np.testing.assert_allclose(field[288:, 1], -field[:288, 1], atol=1e-15)
    spectral = np.fft.irfft(
        np.fft.rfft(field[:, 0]) * 2j * np.pi * np.fft.rfftfreq(576, 1 / 2.5e6), 576
    )
    np.testing.assert_allclose(rate[:, 0], spectral, rtol=0, atol=1e-8)
    centred = (np.roll(field[:, 1], -1) - np.roll(field[:, 1], 1)) / 2 * 2.5e6
    np.testing.assert_allclose(rate[:, 1], centred, rtol=0, atol=1e-9)
    assert np.sum(rate[:, 1] == 0) == 2  # the two corners


def test_field_free_line_has_no_point():
    s = scanner.paper(4)
    line = scanner.SelectionField(np.diag([-2.0, 2.0, 0.0]))
    with pytest.raises(ValueError, match="field-free line"):
        dataclasses.replace(s, selection_field=line).field_free_point()


def _with(receiver):
    return dataclasses.replace(scanner.paper(4), receiver=receiver)


@pytest.mark.parametrize(
    "build, words",
    [
        (lambda: scanner.Tracer(diameter_spread=-0.1), "Tracer.diameter_spread"),
        (lambda: scanner.Tracer(relaxation_time=-1e-6), "Tracer.relaxation_time"),
        (lambda: scanner.Tracer(diameter_nodes=0), "Tracer.diameter_nodes"),
        (
            lambda: scanner.DriveField((1.0,) * 3, (3, 2, 0), waveform=("saw",) * 3),
            "DriveField.waveform",
        ),
        (lambda: scanner.Receiver(np.eye(3), oversample=0), "Receiver.oversample"),
        (lambda: _with(scanner.Receiver(np.ones((2, 3, 9)))), r"\[C, 3, 16\]"),
        (
            lambda: _with(
                scanner.Receiver(np.eye(2, 3), "si", np.ones((2, 9), complex))
            ),
            r"transfer_function: expected shape \(2, 817\)",
        ),
        (lambda: scanner.Tracer(core_diameter=-1e-9), "Tracer.core_diameter"),
        (lambda: scanner.Tracer(temperature=float("nan")), "Tracer.temperature"),
        (lambda: scanner.SelectionField(np.eye(3)), "trace 0"),
        (lambda: scanner.SelectionField(np.zeros((3, 3))), "not all zero"),
        (lambda: scanner.DriveField((1.0, 1.0), (1, 2, 3)), "shape ending in"),
        (lambda: scanner.DriveField((1.0, 1.0, 0.0), (0, 0, 0)), "at least one"),
        (lambda: scanner.Receiver(np.eye(3), "volt"), "'moment' or 'si'"),
        (lambda: scanner.Receiver(np.eye(2)), r"\[C, 3\]"),
        (lambda: scanner.Grid((0, 3), (1.0, 1.0, 1.0)), "whole numbers"),
        (lambda: scanner.Grid((3, 3), (1.0, 0.0, 1.0)), "positive"),
    ],
)
def test_bad_input_is_named(build, words):
    with pytest.raises(ValueError, match=words):
        build()


@pytest.mark.parametrize(
    "build, words",
    [
        (
            lambda: scanner.Tracer(core_diameter=30),
            r"Tracer.core_diameter: expected metres \[m\], .* got 30; .* 30e-9\?",
        ),
        (lambda: scanner.Tracer(temperature=20), r"kelvin \[K\].* mean 293\?"),
        (lambda: scanner.Tracer(relaxation_time=3), r"seconds \[s\].* mean 3e-6\?"),
        (lambda: scanner.Tracer(saturation_magnetisation=480), r"mean 480e3\?"),
        (lambda: scanner.paper(8, amplitude=12), r"tesla \[T\].* mean 12e-3\?"),
        (lambda: scanner.paper(8, field_of_view=12.8), r"\[m\].* mean 12.8e-3\?"),
        (lambda: scanner.paper(8, gradient=2000), r"\[T/m\]"),
        (lambda: scanner.paper(8, phase=90), r"turns.* mean 0.25, .* 90 degrees\?"),
        (lambda: scanner.paper(8, phase=np.pi / 2), r"turns.* mean 0.25, .* rad\?"),
        (
            lambda: scanner.DriveField((12e-3,) * 3, (3, 2, 0), base_frequency=2.5),
            r"hertz \[Hz\].* mean 2.5e6\?",
        ),
        (
            lambda: scanner.circular_coil(
                scanner.paper(4).grid, radius=50.0, centre=(0, 0, 0), axis=(0, 0, 1)
            ),
            r"radius: expected metres \[m\].* mean 50e-3\?",
        ),
    ],
)
def test_a_number_in_another_unit_is_named(build, words):
    with pytest.raises(ValueError, match=words):
        build()


def test_numbers_under_jit_and_in_stacks():
    """A traced number passes, whatever it is; of a stack each number is looked at."""
    beta = jax.jit(lambda d: scanner.Tracer(core_diameter=d).beta)
    assert np.isfinite(beta(30.0))
    scanner.Tracer(core_diameter=np.array([20e-9, 30e-9]))
    with pytest.raises(ValueError, match="got 30; did you mean 30e-9"):
        scanner.Tracer(core_diameter=np.array([20e-9, 30.0]))


def test_integers_of_numpy_are_integers(unannotated):
    """Kept as Python's, so that equal scanners are equal and go into JSON."""
    n = np.int64(8)
    assert scanner.paper(n).grid.shape == (8, 8)
    assert type(scanner.paper((n, n)).grid.shape[0]) is int
    grid = scanner.Grid((n, np.int32(4)), (1e-3, 1e-3, 1e-3))
    assert grid.refined(np.int64(2)).shape == (16, 8)
    drive = scanner.DriveField((1e-3, 1e-3, 0.0), tuple(np.array([3, 2, 0])))
    assert drive.divider == (3, 2, 0) and type(drive.divider[0]) is int
    coils = scanner.Receiver(np.eye(3), oversample=np.int64(2))
    assert coils.oversample == 2 and type(coils.oversample) is int
    assert scanner.Tracer(diameter_nodes=np.int64(8)).diameter_nodes == 8
    for build in (
        lambda: scanner.Receiver(np.eye(3), oversample=True),
        lambda: scanner.Grid((True, 8), (1e-3, 1e-3, 1e-3)),
        lambda: scanner.paper((8, 8, 8)),
    ):
        with pytest.raises(ValueError, match="expected"):
            build()


def test_coils_are_real(unannotated):
    with pytest.raises(
        ValueError, match="sensitivity: expected real numbers, got comp"
    ):
        scanner.Receiver(1j * np.eye(3))


def test_presets_are_oversampled_but_the_one_of_the_other_simulator():
    assert scanner.paper(4).receiver.oversample == 2
    assert scanner.open_mpi_2d(4).receiver.oversample == 2
    assert scanner.open_mpi_3d(4).receiver.oversample == 2
    assert scanner.paper(4, oversample=1).receiver.oversample == 1
    assert scanner.mpirf(amplitude=(1.6e-3, 1.6e-3)).receiver.oversample == 1
    assert scanner.paper(4, oversample=8).samples == 1632
