"""From two files to a system and an image: every setting against arithmetic by hand."""

import dataclasses
import itertools
import tracemalloc
import types

import jax
import numpy as np
import pytest
import scipy.fft

from mpi_jax import mdf, physics, preprocess, scanner, system_matrix
from mpi_jax.configs import Preprocessing
from mpi_jax.methods import linear

# 2.5 MHz / (10, 8): 40 samples, 21 frequencies, 62.5 kHz apart.
C, V, K, NY, NX = 2, 40, 21, 3, 4
DRIVE = scanner.DriveField((12e-3, 12e-3, 0.0), (10, 8, 0), (0.25, 0.25, 0.0))
# Point samples: of so short a period a low pass leaves few harmonics.
FLAT = dataclasses.replace(
    scanner.open_mpi_2d((NY, NX), oversample=1), drive_field=DRIVE
)


@pytest.fixture(autouse=True)
def x64(request):
    """Double precision, so that arithmetic by hand agrees to rounding."""
    with jax.enable_x64("single" not in request.fixturenames):
        yield


@pytest.fixture
def single():
    """Asks for single precision instead."""


def changed(header, **changes):
    """A header with other values; acquisition__frames names a field of a group."""
    for name, value in changes.items():
        group, _, rest = name.partition("__")
        if rest:
            value = changed(getattr(header, group), **{rest: value})
        header = dataclasses.replace(header, **{group: value})
    return header


def calibration(path, matrix, empty=None, scan=FLAT, **changes):
    """Write S [C, K, P] in image layout, and empty frames [C, K, E] behind it."""
    header = mdf.header(scan, calibration=True)
    columns = matrix[..., np.argsort(mdf.voxel_order(header), axis=None)]
    flags = np.zeros(columns.shape[-1], bool)
    if empty is not None:
        columns = np.concatenate([columns, empty], axis=-1)
        flags = np.r_[flags, np.ones(empty.shape[-1], bool)]
    changes = (
        dict(acquisition__frames=len(flags), measurement__is_background_frame=flags)
        | changes
    )
    mdf.write_calibration(path, changed(header, **changes), columns[None])
    return mdf.read(path)


def measurement(path, u, empty=None, scan=FLAT, offsets=None, **changes):
    """Write u [N, J, C, V or K]; empty [N]; offset fields [J, 3]."""
    header = mdf.header(scan)
    a, (N, J) = header.acquisition, u.shape[:2]

    def repeat(x):
        return np.repeat(x, J, axis=0)

    changes = (
        dict(
            acquisition__frames=N,
            acquisition__periods=J,
            acquisition__drive_field__strength=repeat(a.drive_field.strength),
            acquisition__drive_field__phase=repeat(a.drive_field.phase),
            acquisition__gradient=repeat(a.gradient),
            acquisition__offset_field=(
                repeat(a.offset_field)
                if offsets is None
                else np.asarray(offsets)[:, None]
            ),
            measurement__is_background_frame=(
                np.zeros(N, bool) if empty is None else np.asarray(empty, bool)
            ),
        )
        | changes
    )
    mdf.write_measurement(path, changed(header, **changes), u)
    return mdf.read(path)


def noise(seed, *shape, kind=float):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=shape)
    return values + 1j * rng.normal(size=shape) if kind is complex else values


S = noise(0, C, K, NY * NX, kind=complex) * 1e-9
EMPTY = np.array([1, 0, 0, 1, 0, 0, 0, 0, 1, 1], bool)
U = noise(1, 10, 6, C, V) * 1e-9
ALL = np.ones((C, K), bool)


@pytest.fixture
def plain(tmp_path):
    """A calibration, and a measurement of 6 + 4 frames of 6 periods."""
    return calibration(tmp_path / "c.mdf", S), measurement(tmp_path / "m.mdf", U, EMPTY)


def same(system, rows, data, tolerance=1e-12):
    """Equal rows and data but for one common factor."""
    unit, own = np.linalg.norm(rows), np.linalg.norm(system.system_matrix)
    assert (
        np.shape(system.system_matrix) == rows.shape
        and np.shape(system.measurement) == data.shape
    )
    np.testing.assert_allclose(system.system_matrix / own, rows / unit, atol=tolerance)
    limit = tolerance * max(1, np.linalg.norm(data) / unit)
    np.testing.assert_allclose(system.measurement / own, data / unit, atol=limit)


