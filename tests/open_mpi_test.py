"""Simulated files in the layout of Open MPI Data, with three positions instead of 361."""

import dataclasses

import numpy as np
import pytest

from mpi_jax import mdf, open_mpi, phantoms, physics
from mpi_jax.cli.main import main
from mpi_jax.methods import choice
from mpi_jax.scanner import Grid

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
    assert parameters["lam_rule"] == "l_curve" and lam in choice.CANDIDATES["lam"]
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
