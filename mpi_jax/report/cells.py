"""Cells of a table: numbers as people read them."""

import html
import math
from dataclasses import dataclass, field

import numpy as np

TEXT_COLUMNS = (
    "Method",
    "Settings",
    "Mask",
    "Ours",
    "Compared",
    "Phantom",
    "Suite",
    "Case",
    "Quantity",
)  # flush left, all others flush right


@dataclass(frozen=True)
class Table:
    """Text of a table, written once and printed as Markdown and as HTML."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    notes: tuple[str, ...] = ()
    best: frozenset[tuple[int, int]] = field(default=frozenset())  # (row, column)


@dataclass(frozen=True)
class Run:
    """What a work folder holds; what it lacks is None or empty."""

    name: str
    config: dict
    training: list[dict]
    validation: list[dict]
    rows: dict[tuple[str, str], dict]  # (method, family) -> numbers
    info: dict
    arrays: dict[str, np.ndarray]
    levels: dict[tuple[float, str], dict]  # (SNR [dB], method) -> numbers, all families
    values: dict[str, np.ndarray]  # main_snr_db, family, SNR/method/metric -> [N], ...
    samples: list[dict[str, np.ndarray]]  # of some validations, the newest last
    remarks: list[str]  # missing or unreadable parts, in words


def _value(line: dict, key: str, part: str | None) -> float:
    value = line.get(key)
    if part is not None:
        value = value.get(part) if isinstance(value, dict) else None
    return float(value) if isinstance(value, int | float) else math.nan


def _cell(line: dict, key: str, part: str | None) -> str:
    if part == "interval":
        ends = (_value(line, key, "low"), _value(line, key, "high"))
        digits = 2 if key == "psnr" else 4
        low, high = (f"{end:.{digits}f}" for end in ends)
        return "–" if any(map(math.isnan, ends)) else f"[{low}, {high}]"
    value = _value(line, key, part)
    if math.isnan(value):
        return "–"
    if key == "amount":
        return f"{value:+.3f}" if part == "bias" else f"{value:.3f}"
    if key == "residual":
        return f"{value:.3g}"
    if key in ("psnr", "pooled_psnr"):
        spread = _value(line, key, "sd") if part == "mean" else math.nan
        return f"{value:.2f}" + ("" if math.isnan(spread) else f" ± {spread:.2f}")
    if key == "seconds_per_image":
        return f"{value:.2g}"
    return f"{value:.4f}" if value >= 1e-3 or value == 0 else f"{value:.1e}"


def markdown(table: Table) -> str:
    def line(cells):
        escaped = (html.escape(c, quote=False).replace("|", "\\|") for c in cells)
        return "| " + " | ".join(escaped) + " |"

    rows = [
        line(f"**{c}**" if (i, j) in table.best else c for j, c in enumerate(row))
        for i, row in enumerate(table.rows)
    ]
    ruler = line("---" if c in TEXT_COLUMNS else "---:" for c in table.columns)
    body = "\n".join([line(table.columns), ruler, *rows])
    return "\n\n".join([f"## {table.title}", body, *table.notes])
