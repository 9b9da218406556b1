"""MDF files (Magnetic Particle Imaging Data Format, 1 to 2.1) <-> NumPy arrays.

`read` returns the header and never the bulk data; `signals`, `spectra`, `system_matrix`
and `images` reopen the file and read only what is asked for, in pieces of bounded size.

Symbols (the format's own)
    N  frames, O foreground + E background      J  periods per frame
    C  receive channels                         V  samples per period
    K  frequencies V // 2 + 1, or the selected  M  selected rows
    D  drive channels, F frequencies of each    Y  partitions of the selection field
    A  tracers    B  coefficients of a compressed row
    Q, P, S  frames, voxels and tracers of a reconstruction
Units: SI, fields in tesla, phases in radians. Indices are 0-based here, 1-based in files.
Array order is NumPy's: the last axis is the fastest. Spectra are unnormalised rfft.

Source: MDF 2.1.0, T. Knopp et al. (2016), arXiv:1602.06072. Old and slightly deviating
files are accepted where their meaning is plain; `MDF.notes` and one warning say how.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import itertools
import math
import os
import stat
import uuid as uuids
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from jaxtyping import Bool, Complex, Float, Int, Shaped

VERSION = "2.1.0"
_PIECE = 2**24  # bytes read or written at a time
_HEADER = 2**27  # bytes of the largest header field
_COUNT = 2**24  # largest credible count of frames, periods, samples, ...
# A compressed stream grows by 1032 at most, so a file can't hold more than this.
_EXPANSION, _SMALL = 1032, 2**26
_ORDERS = tuple("".join(p) for p in itertools.permutations("xyz"))
_TRANSFORMS = ("DCT-I", "DCT-II", "DCT-III", "DCT-IV")


def _at(name, kind, shape="", default=dataclasses.MISSING, *, optional=False, **extra):
    """A header field: its name, type and shape in the file; optional ones may be None."""
    if optional:
        default = None
    how = {"default_factory" if callable(default) else "default": default}
    meta = dict(name=name, kind=kind, shape=shape.split(), optional=optional, **extra)
    return dataclasses.field(metadata=meta, **how)


def _text(name, default="n.a.", **extra):
    return _at(name, str, "", default, **extra)


def _uuid():
    return str(uuids.uuid4())


def _now():
    now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
    return now.isoformat(timespec="milliseconds")


_header = dataclasses.dataclass(frozen=True, eq=False, kw_only=True)


@_header
class Study:
    name: str = _text("name")
    number: int = _at("number", int, "", 0)
    uuid: str = _text("uuid", _uuid)
    description: str = _text("description")
    time: str | None = _text("time", optional=True)


@_header
class Experiment:
    name: str = _text("name")
    number: int = _at("number", int, "", 0)
    uuid: str = _text("uuid", _uuid)
    description: str = _text("description")
    subject: str = _text("subject")
    is_simulation: bool = _at("isSimulation", bool, "", False)


@_header
class Tracer:
    """Each field has one entry per tracer; concentration [mol(solute)/L], volume [L]."""

    name: tuple[str, ...] = _at("name", str, "A")
    batch: tuple[str, ...] = _at("batch", str, "A")
    vendor: tuple[str, ...] = _at("vendor", str, "A")
    solute: tuple[str, ...] = _at("solute", str, "A")
    concentration: np.ndarray = _at("concentration", float, "A", free=True)
    volume: np.ndarray = _at("volume", float, "A", free=True)
    injection_time: tuple[str, ...] | None = _at(
        "injectionTime", str, "A", optional=True
    )


@_header
class Scanner:
    """bore_size [m]; topology FFP, FFL or MPS."""

    facility: str = _text("facility")
    manufacturer: str = _text("manufacturer")
    name: str = _text("name")
    operator: str = _text("operator")
    topology: str = _text("topology", "FFP")
    bore_size: float | None = _at("boreSize", float, optional=True, free=True)


@_header
class DriveField:
    """H_d(t) = sum_l strength[j, d, l] wave(2 pi f t + phase[j, d, l]), f = base / divider.

    base_frequency [Hz], cycle [s], divider [D, F], strength [J, D, F] T, phase
    [J, D, F] rad, waveform [D][F]: sine, triangle or custom.
    """

    base_frequency: float = _at("baseFrequency", float, positive=True)
    cycle: float = _at("cycle", float, positive=True)
    channels: int = _at("numChannels", int, count=True)
    divider: np.ndarray = _at("divider", int, "D F", positive=True)
    strength: np.ndarray = _at("strength", float, "J D F")
    phase: np.ndarray = _at("phase", float, "J D F")
    waveform: tuple[tuple[str, ...], ...] = _at("waveform", str, "D F")


@_header
class Receiver:
    """bandwidth [Hz], half the sampling rate; channels C; samples V per period.

    data_conversion_factor [C, 2]: value [unit] = a * stored + b; applied when reading.
    transfer_function [C, K or all K] (divide a spectrum by it) and induction_factor [C]
    [unit/(A m^2)] are given as stored and never applied here.
    """

    bandwidth: float = _at("bandwidth", float, positive=True)
    channels: int = _at("numChannels", int, count=True)
    samples: int = _at("numSamplingPoints", int, count=True)
    unit: str = _text("unit", "V")
    data_conversion_factor: np.ndarray | None = _at(
        "dataConversionFactor", float, "C 2", optional=True
    )
    transfer_function: np.ndarray | None = _at(
        "transferFunction", complex, "C K", optional=True, free=True
    )
    induction_factor: np.ndarray | None = _at(
        "inductionFactor", float, "C", optional=True, free=True
    )


@_header
class Acquisition:
    """averages, frames N, periods J; gradient [J, Y, 3, 3] T/m, offset_field [J, Y, 3] T."""

    averages: int = _at("numAverages", int, "", 1, count=True)
    frames: int = _at("numFrames", int, "", 1, count=True)
    periods: int = _at("numPeriodsPerFrame", int, "", 1, count=True)
    start_time: str = _text("startTime", _now)
    gradient: np.ndarray | None = _at("gradient", float, "J Y 3 3", optional=True)
    offset_field: np.ndarray | None = _at("offsetField", float, "J Y 3", optional=True)
    drive_field: DriveField
    receiver: Receiver


@_header
class Measurement:
    """What has been done to the data, and how they lie in the file.

    is_background_frame [N]; frequency_selection [K], frequency index of each stored
    column, or None for all; frame_permutation [N]: stored frame n was acquired as frame
    frame_permutation[n], None for stored as acquired; sparsity_transformation: DCT-I to
    DCT-IV of each foreground row, None for uncompressed.
    """

    is_background_frame: np.ndarray = _at("isBackgroundFrame", bool, "N")
    is_background_corrected: bool = _at("isBackgroundCorrected", bool, "", False)
    is_fast_frame_axis: bool = _at("isFastFrameAxis", bool, "", False)
    is_fourier_transformed: bool = _at("isFourierTransformed", bool, "", False)
    is_spectral_leakage_corrected: bool = _at(
        "isSpectralLeakageCorrected", bool, "", False
    )
    is_transfer_function_corrected: bool = _at(
        "isTransferFunctionCorrected", bool, "", False
    )
    # Each of these is present exactly where its flag is 1.
    frequency_selection: np.ndarray | None = _at(
        "frequencySelection",
        int,
        "K",
        optional=True,
        base=1,
        flag="isFrequencySelection",
    )
    frame_permutation: np.ndarray | None = _at(
        "framePermutation", int, "N", optional=True, base=1, flag="isFramePermutation"
    )
    sparsity_transformation: str | None = _text(
        "sparsityTransformation", optional=True, flag="isSparsityTransformed"
    )

    @property
    def foreground(self) -> np.ndarray:
        """Stored indices of the O foreground frames."""
        return np.flatnonzero(~self.is_background_frame)

    @property
    def background(self) -> np.ndarray:
        """Stored indices of the E background frames."""
        return np.flatnonzero(self.is_background_frame)


@_header
class Calibration:
    """Where the delta sample was, frame by frame.

    size [3] voxels along x, y, z, field_of_view, field_of_view_centre and
    delta_sample_size [3] m; order: axes from the fastest to the slowest; snr [J, C, K];
    positions [O, 3] m and offset_fields [O, 3] T of other than regular grids.
    """

    method: str = _text("method", "simulation")
    size: np.ndarray | None = _at("size", int, "3", optional=True, positive=True)
    field_of_view: np.ndarray | None = _at("fieldOfView", float, "3", optional=True)
    field_of_view_centre: np.ndarray | None = _at(
        "fieldOfViewCenter", float, "3", optional=True
    )
    delta_sample_size: np.ndarray | None = _at(
        "deltaSampleSize", float, "3", optional=True, free=True
    )
    order: str | None = _text("order", optional=True)
    snr: np.ndarray | None = _at("snr", float, "J C K", optional=True, free=True)
    positions: np.ndarray | None = _at("positions", float, "O 3", optional=True)
    offset_fields: np.ndarray | None = _at("offsetFields", float, "O 3", optional=True)
    # Not in the specification, but written by MPIFiles.
    is_meandering_grid: bool | None = _at("isMeanderingGrid", bool, optional=True)


@_header
class Reconstruction:
    """Grid of the stored images as in Calibration; parameters: how they were made."""

    size: np.ndarray | None = _at("size", int, "3", optional=True, positive=True)
    field_of_view: np.ndarray | None = _at("fieldOfView", float, "3", optional=True)
    field_of_view_centre: np.ndarray | None = _at(
        "fieldOfViewCenter", float, "3", optional=True
    )
    order: str | None = _text("order", optional=True)
    positions: np.ndarray | None = _at("positions", float, "P 3", optional=True)
    is_overscan_region: np.ndarray | None = _at(
        "isOverscanRegion", bool, "P", optional=True
    )
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@_header
class Data:
    """A stored array: dataset, its shape and type, and what its axes are, e.g. NJCV.

    is_pairs: real and imaginary part along one more axis (version 1).
    """

    dataset: str
    axes: str
    shape: tuple[int, ...]
    dtype: np.dtype
    is_pairs: bool = False
    # Of the places of compressed coefficients [J, C, K, B].
    indices_shape: tuple[int, ...] | None = None


@_header
class MDF:
    """Header of a file. A group that the file hasn't got is None.

    data: where the measurement or system matrix lies, image_data: the reconstruction;
    None where there are none. notes: what was accepted although it deviates.
    """

    version: str = _text("version", VERSION)
    uuid: str = _text("uuid", _uuid)
    time: str = _text("time", _now)
    study: Study | None = None
    experiment: Experiment | None = None
    tracer: Tracer | None = None
    scanner: Scanner | None = None
    acquisition: Acquisition | None = None
    measurement: Measurement | None = None
    calibration: Calibration | None = None
    reconstruction: Reconstruction | None = None
    data: Data | None = None
    image_data: Data | None = None
    path: Path | None = None
    notes: tuple[str, ...] = ()


# Attribute -> class, group in the file, whether it must be there.
_GROUPS = {
    "study": (Study, "/study", True),
    "experiment": (Experiment, "/experiment", True),
    "scanner": (Scanner, "/scanner", True),
    "tracer": (Tracer, "/tracer", False),
    "acquisition": (Acquisition, "/acquisition", True),
    "measurement": (Measurement, "/measurement", False),
    "calibration": (Calibration, "/calibration", False),
    "reconstruction": (Reconstruction, "/reconstruction", False),
}
_SUBGROUPS = {
    "drive_field": (DriveField, "/acquisition/drivefield"),
    "receiver": (Receiver, "/acquisition/receiver"),
}

# Version 2 -> version 1, where the name or the place changed.
_V1_NAMES = {
    "/time": "/date",
    "/experiment/number": "/study/experiment",
    "/experiment/subject": "/study/subject",
    "/experiment/isSimulation": "/study/simulation",
    "/experiment/description": "/study/description",
    "/scanner/name": "/scanner/model",
    "/tracer/injectionTime": "/tracer/time",
    "/acquisition/startTime": "/acquisition/time",
    "/acquisition/numAverages": "/acquisition/drivefield/averages",
    "/acquisition/drivefield/cycle": "/acquisition/drivefield/period",
    "/acquisition/numPeriodsPerFrame": "/acquisition/numPatches",
    "/calibration/snr": "/calibration/snrFD",
}
# What version 1 doesn't say; its texts default to "n.a.".
_V1_VALUES = {
    "/study/number": 0,
    "/experiment/number": 0,
    "/experiment/isSimulation": False,
    "/tracer/solute": "Fe",
    "/acquisition/numPeriodsPerFrame": 1,
    "/acquisition/numFrames": 1,
    "/acquisition/drivefield/waveform": "sine",
    "/acquisition/receiver/unit": "V",
}
# Pre-release names of version 2.
_OLD_NAMES = {
    "/measurement/isFastFrameAxis": "/measurement/isTransposed",
    "/acquisition/numPeriodsPerFrame": "/acquisition/numPeriods",
}


# ---------------------------------------------------------------- reading the header


@contextlib.contextmanager
def _open(path):
    """The file for reading; whatever HDF5 stumbles over becomes one line naming it."""
    import h5py

    path = Path(path)
    mode = os.stat(path).st_mode  # FileNotFoundError names the path
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "expected an MDF file", str(path))
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path}: expected an MDF file, got no regular file")
    with open(path, "rb") as file:
        file.read(1)  # PermissionError names the path
    if not h5py.is_hdf5(path):
        raise ValueError(f"{path}: expected an MDF file, got one that isn't HDF5")
    try:
        with h5py.File(path, "r", rdcc_nbytes=4 * _PIECE) as h5:
            yield h5
    except Exception as error:
        words = " ".join(str(error).split())
        if isinstance(error, ValueError) and words.startswith(str(path)):
            raise
        kind = type(error).__name__
        raise ValueError(f"{path}: damaged or no MDF file ({kind}: {words})") from error


def read(path: str | os.PathLike) -> MDF:
    """Header of an MDF file of version 1, 2.0 or 2.1; no bulk data is loaded.

    Raises OSError or ValueError with one line that names the file, and the dataset, what
    was expected and what was found, for a file that can't be trusted. One warning tells
    of everything that deviates but was accepted.
    """
    file, problems = _parse(path)
    if problems:
        more = f" (and {len(problems) - 1} more, see mdf.check)" * (len(problems) > 1)
        raise ValueError(f"{path}: {problems[0]}{more}")
    if file.notes:
        warnings.warn(f"{path}: {'; '.join(file.notes)}", stacklevel=2)
    return _freeze(MDF, file)


def check(path: str | os.PathLike) -> list[str]:
    """What contradicts the format, a sentence each; deviations that `read` accepts too."""
    file, problems = _parse(path)
    return problems + list(file.notes)


def _check_heaps(path):
    """Refuse damaged heaps of texts, which HDF5 may allocate or walk without end."""
    if not os.path.isfile(path):
        return
    with open(path, "rb") as file:
        content = file.read(_PIECE)
        size = file.seek(0, os.SEEK_END)

    def number(place):
        return int.from_bytes(content[place : place + 8], "little")

    # Signature, version and padding, then the size of the heap and its objects: index,
    # references and padding, size. Object 0 is the free rest, its header included.
    mark, start = b"GCOL\x01\0\0\0", 0
    while (start := content.find(mark, start)) >= 0:
        end, place = start + number(start + 8), start + 16
        fine = end <= size
        while fine and place + 16 <= min(end, len(content)):
            free = not any(content[place : place + 2])
            length = number(place + 8)
            place += length if free else 16 + (length + 7) // 8 * 8
            fine = place <= end and not (free and length == 0)
        if not fine:
            raise ValueError(f"{path}: damaged, its heap of texts at {start} is broken")
        start += len(mark)


def _freeze(cls, space):
    values = {f.name: getattr(space, f.name) for f in dataclasses.fields(cls)}
    groups = _GROUPS if cls is MDF else _SUBGROUPS if cls is Acquisition else {}
    groups = groups | ({"data": (Data,), "image_data": (Data,)} if cls is MDF else {})
    for name in values.keys() & groups.keys():
        if values[name] is not None:
            values[name] = _freeze(groups[name][0], values[name])
    return cls(**values)


def _parse(path) -> tuple[SimpleNamespace, list[str]]:
    """Header as a tree of namespaces, so that a faulty one can be looked at too."""
    _check_heaps(path)
    with _open(path) as h5:
        source = _Source(h5)
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
        for name, (cls, where, required) in _GROUPS.items():
            setattr(file, name, None)
            if source.has_group(where):
                setattr(file, name, source.group(cls, where))
            elif required and not (source.v1 and name == "experiment"):
                source.problem(where, "a group", "none")
        if source.v1 and file.study is not None:
            file.experiment = source.group(Experiment, "/experiment")
        if (acquisition := file.acquisition) is not None:
            for name, (cls, where) in _SUBGROUPS.items():
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
            source.problems += _contradictions(file)
        # Version 1 as a whole is one deviation.
        file.notes = tuple(source.notes[:1] if source.v1 else source.notes)
    return file, source.problems


class _Source:
    """An open file, with what was found wrong (problems) and what was accepted (notes)."""

    def __init__(self, h5):
        self.h5, self.v1, self.problems, self.notes = h5, False, [], []
        self.found = {}

    def problem(self, where, expected, found):
        self.problems.append(f"{where}: expected {expected}, found {found}")

    def get(self, where):
        """(object, None), (None, None) where nothing is, or (None, what is wrong)."""
        import h5py

        if where not in self.found:
            parent, _, name = where.rstrip("/").rpartition("/")
            group, wrong = self.get(parent) if parent else (self.h5, None)
            found = None
            if isinstance(group, h5py.Group):
                link = group.get(name, getlink=True)
                if isinstance(link, h5py.HardLink):
                    found = group[name]
                elif link is not None:
                    wrong = "a soft or external link"
            self.found[where] = found, wrong
        return self.found[where]

    def has_group(self, where):
        import h5py

        found, wrong = self.get(where)
        if found is not None and not isinstance(found, h5py.Group):
            wrong = "a dataset"
        if wrong:
            self.problem(where, "a group", wrong)
        return found is not None and not wrong

    def dataset(self, where):
        """Dataset with plain storage in this file, or None."""
        import h5py

        found, wrong = self.get(where)
        if found is not None and not isinstance(found, h5py.Dataset):
            wrong = "a group"
        elif found is not None:
            if found.is_virtual or found.external:
                wrong = "one stored in another file"
            elif found.shape is None:
                wrong = "an empty one"
            elif _nbytes(found.chunks or (), found.dtype) > 8 * _PIECE:
                wrong = f"one in chunks of {found.chunks}"
        if wrong:
            self.problem(where, "a dataset", wrong)
        return None if wrong else found

    def raw(self, where):
        """Value as an array of numbers or of str, or None."""
        import h5py

        dataset = self.dataset(where)
        if dataset is None:
            return None
        limit = 2**22 + 16 * _EXPANSION * dataset.id.get_storage_size()
        if _nbytes(dataset.shape, dataset.dtype) > min(_HEADER, limit):
            self.problem(where, "a header field", f"shape {list(dataset.shape)}")
            return None
        text = h5py.check_string_dtype(dataset.dtype) is not None
        if not text and dataset.dtype.kind not in "iufcb":
            self.problem(where, "text or numbers", f"type {dataset.dtype}")
            return None
        if text and self.longest_text(dataset) > os.path.getsize(self.h5.filename):
            self.problem(where, "text", "one longer than the file")
            return None
        value = np.asarray(dataset[()])
        if text:
            texts = np.empty(value.size, object)
            texts[:] = [_decode(v) for v in value.flat]
            value = texts.reshape(value.shape)
        return value

    def longest_text(self, dataset):
        """Claimed bytes of the longest variable-length text, which HDF5 allocates."""
        place, stored = dataset.id.get_offset(), dataset.id.get_storage_size()
        variable = dataset.dtype.kind == "O"
        if not variable or place is None or stored != 16 * dataset.size:
            return 0
        # Length, then the place in a heap: address and index.
        with open(self.h5.filename, "rb") as file:
            file.seek(place + self.h5.userblock_size)
            entries = np.frombuffer(file.read(stored), "<u4")
        return int(entries[::4].max(initial=0))

    def value(self, field, where):
        """A header field with its type and number of axes put right, or None."""
        meta, kind = field.metadata, field.metadata["kind"]
        value = self.raw(where)
        found = where
        for names in (_V1_NAMES,) if self.v1 else (_OLD_NAMES,):
            if value is None and where in names:
                found = names[where]
                value = self.raw(found)
                if value is not None and not self.v1:
                    self.notes.append(f"{where}: expected, found {found}")
        if value is None:
            return self.absent(meta, where)
        if self.v1 and kind is complex and value.dtype.kind == "f" and value.ndim == 3:
            value = value[..., 0] + 1j * value[..., 1]
        if self.v1 and kind is int and value.dtype.kind == "O" and value.size == 1:
            # The number of a version 1 experiment is a text.
            digits = str(value.item()).strip()
            value = np.array(int(digits) if digits.isdecimal() else 0)
        value = self.convert(value, kind, found)
        if value is None:
            return None
        if not meta["shape"]:
            if value.size != 1:
                self.problem(found, "a single value", f"shape {list(value.shape)}")
                return None
            if value.ndim and kind is not str:
                self.notes.append(
                    f"{found}: expected a single value, found shape {list(value.shape)}"
                )
            return kind(value.item())
        if not meta.get("free") and kind is float and not np.all(np.isfinite(value)):
            self.problem(found, "finite numbers", "NaN or infinity")
            return None
        return value - meta["base"] if "base" in meta else value

    def convert(self, value, kind, where):
        """Array as `kind`, or None where its numbers or texts are something else."""
        stored = value.dtype.kind
        name = {str: "text", float: "real numbers", complex: "numbers"}.get(kind)
        if kind is str or stored == "O":
            if kind is str and stored == "O":
                return value
        elif kind is float and stored != "c":
            return value.astype(np.float64)
        elif kind is complex:
            return value.astype(np.complex128)
        elif kind is int or kind is bool:
            name = "0 or 1" if kind is bool else "whole numbers"
            limit = 1 if kind is bool else 2**53
            low = 0 if kind is bool else -limit
            if stored != "c" and np.all((value >= low) & (value <= limit)):
                whole = value.astype(np.int64)
                if np.all(whole == value):
                    if stored == "f":
                        self.notes.append(
                            f"{where}: expected {name}, found {value.dtype}"
                        )
                    return whole.astype(kind)
        wording = "text" if stored == "O" else f"{value.dtype} {np.ravel(value)[:3]}"
        self.problem(where, name or "whole numbers", wording)
        return None

    def absent(self, meta, where):
        name = meta["name"]
        if meta["optional"] or any(p.startswith(f"{where}: ") for p in self.problems):
            return None
        if where == "/measurement/isFastFrameAxis" and not self.v1:
            self.notes.append(f"{where}: expected, found none, taken as 0")
            return False
        if self.v1:
            value = _V1_VALUES.get(where, "n.a." if meta["kind"] is str else None)
            if value is not None:
                return np.array(value, object) if meta["shape"] else value
            if name == "phase" or where.startswith("/measurement"):
                return None  # follows from other fields
        self.problem(where, "a dataset", "none")
        return None

    def group(self, cls, where):
        """The fields of a class as a namespace."""
        space = SimpleNamespace()
        for field in dataclasses.fields(cls):
            value, meta = None, field.metadata
            if meta:
                path = f"{where}/{meta['name']}"
                if "flag" not in meta or self.flag(meta["flag"]):
                    value = self.value(field, path)
                    if "flag" in meta and value is None:
                        if not any(p.startswith(path) for p in self.problems):
                            self.problem(
                                path, f"a dataset as {meta['flag']} is 1", "none"
                            )
            setattr(space, field.name, value)
        return space

    def flag(self, name):
        where = f"/measurement/{name}"
        if self.v1:
            return False
        value = self.raw(where)
        if value is None:
            if not any(p.startswith(f"{where}: ") for p in self.problems):
                if name != "isSparsityTransformed":
                    self.problem(where, "a dataset", "none")
                elif str(self.raw("/version")) >= "2.1":
                    self.notes.append(f"{where}: expected, found none, taken as 0")
            return False
        value = self.convert(value, bool, where)
        if value is not None and value.size != 1:
            self.problem(where, "a single value", f"shape {list(value.shape)}")
        return value is not None and value.size == 1 and bool(value.item())

    def tree(self, where, depth=4):
        """Parameters as a nested dict; what isn't text or numbers is left out."""
        import h5py

        group, _ = self.get(where)
        if not isinstance(group, h5py.Group) or depth == 0:
            return {}
        tree = {}
        for name in itertools.islice(group, 1000):
            below = f"{where}/{name}"
            found, wrong = self.get(below)
            if isinstance(found, h5py.Group):
                tree[name] = self.tree(below, depth - 1)
            elif not wrong:
                value = self.raw(below)
                if value is not None:
                    tree[name] = value.item() if value.ndim == 0 else value
        return tree


