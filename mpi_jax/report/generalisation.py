"""Tables and figures of robustness suites."""

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mpi_jax._files import write_atomically
from mpi_jax.report.cells import NOTHING, full_label, given_notes, markdown
from mpi_jax.report.images import (
    DPI,
    colour_bar,
    encoded,
    new_canvas,
    panel,
    quiet,
    write_psnr,
)
from mpi_jax.results import (
    Change,
    GeneralisationRow,
    GeneralisationTable,
    GeneralisationValues,
    MethodInfo,
    Table,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colour-blind safe (Okabe and Ito), in the order of the methods.
COLOURS = "#0072b2 #d55e00 #009e73 #cc79a7 #e69f00 #56b4e9 #000000".split()


def write_generalisation(workdir: Path) -> Path:
    """Writes generalisation/{table.md, drops.png, drops.pdf, shapes.png} from its
    table.json and values.npz; returns the path of table.md.

    Each file appears whole or not at all. Raises ValueError where they are missing.
    """
    folder = Path(workdir) / "generalisation"
    if not (folder / "table.json").is_file():
        raise ValueError(
            f"{workdir}: expected generalisation/table.json; run mpi-jax generalise"
        )
    table = GeneralisationTable.read(folder / "table.json")
    values = GeneralisationValues.read(folder / "values.npz")
    figure = _drop_figure(table)
    if figure is not None:
        for kind in ("png", "pdf"):
            write_atomically(folder / f"drops.{kind}", encoded(figure, kind))
    if values.truths:
        picture = _shape_figure(values, _compared(table))
        write_atomically(folder / "shapes.png", encoded(picture))
    path = folder / "table.md"
    tables = [_drop_table(table), *_excess_table(table)]
    text = "\n\n".join(markdown(each) for each in tables)
    write_atomically(path, f"{text}\n")
    return path


def _compared(table: GeneralisationTable) -> list[MethodInfo]:
    """The methods without the controls."""
    return [m for m in table.methods if m.kind != "control"]


def _drop_table(table: GeneralisationTable) -> Table:
    def cell(row: GeneralisationRow, method: MethodInfo) -> str:
        result = row.cells.get(method.method)
        if result is None or math.isnan(result.mean):
            return NOTHING
        if not row.in_db:
            return f"{result.mean:.3g}"
        text = f"{result.mean:.2f}"
        if drop := result.drop:
            # A minus sign for a drop: what was lost.
            mean, low, high = (-n + 0 for n in (drop.mean, drop.high, drop.low))
            text += f" ({mean:+.2f} [{low:+.2f}, {high:+.2f}])"
        return text

    methods = table.methods
    rows = [("", "what a method is given", "", *(m.group for m in methods))]
    rows += [
        (row.suite, row.case, row.quantity, *(cell(row, m) for m in methods))
        for row in table.rows
    ]
    ny, nx = table.grid
    notes = (
        f"Up to {table.num} images a case, {ny} x {nx} pixels, {table.model} model, "
        f"SNR {table.snr_db:g} dB unless the case says otherwise. In brackets: change "
        f"of the mean PSNR from the in-distribution row (families: from the first run "
        f"with all families) and its interval ({table.bootstrap}; by image where the "
        "case keeps the images).",
        "The reconstruction always assumes the nominal scanner, and the settings chosen "
        "on validation images in distribution; a row 'tuned on such data' chooses them "
        "again. Concentrations: PSNR at the peak times the factor.",
        "Other shapes and vessels are also easier or harder in themselves, as the "
        "all-zero image shows.",
        *table.notes,
        *given_notes(methods),
    )
    columns = ("Suite", "Case", "Quantity", *(m.label for m in methods))
    return Table(title="Generalisation", columns=columns, rows=tuple(rows), notes=notes)


def _excess_table(table: GeneralisationTable) -> list[Table]:
    """The drops beyond that of the first network; none where there is no network."""
    labels = {m.method: m.label for m in table.methods}
    first = table.first_network
    methods = [m for m in _compared(table) if m.method != first]
    rows = [("", "what a method is given", *(m.group for m in methods))]
    for row in table.rows:
        cells = [row.cells.get(m.method) for m in methods]
        excesses = [cell.excess if cell else None for cell in cells]
        if first is not None and any(excesses):
            rows.append((row.suite, row.case, *map(_change, excesses)))
    if first is None or len(rows) == 1:
        return []
    return [
        Table(
            title=f"Drop of the mean PSNR beyond that of {labels[first]} [dB]",
            columns=("Suite", "Case", *(m.label for m in methods)),
            rows=tuple(rows),
            notes=(
                f"Above 0: falls further than {labels[first]}. Both methods met the same "
                "images, which the bootstrap draws together: the intervals are those of "
                "a comparison by image.",
            ),
        )
    ]


def _change(change: Change | None) -> str:
    if change is None:
        return NOTHING
    return f"{change.mean:+.2f} [{change.low:+.2f}, {change.high:+.2f}]"


def _drop_figure(table: GeneralisationTable) -> "Figure | None":
    """The change of PSNR of each case and method, with its interval; a panel a suite."""
    from matplotlib.figure import Figure

    suites: dict[str, list[GeneralisationRow]] = {}
    for row in table.rows:
        if any(cell.drop for cell in row.cells.values()):
            suites.setdefault(row.suite, []).append(row)
    if not suites:
        return None
    methods = _compared(table)
    count = sum(len(lines) for lines in suites.values())
    figure = Figure(
        figsize=(9, 1.3 + 0.3 * count + 0.25 * len(suites)),
        dpi=DPI,
        layout="constrained",
        facecolor="white",
    )
    panels = figure.subplots(
        len(suites),
        sharex=True,
        squeeze=False,
        height_ratios=[len(lines) + 0.6 for lines in suites.values()],
    )[:, 0]
    for axes, (suite, lines) in zip(panels, suites.items(), strict=True):
        for n, method in enumerate(methods):
            cells = [row.cells.get(method.method) for row in lines]
            drops = [(i, c.drop) for i, c in enumerate(cells) if c and c.drop]
            at = np.array([i for i, _ in drops], float)
            mean, low, high = (
                -np.array([getattr(drop, end) for _, drop in drops])
                for end in ("mean", "low", "high")
            )
            axes.errorbar(
                mean,
                at + 0.5 * ((n + 0.5) / len(methods) - 0.5),
                xerr=np.abs(np.array([mean - high, low - mean])),
                fmt="o",
                ms=3.2,
                lw=1.2,
                color=COLOURS[n % len(COLOURS)],
                label=full_label(method),
            )
        axes.axvline(0, color="#5b6570", lw=0.8)
        axes.set_yticks(range(len(lines)), [row.case for row in lines], fontsize=8)
        axes.set_ylim(len(lines) - 0.4, -0.6)
        axes.set_title(suite, fontsize=9.5, loc="left")
        quiet(axes, "x")
    panels[-1].set_xlabel(
        "change of the mean PSNR from in distribution [dB], 95 % interval", fontsize=9
    )
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=3, fontsize=8, frameon=False
    )
    return figure


