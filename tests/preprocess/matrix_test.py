"""The system matrix: background, planes, other grids, sparse rows, patches."""

import dataclasses

import numpy as np
import pytest
import scipy.fft
from support.two_files import (
    EMPTY,
    FLAT,
    NX,
    NY,
    C,
    K,
    S,
    U,
    V,
    calibration,
    cleaned,
    measurement,
    noise,
    same,
    spectra,
)

from mpi_jax import mdf, physics, preprocess, scanner, system_matrix
from mpi_jax.configs import Preprocessing

pytestmark = pytest.mark.usefixtures("x64")


def test_matrix_background(tmp_path):
    """Acquired as e v v v v e v v v v e v v v v e, while the background drifts."""
    order = np.r_[np.setdiff1d(np.arange(16), [0, 5, 10, 15]), [0, 5, 10, 15]]
    drift = noise(6, C, K, 1, kind=complex) + noise(7, C, K, 1, kind=complex) * order
    # `order` counts in the file's order of voxels, S stands in that of the image.
    image = mdf.voxel_order(mdf.header(FLAT, calibration=True)).reshape(-1)
    voxels, empty = drift[..., image], drift[..., 12:]
    changes = dict(measurement__frame_permutation=order)
    matrix = S / 1e-9 + voxels
    a = calibration(tmp_path / "c.mdf", matrix, empty, **changes)
    b = measurement(tmp_path / "m.mdf", U[:1])
    data = spectra(U[:1].mean(1))
    expected = {
        "none": matrix,
        "mean": matrix - empty.mean(-1, keepdims=True),
        "interpolated": S / 1e-9,
    }
    for kind, rows in expected.items():
        system = preprocess.prepare(a, b, Preprocessing(matrix_background=kind))
        same(system, rows.reshape(C * K, -1), data)
        assert any("keeps its background" in n for n in system.notes) == (
            kind == "none"
        )
    done = dict(measurement__is_background_corrected=True)
    a = calibration(tmp_path / "d.mdf", matrix, empty, **changes, **done)
    for kind in expected:
        system = preprocess.prepare(a, b, Preprocessing(matrix_background=kind))
        same(system, matrix.reshape(C * K, -1), data)


def volume(shape=(3, NY, NX), size=(4e-3, 6e-3, 1.5e-3), centre=(1e-3, 0, 2e-3)):
    return dataclasses.replace(FLAT, grid=scanner.Grid(shape, size, centre))


def test_plane(tmp_path):
    """Layers of a volume as images, counted from the lowest z."""
    matrix = noise(8, C, K, 36, kind=complex)
    a = calibration(tmp_path / "c.mdf", matrix, scan=volume())
    b = measurement(tmp_path / "m.mdf", U[:1])
    for plane in range(3):
        system = preprocess.prepare(a, b, Preprocessing(plane=plane))
        layer = matrix.reshape(C * K, 3, -1)[:, plane]
        same(system, layer, spectra(U[:1].mean(1)))
        assert system.grid.shape == (NY, NX)
        height = 2e-3 + (plane - 1) * 0.5e-3
        np.testing.assert_allclose(system.grid.centre, [1e-3, 0, height])


@pytest.mark.parametrize(
    "shape, extent",
    [
        ((3, 5, 2), None),
        ((2, 4, 4), (5e-3, 5e-3, 3e-3)),
        ((1, 7, 9), (2e-3, 1e-3, 1e-3)),
    ],
)
def test_other_grids_are_exact_for_linear_rows(tmp_path, shape, extent):
    scan = volume()
    weight = noise(9, C * K, 4, kind=complex)

    def linear(grid):
        r = np.asarray(grid.positions()) * 1e3
        return weight[:, :1] + weight[:, 1:] @ r.T

    matrix = linear(scan.grid).reshape(C, K, -1)
    a = calibration(tmp_path / "c.mdf", matrix, scan=scan)
    b = measurement(tmp_path / "m.mdf", U[:1])
    settings = Preprocessing(shape=shape, field_of_view=extent)
    system = preprocess.prepare(a, b, settings)
    new = scanner.Grid(shape, extent or (4e-3, 6e-3, 1.5e-3), (1e-3, 0, 2e-3))
    ratio = np.prod(new.pitch) / np.prod(scan.grid.pitch)
    same(system, linear(new) * ratio, spectra(U[:1].mean(1)))
    np.testing.assert_allclose(system.grid.positions(), new.positions())