def _decode(value):
    if isinstance(value, str):
        return value
    try:
        return bytes(value).decode("utf-8")
    except UnicodeDecodeError:
        return bytes(value).decode("latin-1")


def _nbytes(shape, dtype):
    return dtype.itemsize * math.prod(map(int, shape))


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
        flags = file.measurement
        if not axes:
            axis = "K" if flags.is_fourier_transformed else "V"
            axes = f"JC{axis}N" if flags.is_fast_frame_axis else f"NJC{axis}"
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
        """One period's value for all of them, without memory of its own."""
        if new.shape == old.shape:
            return new
        found = f"{where}: expected shape {expected}, found {list(old.shape)}"
        source.notes.append(found)
        shape = (min(periods, _COUNT), *new.shape[1:])
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
                Tracer.__dataclass_fields__[n].metadata["name"] for n in single
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
        shape = (min(periods or 0, _COUNT), *strength.shape[1:])
        drive.strength = np.broadcast_to(strength, shape)
    if drive.phase is None and drive.strength is not None:
        drive.phase = np.broadcast_to(np.pi / 2, drive.strength.shape)
    file.measurement = None
    if data is not None and len(data.shape) == len(data.axes) + data.is_pairs:
        made = data.axes == "JCKN" or data.axes == "CKN"
        frames = data.shape[data.axes.index("N")]
        if frames <= _COUNT:
            a.frames = frames
            values = {f.name: False for f in dataclasses.fields(Measurement)}
            file.measurement = SimpleNamespace(**values)
            file.measurement.frequency_selection = None
            file.measurement.frame_permutation = None
            file.measurement.sparsity_transformation = None
            file.measurement.is_background_frame = np.zeros(frames, bool)
            file.measurement.is_background_corrected = made
            file.measurement.is_fast_frame_axis = made
            file.measurement.is_fourier_transformed = "K" in data.axes
    if calibration is not None and calibration.snr is not None:
        if calibration.snr.ndim == 2:
            calibration.snr = calibration.snr[None]


