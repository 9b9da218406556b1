"""Which rows are in use, and their transfer functions."""

import dataclasses
import tracemalloc

import numpy as np
import pytest
from support.two_files import (
    ALL,
    C,
    K,
    S,
    U,
    calibration,
    measurement,
    noise,
    same,
    spectra,
)

from mpi_jax import preprocess, scanner
from mpi_jax.configs import Preprocessing

pytestmark = pytest.mark.usefixtures("x64")


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