def spectra(u, frequency_selection=ALL):
    """[..., C, V] -> [..., M], a loop over channels and then frequencies."""
    columns = []
    for c, k in itertools.product(range(C), range(K)):
        if frequency_selection[c, k]:
            wave = np.exp(-2j * np.pi * k * np.arange(V) / V)
            columns.append(u[..., c, :] @ wave)
    return np.stack(columns, axis=-1)


# --- Which rows

STORED = np.exp(noise(2, C, K))


def mixes(k, order):
    """Is k a sum of drive frequencies 4 and 5 with up to `order` terms?"""
    terms = range(-order, order + 1)
    return any(
        4 * a + 5 * b == k for a in terms for b in terms if abs(a) + abs(b) <= order
    )


SELECTIONS = [
    ({"min_frequency": 200e3}, lambda c, k: k >= 4),
    ({"min_frequency": 250e3, "max_frequency": 500e3}, lambda c, k: 4 <= k <= 8),
    (
        {"stop_bands": ((0.0, 62.5e3), (300e3, 400e3))},
        lambda c, k: k not in (0, 1, 5, 6),
    ),
    ({"channels": (1,)}, lambda c, k: c == 1),
    ({"snr_threshold": 1.5}, lambda c, k: STORED[c, k] >= 1.5),
    ({"num_rows": 7}, lambda c, k: np.sum(STORED > STORED[c, k]) < 7),
    (
        {"num_rows": 3, "channels": (0,)},
        lambda c, k: c == 0 and np.sum(STORED[0] > STORED[0, k]) < 3,
    ),
    ({"max_mixing_order": 2}, lambda c, k: mixes(k, 2)),
]


@pytest.mark.parametrize(
    "settings, wanted",
    SELECTIONS,
    ids=[str(settings)[:30] for settings, _ in SELECTIONS],
)
def test_row_selection(tmp_path, settings, wanted):
    files = (
        calibration(tmp_path / "c.mdf", S, calibration__snr=STORED[None]),
        measurement(tmp_path / "m.mdf", U[:1]),
    )
    system = preprocess.prepare(*files, Preprocessing(**settings))
    frequency_selection = np.array([[wanted(c, k) for k in range(K)] for c in range(C)])
    assert 0 < frequency_selection.sum() < C * K
    np.testing.assert_array_equal(system.frequency_selection, frequency_selection)
    rows = np.stack(
        [S[c, k] for c in range(C) for k in range(K) if frequency_selection[c, k]]
    )
    same(system, rows, spectra(U[:1].mean(1), frequency_selection))


def test_ratio_computed_from_background_frames(tmp_path):
    """Rows whose voxels stand out of the empty frames, where the file has no SNR."""
    loud = np.zeros((C, K), bool)
    loud[0, 5], loud[1, 7:9] = True, True
    empty = noise(3, C, K, 8, kind=complex)
    matrix = S / 1e-9 * np.where(loud, 300, 0)[..., None]
    file = calibration(tmp_path / "c.mdf", matrix, empty)
    np.testing.assert_array_equal(
        preprocess.select(file, Preprocessing(snr_threshold=20.0)), loud
    )
    np.testing.assert_array_equal(
        preprocess.select(file, Preprocessing(num_rows=3)), loud
    )


def test_only_the_selected_rows_are_read(tmp_path):
    scan = scanner.open_mpi_2d((40, 40))
    path, matrix = tmp_path / "c.mdf", noise(4, 2, 817, 1600).astype(np.complex64)
    a = calibration(path, matrix, scan=scan)
    b = measurement(tmp_path / "m.mdf", noise(5, 1, 1, 2, 1632), scan=scan)
    size = path.stat().st_size
    del matrix
    tracemalloc.start()
    system = preprocess.prepare(a, b, Preprocessing(min_frequency=1.24e6))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(system.system_matrix) == 14 and peak < size / 4


# --- The system matrix


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


# --- The measurement


def test_frames_and_periods(plain):
    seen = U[~EMPTY]
    cases = [
        ({}, seen.mean(1)),
        ({"frames": (4, 0)}, seen[[4, 0]].mean(1)),
        ({"frame_average": 3}, np.stack([seen[:3], seen[3:]]).mean((1, 2))),
        (
            {"frame_average": 4, "allow_short": True},
            np.stack([seen[:4].mean((0, 1)), seen[4:].mean((0, 1))]),
        ),
        ({"periods": (1, 3)}, seen[:, 1:3].mean(1)),
        ({"period_average": 1}, seen.reshape(36, C, V)),
        ({"period_average": 2}, seen.reshape(6, 3, 2, C, V).mean(2).reshape(18, C, V)),
        (
            {"periods": (1, 6), "period_average": 3, "allow_short": True},
            np.stack([seen[:, 1:4].mean(1), seen[:, 4:6].mean(1)], 1).reshape(12, C, V),
        ),
    ]
    for settings, u in cases:
        system = preprocess.prepare(*plain, Preprocessing(**settings))
        same(system, S.reshape(C * K, -1), spectra(u))
        assert "the measurement keeps its background" in system.notes[-1]


