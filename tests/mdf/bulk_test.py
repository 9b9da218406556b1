"""Bulk data of every layout: signals, spectra, rows of the system matrix."""

import tracemalloc

import h5py
import numpy as np
import pytest
import scipy.fft
from support.mdf_files import (
    BACKGROUND,
    FACTOR,
    C,
    J,
    K,
    N,
    V,
    build,
    calibration,
    fields,
    samples,
)

from mpi_jax import mdf

# --------------------------------------------------------------------------- layouts


@pytest.mark.parametrize("fourier, fast", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("dtype", ["i2", "f4", "f8"])
@pytest.mark.parametrize("chunks", [False, True])
def test_every_layout(new_file, fourier, fast, dtype, chunks):
    u = samples().astype(float)
    stored = np.fft.rfft(u) if fourier else u
    wide = dtype == "f8"
    if fourier:
        stored = stored.astype("c16" if wide else "c8")
    else:
        stored = stored.astype(dtype)
    stored = np.moveaxis(stored, 0, -1) if fast else stored
    path = new_file(
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
def test_frequency_selection(new_file, fast):
    picked = np.array([5, 0, 2])
    f = np.fft.rfft(samples())
    stored = f[..., picked].astype("c16")
    path = new_file(
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


def test_odd_samples_have_no_nyquist_bin(new_file):
    u = np.random.default_rng(1).normal(size=(N, J, C, 15))
    changes = dict(
        acquisition__drivefield__divider=np.array([[5], [3]]),
        acquisition__drivefield__baseFrequency=15e3,
        acquisition__receiver__bandwidth=7.5e3,
        acquisition__receiver__numSamplingPoints=np.int64(15),
    )
    file = mdf.read(new_file(fields(measurement__data=u, **changes)))
    np.testing.assert_allclose(mdf.spectra(file), np.fft.rfft(u), atol=1e-12)
    changes["measurement__isFourierTransformed"] = np.int8(1)
    file = mdf.read(new_file(fields(measurement__data=np.fft.rfft(u), **changes)))
    np.testing.assert_allclose(mdf.signals(file), u, atol=1e-12)
    assert mdf.frequencies(file).tolist() == [1e3 * k for k in range(8)]


# --------------------------------------------------------------------- system matrix


def test_system_matrix_rows_and_columns(new_file):
    content = calibration()
    stored = content["/measurement/data"]
    file = mdf.read(new_file(content))
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


def test_time_domain_calibration_equals_rows(new_file):
    content = calibration(double=True)
    stored = content["/measurement/data"]
    stored[:, :, [0, -1]] = stored[:, :, [0, -1]].real
    u = np.moveaxis(np.fft.irfft(stored, V, axis=2), -1, 0)
    flags = {
        "measurement__isFastFrameAxis": np.int8(0),
        "measurement__isFourierTransformed": np.int8(0),
    }
    file = mdf.read(new_file(calibration(measurement__data=u, **flags)))
    expected = stored.reshape(J, C * K, -1)
    np.testing.assert_allclose(mdf.system_matrix(file), expected, atol=1e-12)


def test_a_meandering_grid_is_not_guessed(new_file):
    content = calibration(calibration__isMeanderingGrid=np.int8(1))
    file = mdf.read(new_file(content))
    with pytest.raises(ValueError, match="isMeanderingGrid"):
        mdf.system_matrix(file)


@pytest.mark.parametrize("kind", [1, 2, 4])
@pytest.mark.parametrize("order", ["xyz", "yzx"])
def test_compressed_rows_are_expanded(new_file, kind, order):
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
    file = mdf.read(new_file(content))
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


# ------------------------------------------------------ another file, enormous files


def test_the_file_must_be_the_one_whose_header_was_read(new_file):
    path = new_file(fields())
    file = mdf.read(path)
    build(path, calibration())
    with pytest.raises(ValueError, match="as in the header"):
        mdf.signals(file)


def test_data_of_absurd_size_are_refused(new_file):
    """Four million frames in a few kB: nothing is allocated, one line says why."""
    content = fields(acquisition__numFrames=np.int64(2**22), measurement__data=None)
    del content["/measurement/isBackgroundFrame"]
    path = new_file(content)
    with h5py.File(path, "a") as file:
        file.create_dataset("measurement/isBackgroundFrame", (2**22,), "i1")
        file.create_dataset("measurement/data", (2**22, J, C, V), "f4")
    file = mdf.read(path)
    with pytest.raises(ValueError, match="measurement/data"):
        mdf.signals(file)
    got = mdf.signals(file, frames=[2**22 - 1], periods=0)
    assert got.shape == (1, 1, C, V) and not got.any()


@pytest.mark.parametrize("chunks", [None, (1, 1, 16, 1024)])
def test_a_33_gigabyte_calibration_is_read_by_rows(tmp_path, new_file, chunks):
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
    path = new_file(content)
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