def test_the_same_concentration_on_a_finer_grid(tmp_path):
    """A uniform tracer has the value 1 on both."""
    scan = volume()
    rows = np.repeat(noise(10, C, K, 1, kind=complex), 36, axis=-1)
    a = calibration(tmp_path / "c.mdf", rows, scan=scan)
    b = measurement(
        tmp_path / "m.mdf",
        rows.sum(-1)[None, None],
        measurement__is_fourier_transformed=True,
    )
    system = preprocess.prepare(a, b, Preprocessing(shape=(6, 6, 8)))
    np.testing.assert_allclose(
        system.system_matrix @ np.ones(288), system.measurement[0], rtol=1e-10
    )


# --- Patches

PITCH = np.array([1e-3, 1.2e-3, 0.5e-3])


def patched(shape, centre=(0.0, 0.0, 0.0), offset=(0.0, 0.0, 0.0)):
    counts = np.array([shape[-1], shape[-2], shape[0] if len(shape) == 3 else 1])
    return dataclasses.replace(
        FLAT,
        selection_field=scanner.SelectionField(np.diag([-1.0, -1.0, 2.0]), offset),
        grid=scanner.Grid(shape, tuple(counts * PITCH), centre),
    )


def respond(scan):
    """[C * K, P]"""
    u = system_matrix.to_frequency(system_matrix.simulate(scan))
    return np.asarray(u).reshape(C * K, -1)


SHIFTS = np.array([[0, 0, 0], [2, 0, 0], [2, -1, 0], [-1, 1, 0]])


@pytest.mark.parametrize("start", [(0.0, 0.0, 0.0), (0.3e-3, -0.2e-3, 0.0)])
def test_patches_equal_simulated_shifts(tmp_path, start):
    """A shift of the field-free point by whole voxels: the physics on the joint grid."""
    diagonal, small = np.array([-1.0, -1.0, 2.0]), patched((4, 5), offset=start)
    offsets = np.array(start) - diagonal * SHIFTS * PITCH
    # Columns -1 to 5 + 1, rows y from -1 to 4 + 0: 8 x 6 voxels about their middle.
    centre = np.array([0.5, 0.0, 0.0]) * PITCH
    scans = [patched((6, 8), centre, tuple(o)) for o in offsets]
    rows = np.zeros((4, C * K, 6, 8), complex)
    for row, scan, (x, y, _) in zip(rows, scans, SHIFTS, strict=True):
        part = np.zeros((6, 8), bool)
        part[1 - y : 5 - y, 1 + x : 6 + x] = True  # y falls with the row
        row[:, part] = respond(scan).reshape(C * K, 6, 8)[:, part]
    rows = rows.reshape(4 * C * K, -1)
    c = np.random.default_rng(23).uniform(size=48)
    u = np.fft.irfft((rows @ c).reshape(1, 4, C, K), V)
    a = calibration(tmp_path / "c.mdf", respond(small).reshape(C, K, -1), scan=small)
    b = measurement(tmp_path / "m.mdf", u, scan=small, offsets=offsets)
    settings = Preprocessing(min_frequency=1.0, max_frequency=1.2e6)
    used = np.tile((np.arange(K) > 0) & (np.arange(K) < 20), 4 * C)
    system = preprocess.prepare(a, b, settings)
    same(system, rows[used], (rows @ c)[None, used], 1e-6)
    np.testing.assert_allclose(
        system.system_matrix @ c, system.measurement[0], atol=1e-6
    )
    assert system.grid.shape == (6, 8)
    np.testing.assert_allclose(system.grid.centre, centre, atol=1e-12)
    np.testing.assert_allclose(system.grid.pitch, PITCH)
    # One of them alone keeps its rows and stands where it was measured.
    one = preprocess.prepare(a, b, Preprocessing(periods=(3, 4)))
    assert one.grid.shape == (4, 5)
    np.testing.assert_allclose(one.grid.centre, SHIFTS[3] * PITCH, atol=1e-12)