def test_background_of_a_measurement(tmp_path, plain):
    seen, empty = U[~EMPTY].mean(1), U[EMPTY].mean(1)
    rows = S.reshape(C * K, -1)
    system = preprocess.prepare(*plain, Preprocessing(background="mean"))
    same(system, rows, spectra(seen - empty.mean(0)))

    # Scans at the times 0, 3 and 8.5 (8 and 9 follow each other).
    expected = []
    for time, frame in zip(np.flatnonzero(~EMPTY), seen, strict=True):
        last = (empty[2] + empty[3]) / 2
        if time < 3:
            lost = empty[0] * (3 - time) / 3 + empty[1] * time / 3
        else:
            lost = empty[1] * (8.5 - time) / 5.5 + last * (time - 3) / 5.5
        expected.append(frame - lost)
    system = preprocess.prepare(*plain, Preprocessing(background="interpolated"))
    same(system, rows, spectra(np.stack(expected)))

    other = noise(11, 3, 2, C, V) * 1e-9
    external = measurement(tmp_path / "e.mdf", other)
    settings = Preprocessing(background="external")
    system = preprocess.prepare(*plain, settings, external)
    same(system, rows, spectra(seen - other.mean((0, 1))))
    assert not any("background" in note for note in system.notes)


def test_interpolation_removes_a_linear_drift_of_permuted_frames(tmp_path):
    """Stored in another order than acquired."""
    acquired = np.random.default_rng(12).permutation(9)
    signal = noise(13, 1, 1, C, V)
    drift = (
        noise(14, 1, 1, C, V) + noise(15, 1, 1, C, V) * acquired[:, None, None, None]
    )
    empty = np.isin(acquired, [0, 4, 8])
    u = drift + np.where(empty, 0, 1)[:, None, None, None] * signal
    b = measurement(
        tmp_path / "m.mdf", u, empty, measurement__frame_permutation=acquired
    )
    a = calibration(tmp_path / "c.mdf", S)
    system = preprocess.prepare(a, b, Preprocessing(background="interpolated"))
    same(system, S.reshape(C * K, -1), spectra(np.repeat(signal[0], 6, axis=0)), 1e-9)


def test_nothing_is_done_twice(tmp_path, plain):
    a = plain[0]
    flags = dict(
        measurement__is_background_corrected=True,
        measurement__is_spectral_leakage_corrected=True,
    )
    b = measurement(tmp_path / "d.mdf", U, EMPTY, **flags)
    external = measurement(tmp_path / "e.mdf", U)
    for kind in ("mean", "interpolated", "external"):
        settings = Preprocessing(background=kind)
        empty = external if kind == "external" else None
        system = preprocess.prepare(a, b, settings, empty)
        same(system, S.reshape(C * K, -1), spectra(U[~EMPTY].mean(1)))
        assert "background already" in system.notes[0]
    for settings in ({"spectral_leakage": True}, {"joint_background": 2}):
        system = preprocess.prepare(a, b, Preprocessing(**settings))
        same(system, S.reshape(C * K, -1), spectra(U[~EMPTY].mean(1)))
        assert "already" in system.notes[0]


def hann(periods):
    M = periods * V
    return [(1 - np.cos(2 * np.pi * n / (M - 1))) * M / (M - 1) for n in range(M)]


def cleaned(u):
    """Successive periods [n, C, V] by the formula, sample by sample."""
    out, count = np.zeros(u.shape), len(u)
    for i, c, t in np.ndindex(u.shape):
        if 0 < i < count - 1:
            for q in (-1, 0, 1):
                out[i, c, t] += u[i + q, c, t] * hann(3)[t + (q + 1) * V] / 3
        else:
            first = 0 if i == 0 else count - 2
            for q in (0, 1):
                out[i, c, t] += u[first + q, c, t] * hann(2)[t + q * V] / 2
    return out


