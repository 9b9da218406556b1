"""MDF files written: measurements, calibrations, reconstructions."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from mpi_jax._linalg import dct
from mpi_jax.mdf.bulk import stored_frequencies
from mpi_jax.mdf.consistency import contradictions, walk
from mpi_jax.mdf.schema import (
    GROUPS,
    MDF,
    SUBGROUPS,
    VERSION,
    AcquisitionInfo,
    CalibrationInfo,
    DataInfo,
    DriveFieldInfo,
    ExperimentInfo,
    MeasurementInfo,
    ReceiverInfo,
    ReconstructionInfo,
    ScannerInfo,
    StudyInfo,
    need_calibration,
    need_measurement,
    new_uuid,
    stored_axes,
    stored_shape,
    time_now,
)
from mpi_jax.mdf.source import PIECE, Source, nbytes, open_hdf5


def header(scanner: Any, *, frames: int = 1, calibration: bool = False) -> MDF:
    """Header of simulated data of an mpi_jax.scanner.Scanner, time domain [N, J, C, V].

    With `calibration` of a system matrix in the frequency domain, one frame per voxel of
    the scanner's grid (`frames` then has no meaning and must stay 1).

    Examples:
      >>> from mpi_jax import mdf, scanner
      >>> head = mdf.header(scanner.paper(2), frames=5)
      >>> head.acquisition.frames, head.acquisition.drive_field.divider.ravel().tolist()
      (5, [102, 96])
    """
    drive, grid = scanner.drive_field, scanner.grid
    if calibration and frames != 1:
        raise ValueError(f"frames: expected 1 with calibration, got {frames}")
    driven = np.flatnonzero(drive.divider)
    samples, rate = scanner.samples, float(drive.sampling_rate)
    voxels = grid.size if calibration else frames
    fields = DriveFieldInfo(
        base_frequency=float(drive.base_frequency),
        cycle=samples / rate,
        channels=len(driven),
        divider=np.asarray(drive.divider)[driven, None],
        strength=np.asarray(drive.amplitude, np.float64)[None, driven, None],
        phase=2 * np.pi * np.asarray(drive.phase, np.float64)[None, driven, None],
        waveform=(("sine",),) * len(driven),
    )
    receiver = ReceiverInfo(
        bandwidth=rate / 2,
        channels=scanner.channels,
        samples=samples,
        unit="V" if scanner.receiver.scaling == "si" else "A m^2/s",
    )
    acquisition = AcquisitionInfo(
        frames=voxels,
        gradient=np.asarray(scanner.selection_field.gradient, np.float64)[None, None],
        offset_field=np.asarray(scanner.selection_field.offset, np.float64)[None, None],
        drive_field=fields,
        receiver=receiver,
    )
    return MDF(
        study=StudyInfo(),
        experiment=ExperimentInfo(is_simulation=True),
        scanner=ScannerInfo(name="mpi_jax"),
        acquisition=acquisition,
        measurement=MeasurementInfo(
            is_background_frame=np.zeros(voxels, bool),
            is_fast_frame_axis=calibration,
            is_fourier_transformed=calibration,
        ),
        calibration=CalibrationInfo(**_grid_fields(grid)) if calibration else None,
    )


class _GridFields(TypedDict):
    size: np.ndarray
    field_of_view: np.ndarray
    field_of_view_centre: np.ndarray
    order: str


def _grid_fields(grid) -> _GridFields:
    return dict(
        size=np.array(grid.counts),
        field_of_view=np.asarray(grid.field_of_view, np.float64),
        field_of_view_centre=np.asarray(grid.centre, np.float64),
        order="xyz",
    )


def write_measurement(
    path: str | os.PathLike,
    header: MDF,
    data: Any,
    *,
    raw: bool = False,
    source: MDF | None = None,
) -> None:
    """Write data [N, J, C, V], or [N, J, C, K] where the header says Fourier transformed.

    header: as `read` returns it; its measurement decides how data lie in the file, and
    version, uuid and time are new. data: an array, or an iterable of arrays [n, J, C, V]
    of successive stored frames, for data larger than memory. raw: they are stored numbers
    that the header's data_conversion_factor turns into `unit`; otherwise they are in that
    unit and the header must hold no factor. source: a file whose user data, names that
    start with "_", are copied. An existing file is replaced whole or not at all.

    Examples:
      >>> import numpy as np
      >>> from mpi_jax import mdf, scanner
      >>> s = scanner.paper(2)
      >>> u = np.ones((3, 1, 2, 1632), np.float32)  # [N, J, C, V]
      >>> mdf.write_measurement("measurement.mdf", mdf.header(s, frames=3), u)
      >>> mdf.read("measurement.mdf").data.shape
      (3, 1, 2, 1632)
    """
    frames, shape = _layout(header, raw)
    m = need_measurement(header)

    def place(start, piece):
        part = slice(start, start + len(piece))
        if m.is_fast_frame_axis:
            yield (..., part), np.moveaxis(piece, 0, -1)
        else:
            yield part, piece

    if m.sparsity_transformation is not None:
        raise ValueError("header: expected no sparsity_transformation in a measurement")
    _write(path, header, data, (frames, *shape), place, source)


def write_calibration(
    path: str | os.PathLike,
    header: MDF,
    data: Any,
    *,
    raw: bool = False,
    coefficients: int | None = None,
    source: MDF | None = None,
) -> None:
    """Write a system matrix [J, C, K, N], or [J, C, V, N] in the time domain.

    Columns are frames in stored order: the foreground in the header's voxel order (from
    images: `image.reshape(-1)[np.argsort(voxel_order(header), axis=None)]`) and the
    background where is_background_frame says. data: an array, or an iterable of arrays
    [rows, N], frequency fastest, then channel, then period. coefficients: B, how many of
    each row are kept where the header has a sparsity_transformation. For the rest see
    `write_measurement`.

    Examples:
      >>> import numpy as np
      >>> from mpi_jax import mdf, scanner, system_matrix
      >>> s = scanner.paper(2)  # 2 x 2 pixels
      >>> S = system_matrix.to_frequency(system_matrix.simulate(s))  # [C, K, P]
      >>> head = mdf.header(s, calibration=True)
      >>> file_order = np.argsort(mdf.voxel_order(head), axis=None)
      >>> mdf.write_calibration("calibration.mdf", head, np.asarray(S)[None][..., file_order])
      >>> file = mdf.read("calibration.mdf")
      >>> file.data.shape, file.data.axes
      ((1, 2, 817, 4), 'JCKN')
    """
    frames, shape = _layout(header, raw)
    m, length = need_measurement(header), shape[-1]
    kind, count = m.sparsity_transformation, len(m.foreground)
    if (kind is None) != (coefficients is None) or not 1 <= (
        coefficients or 1
    ) <= count:
        raise ValueError(
            f"coefficients: expected 1 to {count} with a sparsity_transformation and None "
            f"without, got {coefficients} with {kind}"
        )

    def place(start, piece):
        done = 0
        while done < len(piece):
            jc, k = divmod(start + done, length)
            rows = piece[done : done + length - k]
            done += len(rows)
            at = (*divmod(jc, shape[1]), slice(k, k + len(rows)))
            if kind is not None:
                yield at, _compress(header, rows, kind, coefficients)
            elif m.is_fast_frame_axis:
                yield at, rows
            else:
                yield (slice(None), *at), rows.T

    if isinstance(data, np.ndarray) or hasattr(data, "__array__"):
        if np.shape(data) != (*shape, frames):
            raise ValueError(
                f"data: expected shape {[*shape, frames]}, got {list(np.shape(data))}"
            )
        data = np.asarray(data).reshape(-1, frames)
    rows = math.prod(shape)
    _write(path, header, data, (rows, frames), place, source, coefficients)


def _layout(header: MDF, raw: bool) -> tuple[int, tuple[int, int, int]]:
    """N and [J, C, V or K] that a header asks for."""
    a, m = header.acquisition, header.measurement
    if a is None or m is None:
        raise ValueError("header: expected acquisition and measurement, got None")
    factor = a.receiver.data_conversion_factor
    if factor is not None and np.any(factor != np.array([1.0, 0.0])) and not raw:
        raise ValueError(
            "header: expected no data_conversion_factor for data in the receiver's unit; "
            "drop it, or say raw=True for stored numbers"
        )
    columns = a.receiver.samples
    if m.is_fourier_transformed:
        columns = len(stored_frequencies(header))
    return a.frames, (a.periods, a.receiver.channels, columns)


def _compress(header, rows, kind: str, coefficients):
    """(values [.., B + E], 1-based places [.., B]) of the largest coefficients."""
    foreground = len(need_measurement(header).foreground)
    grid = rows[:, :foreground].reshape(-1, *stored_shape(need_calibration(header)))
    flat = dct(grid, kind).reshape(len(rows), -1)
    places = np.argsort(-np.abs(flat), axis=1, kind="stable")[:, :coefficients]
    places.sort(axis=1)
    values = np.take_along_axis(flat, places, axis=1).astype(rows.dtype)
    return np.concatenate([values, rows[:, foreground:]], axis=1), places + 1


def _write(path, header, data, shape, place, source, coefficients=None):
    """Pieces [n, ...] that add up to `shape` into /measurement/data by `place`."""
    m = header.measurement
    if isinstance(data, np.ndarray) or hasattr(data, "__array__"):
        data = np.asarray(data)
        step = max(1, PIECE // max(1, nbytes(data.shape[1:], data.dtype)))
        starts = range(0, max(len(data), 1), step)
        pieces = map(np.asarray, (data[i : i + step] for i in starts))
    else:
        pieces = map(np.asarray, data)
    first = next(pieces, None)
    if first is None:
        raise ValueError("data: expected an array or pieces of one, got nothing")
    frames, rest = _layout(header, True)
    stored: tuple[int, ...] = (frames, *rest)
    if m.is_fast_frame_axis:
        stored = (*rest, frames)
    indices = None
    if coefficients is not None:
        stored = (*rest, coefficients + len(m.background))
        indices = (*rest, coefficients)
    described = DataInfo(
        dataset="/measurement/data",
        axes=stored_axes(m),
        shape=stored,
        dtype=first.dtype,
        indices_shape=indices,
    )
    header = dataclasses.replace(header, data=described)
    with _create(path, header, source) as h5:
        out = h5.create_dataset(described.dataset, stored, first.dtype)
        if indices is not None:
            places = h5.create_dataset("/measurement/subsamplingIndices", indices, "i4")
        start = 0
        for piece in itertools.chain([first], pieces):
            fits = piece.shape[1:] == tuple(shape[1:]) and piece.dtype == first.dtype
            if not fits or start + len(piece) > shape[0]:
                raise ValueError(
                    f"data: expected {first.dtype} {list(shape)} in all, got "
                    f"{piece.dtype} {list(piece.shape)} at {start}"
                )
            for where, values in place(start, piece):
                if indices is not None:
                    values, at = values
                    places[where] = at
                out[where] = values
            start += len(piece)
        if start != shape[0]:
            raise ValueError(
                f"data: expected {shape[0]} along the first axis, got {start}"
            )


def write_reconstruction(
    path: str | os.PathLike,
    data: Any,
    *,
    grid: Any,
    source: MDF | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> None:
    """Write images [*grid.shape], [Q, *grid.shape] or [Q, S, *grid.shape] as float32.

    Q frames and S tracers; row 0 at the largest y. grid: mpi_jax.scanner.Grid. source:
    the measurement, whose header and user data are copied; without one the file has no
    /acquisition. parameters: how the images were made, stored by name under
    /reconstruction/_parameters; texts, numbers, arrays and mappings of these. An existing
    file is replaced whole or not at all.

    Examples:
      >>> import numpy as np
      >>> from mpi_jax import mdf, scanner
      >>> images = np.zeros((3, 2, 2))  # three frames
      >>> grid, settings = scanner.paper(2).grid, {"method": "kaczmarz", "lam": 1e-2}
      >>> mdf.write_reconstruction("images.mdf", images, grid=grid, parameters=settings)
      >>> mdf.images(mdf.read("images.mdf")).shape  # [Q, S, nz, ny, nx]
      (3, 1, 1, 2, 2)
    """
    data, n = np.asarray(data), len(grid.shape)
    extra = data.ndim - n
    if extra not in (0, 1, 2) or data.shape[extra:] != grid.shape or not data.size:
        raise ValueError(
            f"data: expected shape [Q, S, {str(list(grid.shape))[1:]} like the grid, Q and "
            f"S optional, got {list(data.shape)}"
        )
    if data.dtype.kind not in "iufb":
        raise ValueError(f"data: expected real numbers, got {data.dtype}")
    lead = (1, 1) if extra == 0 else (len(data), 1) if extra == 1 else data.shape[:2]
    values = data[..., ::-1, :].reshape(*lead, -1).transpose(0, 2, 1).astype(np.float32)
    base = source or MDF(
        study=StudyInfo(), experiment=ExperimentInfo(), scanner=ScannerInfo()
    )
    image = ReconstructionInfo(**_grid_fields(grid), parameters=parameters or {})
    described = DataInfo(
        dataset="/reconstruction/data",
        axes="QPS",
        shape=values.shape,
        dtype=values.dtype,
    )
    base = dataclasses.replace(
        base,
        measurement=None,
        calibration=None,
        data=None,
        reconstruction=image,
        image_data=described,
    )
    with _create(path, base, source) as h5:
        h5.create_dataset(described.dataset, data=values)
        _put_tree(h5, "/reconstruction/_parameters", image.parameters)


@contextlib.contextmanager
def _create(path, header, source):
    """A new file with a header, under a temporary name until all went well."""
    import h5py

    for name, (_, where, required) in GROUPS.items():
        optional = name == "acquisition" and header.measurement is None
        if required and not optional and getattr(header, name) is None:
            raise ValueError(f"header: expected {where[1:]}, got None")
    if problems := contradictions(header):
        raise ValueError(f"header: {problems[0]}")
    path = Path(path)
    if path.is_dir() or not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "expected a file in a folder", str(path))
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with h5py.File(part, "w") as h5:
            new = dataclasses.replace(
                header, version=VERSION, uuid=new_uuid(), time=time_now()
            )
            for group, cls, where in walk(new):
                _put_group(h5, group, cls, where)
            if source is not None and source.path is not None:
                _copy_user_data(h5, source.path)
            yield h5
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _put_group(h5, group, cls, where):
    for field in dataclasses.fields(cls):
        value, meta = getattr(group, field.name), field.metadata
        if "flag" in meta:
            h5[f"{where}/{meta['flag']}"] = np.int8(value is not None)
        if meta and value is not None:
            value = value + meta["base"] if "base" in meta else value
            _put(h5, f"{where}/{meta['name']}", value)


def _put(h5, where, value):
    """Text as variable-length UTF-8, truth as int8, numbers in 8 (complex 16) bytes."""
    import h5py

    value = np.asarray(value)
    if value.dtype.kind in "UO" and all(isinstance(v, str) for v in value.flat):
        text = value.astype(object)
        h5.create_dataset(where, data=text, dtype=h5py.string_dtype())
        return
    kinds = {
        "b": np.int8,
        "i": np.int64,
        "u": np.int64,
        "f": np.float64,
        "c": np.complex128,
    }
    if value.dtype.kind not in kinds:
        raise ValueError(f"{where}: expected text, numbers or arrays, got {value!r}")
    h5.create_dataset(where, data=value.astype(kinds[value.dtype.kind]))


def _put_tree(h5, where, tree):
    h5.require_group(where)
    for name, value in tree.items():
        if not isinstance(name, str) or not name or "/" in name or name == ".":
            raise ValueError(f"parameters: expected names without /, got {name!r}")
        if isinstance(value, Mapping):
            _put_tree(h5, f"{where}/{name}", value)
        else:
            _put(h5, f"{where}/{name}", "none" if value is None else value)


def _copy_user_data(h5, path):
    """Names that start with "_", in every group that the new file has too."""
    with open_hdf5(path) as old:
        source = Source(old)
        for where in ["/", *[g[1] for g in (GROUPS | SUBGROUPS).values()]]:
            group = old if where == "/" else source.get(where)[0]
            for name in group or () if where in h5 else ():
                full = f"{where.rstrip('/')}/{name}"
                item, wrong = source.get(full)
                mine = full == "/reconstruction/_parameters"
                if name.startswith("_") and item is not None and not wrong and not mine:
                    old.copy(item, h5[where], name)
