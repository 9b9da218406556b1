"""Calibrations: voxels, planes, background, SNR and mixing orders against loops."""

import itertools

import numpy as np
import pytest
from support.mdf_files import C, J, K, calibration, fields

from mpi_jax import mdf
from mpi_jax.mdf import bulk


@pytest.mark.parametrize("order", ["xyz", "yxz", "zxy"])
def test_voxel_order_is_our_image_layout(new_file, order):
    size = dict(x=3, y=2, z=4)
    file = mdf.read(new_file(calibration(size=(3, 2, 4), order=order)))
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


def test_a_plane_is_read_in_image_layout(new_file):
    content = calibration()
    file = mdf.read(new_file(content))
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
def test_background_is_interpolated_in_time(new_file, background, blocks):
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
    file = mdf.read(new_file(content))
    got = mdf.correct_background(file, mdf.system_matrix(file))
    for j in range(J):
        expected = background_loop(rows[j], flags, permutation)
        np.testing.assert_allclose(got[j], expected, atol=1e-12)
    some = [7, 2]
    part = mdf.correct_background(
        file, mdf.system_matrix(file, voxels=some), voxels=some
    )
    np.testing.assert_allclose(part, got[..., some], atol=1e-12)


def test_background_is_corrected_once_and_never_missing(new_file):
    content = calibration(measurement__isBackgroundCorrected=np.int8(1))
    file = mdf.read(new_file(content))
    rows = mdf.system_matrix(file)
    np.testing.assert_array_equal(mdf.correct_background(file, rows), rows[..., :12])
    file = mdf.read(new_file(calibration(background=0)))
    with pytest.raises(ValueError, match="background"):
        mdf.correct_background(file, mdf.system_matrix(file))
    with pytest.raises(ValueError, match="rows"):
        mdf.correct_background(file, rows)


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
def test_snr_is_computed_as_defined(new_file, background, monkeypatch):
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
    file = mdf.read(new_file(content))
    expected = snr_loop(rows, content["/measurement/isBackgroundFrame"])
    np.testing.assert_allclose(mdf.snr(file), expected, rtol=1e-10)


def test_snr_of_the_file_lies_on_the_whole_axis(new_file):
    stored = np.arange(J * C * 2.0).reshape(J, C, 2) + 1
    content = calibration(
        calibration__snr=stored,
        measurement__isFrequencySelection=np.int8(1),
        measurement__frequencySelection=np.array([6, 2]),
    )
    content["/measurement/data"] = content["/measurement/data"][:, :, :2]
    got = mdf.snr(mdf.read(new_file(content)))
    assert got.shape == (J, C, K)
    np.testing.assert_array_equal(got[..., [5, 1]], stored)
    assert not got[..., [0, 2, 3, 4, 6]].any()
    with pytest.raises(ValueError, match="background"):
        mdf.snr(mdf.read(new_file(calibration(background=0))))


def test_mixing_orders_against_all_combinations(new_file):
    file = mdf.read(new_file(fields()))
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