@pytest.fixture(scope="module")
def windowed():
    """Periods of the first foreground frame, and that frame's period 0 among frames."""
    kinds = {"periods": cleaned(U[1])}
    # Foreground runs 1-2 and 4-7, background runs 0, 3 and 8-9.
    kinds["frames"] = np.concatenate([cleaned(U[1:3, 0]), cleaned(U[4:8, 0])])
    return kinds


def test_spectral_leakage_formula(windowed):
    np.testing.assert_allclose(
        preprocess.spectral_leakage(U[1]), windowed["periods"], atol=1e-20
    )


@pytest.mark.parametrize("settings", [{}, {"periods": (1, 4)}, {"period_average": 2}])
def test_spectral_leakage_of_periods(plain, windowed, settings):
    """Neighbours are the periods of the frame, also those that are not in use."""
    settings = Preprocessing(spectral_leakage=True, frames=(0,), **settings)
    system = preprocess.prepare(*plain, settings)
    first, behind = settings.periods or (0, 6)
    size = settings.period_average or behind - first
    u = windowed["periods"][first:behind].reshape(-1, size, C, V).mean(1)
    same(system, S.reshape(C * K, -1), spectra(u))


def test_spectral_leakage_of_frames(tmp_path, plain, windowed):
    """Neighbours are frames of the same kind; a frame alone is an error."""
    b = measurement(tmp_path / "n.mdf", U[:, :1], EMPTY)
    settings = Preprocessing(spectral_leakage=True)
    system = preprocess.prepare(plain[0], b, settings)
    same(system, S.reshape(C * K, -1), spectra(windowed["frames"]))
    settings = dataclasses.replace(settings, frames=(5, 1))
    system = preprocess.prepare(plain[0], b, settings)
    same(system, S.reshape(C * K, -1), spectra(windowed["frames"][[5, 1]]))
    with pytest.raises(ValueError, match="spectral_leakage: expected at least 2"):
        settings = Preprocessing(spectral_leakage=True, background="mean")
        preprocess.prepare(plain[0], b, settings)


def test_spectral_leakage_leaves_periodic_signals(tmp_path, plain):
    """But for the window's sum, a rounding of the formula that falls with 1 / V."""
    u = np.repeat(noise(16, 1, 1, C, V), 5, axis=1)
    error = np.abs(preprocess.spectral_leakage(u[0]) - u[0]).max() / np.abs(u).max()
    assert error < 0.1
    smooth = np.repeat(noise(17, 1, 1, C, 1632), 5, axis=1)[0]
    error = np.abs(preprocess.spectral_leakage(smooth) - smooth).max()
    assert error < 2e-3 * np.abs(smooth).max()


def test_spectra_as_measurement(tmp_path, plain):
    """Frequency domain, whole and selected, with the frames on the fast axis too."""
    a, _ = plain
    flags = dict(measurement__is_fourier_transformed=True)
    Y = np.fft.rfft(U)
    expected = spectra(U[~EMPTY].mean(1))
    b = measurement(tmp_path / "f.mdf", Y, EMPTY, **flags)
    same(preprocess.prepare(a, b), S.reshape(C * K, -1), expected)
    b = measurement(
        tmp_path / "g.mdf", Y, EMPTY, measurement__is_fast_frame_axis=True, **flags
    )
    same(preprocess.prepare(a, b), S.reshape(C * K, -1), expected)

    chosen = np.array([3, 4, 9, 12])
    frequency_selection = np.zeros((C, K), bool)
    frequency_selection[:, chosen] = True
    picked = dict(measurement__frequency_selection=chosen)
    small = calibration(tmp_path / "s.mdf", S[:, chosen], **picked)
    data = spectra(U[~EMPTY].mean(1), frequency_selection)
    for part in (
        measurement(tmp_path / "h.mdf", Y[..., chosen], EMPTY, **flags, **picked),
        b,
    ):
        same(preprocess.prepare(small, part), S[frequency_selection], data)
    # A measurement that lacks frequencies is refused, unless they are not in use.
    part = measurement(tmp_path / "h.mdf", Y[..., chosen], EMPTY, **flags, **picked)
    with pytest.raises(ValueError, match="frequency selection: measurement lacks 17"):
        preprocess.prepare(a, part)
    band = Preprocessing(
        min_frequency=187.5e3,
        max_frequency=250e3,
        tolerate=("frequency selection",),
    )
    frequency_selection[:, [9, 12]] = False
    system = preprocess.prepare(a, part, band)
    same(
        system, S[frequency_selection], spectra(U[~EMPTY].mean(1), frequency_selection)
    )
    with pytest.raises(ValueError, match="expected a time signal"):
        preprocess.prepare(a, b, Preprocessing(spectral_leakage=True))


