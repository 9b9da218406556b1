"""Measured line scans of a head scanner: a sample at nine positions, found again.

Data: MPIMeasurements.jl (Knopp, MIT), systemMatrix*.h5 and phantom.h5, rows of 152
samples. Each line is an empty row and nine positions; its calibration is one line, its
measurement another. Expected errors come from a plain row loop in double precision.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from mpi_jax.reconstruct import kaczmarz

FILES = {
    "T": "test_systemMatrixNew.h5",
    "N": "systemMatrixNew.h5",
    "E": "systemMatrixFirstEverEver.h5",
}
SAMPLES = 152


def stored(shared, name):
    h5py = pytest.importorskip("h5py")
    path = shared / "data" / "measured_1d" / name
    if not path.exists():
        pytest.skip(f"measured data not found: {path}")
    with h5py.File(path) as file:
        return file["matrix"][()]


def line_scan(shared, name):
    """Spectra [77, 9] of the nine positions of a line, its background removed."""
    rows = stored(shared, FILES[name[0]])
    first = 10 * (int(name[1]) - 1) if name[1:].isdigit() else 0
    spectra = np.fft.rfft(rows[first : first + 10])
    lines = (spectra[1:] - spectra[0]).T
    if name.endswith("shifted"):  # sampling started 47.5 of 152 samples later
        shift = np.exp(2j * np.pi * np.arange(len(lines)) * -47.5 / SAMPLES)
        lines = lines * shift[:, None]
    return lines


def images(shared, calibration, measurement, last, weighted=True):
    """A row for each measured position [9, 9], from the bins 2 to `last`."""
    S, u = (line_scan(shared, n)[2 : last + 1] for n in (calibration, measurement))
    S, u = S.astype(np.complex64), u.T.astype(np.complex64)
    weights = kaczmarz.row_norm_weights(S) if weighted else None
    return np.asarray(kaczmarz.solve(S, u, lam=1e-3, iterations=500, weights=weights))


TABLE = [  # calibration, measurement, (hits, error) of bins 2-15 and of bins 2-9
    ("T1", "T2", (9, 0.1865), (9, 0.0710)),
    ("T2", "T1", (9, 0.2106), (9, 0.2092)),
    ("T1", "N2", (9, 0.1505), (9, 0.0540)),
    ("N2", "T1", (9, 0.1547), (9, 0.1844)),
    ("N2", "T2", (9, 0.1242), (9, 0.0381)),
    ("E", "T1", (0, 1.056), (0, 1.939)),
    ("E shifted", "T1", (9, 0.2274), (9, 0.1949)),
    ("E", "N2", (0, 1.112), (0, 2.027)),
    ("E shifted", "N2", (9, 0.1630), (9, 0.1579)),
    ("N1", "N2", (8, 0.795), (9, 0.869)),  # other lines: not expected to match
    ("N1", "N3", (8, 0.515), (9, 0.296)),
    ("T1", "T1", (9, 0.0084), (9, 0.0111)),  # control
]


@pytest.mark.parametrize("last", [15, 9])
@pytest.mark.parametrize("calibration, measurement, wide, narrow", TABLE)
def test_positions(shared, calibration, measurement, wide, narrow, last):
    image = images(shared, calibration, measurement, last)
    hits, error = wide if last == 15 else narrow
    assert np.sum(image.argmax(axis=1) == np.arange(9)) == hits
    assert abs(np.linalg.norm(image - np.eye(9)) / 3 - error) < 0.002


@pytest.mark.parametrize(
    "calibration, measurement, error", [("T1", "T2", 0.3368), ("N2", "T2", 0.3149)]
)
def test_positions_without_weights(shared, calibration, measurement, error):
    image = images(shared, calibration, measurement, 15, weighted=False)
    assert np.sum(image.argmax(axis=1) == np.arange(9)) == 9
    assert abs(np.linalg.norm(image - np.eye(9)) / 3 - error) < 0.002


@pytest.mark.parametrize("last, error", [(15, 0.2187), (9, 0.1665)])
def test_positions_of_a_scan_with_an_invalid_row(shared, last, error):
    """The third scan's ninth position is not a measurement of the sample."""
    image = images(shared, "T1", "T3", last)
    assert np.sum(image[:8].argmax(axis=1) == np.arange(8)) == 8
    assert abs(np.linalg.norm(image[:8] - np.eye(9)[:8]) / np.sqrt(8) - error) < 0.002
    if last == 15:
        assert np.sum(image.argmax(axis=1) == np.arange(9)) == 8
        assert abs(np.linalg.norm(image - np.eye(9)) / 3 - 0.421) < 0.002


def test_facts_about_the_rows(shared):
    """Condition of the weighted matrix, the field-free point, and the missing sample."""
    S = line_scan(shared, "T1")[2:16]
    weights = np.asarray(kaczmarz.row_norm_weights(S))
    assert abs(np.linalg.cond(weights[:, None] * S) - 9.26) < 0.01
    # The second harmonic changes sign between the fourth and the fifth position.
    second = line_scan(shared, "T1")[2]
    assert np.all((second[:4] * second[0].conj()).real > 0)
    assert np.all((second[4:] * second[0].conj()).real < 0)
    third = np.abs(line_scan(shared, "T3")[2:4, 8])
    assert third[1] > 5 * third[0]
    lines = [line_scan(shared, f"N{n}")[2:10] for n in (1, 2, 3)]
    joined = np.concatenate(lines, axis=1)
    joined = joined / np.linalg.norm(joined, axis=1, keepdims=True)
    values = np.linalg.svd(np.concatenate([joined.real, joined.imag]), compute_uv=False)
    np.testing.assert_allclose(values[[0, -1]], [1.67, 0.01], atol=0.006)


@pytest.mark.parametrize("name", ["phantom.h5", "test_phantom.h5"])
def test_phantom_without_ground_truth(shared, name):
    """Nine frames in, nine finite images of nine positions out, batch equal to loop."""
    frames = stored(shared, name)
    assert frames.shape == (9, SAMPLES) and np.isfinite(frames).all()
    S = line_scan(shared, "T1")[2:16].astype(np.complex64)
    u = np.fft.rfft(frames)[:, 2:16].astype(np.complex64)
    weights = kaczmarz.row_norm_weights(S)
    options = dict(lam=1e-3, iterations=20, weights=weights)
    image = np.asarray(kaczmarz.solve(S, u, **options))
    assert image.shape == (9, 9) and np.isfinite(image).all() and image.min() >= 0
    alone = kaczmarz.solve(S, jnp.asarray(u[4]), **options)
    np.testing.assert_allclose(image[4], alone, atol=1e-5 * np.abs(image).max())
