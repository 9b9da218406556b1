"""An open MDF file as the format's current version names things, whatever its own."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import math
import os
import stat
from pathlib import Path
from types import SimpleNamespace

import numpy as np

PIECE = 2**24  # bytes read or written at a time
_HEADER = 2**27  # bytes of the largest header field
COUNT = 2**24  # largest credible count of frames, periods, samples, ...
# A compressed stream grows by 1032 at most, so a file can't hold more than this.
EXPANSION, SMALL = 1032, 2**26
ORDERS = tuple("".join(p) for p in itertools.permutations("xyz"))

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


@contextlib.contextmanager
def open_hdf5(path):
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
        with h5py.File(path, "r", rdcc_nbytes=4 * PIECE) as h5:
            yield h5
    except Exception as error:
        words = " ".join(str(error).split())
        if isinstance(error, ValueError) and words.startswith(str(path)):
            raise
        kind = type(error).__name__
        raise ValueError(f"{path}: damaged or no MDF file ({kind}: {words})") from error


def check_heaps(path):
    """Refuse damaged heaps of texts, which HDF5 may allocate or walk without end."""
    if not os.path.isfile(path):
        return
    with open(path, "rb") as file:
        content = file.read(PIECE)
        size = file.seek(0, os.SEEK_END)

    def number(place):
        return int.from_bytes(content[place : place + 8], "little")

    # Signature, version and padding, then the size of the heap and its objects: index,
    # references and padding, size. Object 0 is the free rest, its header included.
    mark, start = b"GCOL\x01\0\0\0", 0
    while (start := content.find(mark, start)) >= 0:
        end, place = start + number(start + 8), start + 16
        whole = end <= size
        while whole and place + 16 <= min(end, len(content)):
            free = not any(content[place : place + 2])
            length = number(place + 8)
            place += length if free else 16 + (length + 7) // 8 * 8
            whole = place <= end and not (free and length == 0)
        if not whole:
            raise ValueError(f"{path}: damaged, its heap of texts at {start} is broken")
        start += len(mark)


class Source:
    """An open file, with what was found wrong (problems) and what was accepted (notes)."""

    def __init__(self, h5):
        self.h5, self.v1, self.problems, self.notes = h5, False, [], []
        self.objects = {}

    def problem(self, where, expected, got):
        self.problems.append(f"{where}: expected {expected}, found {got}")

    def get(self, where):
        """(object, None), (None, None) where nothing is, or (None, what is wrong)."""
        import h5py

        if where not in self.objects:
            parent, _, name = where.rstrip("/").rpartition("/")
            group, wrong = self.get(parent) if parent else (self.h5, None)
            item = None
            if isinstance(group, h5py.Group):
                link = group.get(name, getlink=True)
                if isinstance(link, h5py.HardLink):
                    item = group[name]
                elif link is not None:
                    wrong = "a soft or external link"
            self.objects[where] = item, wrong
        return self.objects[where]

    def has_group(self, where):
        import h5py

        item, wrong = self.get(where)
        if item is not None and not isinstance(item, h5py.Group):
            wrong = "a dataset"
        if wrong:
            self.problem(where, "a group", wrong)
        return item is not None and not wrong

    def dataset(self, where):
        """Dataset with plain storage in this file, or None."""
        import h5py

        item, wrong = self.get(where)
        if item is not None and not isinstance(item, h5py.Dataset):
            wrong = "a group"
        elif item is not None:
            if item.is_virtual or item.external:
                wrong = "one stored in another file"
            elif item.shape is None:
                wrong = "an empty one"
            elif nbytes(item.chunks or (), item.dtype) > 8 * PIECE:
                wrong = f"one in chunks of {item.chunks}"
        if wrong:
            self.problem(where, "a dataset", wrong)
        return None if wrong else item

    def raw(self, where):
        """Value as an array of numbers or of str, or None."""
        import h5py

        dataset = self.dataset(where)
        if dataset is None:
            return None
        limit = 2**22 + 16 * EXPANSION * dataset.id.get_storage_size()
        if nbytes(dataset.shape, dataset.dtype) > min(_HEADER, limit):
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
        stored_at = where
        for names in (_V1_NAMES,) if self.v1 else (_OLD_NAMES,):
            if value is None and where in names:
                stored_at = names[where]
                value = self.raw(stored_at)
                if value is not None and not self.v1:
                    self.notes.append(f"{where}: expected, found {stored_at}")
        if value is None:
            return self.absent(meta, where)
        if self.v1 and kind is complex and value.dtype.kind == "f" and value.ndim == 3:
            value = value[..., 0] + 1j * value[..., 1]
        if self.v1 and kind is int and value.dtype.kind == "O" and value.size == 1:
            # The number of a version 1 experiment is a text.
            digits = str(value.item()).strip()
            value = np.array(int(digits) if digits.isdecimal() else 0)
        value = self.convert(value, kind, stored_at)
        if value is None:
            return None
        if not meta["shape"]:
            if value.size != 1:
                self.problem(stored_at, "a single value", f"shape {list(value.shape)}")
                return None
            if value.ndim and kind is not str:
                self.notes.append(
                    f"{stored_at}: expected a single value, found shape {list(value.shape)}"
                )
            return kind(value.item())
        if not meta.get("free") and kind is float and not np.all(np.isfinite(value)):
            self.problem(stored_at, "finite numbers", "NaN or infinity")
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
            item, wrong = self.get(below)
            if isinstance(item, h5py.Group):
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


def nbytes(shape, dtype):
    return dtype.itemsize * math.prod(map(int, shape))