# --- Transfer functions

FUNCTION = noise(18, C, K, kind=complex) + 3


def test_transfer_function(tmp_path):
    name = "acquisition__receiver__transfer_function"
    done = "measurement__is_transfer_function_corrected"
    rows, u = S.reshape(C * K, -1), U[:2]
    data = spectra(u.mean(1))
    other = noise(19, C, K, kind=complex) - 4

    def files(one, two):
        return (
            calibration(tmp_path / "c.mdf", S, **one),
            measurement(tmp_path / "m.mdf", u, **two),
        )

    pair = files({name: FUNCTION}, {name: other})
    with pytest.raises(ValueError, match="transfer_function: expected a choice"):
        preprocess.prepare(*pair)
    same(preprocess.prepare(*pair, Preprocessing(transfer_function=False)), rows, data)
    divided = rows / FUNCTION.reshape(-1, 1), data / other.reshape(-1)
    yes = Preprocessing(transfer_function=True)
    same(preprocess.prepare(*pair, yes), *divided)

    # Corrected files are left alone, and then there is nothing to choose.
    both = files({name: FUNCTION, done: True}, {name: other, done: True})
    for choice in (None, True, False):
        same(
            preprocess.prepare(*both, Preprocessing(transfer_function=choice)),
            rows,
            data,
        )
    mixed = files({name: FUNCTION, done: True}, {name: other})
    with pytest.raises(ValueError, match="transfer function: system matrix corrected"):
        preprocess.prepare(*mixed, yes)
    tolerant = dataclasses.replace(yes, tolerate=("transfer function",))
    same(preprocess.prepare(*mixed, tolerant), rows, divided[1])

    # Of one file only, or of none.
    for pair in (files({name: FUNCTION}, {}), files({}, {name: other}), files({}, {})):
        with pytest.raises(ValueError, match="transfer_function: expected one in"):
            preprocess.prepare(*pair, yes)

    # An external background is divided by its own.
    pair = files({name: FUNCTION}, {name: other})
    external = measurement(tmp_path / "e.mdf", U[2:4], **{name: FUNCTION})
    settings = dataclasses.replace(yes, background="external")
    system = preprocess.prepare(*pair, settings, external)
    empty = spectra(U[2:4].mean((0, 1))) / FUNCTION.reshape(-1)
    same(system, divided[0], divided[1] - empty)

    # Stored for the selected frequencies only, or for all.
    chosen = np.array([2, 5, 7])
    flags = dict(
        measurement__frequency_selection=chosen,
        measurement__is_fourier_transformed=True,
    )
    for function in (FUNCTION, FUNCTION[:, chosen]):
        a = calibration(tmp_path / "k.mdf", S[:, chosen], **{name: function}, **flags)
        b = measurement(
            tmp_path / "l.mdf", np.fft.rfft(u)[..., chosen], **{name: other}, **flags
        )
        frequency_selection = np.zeros((C, K), bool)
        frequency_selection[:, chosen] = True
        system = preprocess.prepare(a, b, yes)
        same(
            system,
            S[frequency_selection] / FUNCTION[frequency_selection][:, None],
            spectra(u.mean(1), frequency_selection) / other[frequency_selection],
        )

    zero = np.where(np.arange(K) == 0, 0, FUNCTION)
    pair = files({name: zero}, {name: other})
    with pytest.raises(ValueError, match="expected finite numbers other than 0"):
        preprocess.prepare(*pair, yes)
    frequency_selection = ALL.copy()
    frequency_selection[:, 0] = False
    band = dataclasses.replace(yes, min_frequency=1e3)
    divided = (
        S[frequency_selection] / zero[frequency_selection][:, None],
        spectra(u.mean(1), frequency_selection) / other[frequency_selection],
    )
    same(preprocess.prepare(*pair, band), *divided)


# --- Weights


def test_weights(plain):
    rows = S.reshape(C * K, -1)
    channel = np.repeat([2.0, 0.5], K)
    norm = np.array([1 / np.sqrt(np.sum(np.abs(row) ** 2)) for row in rows])
    level = np.std(spectra(U[EMPTY].mean(1)), axis=0)
    cases = [
        ({"channel_weights": (2.0, 0.5)}, channel),
        ({"row_norm": True}, norm),
        ({"whitening": True}, level.min() / level),
        (
            {"channel_weights": (2.0, 0.5), "row_norm": True, "whitening": True},
            channel * norm / level,
        ),
    ]
    for settings, expected in cases:
        system = preprocess.prepare(*plain, Preprocessing(**settings))
        ratio = system.weights / expected
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-10)
        same(system, rows, spectra(U[~EMPTY].mean(1)))  # not yet applied
    assert preprocess.prepare(*plain).weights is None


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


