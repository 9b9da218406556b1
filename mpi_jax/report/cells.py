"""Cells of a table: numbers as people read them."""

import html
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mpi_jax.results import Figure3Line, Line, MethodInfo, Statistics, Table

TEXT_COLUMNS = (
    "Method",
    "Given",
    "Settings",
    "Mask",
    "Ours",
    "Compared",
    "Phantom",
    "Suite",
    "Case",
    "Quantity",
)  # flush left, all others flush right
NOTHING = "–"
EDGE = "†"
GIVEN_NOTE = (
    "Given: networks with voltage alone see the signal and nothing else, as the paper's "
    "do; those with physics start from classical images of it and from a singular basis "
    "of the system matrix, and are no rows of the paper."
)


@dataclass(frozen=True)
class Column:
    """One number of a line. better: 1 the larger, -1 the smaller, 0: none is best."""

    title: str
    value: Callable[[Line], float]  # NaN where the line has none
    text: Callable[[Line], str]
    better: int = 0


Tuned = Line | Figure3Line
Pick = Callable[[Line], Statistics | None]


def small_number(value: float) -> str:
    """Four decimals, or a power of ten for what would lose its digits so."""
    if math.isnan(value):
        return NOTHING
    return f"{value:.4f}" if value >= 1e-3 or value == 0 else f"{value:.1e}"


def formatted(form: str) -> Callable[[float], str]:
    """Numbers by a format; a dash for one that isn't there."""
    return lambda value: NOTHING if math.isnan(value) else format(value, form)


def plain(
    title: str, value: Callable[[Line], float | None], form: str, better: int = 0
) -> Column:
    """A column of single numbers."""

    def number(line: Line) -> float:
        entry = value(line)
        return math.nan if entry is None else entry

    return Column(title, number, lambda line: formatted(form)(number(line)), better)


def mean(title: str, pick: Pick, better: int, form: str | None = None) -> Column:
    """A column of means over images. form: as format takes it; else small_number."""
    write = small_number if form is None else formatted(form)
    return _statistic(title, pick, lambda s: s.mean, lambda s: write(s.mean), better)


def mean_and_spread(title: str, pick: Pick, better: int) -> Column:
    """Means with the standard deviation over images, two digits."""
    return _statistic(title, pick, lambda s: s.mean, spread, better)


def spread(statistics: Statistics) -> str:
    """Mean and standard deviation."""
    text = formatted(".2f")(statistics.mean)
    return text if math.isnan(statistics.sd) else f"{text} ± {statistics.sd:.2f}"


def quantile(
    title: str, pick: Pick, value: Callable[[Statistics], float], better: int
) -> Column:
    """Another number of the same statistics, two digits."""
    return _statistic(title, pick, value, lambda s: formatted(".2f")(value(s)), better)


def interval(pick: Pick, digits: int) -> Column:
    """95 % intervals of means."""
    return _statistic(
        "95 %", pick, lambda s: math.nan, lambda s: interval_text(s, digits), 0
    )


def interval_text(statistics: Statistics, digits: int) -> str:
    if math.isnan(statistics.low) or math.isnan(statistics.high):
        return NOTHING
    return f"[{statistics.low:.{digits}f}, {statistics.high:.{digits}f}]"


def _statistic(
    title: str,
    pick: Pick,
    value: Callable[[Statistics], float],
    text: Callable[[Statistics], str],
    better: int,
) -> Column:
    def number(line: Line) -> float:
        statistics = pick(line)
        return math.nan if statistics is None else value(statistics)

    def cell(line: Line) -> str:
        statistics = pick(line)
        return NOTHING if statistics is None else text(statistics)

    return Column(title, number, cell, better)


def best_cells(
    lines: Sequence[Line], columns: Sequence[Column], before: int
) -> tuple[tuple[int, int], ...]:
    """(row, column) of the best number of each column; before: columns of words."""
    best = []
    for place, column in enumerate(columns, start=before):
        values = np.array([column.value(line) for line in lines]) * column.better
        if column.better and len(values) > 1 and not np.isnan(values).all():
            winners = np.flatnonzero(values == np.nanmax(values))
            best += [(int(row), place) for row in winners]
    return tuple(best)


def name_cell(line: Tuned) -> str:
    """A method's label, marked where a setting was found at an end of what was tried."""
    return f"{line.label} {EDGE}" if line.at_edge else line.label


def full_label(method: MethodInfo) -> str:
    """A method's label, of a network with what it is given."""
    given = f" ({method.group})" if method.kind == "learned" else ""
    return method.label + given


def edge_notes(lines: Iterable[Tuned]) -> tuple[str, ...]:
    """What the mark means, in one note; none where nothing is marked."""
    words = [
        f"{line.label}, {name} = {setting_text(line.settings.get(name))}"
        for line in lines
        for name in line.at_edge
    ]
    if not words:
        return ()
    return (
        f"{EDGE} Found at an end of what was tried, so that a value beyond it may be "
        f"better: {'; '.join(dict.fromkeys(words))}.",
    )


def given_notes(methods: Iterable[MethodInfo]) -> tuple[str, ...]:
    """What networks are given, where there are any."""
    return (GIVEN_NOTE,) if any(m.kind == "learned" for m in methods) else ()


def setting_text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def markdown(table: Table) -> str:
    """A table with its title and notes."""

    def line(cells: Iterable[str]) -> str:
        escaped = (html.escape(c, quote=False).replace("|", "\\|") for c in cells)
        return "| " + " | ".join(escaped) + " |"

    rows = [
        line(f"**{c}**" if (i, j) in table.best else c for j, c in enumerate(row))
        for i, row in enumerate(table.rows)
    ]
    ruler = line("---" if c in TEXT_COLUMNS else "---:" for c in table.columns)
    body = "\n".join([line(table.columns), ruler, *rows])
    return "\n\n".join([f"## {table.title}", body, *table.notes])