def _expectations():
    problems = []

    def expect(fine, where, expected, found):
        if not fine:
            problems.append(f"{where}: expected {expected}, found {found}")

    return problems, expect


def _walk(file):
    """(group, class, place) of all groups that are there."""
    yield file, MDF, ""
    for owner, groups in ((file, _GROUPS), (file.acquisition, _SUBGROUPS)):
        for name, (cls, where, *_) in groups.items() if owner is not None else ():
            if getattr(owner, name) is not None:
                yield getattr(owner, name), cls, where


def _contradictions(file) -> list[str]:
    """What doesn't fit together in a header whose fields have the right types."""
    problems, expect = _expectations()
    a, measurement, calibration = file.acquisition, file.measurement, file.calibration
    image = file.reconstruction
    sizes = {"3": 3, "2": 2}
    full = 0
    # Counts first: whatever is measured by a wrong one would look wrong too.
    for group, cls, where in _walk(file):
        for field in dataclasses.fields(cls):
            value, meta = getattr(group, field.name), field.metadata
            if meta and value is None and not meta["optional"]:
                expect(False, f"{where}/{meta['name']}", "a value", "none")
            elif meta.get("count"):
                path = f"{where}/{meta['name']}"
                expect(1 <= value <= _COUNT, path, f"a count from 1 to {_COUNT}", value)
    if problems:
        return problems
    if a is not None:
        receiver, drive = a.receiver, a.drive_field
        full = receiver.samples // 2 + 1
        sizes |= dict(J=a.periods, N=a.frames, D=drive.channels, C=receiver.channels)
        sizes |= dict(V=receiver.samples, K=full)
    if measurement is None and file.data is not None:
        data = file.data  # of version 1, whose header follows from the data
        axes = f"shape [{', '.join(data.axes)}{', 2' * data.is_pairs}]"
        expect(False, data.dataset, axes, list(data.shape))
        return problems
    if measurement is not None:
        selection = measurement.frequency_selection
        sizes["K"] = full if selection is None else np.size(selection)
    if file.image_data is not None and len(file.image_data.shape) == 3:
        sizes["P"] = file.image_data.shape[1]

    for group, cls, where in _walk(file):
        for field in dataclasses.fields(cls):
            value, meta = getattr(group, field.name), field.metadata
            if not meta or value is None:
                continue
            path, letters = f"{where}/{meta['name']}", meta["shape"]
            if meta.get("positive"):
                fine = np.all(np.asarray(value) > 0)
                expect(fine, path, "positive numbers", np.ravel(value)[:4].tolist())
            if letters:
                shape = np.shape(value)
                if len(shape) == len(letters):
                    for letter, n in zip(letters, shape, strict=True):
                        sizes.setdefault(letter, n)
                wanted = [sizes.get(letter, letter) for letter in letters]
                fine = list(shape) == wanted
                if field.name == "transfer_function" and letters[-1:] == ["K"]:
                    fine = fine or list(shape) == [wanted[0], full]
                expect(fine, path, f"[{', '.join(letters)}] = {wanted}", list(shape))
    if problems:
        return problems

    if a is not None:
        samples = drive.cycle * 2 * receiver.bandwidth
        fine = abs(samples - receiver.samples) < 0.01
        where = "/acquisition/receiver/numSamplingPoints"
        expect(fine, where, f"cycle * 2 * bandwidth = {samples:g}", receiver.samples)
        for l in {w for row in drive.waveform for w in row}:
            fine = l in ("sine", "triangle", "custom")
            where = "/acquisition/drivefield/waveform"
            expect(fine, where, "sine, triangle or custom", repr(l))
    if measurement is not None and a is not None:
        problems += _measurement_contradictions(file, sizes, full)
    for group, where in ((calibration, "/calibration"), (image, "/reconstruction")):
        if group is not None and group.order is not None:
            fine = group.order in _ORDERS
            expect(fine, f"{where}/order", f"one of {', '.join(_ORDERS)}", group.order)
    if calibration is not None and measurement is not None and a is not None:
        count = a.frames - int(np.sum(measurement.is_background_frame))
        for name in ("size", "positions", "offset_fields"):
            value = getattr(calibration, name)
            if value is not None:
                n = math.prod(map(int, value)) if name == "size" else len(value)
                label = Calibration.__dataclass_fields__[name].metadata["name"]
                where = f"/calibration/{label}"
                expect(n == count, where, f"{count} foreground frames in all", n)
    if image is not None and file.image_data is not None:
        data = file.image_data
        expect(len(data.shape) == 3, data.dataset, "shape [Q, P, S]", list(data.shape))
        expect(data.dtype.kind in "iufc", data.dataset, "numbers", data.dtype)
        if image.size is not None and len(data.shape) == 3:
            n = math.prod(map(int, image.size))
            where = "/reconstruction/size"
            expect(n == data.shape[1], where, f"{data.shape[1]} voxels in all", n)
    return problems