def test_noise_of_the_data(plain):
    settings = Preprocessing(background="mean", frame_average=2)
    system = preprocess.prepare(*plain, settings)
    level = np.std(spectra(U[EMPTY].mean(1)), axis=0) / np.sqrt(2)
    unit = np.linalg.norm(S) / np.linalg.norm(system.system_matrix)
    np.testing.assert_allclose(system.noise * unit, level, rtol=1e-10)
    assert preprocess.prepare(*plain).noise is None


def test_joint_background_is_the_joint_minimiser(plain):
    """Normal equations of c alone equal those of c and d with d eliminated."""
    for penalty, weigh in ((0.0, False), (0.3, True)):
        settings = Preprocessing(
            joint_background=3, background_penalty=penalty, row_norm=weigh
        )
        system = preprocess.prepare(*plain, settings)
        rows, data = S.reshape(C * K, -1) / 1e-9, spectra(U[~EMPTY].mean(1)) / 1e-9
        empty = spectra(U[EMPTY].mean(1))
        if weigh:
            w = 1 / np.linalg.norm(rows, axis=1)
            rows, data, empty = w[:, None] * rows, w * data, w * empty
        left, s, _ = np.linalg.svd(empty.T, full_matrices=False)
        B = left[:, :3] * np.sqrt(s[:3] / s[0])
        # The Schur complement of d in the normal equations of [S, B].
        inner = np.linalg.inv(B.conj().T @ B + penalty * np.eye(3))
        project = np.eye(C * K) - B @ inner @ B.conj().T
        made = system.system_matrix.conj().T @ np.asarray(system.measurement).T
        gram = system.system_matrix.conj().T @ system.system_matrix
        wanted = rows.conj().T @ project @ rows
        ratio = np.linalg.norm(gram) / np.linalg.norm(wanted)
        np.testing.assert_allclose(
            gram, wanted * ratio, atol=1e-10 * np.abs(gram).max()
        )
        right = rows.conj().T @ project @ data.T * ratio
        np.testing.assert_allclose(made, right, atol=1e-10 * np.abs(right).max())
        assert system.weights is None


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


