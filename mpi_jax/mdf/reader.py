"""An MDF file's header, checked."""

from __future__ import annotations

import dataclasses
import os
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from mpi_jax.mdf.consistency import contradictions
from mpi_jax.mdf.schema import (
    GROUPS,
    MDF,
    SUBGROUPS,
    AcquisitionInfo,
    DataInfo,
    ExperimentInfo,
    MeasurementInfo,
    TracerInfo,
    stored_axes,
)
from mpi_jax.mdf.source import COUNT, Source, check_heaps, open_hdf5


def read(path: str | os.PathLike) -> MDF:
    """Header of an MDF file of version 1, 2.0 or 2.1; no bulk data is loaded.

    Raises OSError or ValueError with one line that names the file, and the dataset, what
    was expected and what was found, for a file that can't be trusted. One warning tells
    of everything that deviates but was accepted.

    Examples:
      >>> import numpy as np
      >>> from mpi_jax import mdf, scanner
      >>> s = scanner.paper(2)
      >>> u = np.ones((3, 1, 2, 1632), np.float32)  # [N, J, C, V]
      >>> mdf.write_measurement("measurement.mdf", mdf.header(s, frames=3), u)
      >>> file = mdf.read("measurement.mdf")
      >>> file.acquisition.frames, file.acquisition.receiver.samples, file.data.axes
      (3, 1632, 'NJCV')
    """
    file, problems = _parse(path)
    if problems:
        more = f" (and {len(problems) - 1} more, see mdf.check)" * (len(problems) > 1)
        raise ValueError(f"{path}: {problems[0]}{more}")
    if file.notes:
        warnings.warn(f"{path}: {'; '.join(file.notes)}", stacklevel=2)
    return _freeze(MDF, file)


def check(path: str | os.PathLike) -> list[str]:
    """What contradicts the format, a sentence each; deviations that `read` accepts too.

    Examples:
      >>> import numpy as np
      >>> from mpi_jax import mdf, scanner
      >>> s = scanner.paper(2)
      >>> u = np.ones((3, 1, 2, 1632), np.float32)  # [N, J, C, V]
      >>> mdf.write_measurement("measurement.mdf", mdf.header(s, frames=3), u)
      >>> mdf.check("measurement.mdf")
      []
    """
    file, problems = _parse(path)
    return problems + list(file.notes)


def _freeze(cls, space):
    values = {f.name: getattr(space, f.name) for f in dataclasses.fields(cls)}
    groups: dict[str, type] = {}
    if cls is MDF:
        groups = {name: group for name, (group, *_) in GROUPS.items()}
        groups |= {"data": DataInfo, "image_data": DataInfo}
    elif cls is AcquisitionInfo:
        groups = {name: group for name, (group, _) in SUBGROUPS.items()}
    for name in values.keys() & groups.keys():
        if values[name] is not None:
            values[name] = _freeze(groups[name], values[name])
    return cls(**values)


def _parse(path) -> tuple[SimpleNamespace, list[str]]:
    """Header as a tree of namespaces, so that a faulty one can be looked at too."""
    check_heaps(path)
    with open_hdf5(path) as h5:
        source = Source(h5)
        version = source.value(MDF.__dataclass_fields__["version"], "/version")
        try:
            major = int(str(version).split(".")[0])
        except ValueError:
            major = 2
            if version is not None:
                source.problem("/version", "a version number", repr(version))
        if source.get("/version")[0] is None:
            raise ValueError(f"{path}: expected an MDF file, got HDF5 without /version")
        source.v1 = major < 2
        if source.v1:
            source.notes.append(f'/version: expected "2" or later, found "{version}"')
        file = source.group(MDF, "")
        file.path = Path(path).absolute()
        for name, (cls, where, required) in GROUPS.items():
            setattr(file, name, None)
            if source.has_group(where):
                setattr(file, name, source.group(cls, where))
            elif required and not (source.v1 and name == "experiment"):
                source.problem(where, "a group", "none")
        if source.v1 and file.study is not None:
            file.experiment = source.group(ExperimentInfo, "/experiment")
        if (acquisition := file.acquisition) is not None:
            for name, (cls, where) in SUBGROUPS.items():
                setattr(acquisition, name, source.group(cls, where))
        if file.reconstruction is not None:
            file.reconstruction.parameters = source.tree("/reconstruction/_parameters")
        missing = "/acquisition: expected a group, found none"
        if missing in source.problems and file.reconstruction and not file.measurement:
            source.problems.remove(missing)
            source.notes.append(missing)
        _locate(source, file)
        if file.acquisition is not None:
            _normalise(source, file)
        if not source.problems:
            source.problems += contradictions(file)
        # Version 1 as a whole is one deviation.
        file.notes = tuple(source.notes[:1] if source.v1 else source.notes)
    return file, source.problems


