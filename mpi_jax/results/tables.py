"""Tables as they are printed."""

from __future__ import annotations

from dataclasses import dataclass

from mpi_jax._files import Json
from mpi_jax.results.record import JsonRecord


@dataclass(frozen=True, kw_only=True)
class Table:
    """Text of a table, written once and printed as Markdown and as HTML."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    best: tuple[tuple[int, int], ...] = ()  # (row, column), from 0


@dataclass(frozen=True, kw_only=True)
class Tables(JsonRecord):
    """The tables of a report, to take some of them into a page."""

    tables: tuple[Table, ...]

    @classmethod
    def upgraded(cls, value: dict[str, Json], where: str) -> dict[str, Json]:
        return {
            "tables": [
                {"title": title, **table} if isinstance(table, dict) else table
                for title, table in value.items()
            ]
        }