@pytest.mark.parametrize("settings, long", [({}, 3), ({"period_average": 1}, 1)])
def test_periods_joined_to_one_of_the_calibration(tmp_path, settings, long):
    """Three periods of 40 samples are one of the calibration's 120."""
    drive = dataclasses.replace(DRIVE, divider=(10, 24, 0))  # lcm 120
    slow = dataclasses.replace(FLAT, drive_field=drive)
    u = noise(31, 2, 9, C, V)
    rows = noise(32, C, 61, NY * NX, kind=complex)
    a = calibration(tmp_path / "c.mdf", rows, scan=slow)
    header = {
        "acquisition__receiver__samples": V,
        "acquisition__drive_field__cycle": V / slow.drive_field.base_frequency,
    }
    b = measurement(tmp_path / "m.mdf", u, scan=slow, **header)
    with pytest.raises(ValueError, match="samples per period"):
        preprocess.prepare(a, b)
    settings = Preprocessing(period_grouping=3, sidebands=1, **settings)
    system = preprocess.prepare(a, b, settings)
    frequency_selection = np.tile([k % 3 < 2 or k % 3 == 2 for k in range(61)], (C, 1))
    np.testing.assert_array_equal(
        system.frequency_selection, frequency_selection
    )  # +-1 of multiples of 3: all
    centre = preprocess.select(a, Preprocessing(period_grouping=3, sidebands=0))
    np.testing.assert_array_equal(np.flatnonzero(centre[0]), np.arange(0, 61, 3))
    joined = np.fft.rfft(u.reshape(2, 3, 3, C, V).swapaxes(2, 3).reshape(2, 3, C, -1))
    wanted = joined.reshape(2, 3, -1)
    wanted = wanted.mean(1) if long == 3 else wanted.reshape(6, -1)
    same(system, rows.reshape(-1, NY * NX), wanted)
    for bad, message in [
        (
            {"periods": (0, 4), "period_average": 0},
            "period_grouping: expected groups of 3",
        ),
        (
            {"periods": (0, 9), "period_average": 2},
            "period_average: expected a divisor",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            preprocess.prepare(a, b, dataclasses.replace(settings, **bad))


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


def test_noise_from_the_periods_of_one_empty_frame(tmp_path):
    """The mean of n periods scatters by 1 / sqrt(n) of what one does."""
    rng = np.random.default_rng(33)
    u, n = rng.normal(size=(2, 400, C, V)), 200
    u[:, :, 1] *= 3
    a = calibration(tmp_path / "c.mdf", S)
    b = measurement(tmp_path / "m.mdf", u, [0, 1])
    system = preprocess.prepare(
        a, b, Preprocessing(min_frequency=1.0, background="mean", period_average=n)
    )
    unit = np.linalg.norm(S[:, 1:]) / np.linalg.norm(system.system_matrix)
    level = unit * system.noise.reshape(C, -1)[:, :-1]  # all but Nyquist
    wanted = np.sqrt(V / n) * np.array([1, 3])
    np.testing.assert_allclose(
        level, np.broadcast_to(wanted[:, None], level.shape), rtol=0.2
    )
    weighted = preprocess.prepare(
        a, b, Preprocessing(min_frequency=1.0, background="mean", whitening=True)
    )
    ratio = weighted.weights.reshape(C, -1).mean(1)
    np.testing.assert_allclose(ratio[0] / ratio[1], 3, rtol=0.1)


def test_fractional_shifts_are_close_and_their_sign_matters(tmp_path):
    """A smooth object that all patches see, against the physics of shifted fields."""
    small, shifts = patched((8, 9)), np.array([[0, 0, 0], [1.4, -0.6, 0]]) * PITCH
    offsets = -shifts * np.diag(small.selection_field.gradient)

    def smooth(grid):
        x, y, _ = (np.asarray(grid.positions()) - shifts[1] / 2).T
        return np.exp(-(x**2 + y**2) / (2 * 1.2e-3**2))

    scans = [patched((16, 16), offset=tuple(offset)) for offset in offsets]
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


# --- Several tracers


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


# --- Solving

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
def test_every_method_recovers_a_phantom(phantom, method, single):
    """Of picovolts in single precision, frame by frame."""
    a, b, c = phantom
    system = preprocess.prepare(a, b, Preprocessing(min_frequency=1.0))
    assert system.system_matrix.dtype == system.measurement.dtype == np.complex64
    image = np.asarray(linear.reconstruct(system, method))
    assert image.shape == (2, *c.shape) and image.min() >= 0
    error = np.linalg.norm(image[0] - c) / np.linalg.norm(c)
    assert error < LIMITS[method], error
    np.testing.assert_allclose(image[1], WEAK * image[0], atol=2e-6)


def test_l1_of_a_frame_does_not_depend_on_others(phantom, single):
    a, b, _ = phantom
    system = preprocess.prepare(a, b, Preprocessing(min_frequency=1.0))
    image = linear.reconstruct(system, "elastic_net", l1=0.3)
    assert 0 < np.mean(image[1] > 0) < 1
    np.testing.assert_allclose(image[1], WEAK * image[0], atol=2e-6)
    assert not linear.reconstruct(system, "elastic_net", l1=1.01).any()


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


# --- What can't be


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            {"min_frequency": 2e6},
            "min_frequency|the frequency selection leaves no rows",
        ),
        ({"stop_bands": ((0.0, 2e6),)}, "the frequency selection leaves no rows"),
        ({"channels": (2,)}, "channels: expected numbers from 0 to 1"),
        ({"snr_threshold": 2.0}, "expected an SNR or background frames, found none"),
        ({"num_rows": 2}, "expected an SNR or background frames, found none"),
        ({"plane": 1}, "plane: expected 0 to 0, got 1"),
        ({"shape": (2, 2, 2)}, "shape: expected 2 numbers"),
        (
            {"matrix_background": "mean"},
            "c.mdf: expected background frames, found none",
        ),
        (
            {"matrix_background": "interpolated"},
            "expected background frames, found none",
        ),
        ({"frames": (6,)}, "frames: expected numbers from 0 to 5"),
        ({"frame_average": 4}, "frame_average: expected a divisor of 6 frames, got 4"),
        ({"periods": (0, 7)}, r"periods: expected .* up to 6"),
        ({"period_average": 4}, "period_average: expected a divisor of 6 periods"),
        ({"transfer_function": True}, "transfer_function: expected one in"),
        ({"channel_weights": (1.0,)}, "channel_weights: expected 2 numbers"),
        (
            {"channel_weights": (0.0, 1.0), "channels": (0,)},
            "channel_weights: expected one > 0",
        ),
        ({"background": "external"}, "background: expected a file"),
        ({"joint_background": 5}, "joint_background: expected at most 4"),
    ],
    ids=lambda x: str(x)[:40],
)
def test_refusals(plain, settings, message):
    with pytest.raises(ValueError, match=message):
        preprocess.prepare(*plain, Preprocessing(**settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"background": "mean"},
        {"background": "interpolated"},
        {"whitening": True},
        {"joint_background": 1},
    ],
)
def test_background_needs_background_frames(tmp_path, plain, settings):
    b = measurement(tmp_path / "n.mdf", U)
    with pytest.raises(ValueError, match="background frames, found"):
        preprocess.prepare(plain[0], b, Preprocessing(**settings))