def test_sparse_rows(tmp_path, plain):
    """Against SciPy's transform, and against keeping everything."""
    _, b = plain
    a = calibration(tmp_path / "s.mdf", S)
    volume = S.reshape(-1, NY, NX)
    terms = scipy.fft.dctn(volume, axes=(1, 2), norm="ortho").reshape(len(volume), -1)
    data = preprocess.prepare(a, b).measurement
    for settings, left in [
        ({"sparse_reduction": 0.25}, np.argsort(np.argsort(-np.abs(terms))) < 3),
        (
            {"sparse_threshold": 0.5},
            np.abs(terms) >= 0.5 * np.abs(terms).max(1, keepdims=True),
        ),
        ({"sparse_reduction": 1.0}, np.ones(terms.shape, bool)),
    ]:
        system = preprocess.prepare(a, b, Preprocessing(**settings))
        back = np.where(left, terms, 0).reshape(volume.shape)
        rows = scipy.fft.idctn(back, axes=(1, 2), norm="ortho").reshape(terms.shape)
        unit = np.linalg.norm(rows) / np.linalg.norm(system.system_matrix)
        np.testing.assert_allclose(system.system_matrix, rows / unit, atol=1e-12)
        assert data.shape == system.measurement.shape
    with pytest.raises(ValueError, match="sparse_reduction: expected at least"):
        preprocess.prepare(a, b, Preprocessing(sparse_reduction=0.01))


def test_fractional_shifts_are_close_and_their_sign_matters(tmp_path):
    """A smooth object that all patches see, against the physics of shifted fields."""
    small, shifts = patched((8, 9)), np.array([[0, 0, 0], [1.4, -0.6, 0]]) * PITCH
    offsets = -shifts * np.diag(small.selection_field.gradient)

    def smooth(grid):
        x, y, _ = (np.asarray(grid.positions()) - shifts[1] / 2).T
        return np.exp(-(x**2 + y**2) / (2 * 1.2e-3**2))

    scans = [patched((16, 16), offset=tuple(offset)) for offset in offsets]
    # About the geometry, and the limit below is that of plain sampling: harmonics that
    # fold back tell the sides apart too, and oversampling filters them.
    plain = dataclasses.replace(small.receiver, oversample=1)
    small, *scans = (dataclasses.replace(s, receiver=plain) for s in (small, *scans))
    u = [physics.voltage(s, smooth(s.grid).reshape(16, 16)) for s in scans]
    a = calibration(tmp_path / "c.mdf", respond(small).reshape(C, K, -1), scan=small)

    def misfit(claimed):
        b = measurement(
            tmp_path / "m.mdf", np.array(u)[None], scan=small, offsets=claimed
        )
        system = preprocess.prepare(a, b, Preprocessing(min_frequency=1.0))
        assert system.grid.shape == (9, 11)
        error = system.system_matrix @ smooth(system.grid) - system.measurement[0]
        return np.linalg.norm(error) / np.linalg.norm(system.measurement)

    assert misfit(offsets) < 0.05
    assert misfit(-offsets) > 0.3


