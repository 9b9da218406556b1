"""From a system of two files to images: every method, its choice of lambda, its errors."""

import dataclasses
import itertools

import numpy as np
import pytest
from support.two_files import (
    ALL,
    DRIVE,
    FLAT,
    NX,
    NY,
    C,
    K,
    S,
    calibration,
    measurement,
    noise,
    pair,
    same,
)

from mpi_jax import mdf, physics, preprocess, scanner, system_matrix
from mpi_jax.configs import Preprocessing
from mpi_jax.methods import linear

DOUBLE = pytest.mark.usefixtures("x64")


@pytest.fixture
def plain(tmp_path):
    """A calibration, and a measurement of 6 + 4 frames of 6 periods."""
    return pair(tmp_path)


@DOUBLE
@pytest.mark.parametrize("method", ["kaczmarz", "cgnr", "nonnegative"])
def test_weighted_equals_an_explicit_product(method):
    rows, data = noise(20, 18, 6, kind=complex), noise(21, 2, 18, kind=complex)
    weights = np.random.default_rng(22).uniform(size=18)
    frequency_selection, grid = (
        np.ones((1, 18), bool),
        scanner.Grid((2, 3), (1.0, 1.0, 1.0)),
    )
    one = preprocess.System(rows, data, weights, frequency_selection, grid)
    product = weights[:, None] * rows, weights * data
    two = preprocess.System(*product, None, frequency_selection, grid)
    np.testing.assert_allclose(
        linear.reconstruct(one, method), linear.reconstruct(two, method), atol=1e-12
    )


@DOUBLE
def test_several_tracers(tmp_path):
    """Columns of both, rows of both; images of each."""
    one, two = S / 1e-9, noise(26, C, K, NY * NX, kind=complex)
    ratios = np.full((2, C, K), 5.0)
    ratios[0, 0, 3] = ratios[1, 1, 6] = 1
    files = [
        calibration(tmp_path / f"{n}.mdf", m, calibration__snr=r[None])
        for n, m, r in zip("ab", (one, two), ratios, strict=True)
    ]
    frequency_selection = (ratios > 2).all(0)
    c = np.random.default_rng(27).uniform(size=(2, NY * NX))
    full = one @ c[0] + two @ c[1]
    full[:, [0, -1]] = full[:, [0, -1]].real
    b = measurement(
        tmp_path / "m.mdf",
        full[None, None],
        measurement__is_fourier_transformed=True,
    )
    settings = Preprocessing(snr_threshold=2.0, min_frequency=1.0, max_frequency=1.2e6)
    frequency_selection[:, [0, -1]] = False
    rows = np.concatenate([one[frequency_selection], two[frequency_selection]], axis=1)
    system = preprocess.prepare(files, b, settings)
    same(system, rows, (rows @ c.reshape(-1))[None])
    image = linear.reconstruct(system, "tikhonov", lam=1e-12)
    assert image.shape == (1, 2, NY, NX)
    np.testing.assert_allclose(image.reshape(2, -1), c, atol=1e-6)
    with pytest.raises(ValueError, match="tv: expected a system of one calibration"):
        linear.reconstruct(system, "tv")
    assert preprocess.prepare(files[:1], b).tracers == 1
    with pytest.raises(ValueError, match="calibration: expected at least one"):
        preprocess.prepare([], b)
    wider = dataclasses.replace(FLAT, grid=scanner.Grid((NY, NX), (1.0, 1.0, 1.0)))
    other = calibration(tmp_path / "o.mdf", two, scan=wider)
    with pytest.raises(ValueError, match="calibration: expected files on one grid"):
        preprocess.prepare([files[0], other], b)


WEAK = 2.0**-9  # which rounds nothing
BLOCKS = {"flat": (6, 7), "volume": (3, 4, 4)}


@pytest.fixture(scope="module", params=BLOCKS)
def phantom(request, tmp_path_factory):
    """Files in the format's own order of voxels, made by a loop; phantom and system."""
    folder, shape = tmp_path_factory.mktemp(request.param), BLOCKS[request.param]
    if request.param == "flat":
        scan = dataclasses.replace(scanner.open_mpi_2d(shape), drive_field=DRIVE)
    else:
        drive = scanner.DriveField((12e-3,) * 3, (6, 5, 4), (0.25,) * 3)
        scan = dataclasses.replace(
            scanner.open_mpi_3d(shape, field_of_view=(20e-3, 20e-3, 9e-3)),
            drive_field=drive,
        )
    c = np.zeros(shape)
    c[..., 0, 1:3], c[..., -1, -1] = 1, 0.5  # top left, bottom right
    if len(shape) == 3:
        c[0] = 0
    made = np.asarray(system_matrix.simulate(scan)) * 1e-12
    matrix = np.fft.rfft(made, axis=1)
    nx, ny, nz = scan.grid.counts
    place = {
        tuple(np.rint(p * 1e9)): i
        for i, p in enumerate(np.asarray(scan.grid.positions()))
    }
    extent = np.asarray(scan.grid.field_of_view)
    columns = []
    for iz, iy, ix in itertools.product(range(nz), range(ny), range(nx)):
        r = extent * (
            (2 * np.array([ix, iy, iz]) + 1) / (2 * np.array([nx, ny, nz])) - 0.5
        )
        near = min(place, key=lambda key: np.linalg.norm(key - r * 1e9))
        columns.append(matrix[..., place[near]])
    header = mdf.header(scan, calibration=True)
    mdf.write_calibration(folder / "c.mdf", header, np.stack(columns, -1)[None])
    u = np.asarray(physics.voltage(scan, c)) * 1e-12
    u = np.stack([u, WEAK * u])[:, None]  # a strong and a weak frame
    mdf.write_measurement(folder / "m.mdf", mdf.header(scan, frames=2), u)
    return mdf.read(folder / "c.mdf"), mdf.read(folder / "m.mdf"), c


