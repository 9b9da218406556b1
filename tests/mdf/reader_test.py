"""Headers: real files, old versions, and deviations whose meaning is plain."""

import numpy as np
import pytest
from support.mdf_files import C, J, K, N, V, calibration, fields, samples, version_1

from mpi_jax import mdf

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


# ------------------------------------------------------------- version 1, tolerance


def test_version_1_measurement(new_file):
    path = new_file(version_1())
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
    path = new_file(version_1(measurement__dataTD=None, measurement__dataFD=pairs))
    with pytest.warns(UserWarning):
        file = mdf.read(path)
    np.testing.assert_allclose(mdf.spectra(file), f, atol=1e-12)
    np.testing.assert_allclose(mdf.signals(file), samples(), atol=1e-12)


@pytest.mark.filterwarnings("ignore:.*version")
@pytest.mark.parametrize("patches", [1, J])
def test_version_1_calibration(new_file, patches):
    rows = np.random.default_rng(0).normal(size=(patches, C, K, 12, 2))
    squeeze = rows[0] if patches == 1 else rows
    snr = np.ones((C, K)) if patches == 1 else np.ones((J, C, K))
    path = new_file(
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


def test_version_1_data_of_wrong_shape(new_file):
    path = new_file(version_1(measurement__dataTD=np.ones((N, V))))
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
def test_tolerated(new_file, name):
    changes, fine, word = TOLERATED[name]
    path = new_file(fields(**changes))
    with pytest.warns(UserWarning, match=word) as caught:
        file = mdf.read(path)
    assert len(caught) == 1
    assert fine(file) and len(file.notes) == 1 and word in file.notes[0]
    np.testing.assert_array_equal(mdf.signals(file), samples())


@pytest.mark.filterwarnings("error")
def test_tolerated_silently(new_file):
    changes = {
        "/version": "2.0.0",
        "/study/name": np.array(["old"], dtype="S8"),
        "/scanner/name": np.bytes_("old"),
        "/study/description": np.bytes_("Gr\xe4ser".encode("latin-1")),
    }
    content = fields() | changes
    del content["/measurement/isSparsityTransformed"], content["/acquisition/gradient"]
    file = mdf.read(new_file(content))
    assert (file.study.name, file.scanner.name) == ("old", "old")
    assert file.study.description == "Gräser" and file.acquisition.gradient is None
    content = calibration()
    assert "/calibration/positions" not in content
    assert mdf.grid(mdf.read(new_file(content))).shape == (2, 2, 3)