def _shape_figure(values: GeneralisationValues, methods: list[MethodInfo]) -> "Figure":
    """Columns: unseen shapes. Rows: the truth, and what each method makes of it."""
    cases = list(values.truths)
    rows = [("Ground truth", values.truths)]
    for method in methods:
        name = method.method
        images = {c: values.images[*c, name] for c in cases}
        rows.append((full_label(method), images))
    size, gap, left, head = 1.05, 0.04, 1.15, 0.3
    bar = left + len(cases) * (size + gap)
    figure, canvas = new_canvas(bar + 0.72, head + len(rows) * (size + gap) + gap)
    for row, (label, images) in enumerate(rows):
        y = head + row * (size + gap)
        text = textwrap.fill(label, 16, break_long_words=False)
        canvas.text(
            left - 0.07, y + size / 2, text, ha="right", va="center", fontsize=8
        )
        for column, case in enumerate(cases):
            x = left + column * (size + gap)
            if row == 0:
                canvas.text(x + size / 2, y - 0.06, case[1], ha="center", fontsize=8)
            box = (x, y, size, size)
            picture = panel(canvas, images[case], box, cmap="gray", vmin=0, vmax=1)
            if row:
                write_psnr(canvas, box, images[case] - values.truths[case])
    colour_bar(figure, picture, (bar + 0.03, head, 0.12, size), "image")
    return figure