def test_files_that_do_not_go_together(tmp_path, plain):
    a, b = plain
    with pytest.raises(ValueError, match="background: expected a file with"):
        preprocess.prepare(a, b, background=b)
    scan = dataclasses.replace(
        FLAT, selection_field=scanner.SelectionField(np.diag([-2.0, -2.0, 4.0]))
    )
    other = measurement(tmp_path / "g.mdf", U[:1], scan=scan)
    with pytest.raises(ValueError, match="doesn't fit .*gradient: system matrix"):
        preprocess.prepare(a, other)
    for name in ("", "grad", "bandwidth"):
        with pytest.raises(ValueError, match="gradient"):
            preprocess.prepare(a, other, Preprocessing(tolerate=(name,)))
    system = preprocess.prepare(a, other, Preprocessing(tolerate=("gradient",)))
    same(system, S.reshape(C * K, -1), spectra(U[:1].mean(1)))
    external = measurement(tmp_path / "g.mdf", U[:1], scan=scan)
    with pytest.raises(ValueError, match=r"doesn't fit .*g\.mdf: gradient"):
        preprocess.prepare(a, b, Preprocessing(background="external"), external)
    only = measurement(tmp_path / "o.mdf", U[:2], [True, True])
    with pytest.raises(ValueError, match="expected foreground frames, found none"):
        preprocess.prepare(a, only)
    with pytest.raises(ValueError, match="rows: expected finite numbers"):
        preprocess.prepare(calibration(tmp_path / "z.mdf", 0 * S), b)
    quiet = U.copy()
    quiet[EMPTY] = quiet[0]
    still = measurement(tmp_path / "q.mdf", quiet, EMPTY)
    with pytest.raises(ValueError, match="whitening: expected noise in every row"):
        preprocess.prepare(a, still, Preprocessing(whitening=True))


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


@pytest.mark.parametrize(
    "settings",
    [
        {"min_frequency": 2.0, "max_frequency": 1.0},
        {"min_frequency": float("nan")},
        {"stop_bands": ((2.0, 1.0),)},
        {"snr_threshold": -1.0},
        {"snr_threshold": 1.0, "num_rows": 5},
        {"num_rows": -1},
        {"max_mixing_order": -1},
        {"channels": (-1,)},
        {"frames": (-1,)},
        {"plane": -1},
        {"shape": (2,)},
        {"shape": (0, 2)},
        {"field_of_view": (1.0, 1.0, 1.0)},
        {"shape": (2, 2), "field_of_view": (1.0, 1.0)},
        {"shape": (2, 2), "field_of_view": (1.0, 1.0, 0.0)},
        {"frame_average": 0},
        {"period_average": -1},
        {"periods": (2, 2)},
        {"background": "linear"},
        {"matrix_background": "external"},
        {"joint_background": 2, "background": "mean"},
        {"background_penalty": 0.5},
        {"background_penalty": -1.0, "joint_background": 1},
        {"channel_weights": (-1.0, 1.0)},
    ],
    ids=str,
)
def test_settings_that_contradict(settings):
    values = vars(Preprocessing()) | settings
    with pytest.raises(ValueError, match=r": expected .*, got"):
        # Not by the constructor, whose types are checked in tests only.
        Preprocessing.__post_init__(types.SimpleNamespace(**values))
    Preprocessing.__post_init__(types.SimpleNamespace(**vars(Preprocessing())))


def test_unknown_methods_and_settings(plain):
    system = preprocess.prepare(*plain)
    with pytest.raises(ValueError, match="method: expected one of kaczmarz"):
        linear.reconstruct(system, "fista")
    with pytest.raises(
        ValueError, match="method tikhonov: expected settings out of lam"
    ):
        linear.reconstruct(system, "tikhonov", iterations=3)
