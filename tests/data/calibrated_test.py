"""A scanner known by its file: the matrix by another route, a signal of a known image."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy.interpolate import RegularGridInterpolator
from support.calibrated_scanner import SIDE, changed

from mpi_jax import configs, data, mdf, open_mpi, preprocess, train
from mpi_jax.configs import Preprocessing
from mpi_jax.noise import band_noise


@pytest.fixture(scope="module")
def known(calibrated_config, tmp_path_factory):
    """A file with the signals of two known images in the plane, and these images."""
    file = data.calibrated.read(calibrated_config)
    voxels = mdf.voxel_order(file)[4].reshape(-1)
    rows = mdf.system_matrix(file, np.ones((3, 817), bool), voxels=voxels)[0]
    rows = rows[:, : SIDE**2] - rows[:, SIDE**2 :].mean(1, keepdims=True)
    images = np.random.default_rng(1).uniform(0, 1, (2, SIDE**2))
    u = np.fft.irfft((images @ rows.T).reshape(2, 1, 3, 817), 1632)
    scanner = open_mpi.sequence_scanner("open_mpi_2d")
    path = tmp_path_factory.mktemp("known") / "known.mdf"
    mdf.write_measurement(path, mdf.header(scanner, frames=2), u.astype(np.float32))
    return path, images


def test_the_matrix_has_the_rows_of_prepare(calibrated_folder, calibrated_config):
    matrix, frequency_selection = data.calibrated.matrix(calibrated_config)
    assert matrix.shape == (2, 1632, 32 * 32) and matrix.dtype == np.float32
    assert (
        frequency_selection.shape == (2, 817)
        and 100 < frequency_selection.sum() < frequency_selection.size
    )
    settings = Preprocessing(
        min_frequency=80e3,
        channels=(0, 1),
        snr_threshold=1.5,
        matrix_background="interpolated",
        background="mean",
        plane=4,
        shape=(32, 32),
        field_of_view=(28e-3, 28e-3, 1e-3),
        periods=(4, 8),
    )
    shape = mdf.read(calibrated_folder / "shape.mdf")
    system = preprocess.prepare(
        data.calibrated.read(calibrated_config), shape, settings
    )
    spectra = np.fft.rfft(matrix, axis=1)
    np.testing.assert_array_equal(frequency_selection, system.frequency_selection[:2])
    np.testing.assert_allclose(
        spectra[frequency_selection], system.system_matrix, atol=2e-5
    )
    assert np.abs(spectra[~frequency_selection]).max() < 2e-5
    # The measurement's periods without offset are found by themselves.
    u = data.calibrated.voltage(calibrated_config, shape)
    assert u.shape == (1, 2, 1632)
    spectra = np.fft.rfft(u)
    largest = np.abs(system.measurement).max()
    np.testing.assert_allclose(
        spectra[:, frequency_selection], system.measurement, atol=1e-5 * largest
    )
    assert np.abs(spectra[:, ~frequency_selection]).max() < 1e-5 * largest


@pytest.mark.parametrize("slab", [0, 1])
def test_the_matrix_by_scipy(calibrated_config, slab):
    config = changed(calibrated_config, slab=slab, background="mean", pixels=16)
    matrix, frequency_selection = data.calibrated.matrix(config)
    file = data.calibrated.read(config)
    rows, start = 0, np.concatenate([frequency_selection, np.zeros((1, 817), bool)])
    for plane in range(4 - slab, 5 + slab):
        voxels = mdf.voxel_order(file)[plane].reshape(-1)
        part = mdf.system_matrix(file, start, voxels=voxels)[0]
        rows = rows + part[:, : SIDE**2] - part[:, SIDE**2 :].mean(1, keepdims=True)
    centres, new = (np.arange(9) - 4) * 4e-3, (np.arange(16) - 7.5) * 28e-3 / 16
    image = rows.T.reshape(SIDE, SIDE, -1)[::-1]  # y upwards
    at = np.stack(np.meshgrid(new[::-1], new, indexing="ij"), -1)
    expected = RegularGridInterpolator((centres, centres), image)(at).reshape(256, -1).T
    expected = expected / np.abs(expected).max()
    found = np.fft.rfft(matrix, axis=1)[frequency_selection]
    np.testing.assert_allclose(found, expected, atol=2e-5)
    grid = data.calibrated.scanner_of(config).grid
    np.testing.assert_allclose(
        grid.field_of_view, (28e-3, 28e-3, (1 + 2 * slab) * 1e-3)
    )
    np.testing.assert_allclose(grid.centre, 0, atol=1e-9)


def test_a_known_image_comes_back(calibrated_config, known):
    path, images = known
    whole = changed(
        calibrated_config, field_of_view=36e-3, pixels=SIDE, background="mean"
    )
    matrix, _ = data.calibrated.matrix(whole)
    u = data.calibrated.voltage(whole, mdf.read(path), background="none")
    flat = matrix.reshape(-1, SIDE**2).astype(float)
    for signal, image in zip(u, images, strict=True):
        found = np.linalg.lstsq(flat, signal.reshape(-1), rcond=None)[0]
        np.testing.assert_allclose(found, image, atol=2e-2)
    assert open_mpi.unit(data.calibrated.read(whole)) == pytest.approx(100 * 4 / 16)


def test_noise_has_the_rows_of_the_signal():
    frequency_selection = np.zeros((2, 817), bool)
    frequency_selection[0, 20:400], frequency_selection[1, [0, 30, 816]] = True, True
    u = np.zeros((2, 1632), np.float32)
    keys = jax.random.split(jax.random.key(0), 40)
    noise = np.stack([band_noise(key, u, frequency_selection) for key in keys])
    spectra = np.fft.rfft(noise)
    assert np.abs(spectra[:, ~frequency_selection]).max() < 1e-3 * np.abs(spectra).max()
    assert np.mean(noise**2) == pytest.approx(1.0, rel=0.02)
    power = np.mean(np.abs(spectra) ** 2, axis=0)
    assert power[0, 20:210].mean() == pytest.approx(power[0, 210:400].mean(), rel=0.05)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"path": ""}, "calibration.path: expected an MDF calibration, got none"),
        ({"path": "no.mdf"}, "found none in no.mdf"),
        ({"field_of_view": 40e-3}, "field_of_view: expected at most 0.036 m"),
        ({"plane": 18}, "plane: expected 0 to 8, got 18"),
        ({"slab": 5}, "plane: expected 5 to 3 with slab 5"),
        ({"channels": (0, 3)}, "channels: expected numbers from 0 to 2"),
        ({"snr_threshold": 1e9}, "frequency selection leaves no rows"),
    ],
)
def test_settings_that_do_not_fit(calibrated_config, settings, words):
    with pytest.raises(ValueError, match=words):
        data.calibrated.matrix(changed(calibrated_config, **settings))


def test_files_that_do_not_fit(calibrated_folder, calibrated_config):
    with pytest.raises(ValueError, match="shape.mdf holds a measurement"):
        data.make_scanner(
            changed(calibrated_config, path=str(calibrated_folder / "shape.mdf"))
        )
    plain = configs.get("test")
    with pytest.raises(ValueError, match="calibration.path: expected none with"):
        data.make_scanner(changed(plain, path="5.mdf"))
    with pytest.raises(ValueError, match="scanner.preset: expected calibration"):
        data.calibrated.read(plain)
    ratio = mdf.snr(data.calibrated.read(calibrated_config))[0, :2, 60:].max(axis=1)
    with pytest.raises(ValueError, match="channels: expected rows in each, found none"):
        data.calibrated.matrix(
            changed(calibrated_config, snr_threshold=float(ratio.mean()))
        )
    # A 3D sequence, or a third channel: longer signals than the networks take.
    generator = train.make_networks(calibrated_config).generator
    made = data.make_scanner(calibrated_config)
    train.check_signal(generator, made)
    for other in ({"samples": 53856}, {"channels": 3}):
        with pytest.raises(ValueError, match="generator: expected . x [0-9]+ inputs"):
            train.check_signal(generator, dataclasses.replace(made, **other))
    with pytest.raises(ValueError, match="background: expected a measurement"):
        settings = Preprocessing(background="mean")
        preprocess.prepare(data.calibrated.read(calibrated_config), None, settings)
    with pytest.raises(ValueError, match="slab: expected 0, or with a plane"):
        Preprocessing(slab=1)
    moved = mdf.read(calibrated_folder / "shape.mdf")
    with pytest.raises(ValueError, match="choose one patch with periods"):
        data.calibrated.voltage(calibrated_config, moved, periods=(0, 8))
