"""A small calibration and measurement as MDF files, and their system by hand."""

import dataclasses
import itertools

import numpy as np

from mpi_jax import mdf, scanner

# 2.5 MHz / (10, 8): 40 samples, 21 frequencies, 62.5 kHz apart.
C, V, K, NY, NX = 2, 40, 21, 3, 4
DRIVE = scanner.DriveField((12e-3, 12e-3, 0.0), (10, 8, 0), (0.25, 0.25, 0.0))
# Point samples: of so short a period a low pass leaves few harmonics.
FLAT = dataclasses.replace(
    scanner.open_mpi_2d((NY, NX), oversample=1), drive_field=DRIVE
)


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


def pair(folder):
    """A calibration, and a measurement of 6 + 4 frames of 6 periods."""
    return calibration(folder / "c.mdf", S), measurement(folder / "m.mdf", U, EMPTY)


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
