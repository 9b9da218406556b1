"""MDF: files built with plain h5py, expected values by hand, damage of all kinds."""

import dataclasses
import itertools
import pathlib
import subprocess
import sys
import tracemalloc
import warnings

import h5py
import numpy as np
import pytest
import scipy.fft

from mpi_jax import _linalg, mdf, scanner
from mpi_jax.mdf import bulk

N, J, C, V = 5, 2, 2, 12
K = V // 2 + 1
BACKGROUND = np.array([0, 1, 0, 0, 1], np.int8)
FACTOR = np.array([[0.5, -3.0], [0.25, 7.0]])


def fields(**changes):
    """A valid measurement, dataset by dataset; keys in changes use __ for /."""
    base = {
        "/version": "2.1.0",
        "/uuid": "0c254785-9b0f-4736-8c36-fc8c7f0a00bb",
        "/time": "2024-02-03T04:05:06.789",
        "/study/name": "study",
        "/study/number": np.int64(3),
        "/study/uuid": "fa608979-2f1e-402a-a722-aa96d06434ca",
        "/study/description": "Gräser",
        "/experiment/name": "experiment",
        "/experiment/number": np.int64(4),
        "/experiment/uuid": "6168df7c-30e3-4efb-aa27-6fd39d84cc66",
        "/experiment/description": "none",
        "/experiment/subject": "phantom",
        "/experiment/isSimulation": np.int8(0),
        "/scanner/facility": "f",
        "/scanner/manufacturer": "m",
        "/scanner/name": "n",
        "/scanner/operator": "o",
        "/scanner/topology": "FFP",
        "/scanner/boreSize": 0.1,
        "/tracer/name": ["Perimag", "Synomag"],
        "/tracer/batch": ["1", "2"],
        "/tracer/vendor": ["a", "b"],
        "/tracer/solute": ["Fe", "Fe"],
        "/tracer/concentration": np.array([0.1, 0.2]),
        "/tracer/volume": np.array([4e-6, 5e-6]),
        "/acquisition/numAverages": np.int64(10),
        "/acquisition/numFrames": np.int64(N),
        "/acquisition/numPeriodsPerFrame": np.int64(J),
        "/acquisition/startTime": "2024-02-03T04:05:06.000",
        "/acquisition/gradient": np.tile(np.diag([-1.0, -1, 2]), (J, 1, 1, 1)),
        "/acquisition/offsetField": np.arange(J * 3.0).reshape(J, 1, 3),
        "/acquisition/drivefield/baseFrequency": 12e3,
        "/acquisition/drivefield/cycle": 1e-3,
        "/acquisition/drivefield/numChannels": np.int64(2),
        "/acquisition/drivefield/divider": np.array([[4], [3]]),
        "/acquisition/drivefield/phase": np.full((J, 2, 1), 0.5),
        "/acquisition/drivefield/strength": np.full((J, 2, 1), 0.012),
        "/acquisition/drivefield/waveform": [["sine"], ["sine"]],
        "/acquisition/receiver/bandwidth": 6e3,
        "/acquisition/receiver/numChannels": np.int64(C),
        "/acquisition/receiver/numSamplingPoints": np.int64(V),
        "/acquisition/receiver/unit": "V",
        "/measurement/isBackgroundFrame": BACKGROUND,
        "/measurement/data": samples().astype(np.float32),
    }
    for flag in ("BackgroundCorrected", "FastFrameAxis", "FourierTransformed"):
        base[f"/measurement/is{flag}"] = np.int8(0)
    for flag in ("FramePermutation", "FrequencySelection", "SparsityTransformed"):
        base[f"/measurement/is{flag}"] = np.int8(0)
    for flag in ("SpectralLeakageCorrected", "TransferFunctionCorrected"):
        base[f"/measurement/is{flag}"] = np.int8(0)
    for name, value in changes.items():
        name = "/" + name.replace("__", "/")
        if value is None:
            base.pop(name)
        else:
            base[name] = value
    return base


def calibration(size=(3, 2, 2), order="xyz", background=4, double=False, **changes):
    """A valid calibration: J x C x K x N rows, background frames last."""
    count = int(np.prod(size))
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(J, C, K, count + background, 2)) @ [1, 1j]
    rows[..., :count] *= 6
    return fields(
        **{
            "measurement__data": rows.astype(np.complex128 if double else np.complex64),
            "measurement__isFastFrameAxis": np.int8(1),
            "measurement__isFourierTransformed": np.int8(1),
            "measurement__isBackgroundFrame": np.repeat(
                np.array([0, 1], np.int8), [count, background]
            ),
            "acquisition__numFrames": np.int64(count + background),
            "calibration__method": "robot",
            "calibration__size": np.array(size),
            "calibration__fieldOfView": np.array([6e-3, 4e-3, 2e-3]),
            "calibration__fieldOfViewCenter": np.array([1e-3, 0, -1e-3]),
            "calibration__order": order,
        }
        | changes
    )


def samples(seed=0):
    """Integers, which all types hold exactly."""
    return np.random.default_rng(seed).integers(-99, 99, size=(N, J, C, V))


def build(path, content):
    path.unlink(missing_ok=True)
    with h5py.File(path, "w") as file:
        for name, value in content.items():
            text = isinstance(value, (str, list))
            kind = h5py.string_dtype() if text else None
            file.create_dataset(name, data=value, dtype=kind)
    return path


@pytest.fixture
def made(tmp_path):
    numbers = itertools.count()
    return lambda content: build(tmp_path / f"{next(numbers)}.mdf", content)


def same(one, two, skip=("version", "uuid", "time", "path", "notes", "data")):
    """Every field of two headers, at all depths."""
    assert type(one) is type(two)
    if dataclasses.is_dataclass(one):
        for field in dataclasses.fields(one):
            if field.name not in skip:
                inner = () if field.name not in ("data", "image_data") else skip
                same(getattr(one, field.name), getattr(two, field.name), inner)
    elif isinstance(one, dict):
        assert one.keys() == two.keys()
        for name in one:
            same(one[name], two[name])
    else:
        np.testing.assert_array_equal(one, two)
        assert np.asarray(one).dtype == np.asarray(two).dtype


# ------------------------------------------------------------------------ real files