def _measurement_contradictions(file, sizes, full) -> list[str]:
    problems, expect = _expectations()
    m, data = file.measurement, file.data
    selection, order, kind = (
        m.frequency_selection,
        m.frame_permutation,
        m.sparsity_transformation,
    )
    if selection is not None:
        fine = len(np.unique(selection)) == len(selection) > 0
        fine = fine and selection.min() >= 0 and selection.max() < full
        where = "/measurement/frequencySelection"
        expect(fine, where, f"distinct indices within 1 to {full}", "others")
        fine = m.is_fourier_transformed
        expect(fine, "/measurement/isFourierTransformed", "1 with a selection", 0)
    if order is not None:
        fine = np.array_equal(np.sort(order), np.arange(len(order)))
        where = "/measurement/framePermutation"
        expect(fine, where, f"a permutation of 1 to {len(order)}", "none")
    if data is None:
        return problems
    kinds = "fiu" if data.is_pairs or not m.is_fourier_transformed else "c"
    name = "real numbers" if kinds == "fiu" else "complex numbers"
    expect(data.dtype.kind in kinds, data.dataset, name, data.dtype)
    if problems:
        return problems
    wanted = [sizes[axis] for axis in data.axes] + [2] * data.is_pairs
    if kind is None:
        shape = f"[{', '.join(data.axes)}] = {wanted}"
        expect(list(data.shape) == wanted, data.dataset, shape, list(data.shape))
        return problems
    where = "/measurement/sparsityTransformation"
    expect(kind in _TRANSFORMS, where, f"one of {', '.join(_TRANSFORMS)}", repr(kind))
    where = "/measurement/isFastFrameAxis"
    expect(data.axes == "JCKN", where, "1 for compressed Fourier rows", 0)
    size = getattr(file.calibration, "size", None)
    expect(size is not None, "/calibration/size", "three counts to decompress", "none")
    where, background = "/measurement/isBackgroundFrame", m.is_background_frame
    fine = not np.any(background[:-1] > background[1:])
    expect(fine, where, "background frames last in a compressed file", "others")
    coefficients = data.shape[-1] - int(np.sum(background)) if data.shape else 0
    wanted = [*wanted[:-1], "B + E"]
    fine = list(data.shape[:-1]) == wanted[:-1] and coefficients >= 1
    expect(fine, data.dataset, f"[J, C, K, B + E] = {wanted}", list(data.shape))
    indices = data.indices_shape
    wanted = [*wanted[:-1], coefficients]
    where = "/measurement/subsamplingIndices"
    expect(
        indices is not None and list(indices) == wanted,
        where,
        f"[J, C, K, B] = {wanted}",
        "no dataset" if indices is None else list(indices),
    )
    return problems


# ------------------------------------------------------------------ reading the bulk


def _need(file, what="measurement"):
    data = file.image_data if what == "reconstruction" else file.data
    if data is None or file.path is None:
        raise ValueError(f"{file.path}: expected a file with /{what} data, got none")
    return data


