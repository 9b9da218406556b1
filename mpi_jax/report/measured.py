"""Figure 3 and its table."""

import textwrap
from pathlib import Path

import numpy as np

from mpi_jax._files import replace
from mpi_jax.report.cells import Table, markdown
from mpi_jax.report.images import (
    _canvas,
    _file,
    aspect,
    colour_bar,
    outline,
    panel,
    scale_bar,
    write_on,
)
from mpi_jax.report.read import read_lines
from mpi_jax.report.tables import MASK_COLOUR, TRUTH_COLOUR

# Column of Figure 3's table, key of its metrics.jsonl, format.
_MEASURED_COLUMNS = (
    ("nRMSE", "nrmse", ".3f"),
    ("PSNR [dB]", "psnr", ".2f"),
    ("factor", "factor", ".3f"),
    ("nRMSE scaled", "scaled_nrmse", ".3f"),
    ("PSNR scaled [dB]", "scaled_psnr", ".2f"),
    ("correlation", "correlation", ".3f"),
    ("Dice at half maximum", "dice", ".3f"),
    ("Dice of the mask", "mask_dice", ".3f"),
    ("iron [umol]", "iron", ".3g"),
    ("residual", "residual", ".3f"),
)


def write_measured(folder: Path) -> Path:
    """Writes figure3.png, figure3.pdf and table.md of measured phantoms from the
    arrays.npz and metrics.jsonl of a folder; returns the path of the table.

    Raises ValueError where these cannot be read.
    """
    folder = Path(folder)
    lines = read_lines(folder, "metrics.jsonl", [])
    if not lines or not (folder / "arrays.npz").is_file():
        raise ValueError(
            f"{folder}: expected arrays.npz and metrics.jsonl of figure3, found none"
        )
    with np.load(folder / "arrays.npz", allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    figure = _measured_figure(arrays, lines)
    replace(folder / "figure3.png", _file(figure, "png"))
    replace(folder / "figure3.pdf", _file(figure, "pdf"))
    notes = (
        "Concentrations in mmol/L against the nominal phantom in the plane, no registration. "
        "A plane takes the tracer above and below it for its own, so that images are too "
        "bright: factor is the one that fits the truth best, the scaled columns are with it. "
        "residual: of the signal, relative.",
        "Iron of the truth in the plane: "
        + ", ".join(
            f"{line['phantom']} {line['true_iron']:.3g} umol"
            for line in {line["phantom"]: line for line in lines}.values()
        )
        + ".",
    )
    rows = [
        (
            str(line["phantom"]),
            str(line["method"]),
            *(format(line[key], spec) for _, key, spec in _MEASURED_COLUMNS),
        )
        for line in lines
    ]
    columns = ("Phantom", "Method", *(column[0] for column in _MEASURED_COLUMNS))
    table = Table("Measured phantoms", columns, rows, notes)
    replace(folder / "table.md", f"{markdown(table)}\n".encode())
    return folder / "table.md"


def _measured_figure(arrays: dict[str, np.ndarray], lines: list[dict]):
    """Columns: truth, then methods. Two rows a phantom: scaled image with masks, error."""
    truth, phantoms = arrays["truth"], [str(name) for name in arrays["phantoms"]]
    labels = [str(label) for label in arrays["labels"]]
    pixel = arrays["pixel_size"].astype(float)
    numbers = {(line["phantom"], line["method"]): line for line in lines}
    images = np.stack(
        [
            [
                image * numbers[phantom, label]["factor"]
                for image, phantom in zip(arrays[f"image_{n}"], phantoms, strict=True)
            ]
            for n, label in enumerate(labels)
        ]
    )
    errors, top = np.abs(images - truth[None]), truth.max()
    grey = {"cmap": "gray", "vmin": 0, "vmax": top}
    heat = {"cmap": "magma", "vmin": 0, "vmax": top}

    size, gap, left, head = 1.3, 0.05, 0.32, 0.74
    height = size * aspect(truth, pixel)
    step = 2 * height + gap + 0.14
    bar = left + (1 + len(labels)) * (size + gap) + 0.06
    figure, canvas = _canvas(bar + 0.8, head + len(phantoms) * step)
    for column, label in enumerate(["Ground truth", *labels]):
        x = left + column * (size + gap) + size / 2
        text = textwrap.fill(label, 18, break_long_words=False)
        canvas.text(x, head - 0.07, text, ha="center", va="bottom", fontsize=8.5)
    style = {"fontsize": 8, "va": "top"}
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
        for column, label in enumerate(labels):
            x = left + (column + 1) * (size + gap)
            box, found = (x, y, size, height), numbers[phantom, label]
            panel(canvas, images[column, row], box, **grey)
            outline(canvas, mask, box, TRUTH_COLOUR)
            outline(canvas, arrays[f"mask_{column}"][row], box, MASK_COLOUR)
            write_on(canvas, x + 0.05, y + 0.05, f"× {found['factor']:.2g}")
            box = (x, below, size, height)
            error_picture = panel(canvas, errors[column, row], box, **heat)
            text = f"nRMSE {found['scaled_nrmse']:.2f}"
            write_on(canvas, x + 0.05, below + 0.05, text)
    scale_bar(canvas, (left, head, size, height), 1e3 * pixel[0] * truth.shape[-1])
    place = (bar, head + 0.05, 0.13, height - 0.1)
    colour_bar(figure, picture, place, "[mmol/L]", extend="max")
    place = (bar, head + height + gap + 0.05, 0.13, height - 0.1)
    colour_bar(figure, error_picture, place, "|error| [mmol/L]", extend="max")
    return figure
