"""The measurement: frames, periods, background, leakage, weights and noise."""

import dataclasses

import numpy as np
import pytest
from support.two_files import (
    DRIVE,
    EMPTY,
    FLAT,
    NX,
    NY,
    C,
    K,
    S,
    U,
    V,
    calibration,
    cleaned,
    measurement,
    noise,
    same,
    spectra,
)

from mpi_jax import preprocess
from mpi_jax.configs import Preprocessing

pytestmark = pytest.mark.usefixtures("x64")


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


# --- Weights and noise


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


def test_noise_of_the_data(plain):
    settings = Preprocessing(background="mean", frame_average=2)
    system = preprocess.prepare(*plain, settings)
    level = np.std(spectra(U[EMPTY].mean(1)), axis=0) / np.sqrt(2)
    unit = np.linalg.norm(S) / np.linalg.norm(system.system_matrix)
    np.testing.assert_allclose(system.noise * unit, level, rtol=1e-10)
    assert preprocess.prepare(*plain).noise is None


# --- Periods that are joined, periods that are empty


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
