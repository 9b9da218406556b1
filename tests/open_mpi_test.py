"""Open MPI phantoms: iron totals, layers, orientation and a second route by sampling."""

import dataclasses

import numpy as np
import pytest

from mpi_jax import mdf, open_mpi, phantoms, physics
from mpi_jax.cli.main import main
from mpi_jax.methods import linear
from mpi_jax.scanner import Grid

COARSE = Grid((19, 19, 19), (38e-3, 38e-3, 19e-3))
FINE = Grid((37, 37, 37), (37e-3, 37e-3, 18.5e-3))


@pytest.fixture(scope="module")
def volumes():
    return {
        (name, grid.shape): phantoms.open_mpi.phantom(name, grid)
        for name in phantoms.open_mpi.PHANTOMS
        for grid in (COARSE, FINE)
    }


def voxel(grid):
    """[m^3]"""
    return np.prod(np.array(grid.field_of_view) / grid.counts)


def cone_volume():
    """Frustum 22 mm long from radius 1 mm to 1 mm + 22 mm tan 10 degrees [m^3]."""
    a, b = 1e-3, 1e-3 + 22e-3 * np.tan(np.pi / 18)
    return np.pi * 22e-3 / 3 * (a * a + a * b + b * b)


@pytest.mark.parametrize("grid", [COARSE, FINE], ids=["19", "37"])
def test_iron(volumes, grid):
    """Iron [mol]; 1 mmol/L is 1 mol/m^3. The tubes' union has 81.0 mm^3."""
    total = {
        n: volumes[n, grid.shape].sum() * voxel(grid)
        for n in phantoms.open_mpi.PHANTOMS
    }
    assert total["shape"] == pytest.approx(50 * cone_volume(), rel=1e-4)
    assert total["shape"] == pytest.approx(34.2e-6, rel=1e-2)
    assert total["resolution"] == pytest.approx(4.05e-6, rel=1e-2)
    values = 44.4 + 100 + 29.6 + 8.77 + 19.7 + 66.6 + 13.1 + 5.85
    assert total["concentration"] == pytest.approx(values * 8e-9, rel=1e-12)


