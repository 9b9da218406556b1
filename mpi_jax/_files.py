"""Files that are whole or not there, and complaints about files that aren't what they
should be: one line that names the file, what was expected and what came.

JSON of dataclasses: `to_json` leaves out fields that are None, `from_json` reads by the
annotations of the fields and takes what is left out from their defaults.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import types
import typing
import uuid
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np

# None, bool, int, float, str, or lists and dicts of these: an alias that names itself is
# beyond the checker of the tests.
Json = object
Record = TypeVar("Record")

# --- Writing


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file under another name first: a crash leaves the old file or the new.

    Who may read it is for the umask to say, as for every other file of the user.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.part")
    try:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def save_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """An .npz file, whole or not at all; no pickled objects in it."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
        for name, array in arrays.items():
            entry = io.BytesIO()
            np.lib.format.write_array(entry, np.asanyarray(array), allow_pickle=False)
            file.writestr(f"{name}.npy", entry.getvalue(), zipfile.ZIP_DEFLATED)
    write_atomically(path, content.getvalue())


# --- Reading


def read_npz(path: Path, *names: str) -> dict[str, np.ndarray]:
    """Arrays of an .npz file, the named ones among them.

    Raises FileNotFoundError, or ValueError for a file that can't be read or lacks one.
    """
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("a single array")
        with file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise
    # A cut zip file raises one of many, NotImplementedError and zlib.error among them.
    except Exception as error:
        raise ValueError(
            f"{path}: expected an .npz file of arrays, got one that can't be read "
            f"({' '.join(str(error).split())[:120]})"
        ) from None
    missing = [name for name in names if name not in arrays]
    if missing:
        raise ValueError(
            f"{path}: expected the arrays {', '.join(names)}; missing "
            f"{', '.join(missing)}, it holds {', '.join(arrays) or 'none'}"
        )
    return arrays


def read_json(path: Path) -> dict[str, Json]:
    """The object of a JSON file. Raises FileNotFoundError, or ValueError for others."""
    return _object(Path(path).read_bytes(), str(path))


def read_json_lines(path: Path) -> tuple[list[tuple[str, dict[str, Json]]], list[str]]:
    """Objects of a JSON-lines file, each with its place in words; complaints about lines
    that can't be read, as where a process was killed while it wrote. Empty lines don't
    count. Raises FileNotFoundError.
    """
    objects: list[tuple[str, dict[str, Json]]] = []
    broken = []
    for number, line in enumerate(Path(path).read_bytes().splitlines(), start=1):
        where = f"{path}, line {number}"
        try:
            if line.strip():
                objects.append((where, _object(line, where)))
        except ValueError as error:
            broken.append(str(error))
    return objects, broken


def _object(text: bytes, where: str) -> dict[str, Json]:
    try:
        value = json.loads(text)
    except ValueError as error:  # not UTF-8 is one, too
        raise ValueError(f"{where}: expected JSON, got {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected a JSON object, got {_short(value)}")
    return value


# --- Dataclasses as JSON


def to_json(value: object) -> Json:
    """Plain values for JSON of a dataclass; fields that are None are left out.

    Raises TypeError, naming the type, for what JSON can't hold.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {n: to_json(v) for n, v in fields.items() if v is not None}
    if isinstance(value, Mapping):
        return {str(name): to_json(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(v) for v in value]
    if isinstance(value, np.generic):
        return to_json(value.item())
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"expected a value for JSON, got {type(value).__name__}")


def from_json(kind: type[Record], value: Json, where: str) -> Record:
    """A dataclass out of JSON. where: the file in words, for complaints.

    A number that isn't one may be null. Raises ValueError for fields that are unknown,
    missing, or of another type than their annotation says.
    """
    if not isinstance(value, dict):
        raise ValueError(
            f"{where}: expected fields of {kind.__name__}, got {_short(value)}"
        )
    fields, optional = _fields(kind)
    unknown = [name for name in value if name not in fields]
    missing = [name for name in fields if name not in value and name not in optional]
    if unknown or missing:
        parts = [f"missing {', '.join(missing)}"] * bool(missing)
        parts += [f"unknown {', '.join(unknown)}"] * bool(unknown)
        raise ValueError(
            f"{where}: expected the fields {', '.join(fields)}; {'; '.join(parts)}"
        )
    return kind(**{n: _typed(fields[n], v, f"{where}: {n}") for n, v in value.items()})


def _fields(kind: type) -> tuple[dict[str, object], set[str]]:
    """Types of a dataclass's fields by name, and the names of those with a default."""
    if kind not in _FIELDS:
        missing, fields = dataclasses.MISSING, dataclasses.fields(kind)
        hints = typing.get_type_hints(kind)
        optional = {
            f.name
            for f in fields
            if f.default is not missing or f.default_factory is not missing
        }
        _FIELDS[kind] = {f.name: hints[f.name] for f in fields}, optional
    return _FIELDS[kind]


_FIELDS: dict[type, tuple[dict[str, object], set[str]]] = {}  # type hints take long


def _typed(kind: object, value: Json, where: str) -> object:
    """A value of a type that annotations of results use; ValueError where it isn't."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is object:
        return value
    if kind is float and value is None:
        return float("nan")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return from_json(kind, value, where)
    if origin is typing.Literal and value in args:
        return value
    if origin in (types.UnionType, typing.Union):
        for option in sorted(args, key=lambda a: a is not type(value)):
            try:
                return _typed(option, value, where)
            except ValueError as error:
                # What is wrong inside is told, rather than all that would have done.
                if isinstance(value, dict) and dataclasses.is_dataclass(option):
                    raise error
    elif origin is tuple and isinstance(value, list):
        each = args[:1] * len(value) if args[1:] == (...,) else args
        if len(each) == len(value):
            pairs = enumerate(zip(each, value, strict=True))
            return tuple(_typed(k, v, f"{where}[{n}]") for n, (k, v) in pairs)
    elif origin is dict and isinstance(value, dict):
        return {n: _typed(args[1], v, f"{where}.{n}") for n, v in value.items()}
    elif kind is type(value):
        return value
    raise ValueError(f"{where}: expected {_words(kind)}, got {_short(value)}")


def _words(kind: object) -> str:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, args))
    if origin in (types.UnionType, typing.Union):
        return " or ".join(dict.fromkeys(map(_words, args)))
    if origin is tuple:
        size = "" if args[1:] == (...,) else f"{len(args)} "
        return f"a list of {size}({_words(args[0])})"
    names = {
        float: "a number",
        int: "a whole number",
        str: "a text",
        bool: "true or false",
        type(None): "null",
    }
    return names.get(kind, "an object") if isinstance(kind, type) else "an object"


def _short(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