def test_real_calibration(shared):
    path = shared / "data" / "mdf_files" / "calibration_v2.0.mdf"
    with pytest.warns(UserWarning, match="isTransposed") as caught:
        file = mdf.read(path)
    assert len(caught) == 1 and file.path == path
    assert file.version == "2.0" and file.uuid == "fa258499-8051-4eac-a9f5-546d5c6b07fc"
    a, drive = file.acquisition, file.acquisition.drive_field
    assert drive.base_frequency == 125e6 and drive.divider.tolist() == [[4864]]
    assert drive.cycle == 3.8912e-05 and drive.strength.tolist() == [[[0.005]]]
    assert drive.phase.tolist() == [[[0]]] and drive.waveform == (("sine",),)
    assert drive.base_frequency / drive.divider[0, 0] == pytest.approx(
        25.699e3, rel=1e-4
    )
    assert a.receiver.bandwidth == 1953125 and a.receiver.samples == 152
    assert a.receiver.samples == pytest.approx(drive.cycle * 2 * a.receiver.bandwidth)
    factor = a.receiver.data_conversion_factor
    np.testing.assert_allclose(factor, [[1.2957e-4, 1.554888e-2]], rtol=1e-4)
    assert a.receiver.unit == "V" and (a.averages, a.frames, a.periods) == (1000, 9, 1)
    assert not a.gradient.any() and a.gradient.shape == (1, 1, 3, 3)
    assert not a.offset_field.any() and a.offset_field.shape == (1, 1, 3)
    assert file.tracer.name == ("n.a",) and file.tracer.volume.shape == (1,)
    assert file.tracer.injection_time == ("2018-04-19T09:49:08.841",)
    c = file.calibration
    assert c.size.tolist() == [9, 1, 1] and c.order == "xyz" and c.method == "robot"
    np.testing.assert_array_equal(c.field_of_view, [0.09, 0.001, 0.001])
    np.testing.assert_allclose(
        c.field_of_view_centre, [0.156, -0.0112, 0.071], rtol=1e-14
    )
    assert c.snr is None and c.delta_sample_size is None
    m = file.measurement
    assert not m.is_fast_frame_axis and m.sparsity_transformation is None
    assert file.data.shape == (9, 1, 1, 152) and file.data.dtype == np.float32
    words = "numPeriods isTransposed gradient offsetField waveform tracer".split()
    assert len(file.notes) == len(words)
    assert all(any(word in note for note in file.notes) for word in words)
    assert mdf.check(path) == list(file.notes)

    x = np.array(mdf.grid(file).axes()[0])
    np.testing.assert_allclose(x, np.linspace(0.116, 0.196, 9), rtol=1e-6)
    u = mdf.signals(file)
    assert u.shape == (9, 1, 1, 152) and u.dtype == np.float32
    assert u.mean(dtype=float) == pytest.approx(-3.6184e-3, rel=1e-4)
    raw = (u.astype(float) - factor[0, 1]) / factor[0, 0]
    np.testing.assert_allclose(
        raw[0, 0, 0, :3], [-148.342, -148.469, -148.489], atol=6e-4
    )
    assert raw.mean() == pytest.approx(-147.926, abs=6e-4)
    f = mdf.spectra(file)
    assert f.shape == (9, 1, 1, 77) and len(mdf.frequencies(file)) == 77
    first = [91.828, 91.485, 91.868, 91.869, 92.187, 92.638, 93.108, 93.118, 91.829]
    np.testing.assert_allclose(abs(f[:, 0, 0, 1]) / factor[0, 0], first, atol=6e-4)
    np.testing.assert_allclose(np.fft.rfft(u), f, atol=1e-4 * abs(f[..., 1]).max())
    assert mdf.system_matrix(file).shape == (1, 77, 9)


@pytest.mark.filterwarnings("error")
def test_real_header_only(shared):
    path = shared / "data" / "mdf_files" / "header_only_v2.1.0.mdf"
    file = mdf.read(path)
    assert (
        file.version == "2.1.0" and file.uuid == "2788439b-ac8f-4712-86d1-86d485eb28d9"
    )
    drive, receiver = file.acquisition.drive_field, file.acquisition.receiver
    assert drive.base_frequency == 125e6 and drive.divider.tolist() == [[5000]]
    assert drive.cycle == 4e-05 and drive.strength.tolist() == [[[0.02]]]
    assert drive.waveform == (("sine",),)
    assert receiver.bandwidth == 7812500 and receiver.samples == 625
    f = mdf.frequencies(file)
    assert len(f) == 313 and f[1] == pytest.approx(25e3) and f[-1] < receiver.bandwidth
    assert file.scanner.topology == "FFL" and file.scanner.bore_size == 1.337
    assert file.experiment.is_simulation is True
    assert file.study.time == "2021-05-30T16:46:28.563"
    assert file.data is file.measurement is file.calibration is file.tracer is None
    assert file.acquisition.gradient is file.acquisition.offset_field is None
    assert file.notes == () and mdf.check(path) == []
    with pytest.raises(ValueError, match="header_only"):
        mdf.signals(file)


# --------------------------------------------------------------------------- layouts


@pytest.mark.filterwarnings("error")
def test_header_and_indices(made):
    file = mdf.read(made(fields()))
    assert file.study.description == "Gräser" and file.experiment.number == 4
    assert file.tracer.name == ("Perimag", "Synomag") and file.notes == ()
    assert file.acquisition.offset_field.tolist() == [[[0, 1, 2]], [[3, 4, 5]]]
    assert file.measurement.background.tolist() == [1, 4]
    assert file.measurement.foreground.tolist() == [0, 2, 3]
    order = np.array([3, 1, 5, 2, 4])
    changes = {
        "measurement__isFramePermutation": np.int8(1),
        "measurement__framePermutation": order,
    }
    file = mdf.read(made(fields(**changes)))
    assert file.measurement.frame_permutation.tolist() == [2, 0, 4, 1, 3]
    # Stored frame n was acquired as frame order[n].
    acquired = mdf.signals(file, frames=mdf.acquisition_order(file))
    for n in range(N):
        np.testing.assert_array_equal(acquired[order[n] - 1], samples()[n])


