"""Written files hold what was built by hand, and failures leave the old file."""

import dataclasses

import h5py
import numpy as np
import pytest
import scipy.fft
from support.mdf_files import FACTOR, C, J, K, N, V, calibration, fields, same, samples

from mpi_jax import mdf, scanner


def contents(file, found=None):
    """All datasets of a file by name, but for what is new in each file."""
    found = {}
    with h5py.File(file) as h5:
        h5.visititems(
            lambda name, d: (
                found.__setitem__("/" + name, d[()])
                if isinstance(d, h5py.Dataset)
                else None
            )
        )
        assert h5["version"].asstr()[()] == "2.1.0"
        for name in ("acquisition/numFrames", "study/number"):
            assert h5[name].dtype == np.int64
        assert h5["experiment/isSimulation"].dtype == np.int8
        assert h5["scanner/boreSize"].dtype == np.float64
        kind = h5py.check_string_dtype(h5["study/description"].dtype)
        assert kind.encoding == "utf-8" and kind.length is None
    return {k: found[k] for k in found if k not in ("/version", "/uuid", "/time")}


def agree(path, content):
    """A written file holds what was built by hand, dataset by dataset."""
    got = contents(path)
    names = content.keys() - {"/version", "/uuid", "/time"}
    assert got.keys() == names
    for name in names:
        expected = content[name]
        if isinstance(expected, (str, list)):
            expected = np.char.encode(np.array(expected), "utf-8").astype(object)
        np.testing.assert_array_equal(got[name], expected, err_msg=name)
    assert got["/measurement/data"].dtype == content["/measurement/data"].dtype


