"""From a system of two files to images: every method, its settings, its errors."""

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

from mpi_jax import mdf, methods, physics, preprocess, scanner, system_matrix
from mpi_jax.configs import Preprocessing
from mpi_jax.methods import problem

DOUBLE = pytest.mark.usefixtures("x64")


def reconstruct(system, method, **settings):
    """Images of a system's measurement."""
    solve = methods.get(method).prepare(methods.from_system(system), settings)
    return solve(problem.weighted(system)).image


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
        reconstruct(one, method), reconstruct(two, method), atol=1e-12
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
    image = reconstruct(system, "tikhonov", lam=1e-12)
    assert image.shape == (1, 2, NY, NX)
    np.testing.assert_allclose(image.reshape(2, -1), c, atol=1e-6)
    with pytest.raises(ValueError, match="tv: expected a system of one calibration"):
        reconstruct(system, "tv")
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


@pytest.mark.parametrize("method", LIMITS)
def test_every_method_recovers_a_phantom(phantom, method):
    """Of picovolts in single precision, frame by frame."""
    a, b, c = phantom
    system = preprocess.prepare(a, b, Preprocessing(min_frequency=1.0))
    assert system.system_matrix.dtype == system.measurement.dtype == np.complex64
    image = np.asarray(reconstruct(system, method))
    assert image.shape == (2, *c.shape) and image.min() >= 0
    error = np.linalg.norm(image[0] - c) / np.linalg.norm(c)
    assert error < LIMITS[method], error
    np.testing.assert_allclose(image[1], WEAK * image[0], atol=2e-6)


def test_l1_of_a_frame_does_not_depend_on_others(phantom):
    a, b, _ = phantom
    system = preprocess.prepare(a, b, Preprocessing(min_frequency=1.0))
    image = reconstruct(system, "elastic_net", l1=0.3)
    assert 0 < np.mean(image[1] > 0) < 1
    np.testing.assert_allclose(image[1], WEAK * image[0], atol=2e-6)
    assert not reconstruct(system, "elastic_net", l1=1.01).any()


@DOUBLE
def test_ranks_above_the_resolved_are_cut(monkeypatch):
    """Fewer singular values than the limit are no error."""
    rows = noise(28, 12, 3, kind=complex) @ noise(29, 3, 10)
    monkeypatch.setattr(problem, "RANK", 8)
    c = np.abs(noise(30, 10))
    system = preprocess.System(
        rows, (rows @ c)[None], None, ALL, scanner.Grid((2, 5), (1.0, 1.0, 1.0))
    )
    image = reconstruct(system, "nonnegative", iterations=200)
    np.testing.assert_allclose(rows @ image.reshape(-1), rows @ c, rtol=1e-3)


def frames(seed, rows=40, voxels=12, strengths=(1.0, 0.3)):
    """A system of non-negative images, noise outside of its span included."""
    rng = np.random.default_rng(seed)
    matrix = noise(seed, rows, voxels, kind=complex)
    c = rng.uniform(size=(len(strengths), voxels)) * np.array(strengths)[:, None]
    data = c @ matrix.T
    data = data + 0.01 * np.linalg.norm(data) * noise(seed + 1, *data.shape) / rows
    grid = scanner.Grid((3, 4), (1.0, 1.0, 1.0))
    return preprocess.System(matrix, data, None, np.ones((1, rows), bool), grid)


@DOUBLE
@pytest.mark.parametrize("method", ["kaczmarz", "cgnr", "tikhonov", "elastic_net"])
def test_lam_has_two_units_for_one_number(method):
    """lam ||S||_F^2 / P or lam sigma_1^2: the same image for converted numbers."""
    system = frames(40)
    singular = np.linalg.svd(
        np.concatenate([system.system_matrix.real, system.system_matrix.imag]),
        compute_uv=False,
    )
    energy = np.sum(singular**2) / system.system_matrix.shape[1]
    of_energy = 0.05 * singular[0] ** 2 / energy
    one = reconstruct(system, method, lam=0.05, lam_unit="sigma1")
    two = reconstruct(system, method, lam=of_energy, lam_unit="energy")
    np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(two, reconstruct(system, method, lam=of_energy))
    same_number = reconstruct(system, method, lam=0.05)
    assert np.abs(one - same_number).max() > 1e-3
    with pytest.raises(
        ValueError, match="lam_unit: expected energy or sigma1, got 'x'"
    ):
        reconstruct(system, method, lam=0.05, lam_unit="x")


@DOUBLE
@pytest.mark.parametrize("method", ["nonnegative", "tv"])
def test_rho_follows_the_noise_of_each_frame(method):
    """Frames together as frames alone, though their noise differs."""
    system = frames(42, strengths=(1.0, 0.02))
    both = reconstruct(system, method, rho="noise", iterations=5)
    np.testing.assert_array_equal(both, reconstruct(system, method, iterations=5))
    for n in range(2):
        alone = dataclasses.replace(system, measurement=system.measurement[n : n + 1])
        one = reconstruct(alone, method, iterations=5)
        np.testing.assert_allclose(both[n : n + 1], one, rtol=1e-9, atol=1e-12)
    assert (
        np.abs(both - reconstruct(system, method, rho=1e-1, iterations=5)).max() > 1e-4
    )
    with pytest.raises(ValueError, match="rho: expected a number or noise, got 'loud'"):
        reconstruct(system, method, rho="loud")


@DOUBLE
def test_noise_that_nothing_tells_is_asked_for():
    """As many real rows as voxels, and no background frames."""
    system = frames(44, rows=6)
    with pytest.raises(ValueError, match="noise: expected background frames"):
        reconstruct(system, "nonnegative")
    assert reconstruct(system, "nonnegative", rho=1e-3).shape == (2, 3, 4)


@DOUBLE
def test_unknown_methods_and_settings(plain):
    system = preprocess.prepare(*plain)
    with pytest.raises(ValueError, match="method: expected one of zero"):
        reconstruct(system, "fista")
    with pytest.raises(ValueError, match="not a setting of method tikhonov"):
        reconstruct(system, "tikhonov", iterations=3)
    with pytest.raises(ValueError, match="lam: expected a number or one of l_curve"):
        reconstruct(system, "tikhonov", lam="gcv")
    with pytest.raises(ValueError, match="method xspace: expected a simulated scanner"):
        reconstruct(system, "xspace")