LIMITS = {
    "kaczmarz": 0.5,
    "cgnr": 0.5,
    "tikhonov": 0.4,
    "nonnegative": 0.05,
    "tv": 0.05,
    "elastic_net": 0.2,
}


@pytest.mark.parametrize("method", linear.METHODS)
def test_every_method_recovers_a_phantom(phantom, method):
    """Of picovolts in single precision, frame by frame."""
    a, b, c = phantom
    system = preprocess.prepare(a, b, Preprocessing(min_frequency=1.0))
    assert system.system_matrix.dtype == system.measurement.dtype == np.complex64
    image = np.asarray(linear.reconstruct(system, method))
    assert image.shape == (2, *c.shape) and image.min() >= 0
    error = np.linalg.norm(image[0] - c) / np.linalg.norm(c)
    assert error < LIMITS[method], error
    np.testing.assert_allclose(image[1], WEAK * image[0], atol=2e-6)


def test_l1_of_a_frame_does_not_depend_on_others(phantom):
    a, b, _ = phantom
    system = preprocess.prepare(a, b, Preprocessing(min_frequency=1.0))
    image = linear.reconstruct(system, "elastic_net", l1=0.3)
    assert 0 < np.mean(image[1] > 0) < 1
    np.testing.assert_allclose(image[1], WEAK * image[0], atol=2e-6)
    assert not linear.reconstruct(system, "elastic_net", l1=1.01).any()


@DOUBLE
def test_choice_of_lam(plain):
    a, b = plain
    system = preprocess.prepare(a, b, Preprocessing(background="mean", row_norm=True))
    lams = np.logspace(0, -5, 6)
    chosen, curve, images = linear.choose_lam(system, "tikhonov", lams)
    rows = system.weights[:, None] * system.system_matrix
    data = system.weights * system.measurement
    rows = np.concatenate([rows.real, rows.imag])
    data = np.concatenate([data.real, data.imag], axis=1)
    top = np.linalg.norm(rows, 2) ** 2
    for f, u in enumerate(data):
        for i, lam in enumerate(lams):
            gram = rows.T @ rows + lam * top * np.eye(NY * NX)
            c = np.maximum(np.linalg.solve(gram, rows.T @ u), 0)
            found = curve.residual[f, i], curve.solution[f, i]
            expected = np.linalg.norm(rows @ c - u), np.linalg.norm(c)
            np.testing.assert_allclose(found, expected, rtol=1e-6)
            np.testing.assert_allclose(images[f, i].reshape(-1), c, atol=1e-9 * top)
        assert chosen[f] == lams[np.argmax(curve.curvature[f])]
    chosen, curve, images = linear.choose_lam(
        system, "kaczmarz", lams, rule="discrepancy", iterations=3
    )
    one = linear.reconstruct(system, "kaczmarz", lam=lams[2], iterations=3)
    np.testing.assert_allclose(images[:, 2], one, rtol=1e-9)
    level = np.linalg.norm(system.weights * system.noise)
    for f, residuals in enumerate(curve.residual):
        met = [lam for lam, r in zip(lams, residuals, strict=True) if r <= level]
        assert chosen[f] == (met[0] if met else lams[-1])
    loud = dataclasses.replace(system, noise=system.noise * 1e3)
    assert (
        linear.choose_lam(loud, "kaczmarz", lams, rule="discrepancy", iterations=3)[0]
        == 1
    ).all()

    quiet = dataclasses.replace(system, noise=None)
    bad = [
        ((system, "kaczmarz", lams[::-1]), {}, "lams: expected three or more falling"),
        ((system, "kaczmarz", lams), {"rule": "gcv"}, "rule: expected l_curve"),
        ((quiet, "kaczmarz", lams), {"rule": "discrepancy"}, "noise is not known"),
        ((system, "tv", lams), {}, "method tv: expected settings out of"),
    ]
    for arguments, settings, message in bad:
        with pytest.raises(ValueError, match=message):
            linear.choose_lam(*arguments, **settings)


@DOUBLE
def test_ranks_above_the_resolved_are_cut(monkeypatch):
    """Fewer singular values than the limit are no error."""
    rows = noise(28, 12, 3, kind=complex) @ noise(29, 3, 10)
    monkeypatch.setattr(linear, "RANK", 8)
    c = np.abs(noise(30, 10))
    system = preprocess.System(
        rows, (rows @ c)[None], None, ALL, scanner.Grid((2, 5), (1.0, 1.0, 1.0))
    )
    image = linear.reconstruct(system, "nonnegative", iterations=200)
    np.testing.assert_allclose(rows @ image.reshape(-1), rows @ c, rtol=1e-3)


@DOUBLE
def test_unknown_methods_and_settings(plain):
    system = preprocess.prepare(*plain)
    with pytest.raises(ValueError, match="method: expected one of kaczmarz"):
        linear.reconstruct(system, "fista")
    with pytest.raises(
        ValueError, match="method tikhonov: expected settings out of lam"
    ):
        linear.reconstruct(system, "tikhonov", iterations=3)