@pytest.mark.parametrize("fourier, fast", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("pieces", [False, True])
def test_measurements_are_written_as_built_by_hand(
    new_file, tmp_path, fourier, fast, pieces
):
    data = samples().astype("i2")
    if fourier:
        data = np.fft.rfft(data)[..., [1, 4]]
    changes = dict(
        measurement__data=np.moveaxis(data, 0, -1) if fast else data,
        measurement__isFastFrameAxis=np.int8(fast),
        measurement__isFourierTransformed=np.int8(fourier),
        measurement__isFramePermutation=np.int8(1),
        measurement__framePermutation=np.array([3, 1, 5, 2, 4]),
        acquisition__receiver__dataConversionFactor=FACTOR,
        acquisition__receiver__transferFunction=np.ones((C, K)) * (1 + 2j),
        acquisition__receiver__inductionFactor=np.arange(C) + 0.5,
    )
    if fourier:
        changes["measurement__isFrequencySelection"] = np.int8(1)
        changes["measurement__frequencySelection"] = np.array([2, 5])
    content = fields(**changes)
    file, path = mdf.read(new_file(content)), tmp_path / "written.mdf"
    given = (data[n : n + 2] for n in range(0, N, 2)) if pieces else data
    mdf.write_measurement(path, file, given, raw=True)
    agree(path, content)
    again = mdf.read(path)
    same(file, again)
    assert again.version == "2.1.0" and again.uuid != file.uuid
    assert again.notes == ()
    with pytest.raises(ValueError, match="raw"):
        mdf.write_measurement(path, file, given)


@pytest.mark.parametrize("fourier, fast", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("pieces", [False, True])
def test_calibrations_are_written_as_built_by_hand(
    new_file, tmp_path, fourier, fast, pieces
):
    data = calibration()["/measurement/data"]
    if not fourier:
        data = np.random.default_rng(0).integers(-99, 99, size=(J, C, V, 16))
    changes = dict(
        measurement__data=data if fast else np.moveaxis(data, -1, 0),
        measurement__isFastFrameAxis=np.int8(fast),
        measurement__isFourierTransformed=np.int8(fourier),
        calibration__snr=np.random.default_rng(1).random((J, C, K)),
        calibration__deltaSampleSize=np.full(3, 1e-3),
    )
    content = calibration(**changes)
    file, path = mdf.read(new_file(content)), tmp_path / "written.mdf"
    rows = data.reshape(-1, 16)
    given = (rows[n : n + 5] for n in range(0, len(rows), 5)) if pieces else data
    mdf.write_calibration(path, file, given)
    agree(path, content)
    same(file, mdf.read(path))


@pytest.mark.parametrize("kept", [5, 12])
def test_compressed_calibrations_keep_the_largest(new_file, tmp_path, kept):
    content = calibration(double=True)
    rows = content["/measurement/data"]
    file, path = mdf.read(new_file(content)), tmp_path / "written.mdf"
    m = dataclasses.replace(file.measurement, sparsity_transformation="DCT-II")
    sparse = dataclasses.replace(file, measurement=m)
    mdf.write_calibration(path, sparse, rows, coefficients=kept)
    again = mdf.read(path)
    assert again.data.shape == (J, C, K, kept + 4)
    full = scipy.fft.dctn(
        rows[..., :12].reshape(J, C, K, 2, 2, 3), 2, axes=(3, 4, 5), norm="ortho"
    ).reshape(J, C, K, 12)
    level = np.sort(abs(full))[..., -kept, None]
    full = np.where(abs(full) >= level, full, 0).reshape(J, C, K, 2, 2, 3)
    full = scipy.fft.idctn(full, 2, axes=(3, 4, 5), norm="ortho")
    expected = np.concatenate([full.reshape(J, C, K, 12), rows[..., 12:]], -1)
    got = mdf.system_matrix(again)
    np.testing.assert_allclose(got, expected.reshape(J, C * K, 16), atol=1e-12)
    with pytest.raises(ValueError, match="coefficients"):
        mdf.write_calibration(path, sparse, rows)


def test_a_failing_write_leaves_the_old_file(new_file, tmp_path):
    file, path = mdf.read(new_file(fields())), tmp_path / "out" / "written.mdf"
    path.parent.mkdir()
    mdf.write_measurement(path, file, samples())
    before = path.read_bytes()

    def breaks():
        yield samples()[:2]
        raise RuntimeError("the scanner caught fire")

    with pytest.raises(RuntimeError, match="fire"):
        mdf.write_measurement(path, file, breaks())
    bad = dataclasses.replace(file.acquisition, frames=N + 1)
    for header, data, word in (
        (file, samples()[:2], "data"),
        (file, [samples(), samples()], "data"),
        (file, [samples()[:, :1]], "data"),
        (file, [], "data"),
        (dataclasses.replace(file, acquisition=bad), samples(), "isBackgroundFrame"),
        (dataclasses.replace(file, scanner=None), samples(), "scanner"),
    ):
        with pytest.raises(ValueError, match=word):
            mdf.write_measurement(path, header, data)
    with pytest.raises(ValueError, match="parameters"):
        grid = scanner.Grid((2, 3), (1.0, 1.0, 1.0))
        mdf.write_reconstruction(
            path, np.ones((2, 3)), grid=grid, parameters={"a/b": 1}
        )
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
    with pytest.raises(FileNotFoundError):
        mdf.write_measurement(tmp_path / "no" / "folder.mdf", file, samples())


@pytest.mark.parametrize("lead", [(), (3,), (3, 2)])
def test_reconstructions(new_file, tmp_path, lead):
    content = fields()
    content |= {"/_note": "ours", "/acquisition/_robot/speed": 0.1}
    measured, path = mdf.read(new_file(content)), tmp_path / "written.mdf"
    shape = (4, 2, 3)
    grid = scanner.Grid(shape, (3e-3, 4e-3, 8e-3), (1e-3, 2e-3, 0.0))
    volumes = np.random.default_rng(0).random((*lead, *shape))
    chosen = {
        "lam": 1e-3,
        "iterations": 10,
        "real": True,
        "method": "Kaczmärz",
        "weights": None,
        "rows": np.arange(5),
        "frequency": {"min": 80e3},
    }
    mdf.write_reconstruction(
        path, volumes, grid=grid, source=measured, parameters=chosen
    )
    assert mdf.check(path) == []
    with h5py.File(path) as file:
        stored = file["reconstruction/data"][()]
        assert stored.dtype == np.float32 and "measurement" not in file
        assert file["_note"].asstr()[()] == "ours"
        assert file["acquisition/_robot/speed"][()] == 0.1
        assert file["reconstruction/_parameters/frequency/min"][()] == 80e3
        assert file["reconstruction/size"][()].tolist() == [3, 2, 4]
        fov = file["reconstruction/fieldOfView"][()]
        np.testing.assert_array_equal(fov, [3e-3, 4e-3, 8e-3])
    frames, tracers = (*lead, 1, 1)[:2] if lead else (1, 1)
    full = volumes.reshape(frames, tracers, *shape)
    assert stored.shape == (frames, 24, tracers)
    for q, s, iz, iy, ix in np.ndindex(frames, tracers, 4, 2, 3):
        voxel = ix + 3 * (iy + 2 * iz)
        assert stored[q, voxel, s] == np.float32(full[q, s, iz, 1 - iy, ix])
    file = mdf.read(path)
    np.testing.assert_array_equal(mdf.images(file), full.astype("f4"))
    got = mdf.grid(file)
    assert got.shape == shape
    np.testing.assert_allclose(got.centre, [1e-3, 2e-3, 0])
    parameters = file.reconstruction.parameters
    assert parameters["lam"] == 1e-3 and parameters["method"] == "Kaczmärz"
    assert parameters["iterations"] == 10 and parameters["real"] == 1
    assert parameters["frequency"] == {"min": 80e3}
    assert parameters["rows"].tolist() == [0, 1, 2, 3, 4]
    same(measured.acquisition, file.acquisition)
    same(measured.tracer, file.tracer)


def test_a_reconstruction_without_a_source(tmp_path):
    path = tmp_path / "written.mdf"
    image = np.arange(6.0).reshape(2, 3)
    mdf.write_reconstruction(path, image, grid=scanner.Grid((2, 3), (3.0, 2.0, 1.0)))
    with pytest.warns(UserWarning, match="/acquisition"):
        file = mdf.read(path)
    assert file.acquisition is None and file.data is None
    np.testing.assert_array_equal(mdf.images(file), image[None, None, None])
    for bad in (np.ones((3, 2)), image + 1j, np.ones((1, 1, 1, 2, 3))):
        with pytest.raises(ValueError, match="data"):
            mdf.write_reconstruction(
                path, bad, grid=scanner.Grid((2, 3), (3.0, 2.0, 1.0))
            )


def test_user_data_are_copied(new_file, tmp_path):
    content = fields() | {"/_a": 1.0, "/measurement/_b/c": "text", "/extra": 2.0}
    path = new_file(content)
    with h5py.File(path, "a") as file:
        file["_link"] = h5py.ExternalLink("other.mdf", "/")
    file, out = mdf.read(path), tmp_path / "written.mdf"
    mdf.write_measurement(out, file, samples(), source=file)
    with h5py.File(out) as h5:
        assert h5["_a"][()] == 1 and h5["measurement/_b/c"].asstr()[()] == "text"
        assert "extra" not in h5 and "_link" not in h5


@pytest.mark.parametrize("made_by", ["paper", "open_mpi_2d", "open_mpi_3d"])
def test_headers_of_simulated_scanners(tmp_path, made_by):
    simulated, path = getattr(scanner, made_by)(4), tmp_path / "written.mdf"
    header = mdf.header(simulated, frames=2)
    u = np.zeros((2, 1, simulated.channels, simulated.samples), "f4")
    mdf.write_measurement(path, header, u)
    assert mdf.check(path) == []
    file = mdf.read(path)
    same(header, file)
    np.testing.assert_allclose(
        mdf.frequencies(file), simulated.frequencies(), rtol=1e-12
    )
    drive = file.acquisition.drive_field
    frequencies = drive.base_frequency / drive.divider[:, 0]
    driven = simulated.drive_field.frequencies
    np.testing.assert_allclose(frequencies, driven[driven > 0], rtol=1e-12)
    # The drive field as the format defines it is the scanner's own.
    t = np.arange(simulated.samples) / (2 * file.acquisition.receiver.bandwidth)
    angle = 2 * np.pi * frequencies * t[:, None] + drive.phase[0, :, 0]
    field = np.array(simulated.drive_field.field()[0])[:, driven > 0]
    np.testing.assert_allclose(
        drive.strength[0, :, 0] * np.sin(angle), field, atol=1e-6
    )
    header = mdf.header(simulated, calibration=True)
    K = simulated.samples // 2 + 1
    S = np.ones((simulated.channels, K, simulated.grid.size), "c8")
    S *= np.arange(simulated.grid.size)
    columns = np.argsort(mdf.voxel_order(header), axis=None)
    mdf.write_calibration(path, header, S[None][..., columns])
    file = mdf.read(path)
    got = mdf.system_matrix(file, voxels=mdf.voxel_order(file).ravel())
    np.testing.assert_array_equal(got[0], S.reshape(-1, simulated.grid.size))
    assert mdf.grid(file).size == simulated.grid.size