@pytest.mark.parametrize("fourier, fast", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("dtype", ["i2", "f4", "f8"])
@pytest.mark.parametrize("chunks", [False, True])
def test_every_layout(made, fourier, fast, dtype, chunks):
    u = samples().astype(float)
    stored = np.fft.rfft(u) if fourier else u
    wide = dtype == "f8"
    if fourier:
        stored = stored.astype("c16" if wide else "c8")
    else:
        stored = stored.astype(dtype)
    stored = np.moveaxis(stored, 0, -1) if fast else stored
    path = made(
        fields(
            measurement__data=stored,
            measurement__isFastFrameAxis=np.int8(fast),
            measurement__isFourierTransformed=np.int8(fourier),
            acquisition__receiver__dataConversionFactor=FACTOR,
        )
    )
    if chunks:
        with h5py.File(path, "a") as file:
            del file["measurement/data"]
            file.create_dataset(
                "measurement/data", data=stored, chunks=(2, 1, 2, 3), compression="gzip"
            )
    file = mdf.read(path)
    volts = FACTOR[:, :1] * u + FACTOR[:, 1:]
    tolerance = dict(rtol=1e-12 if wide else 2e-6, atol=1e-10 if wide else 1e-3)
    got = mdf.signals(file)
    assert got.dtype == (np.float64 if wide else np.float32)
    np.testing.assert_allclose(got, volts, **tolerance)
    part = mdf.signals(file, frames=[4, 0, 0], periods=1, channels=slice(1, None))
    np.testing.assert_allclose(part, volts[[4, 0, 0]][:, [1]][:, :, 1:], **tolerance)
    part = mdf.signals(file, frames=BACKGROUND == 1)
    np.testing.assert_allclose(part, volts[[1, 4]], **tolerance)
    f = np.fft.rfft(volts)
    np.testing.assert_allclose(mdf.spectra(file), f, **tolerance)
    frequency_selection = np.zeros((C, K), bool)
    frequency_selection[0, [0, 2, 6]] = frequency_selection[1, [3, 0]] = True
    rows = np.concatenate([f[:, :, 0, [0, 2, 6]], f[:, :, 1, [0, 3]]], axis=-1)
    got = mdf.spectra(
        file, frequency_selection=frequency_selection, frames=[3, 1], periods=[1, 0]
    )
    np.testing.assert_allclose(got, rows[[3, 1]][:, [1, 0]], **tolerance)


@pytest.mark.parametrize("fast", [0, 1])
def test_frequency_selection(made, fast):
    picked = np.array([5, 0, 2])
    f = np.fft.rfft(samples())
    stored = f[..., picked].astype("c16")
    path = made(
        fields(
            measurement__data=np.moveaxis(stored, 0, -1) if fast else stored,
            measurement__isFastFrameAxis=np.int8(fast),
            measurement__isFourierTransformed=np.int8(1),
            measurement__isFrequencySelection=np.int8(1),
            measurement__frequencySelection=picked + 1,
            acquisition__receiver__dataConversionFactor=FACTOR,
        )
    )
    file = mdf.read(path)
    assert file.measurement.frequency_selection.tolist() == picked.tolist()
    f = np.fft.rfft(FACTOR[:, :1] * samples() + FACTOR[:, 1:])
    np.testing.assert_allclose(mdf.spectra(file), f[..., [0, 2, 5]], rtol=1e-9)
    frequency_selection = np.zeros((C, K), bool)
    frequency_selection[1, [0, 5]] = True
    got = mdf.spectra(file, frequency_selection=frequency_selection)
    np.testing.assert_allclose(got, f[:, :, 1, [0, 5]], rtol=1e-9)
    frequency_selection[0, 1] = True
    with pytest.raises(ValueError, match="frequency_selection"):
        mdf.spectra(file, frequency_selection=frequency_selection)
    with pytest.raises(ValueError, match="frequencies"):
        mdf.signals(file)


def test_odd_samples_have_no_nyquist_bin(made):
    u = np.random.default_rng(1).normal(size=(N, J, C, 15))
    changes = dict(
        acquisition__drivefield__divider=np.array([[5], [3]]),
        acquisition__drivefield__baseFrequency=15e3,
        acquisition__receiver__bandwidth=7.5e3,
        acquisition__receiver__numSamplingPoints=np.int64(15),
    )
    file = mdf.read(made(fields(measurement__data=u, **changes)))
    np.testing.assert_allclose(mdf.spectra(file), np.fft.rfft(u), atol=1e-12)
    changes["measurement__isFourierTransformed"] = np.int8(1)
    file = mdf.read(made(fields(measurement__data=np.fft.rfft(u), **changes)))
    np.testing.assert_allclose(mdf.signals(file), u, atol=1e-12)
    assert mdf.frequencies(file).tolist() == [1e3 * k for k in range(8)]


# --------------------------------------------------------------------- system matrix


def test_system_matrix_rows_and_columns(made):
    content = calibration()
    stored = content["/measurement/data"]
    file = mdf.read(made(content))
    np.testing.assert_array_equal(mdf.system_matrix(file), stored.reshape(J, C * K, -1))
    frequency_selection = np.random.default_rng(0).random((C, K)) < 0.5
    np.testing.assert_array_equal(
        mdf.system_matrix(file, frequency_selection), stored[:, frequency_selection]
    )
    columns = [11, 3, 4, *range(12, 16)]
    got = mdf.system_matrix(file, frequency_selection, periods=1, voxels=[11, 3, 4])
    np.testing.assert_array_equal(got, stored[1:, frequency_selection][..., columns])
    with pytest.raises(ValueError, match="voxels"):
        mdf.system_matrix(file, voxels=[12])
    with pytest.raises(ValueError, match="frequency_selection"):
        mdf.system_matrix(file, np.zeros((C, K), bool))


def test_time_domain_calibration_equals_rows(made):
    content = calibration(double=True)
    stored = content["/measurement/data"]
    stored[:, :, [0, -1]] = stored[:, :, [0, -1]].real
    u = np.moveaxis(np.fft.irfft(stored, V, axis=2), -1, 0)
    flags = {
        "measurement__isFastFrameAxis": np.int8(0),
        "measurement__isFourierTransformed": np.int8(0),
    }
    file = mdf.read(made(calibration(measurement__data=u, **flags)))
    expected = stored.reshape(J, C * K, -1)
    np.testing.assert_allclose(mdf.system_matrix(file), expected, atol=1e-12)


@pytest.mark.parametrize("order", ["xyz", "yxz", "zxy"])
def test_voxel_order_is_our_image_layout(made, order):
    size = dict(x=3, y=2, z=4)
    file = mdf.read(made(calibration(size=(3, 2, 4), order=order)))
    index = mdf.voxel_order(file)
    grid = mdf.grid(file)
    assert index.shape == grid.shape == (4, 2, 3)
    for iz, row, ix in np.ndindex(index.shape):
        at = dict(x=ix, y=1 - row, z=iz)
        expected, step = 0, 1
        for axis in order:
            expected += step * at[axis]
            step *= size[axis]
        assert index[iz, row, ix] == expected
    x, y, z = (np.array(v) for v in grid.axes())
    np.testing.assert_allclose(x, 1e-3 + 6e-3 * np.array([-1, 0, 1]) / 3, atol=1e-9)
    np.testing.assert_allclose(y, [1e-3, -1e-3], atol=1e-9)
    np.testing.assert_allclose(
        z, -1e-3 + 2e-3 * np.array([-3, -1, 1, 3]) / 8, atol=1e-9
    )
    plane = mdf.grid(file, plane=3)
    assert plane.shape == (2, 3) and plane.centre[2] == pytest.approx(z[3], abs=1e-9)
    assert plane.field_of_view[2] == pytest.approx(0.5e-3)


def test_a_plane_is_read_in_image_layout(made):
    content = calibration()
    file = mdf.read(made(content))
    got = mdf.system_matrix(file, voxels=mdf.voxel_order(file)[1].ravel())
    volume = content["/measurement/data"][..., :12].reshape(J, C * K, 2, 2, 3)
    expected = volume[:, :, 1, ::-1].reshape(J, C * K, 6)
    np.testing.assert_array_equal(got[..., :6], expected)


def background_loop(rows, is_background, permutation):
    """The correction frame by frame: rows [R, N] in stored order."""
    frames = len(permutation)
    acquired = [None] * frames
    for n in range(frames):
        acquired[permutation[n]] = n
    scans, run = [], []
    for o in [*range(frames), None]:
        if o is not None and is_background[acquired[o]]:
            run.append(rows[:, acquired[o]])
        elif run:
            scans += [sum(run) / len(run)] * len(run)
            run = []
    out = []
    for n in range(frames):
        if not is_background[n]:
            alpha = permutation[n] / (frames - 1) * (len(scans) - 1)
            low = min(int(alpha), len(scans) - 1)
            high = min(low + 1, len(scans) - 1)
            w = alpha - low
            out.append(rows[:, n] - ((1 - w) * scans[low] + w * scans[high]))
    return np.stack(out, -1)


@pytest.mark.parametrize("background", [1, 2, 5])
@pytest.mark.parametrize("blocks", [False, True])
def test_background_is_interpolated_in_time(made, background, blocks):
    frames = 12 + background
    permutation = np.random.default_rng(background).permutation(frames)
    if blocks:  # scans side by side
        permutation = np.roll(np.arange(frames), 3)
    content = calibration(
        background=background,
        double=True,
        measurement__isFramePermutation=np.int8(1),
        measurement__framePermutation=permutation + 1,
    )
    rows = content["/measurement/data"].reshape(J, C * K, -1)
    flags = content["/measurement/isBackgroundFrame"]
    file = mdf.read(made(content))
    got = mdf.correct_background(file, mdf.system_matrix(file))
    for j in range(J):
        expected = background_loop(rows[j], flags, permutation)
        np.testing.assert_allclose(got[j], expected, atol=1e-12)
    some = [7, 2]
    part = mdf.correct_background(
        file, mdf.system_matrix(file, voxels=some), voxels=some
    )
    np.testing.assert_allclose(part, got[..., some], atol=1e-12)


def test_background_is_corrected_once_and_never_missing(made):
    content = calibration(measurement__isBackgroundCorrected=np.int8(1))
    file = mdf.read(made(content))
    rows = mdf.system_matrix(file)
    np.testing.assert_array_equal(mdf.correct_background(file, rows), rows[..., :12])
    file = mdf.read(made(calibration(background=0)))
    with pytest.raises(ValueError, match="background"):
        mdf.correct_background(file, mdf.system_matrix(file))
    with pytest.raises(ValueError, match="rows"):
        mdf.correct_background(file, rows)


def test_a_meandering_grid_is_not_guessed(made):
    content = calibration(calibration__isMeanderingGrid=np.int8(1))
    file = mdf.read(made(content))
    with pytest.raises(ValueError, match="isMeanderingGrid"):
        mdf.system_matrix(file)


@pytest.mark.parametrize("kind", [1, 2, 3, 4])
def test_cosine_transforms_are_scipys(kind):
    name = ["DCT-I", "DCT-II", "DCT-III", "DCT-IV"][kind - 1]
    values = np.random.default_rng(0).normal(size=(2, 3, 1, 5, 2)) @ [1, 1j]
    forth = scipy.fft.dctn(values, kind, axes=(1, 3), norm="ortho")
    np.testing.assert_allclose(_linalg.dct(values, name), forth, atol=1e-12)
    np.testing.assert_allclose(
        _linalg.dct(forth, name, inverse=True), values, atol=1e-12
    )


@pytest.mark.parametrize("kind", [1, 2, 4])
@pytest.mark.parametrize("order", ["xyz", "yzx"])
def test_compressed_rows_are_expanded(made, kind, order):
    rng = np.random.default_rng(kind)
    kept, count, background = 5, 24, 3
    rows = rng.normal(size=(J, C, K, kept + background, 2)) @ [1, 1j]
    places = np.stack([rng.permutation(count)[:kept] for _ in range(J * C * K)])
    places = places.reshape(J, C, K, kept)
    content = calibration(
        size=(4, 3, 2),
        order=order,
        background=background,
        measurement__data=rows,
        measurement__isSparsityTransformed=np.int8(1),
        measurement__sparsityTransformation=["DCT-I", "DCT-II", 0, "DCT-IV"][kind - 1],
        measurement__subsamplingIndices=places + 1,
        acquisition__receiver__dataConversionFactor=FACTOR,
    )
    file = mdf.read(made(content))
    full = np.zeros((J, C, K, count), complex)
    np.put_along_axis(full, places, rows[..., :kept], axis=-1)
    shape = [dict(x=4, y=3, z=2)[axis] for axis in reversed(order)]
    full = full.reshape(J, C, K, *shape)
    full = scipy.fft.idctn(full, kind, axes=(3, 4, 5), norm="ortho")
    full = full.reshape(J, C, K, count)
    full = np.concatenate([full, rows[..., kept:]], -1) * FACTOR[:, :1, None]
    full[:, :, 0] += V * FACTOR[:, 1:]
    got = mdf.system_matrix(file)
    np.testing.assert_allclose(got, full.reshape(J, C * K, -1), atol=1e-12)
    frequency_selection = rng.random((C, K)) < 0.5
    got = mdf.system_matrix(file, frequency_selection, voxels=[20, 3], periods=[1])
    expected = full[1:, frequency_selection][..., [20, 3, 24, 25, 26]]
    np.testing.assert_allclose(got, expected, atol=1e-12)
    np.testing.assert_allclose(
        mdf.spectra(file), full.transpose(3, 0, 1, 2), atol=1e-12
    )
    full[:, :, [0, -1]] = full[:, :, [0, -1]].real
    expected = np.fft.irfft(full.transpose(3, 0, 1, 2))
    np.testing.assert_allclose(mdf.signals(file), expected, atol=1e-12)


def snr_loop(rows, flags):
    """The definition, row by row: rows [J, C, K, N] -> [J, C, K]."""
    out = np.zeros(rows.shape[:3])
    for j, c in np.ndindex(rows.shape[:2]):
        first, noise, signal = [], [], []
        for k in range(rows.shape[2]):
            fg = rows[j, c, k, flags == 0]
            bg = rows[j, c, k, flags == 1]
            spread = abs(bg - bg.mean()) if len(bg) > 1 else abs(bg)
            noise.append(spread.mean())
            first.append(np.median(abs(fg - bg.mean())) / noise[-1])
        best = sorted(range(rows.shape[2]), key=lambda k: -first[k])[:20]
        mask = np.zeros(int(np.sum(flags == 0)), bool)
        for k in best:
            fg = abs(rows[j, c, k, flags == 0])
            mask |= fg > 0.9 * max(fg)
        for k in range(rows.shape[2]):
            kappa = abs(rows[j, c, k, flags == 0] - rows[j, c, k, flags == 1].mean())
            signal = np.median(kappa[mask])
            if signal > 3.5 * noise[k]:
                signal = np.median(kappa[kappa > 0.9 * max(kappa)])
            out[j, c, k] = signal / noise[k]
    return np.broadcast_to(np.median(out, axis=0), out.shape)


@pytest.mark.parametrize("background", [1, 4])
def test_snr_is_computed_as_defined(made, background, monkeypatch):
    monkeypatch.setattr(bulk, "PIECE", 2000)  # several blocks of rows
    rng = np.random.default_rng(8)
    rows = rng.normal(size=(J, C, 49, 12 + background, 2)) @ [1, 1j]
    rows[..., :12] *= 10 ** rng.uniform(-1, 1.5, size=(J, C, 49, 1))
    content = calibration(
        background=background,
        measurement__data=rows,
        acquisition__receiver__numSamplingPoints=np.int64(96),
        acquisition__receiver__bandwidth=48e3,
    )
    file = mdf.read(made(content))
    expected = snr_loop(rows, content["/measurement/isBackgroundFrame"])
    np.testing.assert_allclose(mdf.snr(file), expected, rtol=1e-10)


def test_snr_of_the_file_lies_on_the_whole_axis(made):
    stored = np.arange(J * C * 2.0).reshape(J, C, 2) + 1
    content = calibration(
        calibration__snr=stored,
        measurement__isFrequencySelection=np.int8(1),
        measurement__frequencySelection=np.array([6, 2]),
    )
    content["/measurement/data"] = content["/measurement/data"][:, :, :2]
    got = mdf.snr(mdf.read(made(content)))
    assert got.shape == (J, C, K)
    np.testing.assert_array_equal(got[..., [5, 1]], stored)
    assert not got[..., [0, 2, 3, 4, 6]].any()
    with pytest.raises(ValueError, match="background"):
        mdf.snr(mdf.read(made(calibration(background=0))))


def test_mixing_orders_against_all_combinations(made):
    file = mdf.read(made(fields()))
    orders, total = mdf.mixing_orders(file, 3)
    # Dividers 4 and 3 of a cycle of 12 samples: steps of 3 and 4 bins.
    for k in range(K):
        fits = [
            m
            for m in itertools.product(range(-3, 4), repeat=2)
            if 3 * m[0] + 4 * m[1] == k
        ]
        assert total[k] == min(sum(map(abs, m)) for m in fits)
        assert tuple(orders[k]) in fits and sum(map(abs, orders[k])) == total[k]
    assert mdf.mixing_orders(file, 1)[1].tolist() == [0, 2, -1, 1, 1, -1, -1]
    with pytest.raises(ValueError, match="max_order"):
        mdf.mixing_orders(file, -1)


# ------------------------------------------------------------- version 1, tolerance


def version_1(**changes):
    drop = ("/experiment/", "/measurement/", "/time")
    content = {k: v for k, v in fields().items() if not k.startswith(drop)}
    for name in ("/study/number", "/study/uuid", "/study/description", "/scanner/name"):
        del content[name]
    for name in ("phase", "waveform", "cycle"):
        del content[f"/acquisition/drivefield/{name}"]
    for name in ("numAverages", "numPeriodsPerFrame", "startTime", "offsetField"):
        del content[f"/acquisition/{name}"]
    content |= {
        "/version": "1.0.5",
        "/date": "2016-01-02",
        "/study/experiment": "18",
        "/study/subject": "mouse",
        "/study/simulation": np.int64(1),
        "/study/description": "what was done",
        "/scanner/model": "a model",
        "/acquisition/time": "2016-01-02T03:04:05",
        "/acquisition/numPatches": np.int64(J),
        "/acquisition/gradient": np.array([-1.0, -1, 2]),
        "/acquisition/drivefield/averages": np.int64(7),
        "/acquisition/drivefield/period": 1e-3,
        "/acquisition/drivefield/divider": np.array([4, 3]),
        "/acquisition/drivefield/strength": np.array([[0.01, 0.02]]),
        "/measurement/dataTD": samples().astype("f4"),
    }
    for name, value in changes.items():
        name = "/" + name.replace("__", "/")
        if value is None:
            del content[name]
        else:
            content[name] = value
    return content


def test_version_1_measurement(made):
    path = made(version_1())
    with pytest.warns(UserWarning, match="/version"):
        file = mdf.read(path)
    assert len(file.notes) == 1 and file.time == "2016-01-02"
    e = file.experiment
    assert (e.number, e.subject, e.is_simulation) == (18, "mouse", True)
    assert e.description == "what was done" and file.scanner.name == "a model"
    a = file.acquisition
    assert (a.averages, a.frames, a.periods) == (7, N, J)
    assert a.start_time == "2016-01-02T03:04:05" and a.drive_field.cycle == 1e-3
    np.testing.assert_array_equal(
        a.gradient, np.tile(np.diag([-1, -1, 2]), (J, 1, 1, 1))
    )
    assert a.drive_field.divider.tolist() == [[4], [3]]
    assert a.drive_field.strength.tolist() == [[[0.01], [0.02]]] * J
    np.testing.assert_array_equal(a.drive_field.phase, np.full((J, 2, 1), np.pi / 2))
    np.testing.assert_array_equal(mdf.signals(file), samples())
    f = np.fft.rfft(samples())
    pairs = np.stack([f.real, f.imag], -1)
    path = made(version_1(measurement__dataTD=None, measurement__dataFD=pairs))
    with pytest.warns(UserWarning):
        file = mdf.read(path)
    np.testing.assert_allclose(mdf.spectra(file), f, atol=1e-12)
    np.testing.assert_allclose(mdf.signals(file), samples(), atol=1e-12)


@pytest.mark.filterwarnings("ignore:.*version")
@pytest.mark.parametrize("patches", [1, J])
def test_version_1_calibration(made, patches):
    rows = np.random.default_rng(0).normal(size=(patches, C, K, 12, 2))
    squeeze = rows[0] if patches == 1 else rows
    snr = np.ones((C, K)) if patches == 1 else np.ones((J, C, K))
    path = made(
        version_1(
            measurement__dataTD=None,
            calibration__dataFD=squeeze,
            calibration__snrFD=snr,
            calibration__size=np.array([3, 2, 2]),
            calibration__fieldOfView=np.array([3e-3, 2e-3, 2e-3]),
            calibration__method="robot",
            acquisition__numPatches=np.int64(patches),
        )
    )
    file = mdf.read(path)
    assert file.acquisition.frames == 12 and not file.measurement.background.size
    assert file.measurement.is_background_corrected
    assert file.calibration.snr.shape == (patches, C, K)
    expected = (rows @ [1, 1j]).reshape(patches, C * K, 12)
    frequency_selection = np.ones((C, K), bool)
    frequency_selection[0, 2] = False
    got = mdf.system_matrix(file, frequency_selection, voxels=[3, 4])
    np.testing.assert_array_equal(
        got, expected[:, frequency_selection.ravel()][..., [3, 4]]
    )
    got = mdf.correct_background(file, mdf.system_matrix(file))
    np.testing.assert_array_equal(got, expected)


def test_version_1_data_of_wrong_shape(made):
    path = made(version_1(measurement__dataTD=np.ones((N, V))))
    with pytest.raises(ValueError, match="/measurement/dataTD: expected shape"):
        mdf.read(path)


DIAGONALS = np.array([[-1.0, -1, 2], [-2, -2, 4]])
TOLERATED = {
    "isTransposed": (
        dict(measurement__isFastFrameAxis=None, measurement__isTransposed=np.int8(0)),
        lambda f: f.measurement.is_fast_frame_axis is False,
        "isTransposed",
    ),
    "no frame axis flag": (
        dict(measurement__isFastFrameAxis=None),
        lambda f: f.measurement.is_fast_frame_axis is False,
        "isFastFrameAxis",
    ),
    "numPeriods": (
        dict(acquisition__numPeriodsPerFrame=None, acquisition__numPeriods=np.int64(J)),
        lambda f: f.acquisition.periods == J,
        "numPeriods",
    ),
    "gradient 3": (
        dict(acquisition__gradient=DIAGONALS[0]),
        lambda f: np.array_equal(
            f.acquisition.gradient, np.tile(np.diag(DIAGONALS[0]), (J, 1, 1, 1))
        ),
        "gradient",
    ),
    "gradient 1x3": (
        dict(acquisition__gradient=DIAGONALS[:1]),
        lambda f: np.array_equal(
            f.acquisition.gradient, np.tile(np.diag(DIAGONALS[0]), (J, 1, 1, 1))
        ),
        "gradient",
    ),
    "gradient Jx3": (
        dict(acquisition__gradient=DIAGONALS),
        lambda f: np.array_equal(
            f.acquisition.gradient[:, 0], [np.diag(d) for d in DIAGONALS]
        ),
        "gradient",
    ),
    "gradient Jx3x3": (
        dict(acquisition__gradient=np.arange(18.0).reshape(J, 3, 3)),
        lambda f: np.array_equal(
            f.acquisition.gradient, np.arange(18.0).reshape(J, 1, 3, 3)
        ),
        "gradient",
    ),
    "offsetField 3": (
        dict(acquisition__offsetField=np.array([1.0, 2, 3])),
        lambda f: f.acquisition.offset_field.tolist() == [[[1, 2, 3]]] * J,
        "offsetField",
    ),
    "offsetField Jx3": (
        dict(acquisition__offsetField=DIAGONALS),
        lambda f: np.array_equal(f.acquisition.offset_field[:, 0], DIAGONALS),
        "offsetField",
    ),
    "scalar tracer": (
        dict(
            tracer__name="a",
            tracer__batch="b",
            tracer__vendor="c",
            tracer__solute="Fe",
            tracer__concentration=0.5,
            tracer__volume=1e-6,
            tracer__injectionTime=["2018"],
        ),
        lambda f: f.tracer.name == ("a",) and f.tracer.concentration.tolist() == [0.5],
        "/tracer",
    ),
    "scalar waveform": (
        dict(acquisition__drivefield__waveform="triangle"),
        lambda f: f.acquisition.drive_field.waveform == (("triangle",),) * 2,
        "waveform",
    ),
    "no isSparsityTransformed": (
        dict(measurement__isSparsityTransformed=None),
        lambda f: f.measurement.sparsity_transformation is None,
        "isSparsityTransformed",
    ),
    "number in an array": (
        dict(acquisition__receiver__bandwidth=np.array([[6e3]])),
        lambda f: f.acquisition.receiver.bandwidth == 6e3,
        "bandwidth",
    ),
    "whole number as double": (
        dict(acquisition__numAverages=10.0),
        lambda f: f.acquisition.averages == 10,
        "numAverages",
    ),
}


@pytest.mark.parametrize("name", TOLERATED)
def test_tolerated(made, name):
    changes, fine, word = TOLERATED[name]
    path = made(fields(**changes))
    with pytest.warns(UserWarning, match=word) as caught:
        file = mdf.read(path)
    assert len(caught) == 1
    assert fine(file) and len(file.notes) == 1 and word in file.notes[0]
    np.testing.assert_array_equal(mdf.signals(file), samples())


@pytest.mark.filterwarnings("error")
def test_tolerated_silently(made):
    changes = {
        "/version": "2.0.0",
        "/study/name": np.array(["old"], dtype="S8"),
        "/scanner/name": np.bytes_("old"),
        "/study/description": np.bytes_("Gr\xe4ser".encode("latin-1")),
    }
    content = fields() | changes
    del content["/measurement/isSparsityTransformed"], content["/acquisition/gradient"]
    file = mdf.read(made(content))
    assert (file.study.name, file.scanner.name) == ("old", "old")
    assert file.study.description == "Gräser" and file.acquisition.gradient is None
    content = calibration()
    assert "/calibration/positions" not in content
    assert mdf.grid(mdf.read(made(content))).shape == (2, 2, 3)


# ------------------------------------------------------------------------------ check

SPARSE = dict(
    measurement__isSparsityTransformed=np.int8(1),
    measurement__sparsityTransformation="DCT-II",
    measurement__subsamplingIndices=np.ones((J, C, K, 12), np.int64),
)
BROKEN = {
    "/study/name": fields(study__name=None),
    "/acquisition/receiver/bandwidth": fields(acquisition__receiver__bandwidth=None),
    "/measurement/isBackgroundFrame": fields(
        measurement__isBackgroundFrame=BACKGROUND[1:]
    ),
    "/measurement/data": fields(measurement__data=samples()[:, :, :, 1:]),
    "/tracer/batch": fields(tracer__batch=["1"]),
    "/acquisition/gradient": fields(acquisition__gradient=np.zeros((J, 1, 3, 2))),
    "/acquisition/offsetField": fields(acquisition__offsetField=np.zeros((J, 1, 2))),
    "/acquisition/drivefield/divider": fields(
        acquisition__drivefield__divider=np.array([[4]])
    ),
    "/acquisition/drivefield/waveform": fields(
        acquisition__drivefield__waveform=[["sine"]]
    ),
    "/acquisition/drivefield/phase": fields(
        acquisition__drivefield__phase=np.zeros((J, 1, 1))
    ),
    "/acquisition/drivefield/strength": fields(
        acquisition__drivefield__strength=np.zeros((1, 2, 1))
    ),
    "/acquisition/receiver/dataConversionFactor": fields(
        acquisition__receiver__dataConversionFactor=np.ones((C, 1))
    ),
    "/acquisition/receiver/inductionFactor": fields(
        acquisition__receiver__inductionFactor=np.ones(C + 1)
    ),
    "/acquisition/receiver/transferFunction": fields(
        acquisition__receiver__transferFunction=np.ones((C, K - 1), complex)
    ),
    "/acquisition/receiver/numSamplingPoints": fields(
        acquisition__drivefield__cycle=2e-3
    ),
    "/acquisition/numFrames": fields(acquisition__numFrames=np.int64(-1)),
    "/acquisition/numPeriodsPerFrame": fields(
        acquisition__numPeriodsPerFrame=np.int64(2**40)
    ),
    "/acquisition/drivefield/baseFrequency": fields(
        acquisition__drivefield__baseFrequency=np.nan
    ),
    "/acquisition/numAverages": fields(acquisition__numAverages="ten"),
    "/scanner/operator": fields(scanner__operator=np.int64(3)),
    "/scanner": {k: v for k, v in fields().items() if not k.startswith("/scanner")},
    "/measurement/framePermutation": fields(
        measurement__isFramePermutation=np.int8(1),
        measurement__framePermutation=np.array([1, 2, 3, 4, 4]),
    ),
    "/measurement/framePermutation ": fields(
        measurement__isFramePermutation=np.int8(1)
    ),
    "/measurement/framePermutation  ": fields(
        measurement__isFramePermutation=np.int8(1),
        measurement__framePermutation=np.arange(1, N),
    ),
    "/measurement/frequencySelection": calibration(
        measurement__isFrequencySelection=np.int8(1),
        measurement__frequencySelection=np.arange(K) + 2,
    ),
    "/measurement/isFourierTransformed": fields(
        measurement__isFourierTransformed=np.int8(2)
    ),
    "/measurement/data ": fields(measurement__data=samples() + 0j),
    "/measurement/data  ": fields(measurement__data=None),
    "/measurement/data   ": fields(measurement__data="text"),
    "/measurement/sparsityTransformation": calibration(
        **SPARSE | dict(measurement__sparsityTransformation="FFT")
    ),
    "/measurement/subsamplingIndices": calibration(
        **SPARSE | dict(measurement__subsamplingIndices=np.ones((J, C, K, 5), int))
    ),
    "/measurement/isBackgroundFrame ": calibration(
        **SPARSE,
        measurement__isBackgroundFrame=np.repeat(np.array([1, 0], np.int8), [4, 12]),
    ),
    "/calibration/size": calibration(calibration__size=np.array([3, 2, 1])),
    "/calibration/size ": calibration(calibration__size=np.array([12])),
    "/calibration/order": calibration(calibration__order="xzz"),
    "/calibration/fieldOfView": calibration(calibration__fieldOfView=np.ones(2)),
    "/calibration/positions": calibration(calibration__positions=np.ones((12, 2))),
    "/calibration/offsetFields": calibration(
        calibration__offsetFields=np.ones((11, 3))
    ),
    "/calibration/snr": calibration(calibration__snr=np.ones((1, C, K))),
    "/reconstruction/size": fields(
        reconstruction__data=np.ones((1, 6, 1), "f4"),
        reconstruction__size=np.array([2, 2, 1]),
    ),
    "/reconstruction/positions": fields(
        reconstruction__data=np.ones((1, 6, 1), "f4"),
        reconstruction__positions=np.ones((5, 3)),
    ),
    "/reconstruction/isOverscanRegion": fields(
        reconstruction__data=np.ones((1, 6, 1), "f4"),
        reconstruction__isOverscanRegion=np.zeros(5, np.int8),
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_every_rule_is_checked(made, name):
    path = made(BROKEN[name])
    problems = mdf.check(path)
    assert len(problems) == 1, problems
    assert problems[0].startswith(f"{name.strip()}: expected "), problems
    assert ", found " in problems[0]
    with pytest.raises(ValueError) as caught:
        mdf.read(path)
    assert str(caught.value) == f"{path}: {problems[0]}"


def test_a_good_file_has_no_problems(made):
    assert mdf.check(made(fields())) == mdf.check(made(calibration())) == []


COMPATIBLE = {
    "receive channels": dict(acquisition__receiver__numChannels=np.int64(1)),
    "bandwidth": dict(
        acquisition__receiver__bandwidth=12e3, acquisition__drivefield__cycle=0.5e-3
    ),
    "samples per period": dict(
        acquisition__receiver__numSamplingPoints=np.int64(24),
        acquisition__drivefield__cycle=2e-3,
    ),
    "dividers": dict(acquisition__drivefield__divider=np.array([[4], [6]])),
    "strength": dict(acquisition__drivefield__strength=np.full((J, 2, 1), 0.014)),
    "phase": dict(acquisition__drivefield__phase=np.full((J, 2, 1), 0.6)),
    "gradient": dict(acquisition__gradient=np.zeros((J, 1, 3, 3))),
    "transfer function": dict(measurement__isTransferFunctionCorrected=np.int8(1)),
    "frequency selection": dict(
        measurement__isFourierTransformed=np.int8(1),
        measurement__isFrequencySelection=np.int8(1),
        measurement__frequencySelection=np.array([2, 3]),
    ),
}


@pytest.mark.parametrize("name", COMPATIBLE)
def test_compatible_tells_what_differs(made, name):
    content = fields(**COMPATIBLE[name])
    channels = content["/acquisition/receiver/numChannels"]
    length = content["/acquisition/receiver/numSamplingPoints"]
    data = np.zeros((N, J, channels, length))
    if name == "frequency selection":
        data = np.zeros((N, J, C, 2), complex)
    content["/measurement/data"] = data
    matrix = mdf.read(made(calibration()))
    found = mdf.compatible(matrix, mdf.read(made(content)))
    assert len(found) == 1 and name in found[0], found


def test_compatible_files(made):
    matrix = mdf.read(made(calibration()))
    assert mdf.compatible(matrix, mdf.read(made(fields()))) == []
    turn = np.full((J, 2, 1), 0.5 - 2 * np.pi)
    other = mdf.read(made(fields(acquisition__drivefield__phase=turn)))
    assert mdf.compatible(matrix, other) == []
    # One period in the calibration, two equal ones in the measurement.
    one = {
        k: v[:1]
        for k, v in calibration().items()
        if k.endswith(("gradient", "offsetField", "phase", "strength", "/data"))
    }
    one["/acquisition/numPeriodsPerFrame"] = np.int64(1)
    matrix = mdf.read(made(calibration() | one))
    assert mdf.compatible(matrix, mdf.read(made(fields()))) == []


# ----------------------------------------------------------------------------- damage


def exercise(path):
    """All that a user does with a file; only ValueError and OSError may come out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = None

        def read():
            nonlocal file
            file = mdf.read(path)

        for use in (
            lambda: mdf.check(path),
            read,
            lambda: mdf.signals(file),
            lambda: mdf.spectra(file, frames=0),
            lambda: mdf.correct_background(file, mdf.system_matrix(file)),
            lambda: mdf.snr(file),
            lambda: mdf.grid(file),
            lambda: mdf.images(file),
        ):
            try:
                use()
            except (ValueError, OSError) as error:
                words = str(error)
                assert str(path) in words and "\n" not in words, words
                if file is None and use is read:
                    break


def seeds(folder):
    """Small files of each kind, one of them in compressed chunks."""
    contents = [
        fields(),
        calibration(),
        calibration(
            measurement__data=np.ones((J, C, K, 7), "c8"),
            background=4,
            **SPARSE
            | dict(measurement__subsamplingIndices=np.ones((J, C, K, 3), np.int64)),
        ),
        version_1(),
        fields(
            reconstruction__data=np.ones((1, 6, 1), "f4"),
            reconstruction__size=np.array([3, 2, 1]),
            reconstruction___parameters__lam=0.1,
        ),
    ]
    paths = [build(folder / f"seed{i}.mdf", c) for i, c in enumerate(contents)]
    with h5py.File(paths[0], "a") as file:
        data = file["measurement/data"][()]
        del file["measurement/data"]
        options = dict(chunks=(2, 1, 2, 3), compression="gzip", fletcher32=True)
        file.create_dataset("measurement/data", data=data, **options)
    return paths


def flip_bytes(rng, path):
    content = bytearray(path.read_bytes())
    # Half of the damage where HDF5 keeps its own structures.
    end = len(content) if rng.random() < 0.5 else min(3000, len(content))
    for place in rng.integers(0, end, size=2 ** rng.integers(0, 8)):
        content[place] = rng.choice([0, 1, 127, 255, rng.integers(256)])
    path.write_bytes(content)


def truncate(rng, path):
    content = path.read_bytes()
    path.write_bytes(content[: rng.integers(len(content))])


def restructure(rng, path):
    """Drop, retype, reshape, link or declare something enormous."""
    with h5py.File(path, "a") as file:
        names = []
        file.visititems(
            lambda name, found: (
                names.append(name) if isinstance(found, h5py.Dataset) else None
            )
        )
        chosen = rng.choice(names, size=rng.integers(1, 4), replace=False)
        values = {name: file[name][()] for name in chosen}
        for name, value in values.items():
            parent = name.rpartition("/")[0] or "/"
            kind = rng.integers(14)
            if kind == 13:  # the whole group
                name = parent if parent != "/" else name
            if name not in file:
                continue
            del file[name]
            huge = (2**20, 2**20, 2**12)
            number = (
                isinstance(value, (np.ndarray, np.number)) and value.dtype != object
            )
            match kind:
                case 0:
                    file[name] = "text"
                case 1:
                    file[name] = np.float64(rng.choice([np.nan, np.inf, -1, 0, 1e300]))
                case 2:
                    file[name] = np.int64(rng.choice([-1, 0, 2**40, 2**62]))
                case 3:
                    file[name] = np.array(value)[None]
                case 4:
                    file[name] = np.array(value).ravel()[:-1]
                case 5:
                    file[name] = h5py.SoftLink("/" + name)
                case 6:
                    file[name] = h5py.ExternalLink(path.name, "/" + name)
                case 7:
                    file[name] = file["/"]  # a cycle
                case 8:
                    file.create_dataset(name, huge, "f8", chunks=(16, 16, 16))
                case 9:
                    file.create_dataset(name, data=file["/"].ref, dtype=h5py.ref_dtype)
                case 10:
                    file[name] = h5py.Empty("f8")
                case 11:
                    file[name] = np.array(value) * 1e12 if number else np.bytes_("x")
                case 12:
                    file.create_dataset(name, (2**22,) * 3, "i1")
                case _:
                    pass


def damage(seed, paths, path):
    rng = np.random.default_rng(seed)
    path.write_bytes(paths[seed % len(paths)].read_bytes())
    [flip_bytes, truncate, restructure][seed // len(paths) % 3](rng, path)


def test_damage_ends_in_one_clear_line(tmp_path):
    """In a process of its own with little memory and time: HDF5 itself may crash."""
    code = f"""
import resource, signal, sys, pathlib
sys.path.insert(0, {str(pathlib.Path(__file__).parents[1])!r})
from mdf import reader_test as mdf_test
folder = pathlib.Path({str(tmp_path)!r})
limit = 3 * 2**30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
paths = mdf_test.seeds(folder)
for seed in range(150):
    print(seed, flush=True)
    signal.alarm(60)
    path = folder / "damaged.mdf"
    mdf_test.damage(seed, paths, path)
    mdf_test.exercise(path)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=540
    )
    seed = done.stdout.split()[-1:]
    assert done.returncode == 0, (seed, done.returncode, done.stderr[-2000:])


def test_what_is_no_mdf_file(tmp_path, made):
    cases = {
        "empty": b"",
        "text": b"not HDF5" * 100,
        "signature": b"\x89HDF\r\n\x1a\n",
    }
    for name, content in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ValueError, match=str(path)):
            mdf.read(path)
    with pytest.raises(FileNotFoundError, match="absent"):
        mdf.read(tmp_path / "absent.mdf")
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        mdf.read(tmp_path)
    with pytest.raises(ValueError, match="/version"):
        mdf.read(made({"/matrix": np.zeros(3)}))


def test_a_text_heap_larger_than_the_file_is_refused(made):
    path = made(fields())
    content = bytearray(path.read_bytes())
    place = content.index(b"GCOL") + 8
    content[place : place + 8] = (2**40).to_bytes(8, "little")
    path.write_bytes(content)
    with pytest.raises(ValueError, match="heap"):
        mdf.read(path)


def test_the_file_must_be_the_one_whose_header_was_read(made):
    path = made(fields())
    file = mdf.read(path)
    build(path, calibration())
    with pytest.raises(ValueError, match="as in the header"):
        mdf.signals(file)


def test_data_of_absurd_size_are_refused(made):
    """Four million frames in a few kB: nothing is allocated, one line says why."""
    content = fields(acquisition__numFrames=np.int64(2**22), measurement__data=None)
    del content["/measurement/isBackgroundFrame"]
    path = made(content)
    with h5py.File(path, "a") as file:
        file.create_dataset("measurement/isBackgroundFrame", (2**22,), "i1")
        file.create_dataset("measurement/data", (2**22, J, C, V), "f4")
    file = mdf.read(path)
    with pytest.raises(ValueError, match="measurement/data"):
        mdf.signals(file)
    got = mdf.signals(file, frames=[2**22 - 1], periods=0)
    assert got.shape == (1, 1, C, V) and not got.any()


@pytest.mark.parametrize("chunks", [None, (1, 1, 16, 1024)])
def test_a_33_gigabyte_calibration_is_read_by_rows(tmp_path, made, chunks):
    size, background, length = (37, 37, 37), 1370, 53856
    rows = length // 2 + 1
    content = calibration(
        size=size,
        measurement__data=None,
        acquisition__numFrames=np.int64(37**3 + background),
        measurement__isBackgroundFrame=np.repeat(
            np.array([0, 1], np.int8), [37**3, background]
        ),
        acquisition__receiver__numSamplingPoints=np.int64(length),
        acquisition__receiver__bandwidth=length / 2e-3,
    )
    path = made(content)
    shape = (J, C, rows, 37**3 + background)
    with h5py.File(path, "a") as file:
        data = file.create_dataset("measurement/data", shape, "c8", chunks=chunks)
        data[1, 1, 20000, 18 * 37**2 + 5] = 3 + 4j
        data[1, 1, 20000, -1] = 5
        assert data.size * 8 > 33e9
    frequency_selection = np.zeros((C, rows), bool)
    frequency_selection[1, [50, 20000, 20001]] = True
    frequency_selection[0, ::9000] = True
    tracemalloc.start()
    file = mdf.read(path)
    got = mdf.system_matrix(file, frequency_selection, periods=1)
    plane = mdf.voxel_order(file)[18]
    part = mdf.system_matrix(file, frequency_selection, periods=1, voxels=plane.ravel())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert got.shape == (1, 6, 37**3 + background) and np.count_nonzero(got) == 2
    assert got[0, 4, 18 * 37**2 + 5] == 3 + 4j and got[0, 4, -1] == 5
    assert part.shape == (1, 6, 37**2 + background) and part[0, 4, -1] == 5
    # Fifth in the lowest line of y, the last row of the image.
    assert part[0, 4, : 37**2].reshape(37, 37)[-1, 5] == 3 + 4j
    assert peak < 40e6
    with pytest.raises(ValueError, match="measurement/data"):
        mdf.system_matrix(file)


# ---------------------------------------------------------------------------- writing


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
    made, tmp_path, fourier, fast, pieces
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
    file, path = mdf.read(made(content)), tmp_path / "written.mdf"
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
    made, tmp_path, fourier, fast, pieces
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
    file, path = mdf.read(made(content)), tmp_path / "written.mdf"
    rows = data.reshape(-1, 16)
    given = (rows[n : n + 5] for n in range(0, len(rows), 5)) if pieces else data
    mdf.write_calibration(path, file, given)
    agree(path, content)
    same(file, mdf.read(path))


@pytest.mark.parametrize("kept", [5, 12])
def test_compressed_calibrations_keep_the_largest(made, tmp_path, kept):
    content = calibration(double=True)
    rows = content["/measurement/data"]
    file, path = mdf.read(made(content)), tmp_path / "written.mdf"
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


def test_a_failing_write_leaves_the_old_file(made, tmp_path):
    file, path = mdf.read(made(fields())), tmp_path / "out" / "written.mdf"
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
def test_reconstructions(made, tmp_path, lead):
    content = fields()
    content |= {"/_note": "ours", "/acquisition/_robot/speed": 0.1}
    measured, path = mdf.read(made(content)), tmp_path / "written.mdf"
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


def test_user_data_are_copied(made, tmp_path):
    content = fields() | {"/_a": 1.0, "/measurement/_b/c": "text", "/extra": 2.0}
    path = made(content)
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