def test_layers_by_moving_the_object(tmp_path):
    """The 2D sequence of Open MPI Data: patches in z, periods, one empty frame."""
    layers, repeats = 3, 4
    matrix = noise(24, C, K, 3 * NY * NX, kind=complex)
    scan = patched((3, NY, NX))
    a = calibration(tmp_path / "c.mdf", matrix, scan=scan)
    z = np.repeat([-1, 0, 1], repeats)
    offsets = -2.0 * z[:, None] * [0, 0, PITCH[2]]
    u = noise(25, 2, layers * repeats, C, V)
    b = measurement(tmp_path / "m.mdf", u, [False, True], scan=scan, offsets=offsets)
    difference = (u[0] - u[1]).reshape(layers, repeats, C, V).mean(1)
    joint = np.zeros((layers, C * K, 5, NY * NX), complex)
    for layer in range(layers):
        joint[layer, :, layer : layer + 3] = matrix.reshape(C * K, 3, -1)
    system = preprocess.prepare(a, b, Preprocessing(background="mean"))
    same(system, joint.reshape(layers * C * K, -1), spectra(difference).reshape(1, -1))
    assert system.grid.shape == (5, NY, NX)
    np.testing.assert_allclose(system.grid.centre, 0, atol=1e-12)
    # The middle layer alone, as an image.
    one = Preprocessing(background="mean", plane=1, periods=(4, 8))
    system = preprocess.prepare(a, b, one)
    layer = matrix.reshape(C * K, 3, -1)[:, 1]
    same(system, layer, spectra(difference[1])[None])
    # So does an empty scan of its own, patch by patch.
    empty = measurement(tmp_path / "e.mdf", u[1:], scan=scan, offsets=offsets)
    seen = measurement(tmp_path / "f.mdf", u[:1], scan=scan, offsets=offsets)
    external = Preprocessing(background="external")
    system = preprocess.prepare(a, seen, external, empty)
    same(system, joint.reshape(layers * C * K, -1), spectra(difference).reshape(1, -1))
    for other, message in (
        (offsets[::-1], "expected the offset fields of the measurement"),
        (0 * offsets, "expected 3 groups of periods like the measurement, found 1"),
    ):
        empty = measurement(tmp_path / "e.mdf", u[1:], scan=scan, offsets=other)
        with pytest.raises(ValueError, match=message):
            preprocess.prepare(a, seen, external, empty)
    # Half of each patch makes each of them twice; weights come along.
    twice = Preprocessing(
        background="mean", period_average=2, channel_weights=(1.0, 3.0)
    )
    system = preprocess.prepare(a, b, twice)
    assert len(system.system_matrix) == 6 * C * K
    np.testing.assert_array_equal(system.weights, np.tile(np.repeat([1, 3], K), 6))
    with pytest.raises(ValueError, match="period_average: expected periods of one off"):
        preprocess.prepare(a, b, Preprocessing(period_average=3))
    with pytest.raises(ValueError, match="plane: expected None"):
        preprocess.prepare(a, b, Preprocessing(plane=1))
    # Windows against leakage don't reach over to the next patch.
    leak = Preprocessing(spectral_leakage=True, frames=(0,), periods=(0, 4))
    expected = spectra(cleaned(u[0, :4]).mean(0))
    same(preprocess.prepare(a, b, leak), matrix.reshape(C * K, -1), expected[None])


def test_patches_need_a_gradient_and_memory(tmp_path, plain, monkeypatch):
    a, b = plain
    offsets = np.linspace(0, 5e-3, 6)[:, None] * [1, 0, 0]
    moved = measurement(tmp_path / "p.mdf", U, EMPTY, offsets=offsets)
    none = dict(acquisition__gradient=None)
    blind = calibration(tmp_path / "n.mdf", S, **none)
    settings = Preprocessing(tolerate=("gradient",))
    with pytest.raises(ValueError, match="expected a gradient of full rank"):
        preprocess.prepare(blind, moved, settings)
    monkeypatch.setattr(preprocess.matrix, "JOINT", 1e4)
    with pytest.raises(ValueError, match="patches: expected a joint system of at most"):
        preprocess.prepare(a, moved)
