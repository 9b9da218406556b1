"""Figure 3 and its table."""

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpi_jax._files import write_atomically
from mpi_jax.report.cells import (
    edge_notes,
    full_label,
    given_notes,
    markdown,
    name_cell,
)
from mpi_jax.report.images import (
    MASK_COLOUR,
    TRUTH_COLOUR,
    aspect,
    colour_bar,
    encoded,
    new_canvas,
    outline,
    panel,
    scale_bar,
    write_on,
)
from mpi_jax.results import Figure3Images, Figure3Line, Table, in_groups, read_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Column of Figure 3's table, what is in it, format.
_COLUMNS: tuple[tuple[str, Callable[[Figure3Line], float], str], ...] = (
    ("nRMSE", lambda line: line.nrmse, ".3f"),
    ("PSNR [dB]", lambda line: line.psnr, ".2f"),
    ("factor", lambda line: line.factor, ".3f"),
    ("nRMSE scaled", lambda line: line.scaled_nrmse, ".3f"),
    ("PSNR scaled [dB]", lambda line: line.scaled_psnr, ".2f"),
    ("correlation", lambda line: line.correlation, ".3f"),
    ("Dice at half maximum", lambda line: line.dice, ".3f"),
    ("Dice of the mask", lambda line: line.mask_dice, ".3f"),
    ("iron [umol]", lambda line: line.iron, ".3g"),
    ("residual", lambda line: line.residual, ".3f"),
)


def write_measured(folder: Path) -> Path:
    """Writes figure3.png, figure3.pdf and table.md of measured phantoms from the
    arrays.npz and metrics.jsonl of a folder; returns the path of the table.

    Raises ValueError where these cannot be read.
    """
    folder = Path(folder)
    paths = folder / "metrics.jsonl", folder / "arrays.npz"
    if not all(path.is_file() for path in paths):
        raise ValueError(
            f"{folder}: expected arrays.npz and metrics.jsonl of figure3, found none"
        )
    lines = in_groups(read_lines(Figure3Line, paths[0]))
    figure = _figure(Figure3Images.read(paths[1]), lines)
    write_atomically(folder / "figure3.png", encoded(figure, "png"))
    write_atomically(folder / "figure3.pdf", encoded(figure, "pdf"))
    phantoms = list(dict.fromkeys(line.phantom for line in lines))
    lines.sort(key=lambda line: phantoms.index(line.phantom))
    notes = (
        "Concentrations in mmol/L against the nominal phantom in the plane, no registration. "
        "A plane takes the tracer above and below it for its own, so that images are too "
        "bright: factor is the one that fits the truth best, the scaled columns are with it. "
        "residual: of the signal, relative.",
        "Iron of the truth in the plane: "
        + ", ".join(
            f"{line.phantom} {line.true_iron:.3g} umol"
            for line in {line.phantom: line for line in lines}.values()
        )
        + ".",
        *edge_notes(lines),
        *given_notes(lines),
    )
    rows = tuple(
        (
            line.phantom,
            name_cell(line),
            line.group,
            *(format(number(line), form) for _, number, form in _COLUMNS),
        )
        for line in lines
    )
    columns = ("Phantom", "Method", "Given", *(column[0] for column in _COLUMNS))
    table = Table(title="Measured phantoms", columns=columns, rows=rows, notes=notes)
    write_atomically(folder / "table.md", f"{markdown(table)}\n")
    return folder / "table.md"


def _figure(measured: Figure3Images, lines: list[Figure3Line]) -> "Figure":
    """Columns: truth, then methods. Two rows a phantom: scaled image with masks, error."""
    truth, phantoms, pixel = measured.truth, measured.phantoms, measured.pixel_size
    methods = list({line.method: line for line in lines}.values())
    numbers = {(line.phantom, line.method): line for line in lines}
    images = np.stack(
        [
            [
                image * numbers[phantom, m.method].factor
                for image, phantom in zip(
                    measured.images[m.method], phantoms, strict=True
                )
            ]
            for m in methods
        ]
    )
    errors, top = np.abs(images - truth[None]), truth.max()
    grey = {"cmap": "gray", "vmin": 0, "vmax": top}
    heat = {"cmap": "magma", "vmin": 0, "vmax": top}

    size, gap, left, head = 1.3, 0.05, 0.32, 0.86
    height = size * aspect(truth, pixel)
    step = 2 * height + gap + 0.14
    bar = left + (1 + len(methods)) * (size + gap) + 0.06
    figure, canvas = new_canvas(bar + 0.8, head + len(phantoms) * step)
    for column, label in enumerate(["Ground truth", *map(full_label, methods)]):
        x = left + column * (size + gap) + size / 2
        text = textwrap.fill(label, 18, break_long_words=False)
        canvas.text(x, head - 0.07, text, ha="center", va="bottom", fontsize=8.5)
    style: dict[str, Any] = {"fontsize": 8, "va": "top"}
    canvas.text(left, 0.06, "Outlines:", **style)
    canvas.text(left + 0.56, 0.06, "truth at half maximum", color="#0077b6", **style)
    canvas.text(left + 1.95, 0.06, "mask of the method", color="#c05a00", **style)
    for row, phantom in enumerate(phantoms):
        y = head + row * step
        below, mask = y + height + gap, truth[row] > truth[row].max() / 2
        canvas.text(
            left / 2, y + height, phantom, rotation=90, ha="center", va="center",
            fontsize=9.5,
        )  # fmt: skip
        box = (left, y, size, height)
        picture = panel(canvas, truth[row], box, **grey)
        outline(canvas, mask, box, TRUTH_COLOUR)
        for column, method in enumerate(methods):
            x = left + (column + 1) * (size + gap)
            box, line = (x, y, size, height), numbers[phantom, method.method]
            panel(canvas, images[column, row], box, **grey)
            outline(canvas, mask, box, TRUTH_COLOUR)
            outline(canvas, measured.masks[method.method][row], box, MASK_COLOUR)
            write_on(canvas, x + 0.05, y + 0.05, f"× {line.factor:.2g}")
            box = (x, below, size, height)
            error_picture = panel(canvas, errors[column, row], box, **heat)
            text = f"nRMSE {line.scaled_nrmse:.2f}"
            write_on(canvas, x + 0.05, below + 0.05, text)
    scale_bar(canvas, (left, head, size, height), 1e3 * pixel[0] * truth.shape[-1])
    place = (bar, head + 0.05, 0.13, height - 0.1)
    colour_bar(figure, picture, place, "[mmol/L]", extend="max")
    place = (bar, head + height + gap + 0.05, 0.13, height - 0.1)
    colour_bar(figure, error_picture, place, "|error| [mmol/L]", extend="max")
    return figure