def _locate(source, file):
    """Find the bulk datasets and name their axes."""
    places = {"/measurement/data": ""}
    if source.v1:
        places = {
            "/calibration/dataFD": "JCKN",
            "/measurement/dataFD": "NJCK",
            "/measurement/dataTD": "NJCV",
        }
    file.data = file.image_data = None
    for where, axes in places.items():
        parent = where.split("/")[1]
        if getattr(file, parent) is None:
            continue
        dataset = source.dataset(where)
        if dataset is None:
            continue
        axes = axes or stored_axes(file.measurement)
        pairs = source.v1 and where.endswith("FD")
        if source.v1 and len(dataset.shape) - pairs == 3:
            axes = axes.replace("J", "")
        file.data = _describe(where, axes, dataset, pairs)
        break
    else:
        if file.measurement is not None and not source.problems:
            source.problem("/measurement/data", "a dataset", "none")
    if file.data and not source.v1 and file.measurement.sparsity_transformation:
        dataset = source.dataset("/measurement/subsamplingIndices")
        if dataset is not None and dataset.dtype.kind in "iu":
            file.data.indices_shape = tuple(map(int, dataset.shape))
    if file.reconstruction is not None:
        dataset = source.dataset("/reconstruction/data")
        if dataset is not None:
            file.image_data = _describe("/reconstruction/data", "QPS", dataset, False)
        elif not any(p.startswith("/reconstruction/data") for p in source.problems):
            source.problem("/reconstruction/data", "a dataset", "none")


def _describe(where, axes, dataset, pairs):
    return SimpleNamespace(
        dataset=where,
        axes=axes,
        shape=tuple(map(int, dataset.shape)),
        dtype=dataset.dtype,
        is_pairs=pairs,
        indices_shape=None,
    )


def _normalise(source, file):
    """Bring fields of old and slightly deviating files to the shapes of version 2.1."""
    a = file.acquisition
    drive, periods = a.drive_field, a.periods or 0

    def spread(where, expected, old, new):
        """One period's value for all of them, without memory for each."""
        if new.shape == old.shape:
            return new
        source.notes.append(
            f"{where}: expected shape {expected}, found {list(old.shape)}"
        )
        shape = (min(periods, COUNT), *new.shape[1:])
        return np.broadcast_to(new, shape) if len(new) == 1 else new

    if source.v1:
        _upgrade(file)
    per_period = {(3,), (1, 3), (periods, 3)}
    if (old := a.gradient) is not None:
        # With three periods a diagonal Jacobian looks like three diagonals.
        jacobian = old.shape == (3, 3) and not np.any(old[np.eye(3) == 0])
        new = old[:, None] if old.shape == (periods, 3, 3) else old
        if old.shape in per_period and not jacobian:
            new = old.reshape(-1, 1, 3, 1) * np.eye(3)
        a.gradient = spread("/acquisition/gradient", "[J, Y, 3, 3]", old, new)
    if (old := a.offset_field) is not None:
        new = old.reshape(-1, 1, 3) if old.shape in per_period else old
        a.offset_field = spread("/acquisition/offsetField", "[J, Y, 3]", old, new)
    if drive.waveform is not None:
        if drive.waveform.ndim == 0 and drive.divider is not None:
            where = "/acquisition/drivefield/waveform"
            source.notes.append(f"{where}: expected shape [D, F], found a single text")
            drive.waveform = np.broadcast_to(drive.waveform, drive.divider.shape)
        drive.waveform = _tuples(drive.waveform)
    if file.tracer is not None:
        fields = {k: v for k, v in vars(file.tracer).items() if v is not None}
        single = [name for name, value in fields.items() if value.ndim == 0]
        if single:
            names = ", ".join(
                TracerInfo.__dataclass_fields__[n].metadata["name"] for n in single
            )
            source.notes.append(
                f"/tracer: expected lists, found single values ({names})"
            )
        for name, value in fields.items():
            value = np.atleast_1d(value)
            value = _tuples(value) if value.dtype.kind == "O" else value
            setattr(file.tracer, name, value)


def _tuples(texts):
    def nested(value):
        return tuple(map(nested, value)) if isinstance(value, list) else value

    return nested(texts.tolist())


def _upgrade(file):
    """What version 1 leaves out or lays out otherwise."""
    a, data, calibration = file.acquisition, file.data, file.calibration
    drive = a.drive_field
    if drive.divider is not None and drive.divider.ndim == 1:
        drive.divider = drive.divider[:, None]
    if drive.strength is not None and drive.strength.ndim in (1, 2):
        strength = np.atleast_2d(drive.strength)[..., None]
        periods = a.periods if len(strength) == 1 else len(strength)
        shape = (min(periods or 0, COUNT), *strength.shape[1:])
        drive.strength = np.broadcast_to(strength, shape)
    if drive.phase is None and drive.strength is not None:
        drive.phase = np.broadcast_to(np.pi / 2, drive.strength.shape)
    file.measurement = None
    if data is not None and len(data.shape) == len(data.axes) + data.is_pairs:
        is_calibration = data.axes in ("JCKN", "CKN")
        frames = data.shape[data.axes.index("N")]
        if frames <= COUNT:
            a.frames = frames
            values = {f.name: False for f in dataclasses.fields(MeasurementInfo)}
            file.measurement = SimpleNamespace(**values)
            file.measurement.frequency_selection = None
            file.measurement.frame_permutation = None
            file.measurement.sparsity_transformation = None
            file.measurement.is_background_frame = np.zeros(frames, bool)
            file.measurement.is_background_corrected = is_calibration
            file.measurement.is_fast_frame_axis = is_calibration
            file.measurement.is_fourier_transformed = "K" in data.axes
    if calibration is not None and calibration.snr is not None:
        if calibration.snr.ndim == 2:
            calibration.snr = calibration.snr[None]