@contextlib.contextmanager
def _bulk(file, what="measurement"):
    """The bulk dataset of a file that is still the one whose header was read."""
    data = _need(file, what)
    with _open(file.path) as h5:
        source = _Source(h5)
        dataset = source.dataset(data.dataset)
        if dataset is None:
            found = source.problems[0] if source.problems else "no dataset"
            raise ValueError(f"{file.path}: {data.dataset}: {found}")
        if dataset.shape != data.shape or dataset.dtype != data.dtype:
            raise ValueError(
                f"{file.path}: {data.dataset}: expected {list(data.shape)} {data.dtype} as "
                f"in the header, found {list(dataset.shape)} {dataset.dtype}"
            )
        indices = None
        if what == "measurement" and file.measurement.sparsity_transformation:
            indices = source.dataset("/measurement/subsamplingIndices")
            if indices is None or indices.shape != data.indices_shape:
                raise ValueError(
                    f"{file.path}: /measurement/subsamplingIndices changed"
                )
        yield dataset, indices


def _result(file, dataset, shape, dtype):
    """An array for a result that memory and the file can account for."""
    size = _nbytes(shape, np.dtype(dtype))
    stored = dataset.id.get_storage_size()
    memory = math.inf
    if hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    what = f"{file.path}: {dataset.name}"
    if size > memory:
        raise ValueError(
            f"{what}: expected a selection that fits into {memory / 1e9:.1f} GB of memory, "
            f"got {list(shape)}, {size / 1e9:.1f} GB; read it in parts"
        )
    if size > _SMALL + 16 * _EXPANSION * stored:
        raise ValueError(
            f"{what}: expected data, found {stored} bytes that can't hold {list(shape)}"
        )
    return np.empty(shape, dtype)


def _choose(name, choice, count) -> np.ndarray:
    """Indices 0 to count - 1 from None, an index, a slice, a mask or a sequence."""
    if choice is None:
        return np.arange(count)
    if isinstance(choice, slice):
        return np.arange(count)[choice]
    given = np.atleast_1d(np.asarray(choice))
    if given.dtype == bool and given.shape == (count,):
        return np.flatnonzero(given)
    fine = given.ndim == 1 and given.dtype.kind in "iu" and given.size > 0
    if not fine or given.min() < 0 or given.max() >= count:
        raise ValueError(
            f"{name}: expected indices from 0 to {count - 1}, a slice or a mask [{count}], "
            f"got {np.asarray(choice).dtype} {list(np.shape(choice))} {given.ravel()[:4]}"
        )
    return given.astype(np.int64)


