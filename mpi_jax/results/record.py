"""What all files of results share: a schema, JSON with complaints, statistics."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

from mpi_jax._files import (
    Json,
    from_json,
    read_json,
    read_json_lines,
    to_json,
    write_atomically,
)

SCHEMA = 2
UNKNOWN = "unknown"
Setting = None | bool | int | float | str


Record = TypeVar("Record", bound="JsonRecord")


class JsonRecord:
    """A dataclass that is a JSON object: a file, or a line of one."""

    AGAIN: ClassVar[str] = ""  # the verb that writes a file whose version 1 isn't read

    @classmethod
    def of(cls: type[Record], value: dict[str, Json], where: str) -> Record:
        """Out of the object of a file; where: its name, for complaints."""
        value = dict(value)
        schema = value.pop("schema", 1)
        if schema not in (1, SCHEMA):
            raise ValueError(
                f"{where}: expected schema 1 or {SCHEMA}, got {schema!r}, of another "
                "version of mpi_jax"
            )
        if schema == 1:
            value = cls.upgraded(value, where)
        return from_json(cls, value, where)

    @classmethod
    def upgraded(cls, value: dict[str, Json], where: str) -> dict[str, Json]:
        """An object of version 1 as one of this version."""
        if cls.AGAIN:
            raise ValueError(
                f"{where}: expected schema {SCHEMA}, got version 1, which doesn't say "
                f"all that is shown; run mpi-jax {cls.AGAIN} again"
            )
        return value

    def as_json(self) -> dict[str, Json]:
        value = to_json(self)
        assert isinstance(value, dict)
        return {"schema": SCHEMA, **value}

    @classmethod
    def read(cls: type[Record], path: Path) -> Record:
        return cls.of(read_json(path), str(path))

    def write(self, path: Path) -> None:
        text = json.dumps(self.as_json(), indent=1, ensure_ascii=False)
        write_atomically(path, f"{text}\n")


def write_lines(path: Path, lines: Iterable[JsonRecord]) -> None:
    """A file of JSON lines."""
    write_atomically(path, "".join(json.dumps(n.as_json()) + "\n" for n in lines))


def read_lines(kind: type[Record], path: Path) -> list[Record]:
    """All lines of a file. Raises ValueError for the first that can't be read."""
    values, broken = read_json_lines(path)
    if broken:
        raise ValueError(broken[0])
    return [kind.of(value, where) for where, value in values]


def commit_known(value: dict[str, Json]) -> dict[str, Json]:
    """null, where there was no commit to name, as the word for it."""
    return {
        n: UNKNOWN if v is None and n in ("commit", "version", "trained_on") else v
        for n, v in value.items()
    }


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Of one number for each image; an interval where one was drawn."""

    mean: float
    sd: float = math.nan
    median: float = math.nan
    p5: float = math.nan  # 5th percentile
    low: float = math.nan  # ends of the 95 % interval of the mean
    high: float = math.nan