@pytest.mark.parametrize(
    "grid, layers",
    [(COARSE, [5, 6, 7, 11, 12, 13]), (FINE, [*range(10, 15), *range(22, 27)])],
    ids=["19", "37"],
)
def test_cubes_fill_their_layers_and_nothing_at_zero(volumes, grid, layers):
    volume = volumes["concentration", grid.shape]
    filled = np.flatnonzero(volume.any(axis=(1, 2)))
    np.testing.assert_array_equal(filled, layers)
    # The middle layer's index is n // 2, where z = 0.
    assert not volume[grid.shape[0] // 2].any()


def test_cubes_by_hand():
    """A voxel inside has the cube's value, one cut by its corner an eighth of it."""
    grid = Grid((37, 37, 37), (37e-3, 37e-3, 18.5e-3))
    volume = phantoms.open_mpi.phantom("concentration", grid)
    # z = (iz - 18) / 2, y = 18 - row, x = column - 18 [mm]
    for x, y, z, value in [
        (6, 6, 3, 44.4), (6, -6, 3, 100), (-6, -6, 3, 29.6), (-6, 6, 3, 8.77),
        (6, 6, -3, 19.7), (6, -6, -3, 66.6), (-6, -6, -3, 13.1), (-6, 6, -3, 5.85),
    ]:  # fmt: skip
        at = 18 + 2 * z, 18 - y, 18 + x
        assert volume[at] == pytest.approx(value, rel=1e-12)
        assert volume[at[0] + 2, at[1] - 1, at[2] + 1] == pytest.approx(value / 8)


def test_orientation(volumes):
    shape, resolution = volumes["shape", FINE.shape], volumes["resolution", FINE.shape]

    def at(volume, x, y, z):  # [mm]
        return volume[round(18 + 2 * z), round(18 - y), round(18 + x)]

    # The cone is wide at -x: 4.7 mm at x = -10, 1.2 mm at x = 10.
    assert at(shape, -10, 4, 0) == pytest.approx(50)
    assert at(shape, 10, 4, 0) == at(shape, 13, 0, 0) == at(shape, -13, 0, 0) == 0
    # Tubes meet at y = +8.75: in z = 0 one runs to -x (30 deg), one to +x (20 deg).
    down = 8.75 + 10
    assert at(resolution, down * np.tan(np.pi / 9), -10, 0) > 20
    assert at(resolution, -down * np.tan(np.pi / 6), -10, 0) > 20
    assert at(resolution, -down * np.tan(np.pi / 9), -10, 0) == 0
    assert at(resolution, down * np.tan(np.pi / 6), -10, 0) == 0
    # One to +z by 10 deg, one to -z by 15 deg.
    assert at(resolution, 0, -10, down * np.tan(np.pi / 18)) > 20
    assert at(resolution, 0, -10, -down * np.tan(np.pi / 12)) > 20
    assert at(resolution, 0, -10, down * np.tan(np.pi / 12)) == 0
    assert at(resolution, 0, 10, 0) == at(resolution, 0, -13, 0) == 0


def test_symmetry(volumes):
    cone = volumes["shape", FINE.shape]
    np.testing.assert_allclose(cone, cone[::-1], atol=1e-9)
    np.testing.assert_allclose(cone, cone[:, ::-1], atol=1e-9)
    cubes = volumes["concentration", FINE.shape] > 0
    for axis in range(3):
        np.testing.assert_array_equal(cubes, np.flip(cubes, axis))


@pytest.mark.parametrize("name", phantoms.open_mpi.PHANTOMS)
def test_grids_agree_by_volume(name):
    """A grid of twice the pitch holds means over blocks of eight voxels."""
    fine = Grid((36, 36, 36), (36e-3, 36e-3, 18e-3))
    coarse = Grid((18, 18, 18), (36e-3, 36e-3, 18e-3))
    # With these the lines through both grids are the same.
    few, many = (None, None) if name == "concentration" else (4, 8)
    blocks = phantoms.open_mpi.phantom(name, fine, supersampling=few)
    blocks = blocks.reshape(18, 2, 18, 2, 18, 2).mean(axis=(1, 3, 5))
    got = phantoms.open_mpi.phantom(name, coarse, supersampling=many)
    np.testing.assert_allclose(got, blocks, atol=1e-9)


@pytest.mark.parametrize("name", phantoms.open_mpi.PHANTOMS)
def test_slice_is_that_of_the_volume(volumes, name):
    for iz in (12, 18):
        centre = (0.0, 0.0, (iz - 18) * 0.5e-3)
        image = phantoms.open_mpi.phantom(
            name, Grid((37, 37), (37e-3, 37e-3, 0.5e-3), centre)
        )
        np.testing.assert_allclose(image, volumes[name, FINE.shape][iz], atol=1e-9)


@pytest.mark.parametrize("name", ["shape", "resolution"])
def test_against_random_points(volumes, name):
    """Each layer's share of points inside, from the inequalities that define the bodies."""
    rng = np.random.default_rng(0)
    x, y, z = (rng.uniform(-h, h, 2_000_000) for h in (12.5, 12.5, 6.0))  # [mm]
    if name == "shape":
        inside = np.hypot(y, z) <= 1 + (11 - x) * np.tan(np.pi / 18)
        inside &= np.abs(x) <= 11
    else:
        degrees = np.deg2rad([0, 20, -30])
        flat = [(np.tan(a), -1, 0) for a in degrees]
        steep = [(0, -1, np.tan(np.deg2rad(a))) for a in (10, -15)]
        p = np.stack([x, y - 8.75, z], axis=-1)
        inside = np.zeros(x.shape, bool)
        for axis in flat + steep:
            along = p @ (np.array(axis) / np.linalg.norm(axis))
            far = np.sum(p * p, axis=-1) - along**2
            inside |= (far <= 0.25) & (along >= 0)
        inside &= (y >= -12) & (y <= 8.75)
    box = 25 * 25 * 12 / x.size  # [mm^3] a point
    grid = np.arange(-9.25, 9.3, 0.5)
    for axis, values, edges in [
        ((1, 2), z, grid),
        ((0, 2), y, grid * 2),
        ((0, 1), x, grid * 2),
    ]:
        expected = np.histogram(values[inside], edges)[0] * box
        got = volumes[name, FINE.shape].sum(axis=axis) / 50 * 0.5
        got = got[::-1] if axis == (0, 2) else got
        np.testing.assert_allclose(got, expected, atol=5 * np.sqrt(box * got.max()))


def test_bad_input():
    with pytest.raises(ValueError, match="name: expected one of shape"):
        phantoms.open_mpi.phantom("rotation", COARSE)
    for odd in (5, 0):
        with pytest.raises(ValueError, match="supersampling: expected an even number"):
            phantoms.open_mpi.phantom("shape", COARSE, supersampling=odd)
    with pytest.raises(ValueError, match="supersampling: expected None"):
        phantoms.open_mpi.phantom("concentration", COARSE, supersampling=16)


# --- Files in the layout of Open MPI Data, with three positions instead of 361

CENTRES = 1e-3 * np.array([(0.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, -2.0, 1.0)])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Calibration and measurement of the 1D sequence, nearly free of noise."""
    folder = tmp_path_factory.mktemp("open_mpi")
    full = open_mpi.SEQUENCES["open_mpi_1d"]
    short = dataclasses.replace(full, patches=CENTRES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(open_mpi.SEQUENCES, "open_mpi_1d", short)
        open_mpi.write_calibration(
            folder / "calibration.mdf", "open_mpi_1d", snr_db=120.0, supersampling=1
        )
        open_mpi.write_measurement(
            folder / "measurement.mdf", "open_mpi_1d", "shape", periods=4, snr_db=60.0
        )
        u = open_mpi.patch_voltages("shape", "open_mpi_1d")
    return folder, u


def test_the_sequences_are_documented_ones():
    found = {
        name: (len(plan.patches), open_mpi.sequence_scanner(name).samples)
        for name, plan in open_mpi.SEQUENCES.items()
    }
    assert found == {
        "open_mpi_1d": (361, 102),
        "open_mpi_2d": (19, 1632),
        "open_mpi_3d": (1, 53856),
    }
    # z is the faster one, 1 mm apart.
    np.testing.assert_allclose(
        open_mpi.SEQUENCES["open_mpi_1d"].patches[[0, 1, 19, 360]],
        1e-3 * np.array([[0, -9, -9], [0, -9, -8], [0, -8, -9], [0, 9, 9]]),
        atol=1e-12,
    )
    with pytest.raises(ValueError, match="expected one of open_mpi_1d"):
        open_mpi.sequence_scanner("open_mpi_4d")
    with pytest.raises(ValueError, match="19 or 37"):
        open_mpi.sequence_scanner("open_mpi_1d", 20)


def test_calibration_file(files):
    file = mdf.read(files[0] / "calibration.mdf")
    assert mdf.check(file.path) == []
    assert file.data.shape == (1, 3, 52, 7221) and file.data.dtype == np.complex64
    m = file.measurement
    assert m.is_fourier_transformed and m.is_fast_frame_axis
    assert not m.is_background_corrected and len(m.background) == 362
    assert m.background[0] == 6859
    # One empty scan before each line along x, and one at the end.
    acquired = mdf.acquisition_order(file)
    assert list(acquired[:22]) == [6859, *range(19), 6860, 19]
    assert acquired[-1] == 7220
    assert file.calibration.snr.shape == (1, 3, 52)
    assert open_mpi.unit(file) == pytest.approx(100.0)

    # Second route: the voltage of one filled voxel, by the time-domain simulation.
    scanner = open_mpi.sequence_scanner("open_mpi_1d")
    frequency_selection = np.zeros((3, 52), bool)
    frequency_selection[0, 2:20] = True
    rows = mdf.system_matrix(file, frequency_selection)
    rows = mdf.correct_background(file, rows)[0][:, mdf.voxel_order(file)]
    image = np.zeros(scanner.grid.shape)
    image[10, 4, 7] = 1
    u = np.asarray(physics.voltage(scanner, image), float)
    expected = np.fft.rfft(u)[0, 2:20]
    error = np.abs(rows[:, 10, 4, 7] - expected).max()
    assert error < 2e-4 * np.abs(expected).max()


def test_measurement_file(files):
    folder, u = files
    file = mdf.read(folder / "measurement.mdf")
    assert mdf.check(file.path) == []
    assert file.data.shape == (2, 12, 3, 102) and file.data.dtype == np.int16
    assert list(file.measurement.is_background_frame) == [False, True]
    # The field-free point goes to -offset / gradient.
    gradient = np.diag(file.acquisition.gradient[0, 0])
    shift = -file.acquisition.offset_field[::4, 0] / gradient
    np.testing.assert_allclose(shift, CENTRES, atol=1e-12)
    found, empty = mdf.signals(file)
    difference = (found - empty).reshape(3, 4, 3, 102).mean(1)
    level = np.sqrt(np.mean(u**2, axis=(1, 2))).max()
    # Noise of -60 dB and the steps of 16 bits under a feed-through of ten times u.
    assert np.sqrt(np.mean((difference - u) ** 2)) < 2e-3 * level
    assert np.sqrt(np.mean(empty**2)) > 5 * level


def test_moving_the_field_is_moving_the_phantom(files):
    scanner = open_mpi.sequence_scanner("open_mpi_1d")
    for centre, u in zip(CENTRES, files[1], strict=True):
        grid = Grid((74, 74, 74), (37e-3, 37e-3, 18.5e-3))
        volume = phantoms.open_mpi.phantom("shape", grid) / open_mpi.DELTA_CONCENTRATION
        moved = Grid(grid.shape, grid.field_of_view, -centre)
        one = dataclasses.replace(scanner, grid=moved)
        expected = np.asarray(physics.voltage(one, volume))
        np.testing.assert_allclose(u, expected, atol=2e-5 * np.abs(u).max())


def test_command_line_chooses_lam_for_several_tracers(files, capsys, tmp_path):
    folder, _ = files
    other = tmp_path / "other.mdf"
    other.write_bytes((folder / "calibration.mdf").read_bytes())
    words = (
        "reconstruct --method tikhonov --min-frequency 40e3 --snr-threshold 3 "
        "--matrix-background interpolated --background mean --plane 9 --periods 4 8 "
        f"--measurement {folder / 'measurement.mdf'} "
        f"--system-matrix {folder / 'calibration.mdf'}"
    ).split()
    one, both = tmp_path / "one.mdf", tmp_path / "both.npz"
    assert main([*words, "--lam", "l_curve", "--out", str(one)]) == 0
    assert "lam " in capsys.readouterr().out
    file = mdf.read(one)
    parameters = file.reconstruction.parameters
    lam = float(np.ravel(parameters["lam"])[0])
    assert parameters["lam_rule"] == "l_curve" and lam in linear.LAMS
    assert (tmp_path / "one_lam.png").stat().st_size > 1000
    # The same image as with that number, and half of it for each of two equal tracers.
    again = tmp_path / "again.npz"
    assert main([*words, "--lam", str(lam), "--out", str(again)]) == 0
    words += [str(other), "--lam", str(lam), "--out", str(both)]
    assert main(words) == 0
    with np.load(again) as stored:
        single = stored["image"]
    np.testing.assert_allclose(mdf.images(file)[:, 0, 0], single, rtol=1e-5)
    with np.load(both) as stored:
        two = stored["image"]
    assert two.shape == (1, 2, *single.shape[1:])
    np.testing.assert_allclose(two[:, 0], two[:, 1], atol=1e-4 * two.max())
    assert main([*words, "--phantom", "shape"]) == 2
    assert "one calibration" in capsys.readouterr().err


def test_command_line(files, capsys, tmp_path):
    folder, _ = files
    both = [
        "--system-matrix", str(folder / "calibration.mdf"),
        "--measurement", str(folder / "measurement.mdf"),
    ]  # fmt: skip
    words = (
        "--method kaczmarz --min-frequency 40e3 --snr-threshold 3 --background mean "
        "--matrix-background interpolated --iterations 5 --phantom shape --out"
    ).split()
    assert main(["check", str(folder / "calibration.mdf")]) == 0
    assert main(["reconstruct", *both, *words, str(tmp_path / "image.mdf")]) == 0
    said = capsys.readouterr().out
    assert "against the shape phantom" in said and "true_iron 34" in said
    file = mdf.read(tmp_path / "image.mdf")
    # Joint grid: 19 voxels and the way of the patches, 2 mm in y and 1 mm in z.
    assert mdf.images(file).shape == (1, 1, 20, 20, 19)
    assert file.reconstruction.parameters["method"] == "kaczmarz"
    assert file.reconstruction.parameters["iterations"] == 5
    assert (tmp_path / "image.png").stat().st_size > 1000
    assert main(["reconstruct", *both, *words, str(tmp_path / "image.npz")]) == 0
    with np.load(tmp_path / "image.npz") as stored:
        np.testing.assert_array_equal(stored["image"][0], mdf.images(file)[0, 0])
    capsys.readouterr()
    for wrong, word in (
        (["--method", "xspace", "--out", "a.npz", *both], "xspace"),
        (["--method", "tv", "--lam", "1", "--out", "a.npz", *both], "--lam"),
        (["--method", "tv", "--colour", "1", "--out", "a.npz", *both], "colour"),
        (["--method", "tv", "--phantom", "cat", "--out", "a.npz", *both], "cat"),
        (["--method", "tv", "--out", "a.png", *both], ".npz or .mdf"),
        (
            ["--method", "tv", "--out", "a.npz", "--config", "test", *both[2:]],
            "--system-matrix",
        ),
    ):
        assert main(["reconstruct", *wrong]) == 2
        assert word in capsys.readouterr().err
    broken = tmp_path / "broken.mdf"
    broken.write_bytes((folder / "measurement.mdf").read_bytes()[:5000])
    assert main(["check", str(broken)]) == 2
    assert str(broken) in capsys.readouterr().err
    out = tmp_path / "new.mdf"
    for wrong, word in (
        ("--config open_mpi_4d --phantom shape", "open_mpi_4d"),
        ("--config open_mpi_1d --phantom cat", "cat"),
        ("--config open_mpi_1d", "--phantom"),
        ("--config open_mpi_1d --phantom shape --voxels 20", "19 or 37"),
        (f"--config open_mpi_1d --phantom shape --calibration {out}", "another"),
    ):
        assert main(["simulate", *wrong.split(), "--out", str(out)]) == 2
        assert word in capsys.readouterr().err
        assert not out.exists()