def _blocks(dataset, index, whole=()) -> Iterator[tuple[tuple, np.ndarray]]:
    """(where in the result, values) of a selection, in pieces of bounded size.

    index: wanted positions for each axis, in any order; whole: axes never cut.
    """
    axes = range(dataset.ndim)
    size = dataset.dtype.itemsize * math.prod(len(index[i]) for i in whole)
    pieces = [None] * dataset.ndim
    for i in reversed(axes):
        order = np.argsort(index[i], kind="stable")
        wanted = np.asarray(index[i])[order]
        chunk = dataset.chunks[i] if dataset.chunks else 1
        # Reading on over a short gap costs less than starting anew.
        gap = 1 + max(chunk - 1, 2**16 // max(size, 1))
        limit = len(wanted) and wanted[-1] + 1 if i in whole else max(1, _PIECE // size)
        run = np.cumsum(np.diff(wanted, prepend=wanted[:1]) > gap)
        first = wanted[np.searchsorted(run, run)]
        part = (wanted - first) // max(limit, 1)
        new = np.flatnonzero((np.diff(run) > 0) | (np.diff(part) > 0)) + 1
        pieces[i] = [
            (slice(int(wanted[a]), int(wanted[b - 1]) + 1), order[a:b], wanted[a:b])
            for a, b in itertools.pairwise([0, *new.tolist(), len(wanted)])
        ]
        if i not in whole:
            size *= max(s.stop - s.start for s, _, _ in pieces[i])
    for parts in itertools.product(*pieces):
        values = dataset[tuple(s for s, _, _ in parts)]
        for i, (s, _, wanted) in enumerate(parts):
            local = wanted - s.start
            if not np.array_equal(local, np.arange(s.stop - s.start)):
                values = values.take(local, axis=i)
        yield tuple(position for _, position, _ in parts), values


def _gather(dataset, index):
    """A small selection as an array."""
    out = np.empty([len(i) for i in index], dataset.dtype)
    for where, values in _blocks(dataset, index):
        out[np.ix_(*where)] = values
    return out


def _fill(file, opened, out, frames, periods, channel, bins, frequency):
    """Read one channel into out [N, J, len(bins)], in the receiver's unit.

    bins: samples, or where `frequency` is set indices of the whole frequency axis.
    """
    dataset, indices = opened
    m, data, receiver = file.measurement, file.data, file.acquisition.receiver
    samples = receiver.samples
    factor, offset = 1.0, 0.0
    if receiver.data_conversion_factor is not None:
        factor, offset = receiver.data_conversion_factor[channel].tolist()
    columns = bins
    if m.frequency_selection is not None:
        column = np.full(samples // 2 + 1, -1)
        column[m.frequency_selection] = np.arange(len(m.frequency_selection))
        columns = column[bins]
        if columns.min() < 0:
            missing = bins[columns < 0][:4].tolist()
            raise ValueError(
                f"{file.path}: expected frequencies among the stored ones, got {missing}"
            )
    if indices is not None:
        _fill_compressed(file, opened, out, frames, periods, channel, columns)
        out *= factor
    else:
        same = frequency == m.is_fourier_transformed
        last = "K" if m.is_fourier_transformed else "V"
        stored = data.shape[data.axes.index(last)]
        index = {"N": frames, "J": periods, "C": np.array([channel])}
        index[last] = columns if same else np.arange(stored)
        whole = [] if same else [data.axes.index(last)]
        wanted = [index[axis] for axis in data.axes]
        if data.is_pairs:
            wanted.append(np.arange(2))
            whole.append(len(data.axes))
        letters, view = f"NJC{last}", out[:, :, None]
        if "J" not in data.axes:
            letters, view = f"NC{last}", view[:, 0]
        view = view.transpose([letters.index(axis) for axis in data.axes])
        axis = data.axes.index(last)
        for where, values in _blocks(dataset, wanted, whole):
            where = list(where)
            if data.is_pairs:
                where.pop()
                values = values[..., 0] + 1j * values[..., 1]
            # Converted in double precision, kept in that of the file.
            wide = np.complex128 if values.dtype.kind == "c" else np.float64
            values = values.astype(wide)
            if not same:
                if frequency:
                    values = np.fft.rfft(values, axis=axis)
                else:
                    values = np.fft.irfft(values, samples, axis=axis)
                values = values.take(bins, axis=axis)
                where[axis] = np.arange(len(bins))
            view[_spans(where)] = values * factor + (0 if frequency else offset)
    if frequency and offset:
        out[..., bins == 0] += offset * samples


def _spans(where):
    """Slices where all positions are consecutive, which NumPy copies much faster."""
    if all(np.array_equal(w, np.arange(len(w)) + w[0]) for w in where if len(w)):
        return tuple(slice(int(w[0]), int(w[0]) + len(w)) for w in where)
    return np.ix_(*where)


def _fill_compressed(file, opened, out, frames, periods, channel, columns):
    dataset, indices = opened
    m = file.measurement
    foreground, background = len(m.foreground), len(m.background)
    kept = dataset.shape[-1] - background
    order = file.calibration.order or "xyz"
    size = dict(zip("xyz", map(int, file.calibration.size), strict=True))
    shape = [size[axis] for axis in reversed(order)]
    step = max(1, _PIECE // (16 * (foreground + background)))
    for j, period in enumerate(periods):
        for start in range(0, len(columns), step):
            some = columns[start : start + step]
            index = [np.array([period]), np.array([channel]), some]
            stored = _gather(dataset, [*index, np.arange(dataset.shape[-1])])[0, 0]
            places = (
                _gather(indices, [*index, np.arange(kept)])[0, 0].astype(np.int64) - 1
            )
            if places.min() < 0 or places.max() >= foreground:
                raise ValueError(
                    f"{file.path}: /measurement/subsamplingIndices: expected 1 to "
                    f"{foreground}, found {places.min() + 1} to {places.max() + 1}"
                )
            rows = np.zeros((len(some), foreground), np.complex128)
            np.put_along_axis(rows, places, stored[:, :kept], axis=1)
            rows = dct(
                rows.reshape(-1, *shape), m.sparsity_transformation, inverse=True
            )
            rows = rows.reshape(len(some), foreground)
            rows = np.concatenate([rows, stored[:, kept:]], axis=1)
            out[:, j, start : start + len(some)] = rows[:, frames].T


def dct(values: np.ndarray, kind: str, *, inverse: bool = False) -> np.ndarray:
    """Orthonormal cosine transform DCT-I to DCT-IV over all axes but the first."""
    if kind not in _TRANSFORMS:
        raise ValueError(f"kind: expected one of {_TRANSFORMS}, got {kind!r}")
    for axis, n in enumerate(values.shape[1:], 1):
        if n > 1:
            matrix = _dct_matrix(kind, n)
            matrix = matrix.T if inverse else matrix
            values = np.moveaxis(np.moveaxis(values, axis, -1) @ matrix.T, -1, axis)
    return values


def _dct_matrix(kind, n):
    i = np.arange(n)
    end = np.where(i == 0, np.sqrt(0.5), 1.0)
    if kind == "DCT-I":
        end = np.where(i == n - 1, np.sqrt(0.5), end)
        wave = np.cos(np.pi * np.outer(i, i) / (n - 1))
        return np.sqrt(2 / (n - 1)) * end[:, None] * wave * end
    if kind == "DCT-IV":
        return np.sqrt(2 / n) * np.cos(np.pi * np.outer(2 * i + 1, 2 * i + 1) / (4 * n))
    second = np.sqrt(2 / n) * end[:, None]
    second = second * np.cos(np.pi * np.outer(i, 2 * i + 1) / (2 * n))
    return second if kind == "DCT-II" else second.T


Choice = Any  # None, an index, a slice, a boolean mask or a sequence of indices


def signals(
    file: MDF, *, frames: Choice = None, periods: Choice = None, channels: Choice = None
) -> Float[np.ndarray, "N J C V"]:
    """Time-domain signal [N, J, C, V] in the receiver's unit, as a rule V.

    Frames come as stored (and are chosen by stored index); acquisition order is
    `signals(file, frames=acquisition_order(file))`. float32, or float64 where the file
    holds float64 or 32-bit integers. Raises ValueError where frequencies are missing.
    """
    data = _need(file)
    a, m = file.acquisition, file.measurement
    if m.frequency_selection is not None:
        raise ValueError(
            f"{file.path}: expected all frequencies for a time signal, found a selection "
            f"of {len(m.frequency_selection)}; use spectra"
        )
    frames = _choose("frames", frames, a.frames)
    periods = _choose("periods", periods, a.periods)
    channels = _choose("channels", channels, a.receiver.channels)
    samples = np.arange(a.receiver.samples)
    with _bulk(file) as opened:
        shape = (len(frames), len(periods), len(channels), len(samples))
        out = _result(file, opened[0], shape, f"f{_bytes(data)}")
        for i, channel in enumerate(channels):
            part = out[:, :, i]
            if opened[1] is not None:
                part = np.empty(part.shape, np.float64)
                rows = np.empty((*part.shape[:2], len(samples) // 2 + 1), np.complex128)
                bins = np.arange(rows.shape[-1])
                _fill(file, opened, rows, frames, periods, channel, bins, True)
                out[:, :, i] = np.fft.irfft(rows, len(samples))
            else:
                _fill(file, opened, part, frames, periods, channel, samples, False)
    return out


def spectra(
    file: MDF,
    *,
    keep: Bool[np.ndarray, "C K"] | None = None,
    frames: Choice = None,
    periods: Choice = None,
) -> Complex[np.ndarray, "N J *rows"]:
    """Unnormalised rfft of the signal, [N, J, M] with `keep`, else [N, J, C, K].

    keep [C, V // 2 + 1] selects rows, frequency fastest, then channel, as in
    `system_matrix`. Without it K counts the stored frequencies. Frames as in `signals`.
    """
    _need(file)
    frames = _choose("frames", frames, file.acquisition.frames)
    rows = _rows(file, keep, frames, periods, (0, 1, 2))
    if keep is None:
        rows = rows.reshape(*rows.shape[:2], file.acquisition.receiver.channels, -1)
    return rows


def system_matrix(
    file: MDF,
    keep: Bool[np.ndarray, "C K"] | None = None,
    *,
    periods: Choice = None,
    voxels: Choice = None,
) -> Complex[np.ndarray, "J M columns"]:
    """Rows of the system matrix [J, M, O + E]: foreground voxels, then background frames.

    keep [C, V // 2 + 1] selects rows, frequency fastest, then channel; None takes all
    that are stored. voxels: which foreground columns, counted in the file's voxel order
    (`voxel_order(file)[iz].ravel()` is one plane in image layout). Only the selected
    rows and columns are read. Unit: the receiver's times samples, not corrected for
    background (`correct_background`). complex64, or complex128 for double files.
    """
    foreground = _foreground(file)
    voxels = _choose("voxels", voxels, len(foreground))
    frames = np.concatenate([foreground[voxels], file.measurement.background])
    return _rows(file, keep, frames, periods, (1, 2, 0))


def _rows(file, keep, frames, periods, axes):
    """Selected rows with the axes (N, J, M) in memory order `axes`."""
    data = _need(file)
    keep = _keep(file, keep)
    periods = _choose("periods", periods, file.acquisition.periods)
    shape = (len(frames), len(periods), int(keep.sum()))
    with _bulk(file) as opened:
        out = _result(file, opened[0], [shape[i] for i in axes], f"c{2 * _bytes(data)}")
        view, start = out.transpose(np.argsort(axes)), 0
        for channel in np.flatnonzero(keep.any(axis=1)):
            bins = np.flatnonzero(keep[channel])
            part = view[:, :, start : start + len(bins)]
            _fill(file, opened, part, frames, periods, channel, bins, True)
            start += len(bins)
    return out


def _bytes(data):
    """Of a real number: 4, or 8 where the file's numbers don't fit into float32."""
    size = data.dtype.itemsize
    return (
        8
        if size > (8 if data.dtype.kind == "c" else 4)
        or (data.dtype.kind in "iu" and size > 2)
        else 4
    )


def _stored(file):
    """Indices of the stored frequencies, ascending."""
    selection = file.measurement.frequency_selection
    full = file.acquisition.receiver.samples // 2 + 1
    return np.arange(full) if selection is None else np.sort(selection)


def _keep(file, keep):
    shape = (
        file.acquisition.receiver.channels,
        file.acquisition.receiver.samples // 2 + 1,
    )
    stored = np.zeros(shape[1], bool)
    stored[_stored(file)] = True
    if keep is None:
        return np.tile(stored, (shape[0], 1))
    keep = np.asarray(keep)
    if keep.shape != shape or keep.dtype != bool or not keep.any():
        raise ValueError(
            f"keep: expected a boolean array {list(shape)} with at least one row, got "
            f"{keep.dtype} {list(keep.shape)} with {np.count_nonzero(keep)}"
        )
    if np.any(keep & ~stored):
        lost = np.flatnonzero(np.any(keep & ~stored, axis=0))[:4].tolist()
        raise ValueError(
            f"keep: expected frequencies stored in {file.path}, got others too: {lost}"
        )
    return keep


def _foreground(file):
    _need(file)
    if file.calibration is None:
        raise ValueError(f"{file.path}: expected a calibration, found no /calibration")
    if (
        file.calibration.is_meandering_grid
        and file.measurement.frame_permutation is None
    ):
        raise ValueError(
            f"{file.path}: /calibration/isMeanderingGrid: expected 0 for frames stored as "
            "acquired, found 1: the order of the voxels is not known"
        )
    return file.measurement.foreground


def acquisition_order(file: MDF) -> Int[np.ndarray, " N"]:
    """Stored index of each frame in the order of acquisition."""
    _need(file)
    order = file.measurement.frame_permutation
    return np.arange(file.acquisition.frames) if order is None else np.argsort(order)


def correct_background(
    file: MDF, rows: Complex[np.ndarray, "*rows columns"], *, voxels: Choice = None
) -> Complex[np.ndarray, "*rows O"]:
    """Rows [..., O + E] of `system_matrix` -> [..., O] without background.

    Contiguous background scans are averaged, then each voxel loses the background
    interpolated linearly at its time of acquisition, with background scans taken as
    equidistant in time. Returns the foreground as it is where the file says that it is
    corrected already; raises ValueError where there are no background frames.
    voxels: as given to `system_matrix`.
    """
    foreground = _foreground(file)
    background = file.measurement.background
    wanted = foreground[_choose("voxels", voxels, len(foreground))]
    frames, count, width = file.acquisition.frames, len(background), len(wanted)
    if rows.shape[-1] != width + count:
        raise ValueError(
            f"rows: expected {width} voxels + {count} background frames, got "
            f"{list(rows.shape)}"
        )
    if file.measurement.is_background_corrected:
        return rows[..., :width]
    if not count:
        raise ValueError(f"{file.path}: expected background frames, found none")
    acquired = np.empty(frames, np.int64)
    acquired[acquisition_order(file)] = np.arange(frames)
    order = np.argsort(acquired[background])
    scans = rows[..., width:][..., order]
    block = np.flatnonzero(np.diff(acquired[background][order], prepend=-2) > 1)
    length = np.diff(block, append=count)
    means = np.add.reduceat(scans, block, axis=-1) / length.astype(rows.real.dtype)
    scans = np.repeat(means, length, axis=-1)
    place = acquired[wanted] / max(frames - 1, 1) * (count - 1)
    low = np.minimum(place.astype(np.int64), max(count - 2, 0))
    high = np.minimum(low + 1, count - 1)
    weight = (place - low).astype(rows.real.dtype)
    out = np.array(rows[..., :width])
    for row in np.ndindex(rows.shape[:-1]):
        out[row] -= (1 - weight) * scans[row][low] + weight * scans[row][high]
    return out


def _grid_of(file):
    grid = file.reconstruction if file.calibration is None else file.calibration
    if grid is None or grid.size is None:
        raise ValueError(f"{file.path}: expected a regular grid, found no size")
    return grid


def voxel_order(file: MDF) -> Int[np.ndarray, "nz ny nx"]:
    """Index in the file of each voxel of a volume in our layout, row 0 at the largest y.

    `rows[..., voxel_order(file)]` turns rows [..., O] into volumes [..., nz, ny, nx].
    """
    grid = _grid_of(file)
    order = grid.order or "xyz"
    size = dict(zip("xyz", map(int, grid.size), strict=True))
    # The first letter is the fastest axis, in NumPy the last.
    axes = order[::-1]
    index = np.arange(math.prod(size.values())).reshape([size[axis] for axis in axes])
    return index.transpose([axes.index(axis) for axis in "zyx"])[:, ::-1]


def grid(file: MDF, plane: int | None = None) -> Any:
    """mpi_jax.scanner.Grid (nz, ny, nx) of the file, or (ny, nx) of the z plane `plane`."""
    from mpi_jax import scanner

    found = _grid_of(file)
    if found.field_of_view is None:
        raise ValueError(f"{file.path}: expected a fieldOfView, found none")
    centre = (
        np.zeros(3)
        if found.field_of_view_centre is None
        else found.field_of_view_centre
    )
    nx, ny, nz = map(int, found.size)
    if plane is None:
        return scanner.Grid((nz, ny, nx), found.field_of_view, centre)
    if not 0 <= plane < nz:
        raise ValueError(f"plane: expected 0 to {nz - 1}, got {plane}")
    thickness = found.field_of_view[2] / nz
    shift = (plane + 0.5 - nz / 2) * thickness
    field_of_view = np.array([*found.field_of_view[:2], thickness])
    return scanner.Grid((ny, nx), field_of_view, centre + np.array([0, 0, shift]))


def images(file: MDF, *, frames: Choice = None) -> Shaped[np.ndarray, "Q S nz ny nx"]:
    """Reconstructed volumes [Q, S, nz, ny, nx] in our layout, row 0 at the largest y."""
    data = _need(file, "reconstruction")
    order = voxel_order(dataclasses.replace(file, calibration=None))
    frames = _choose("frames", frames, data.shape[0])
    with _bulk(file, "reconstruction") as (dataset, _):
        index = [frames, *map(np.arange, data.shape[1:])]
        out = _result(file, dataset, [len(i) for i in index], data.dtype)
        for where, values in _blocks(dataset, index):
            out[np.ix_(*where)] = values
    return out.transpose(0, 2, 1)[..., order]


def frequencies(file: MDF) -> Float[np.ndarray, " K"]:
    """All V // 2 + 1 frequencies [Hz]; measurement.frequency_selection indexes them."""
    receiver = _receiver(file)
    step = 2 * receiver.bandwidth / receiver.samples
    return np.arange(receiver.samples // 2 + 1) * step


def _receiver(file):
    if file.acquisition is None:
        raise ValueError(f"{file.path}: expected /acquisition, found none")
    return file.acquisition.receiver


def mixing_orders(
    file: MDF, max_order: int
) -> tuple[Int[np.ndarray, "K D"], Int[np.ndarray, " K"]]:
    """Mixing orders m [K, D] of each frequency and their sum |m| [K].

    Frequency index k = sum_d m_d round(base_frequency cycle / divider_d); the lowest sum
    wins, then the larger m_0, m_1, .... 0 and -1 where no |m_d| <= max_order gets there.
    Several frequencies on a drive channel count as several channels.
    """
    count, drive = _receiver(file).samples // 2 + 1, file.acquisition.drive_field
    step = (
        np.rint(drive.base_frequency * drive.cycle / drive.divider).astype(int).ravel()
    )
    if not 0 <= max_order or (2 * max_order + 1) ** len(step) > 10**7:
        raise ValueError(
            f"max_order: expected a number >= 0 with at most 1e7 combinations of "
            f"{len(step)} channels, got {max_order}"
        )
    orders = np.zeros((count, len(step)), np.int64)
    total = np.full(count, -1)
    one = np.arange(max_order, -max_order - 1, -1)
    rest = np.array(list(itertools.product(one, repeat=len(step) - 1)), np.int64)
    below, sums = rest @ step[1:], np.abs(rest).sum(-1)
    for first in one:
        k, total_here = below + first * step[0], sums + abs(first)
        inside = np.flatnonzero((k >= 0) & (k < count))
        # The lowest sum of each k, the earliest of equals.
        inside = inside[np.argsort(total_here[inside], kind="stable")]
        k_new, where = np.unique(k[inside], return_index=True)
        best = inside[where]
        better = (total[k_new] < 0) | (total_here[best] < total[k_new])
        k_new, best = k_new[better], best[better]
        total[k_new] = total_here[best]
        orders[k_new, 0] = first
        orders[k_new, 1:] = rest[best]
    return orders, total


def snr(file: MDF) -> Float[np.ndarray, "J C K"]:
    """Signal-to-noise ratio [J, C, V // 2 + 1] of a calibration, 0 where nothing is stored.

    As stored in the file, or else from its background frames: noise is their mean
    distance from their mean, signal the median distance of voxels near the tracer. Raises
    ValueError where there is neither.
    """
    foreground, a = _foreground(file), file.acquisition
    m, stored = file.measurement, _stored(file)
    out = np.zeros((a.periods, a.receiver.channels, a.receiver.samples // 2 + 1))
    if file.calibration.snr is not None:
        place = stored if m.frequency_selection is None else m.frequency_selection
        out[..., place] = file.calibration.snr
        return out
    if not len(m.background):
        raise ValueError(
            f"{file.path}: expected an SNR or background frames, found none"
        )
    step = max(1, _PIECE // (16 * a.frames))
    count = len(foreground)
    for j, channel in np.ndindex(out.shape[:2]):

        def rows(bins, j=j, channel=channel):
            keep = np.zeros(out.shape[1:], bool)
            keep[channel, bins] = True
            S = system_matrix(file, keep, periods=j)[0]
            return S[:, :count], S[:, count:]

        first, noise = np.empty(len(stored)), np.empty(len(stored))
        for start in range(0, len(stored), step):
            part = slice(start, start + step)
            voxels, empty = rows(stored[part])
            mean = empty.mean(-1, keepdims=True)
            level = np.abs(empty - mean) if len(m.background) > 1 else np.abs(empty)
            noise[part] = level.mean(-1)
            first[part] = np.median(np.abs(voxels - mean), axis=-1)
        best = np.argsort(-_ratio(first, noise), kind="stable")[:20]
        level = np.abs(rows(np.sort(stored[best]))[0])
        mask = np.any(level > 0.9 * level.max(-1, keepdims=True), axis=0)
        for start in range(0, len(stored), step):
            bins = stored[start : start + step]
            voxels, empty = rows(bins)
            level = np.abs(voxels - empty.mean(-1, keepdims=True))
            for k, row, quiet in zip(bins, level, noise[start:], strict=False):
                signal = np.median(row[mask]) if mask.any() else 0.0
                if signal > 3.5 * quiet:
                    signal = np.median(row[row > 0.9 * row.max()])
                out[j, channel, k] = _ratio(signal, quiet)
    return np.tile(np.median(out, axis=0), (a.periods, 1, 1))


def _ratio(signal, noise):
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(np.asarray(signal) / noise, nan=0.0, posinf=np.inf)


def compatible(system_matrix: MDF, measurement: MDF, grouping: int = 1) -> list[str]:
    """What keeps a system matrix from fitting a measurement, in words; empty if it fits.

    grouping: how many periods of the measurement make one of the system matrix.
    """
    both = (system_matrix, measurement)
    for file, name in zip(both, ("system_matrix", "measurement"), strict=True):
        if file.acquisition is None or file.measurement is None:
            return [f"{name}: expected a file with measured data, got {file.path}"]
    problems = []

    def compare(what, get, unit="", angle=False):
        values = [get(file.acquisition) for file in both]
        arrays = [v for v in values if isinstance(v, np.ndarray)]
        if len(arrays) == 2:
            # A calibration of one period serves measurements of many equal ones.
            values = [v[:1] if v.ndim > 2 and np.all(v == v[:1]) else v for v in arrays]
            same = values[0].shape == values[1].shape
            one, two = (np.exp(1j * v) if angle else v for v in values)
            # Strengths and phases of two runs are known to three digits or so.
            same = same and np.allclose(one, two, rtol=1e-3, atol=1e-3 * angle)
            values = [v.tolist() for v in values]
        elif arrays:
            same = False
            values = [v.tolist() if v is arrays[0] else "unknown" for v in values]
        elif isinstance(values[0], float):
            same = math.isclose(*values, rel_tol=1e-6)
        else:
            same = values[0] == values[1]
        if not same:
            one, two = (f"{_short(v)}{unit}" for v in values)
            problems.append(f"{what}: system matrix {one}, measurement {two}")

    compare("receive channels", lambda a: a.receiver.channels)
    joined = {id(measurement.acquisition): grouping}
    words = f"{grouping} periods" if grouping > 1 else "period"
    compare(f"samples per {words}", lambda a: a.receiver.samples * joined.get(id(a), 1))
    compare("bandwidth", lambda a: a.receiver.bandwidth, " Hz")
    compare("unit", lambda a: a.receiver.unit)
    compare("drive channels", lambda a: a.drive_field.channels)
    compare("base frequency", lambda a: a.drive_field.base_frequency, " Hz")
    compare("dividers", lambda a: a.drive_field.divider.tolist())
    compare("waveform", lambda a: a.drive_field.waveform)
    compare("drive field strength", lambda a: a.drive_field.strength, " T")
    compare("drive field phase", lambda a: a.drive_field.phase, " rad", angle=True)
    compare("gradient", lambda a: a.gradient, " T/m")
    one, two = (f.measurement.is_transfer_function_corrected for f in both)
    if one != two:
        words = [("un" * (not state)) + "corrected" for state in (one, two)]
        problems.append(
            f"transfer function: system matrix {words[0]}, measurement {words[1]}"
        )
    missing = np.setdiff1d(_stored(system_matrix), _stored(measurement))
    if measurement.measurement.frequency_selection is not None and len(missing):
        problems.append(
            f"frequency selection: measurement lacks {len(missing)} frequencies of the "
            f"system matrix, first index {missing[0]}"
        )
    return problems


def _short(value):
    text = str(value)
    return text if len(text) < 80 else f"{text[:76]} ..."


# --------------------------------------------------------------------------- writing


def header(scanner: Any, *, frames: int = 1, calibration: bool = False) -> MDF:
    """Header of simulated data of an mpi_jax.scanner.Scanner, time domain [N, J, C, V].

    With `calibration` of a system matrix in the frequency domain, one frame per voxel of
    the scanner's grid (`frames` then has no meaning and must stay 1).
    """
    drive, grid = scanner.drive_field, scanner.grid
    if calibration and frames != 1:
        raise ValueError(f"frames: expected 1 with calibration, got {frames}")
    driven = np.flatnonzero(drive.divider)
    samples, rate = scanner.samples, float(drive.sampling_rate)
    voxels = grid.size if calibration else frames
    fields = DriveField(
        base_frequency=float(drive.base_frequency),
        cycle=samples / rate,
        channels=len(driven),
        divider=np.asarray(drive.divider)[driven, None],
        strength=np.asarray(drive.amplitude, np.float64)[None, driven, None],
        phase=2 * np.pi * np.asarray(drive.phase, np.float64)[None, driven, None],
        waveform=(("sine",),) * len(driven),
    )
    receiver = Receiver(
        bandwidth=rate / 2,
        channels=scanner.channels,
        samples=samples,
        unit="V" if scanner.receiver.scaling == "si" else "A m^2/s",
    )
    acquisition = Acquisition(
        frames=voxels,
        gradient=np.asarray(scanner.selection_field.gradient, np.float64)[None, None],
        offset_field=np.asarray(scanner.selection_field.offset, np.float64)[None, None],
        drive_field=fields,
        receiver=receiver,
    )
    return MDF(
        study=Study(),
        experiment=Experiment(is_simulation=True),
        scanner=Scanner(name="mpi_jax"),
        acquisition=acquisition,
        measurement=Measurement(
            is_background_frame=np.zeros(voxels, bool),
            is_fast_frame_axis=calibration,
            is_fourier_transformed=calibration,
        ),
        calibration=Calibration(**_grid_fields(grid)) if calibration else None,
    )


def _grid_fields(grid):
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
    """
    frames, shape = _layout(header, raw)[:2]

    def place(start, piece):
        part = slice(start, start + len(piece))
        if header.measurement.is_fast_frame_axis:
            yield (..., part), np.moveaxis(piece, 0, -1)
        else:
            yield part, piece

    if header.measurement.sparsity_transformation is not None:
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
    """
    frames, shape = _layout(header, raw)
    m, length = header.measurement, shape[-1]
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
                yield at, _compress(header, rows, coefficients)
            elif m.is_fast_frame_axis:
                yield at, rows
            else:
                yield (slice(None), *at), rows.T

    if isinstance(data, np.ndarray) or hasattr(data, "__array__"):
        if np.shape(data) != (*shape, frames):
            wanted = [*shape, frames]
            raise ValueError(
                f"data: expected shape {wanted}, got {list(np.shape(data))}"
            )
        data = np.asarray(data).reshape(-1, frames)
    rows = math.prod(shape)
    _write(path, header, data, (rows, frames), place, source, coefficients)


def _layout(header, raw):
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
    columns = len(_stored(header)) if m.is_fourier_transformed else a.receiver.samples
    return a.frames, (a.periods, a.receiver.channels, columns)


def _compress(header, rows, coefficients):
    """(values [.., B + E], 1-based places [.., B]) of the largest coefficients."""
    foreground = len(header.measurement.foreground)
    order = header.calibration.order or "xyz"
    size = dict(zip("xyz", map(int, header.calibration.size), strict=True))
    grid = rows[:, :foreground].reshape(-1, *[size[axis] for axis in reversed(order)])
    flat = dct(grid, header.measurement.sparsity_transformation).reshape(len(rows), -1)
    places = np.argsort(-np.abs(flat), axis=1, kind="stable")[:, :coefficients]
    places.sort(axis=1)
    kept = np.take_along_axis(flat, places, axis=1).astype(rows.dtype)
    return np.concatenate([kept, rows[:, foreground:]], axis=1), places + 1


def _write(path, header, data, shape, place, source, coefficients=None):
    """Pieces [n, ...] that add up to `shape` into /measurement/data by `place`."""
    m = header.measurement
    if isinstance(data, np.ndarray) or hasattr(data, "__array__"):
        data = np.asarray(data)
        step = max(1, _PIECE // max(1, _nbytes(data.shape[1:], data.dtype)))
        pieces = (data[i : i + step] for i in range(0, max(len(data), 1), step))
    else:
        pieces = map(np.asarray, data)
    first = next(pieces, None)
    if first is None:
        raise ValueError("data: expected an array or pieces of one, got nothing")
    frames, rest = _layout(header, True)
    axes = "K" if m.is_fourier_transformed else "V"
    axes = f"JC{axes}N" if m.is_fast_frame_axis else f"NJC{axes}"
    stored = (*rest, frames) if m.is_fast_frame_axis else (frames, *rest)
    indices = None
    if coefficients is not None:
        stored = (*rest, coefficients + len(m.background))
        indices = (*rest, coefficients)
    described = Data(
        dataset="/measurement/data",
        axes=axes,
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
    base = source or MDF(study=Study(), experiment=Experiment(), scanner=Scanner())
    image = Reconstruction(**_grid_fields(grid), parameters=parameters or {})
    described = Data(
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

    for name, (_, where, required) in _GROUPS.items():
        optional = name == "acquisition" and header.measurement is None
        if required and not optional and getattr(header, name) is None:
            raise ValueError(f"header: expected {where[1:]}, got None")
    if problems := _contradictions(header):
        raise ValueError(f"header: {problems[0]}")
    path = Path(path)
    if path.is_dir() or not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "expected a file in a folder", str(path))
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with h5py.File(part, "w") as h5:
            new = dataclasses.replace(
                header, version=VERSION, uuid=_uuid(), time=_now()
            )
            for group, cls, where in _walk(new):
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
    with _open(path) as old:
        source = _Source(old)
        for where in ["/", *[g[1] for g in (_GROUPS | _SUBGROUPS).values()]]:
            group = old if where == "/" else source.get(where)[0]
            for name in group or () if where in h5 else ():
                full = f"{where.rstrip('/')}/{name}"
                found, wrong = source.get(full)
                mine = full == "/reconstruction/_parameters"
                if (
                    name.startswith("_")
                    and found is not None
                    and not wrong
                    and not mine
                ):
                    old.copy(found, h5[where], name)
