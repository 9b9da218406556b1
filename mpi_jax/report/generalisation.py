"""Tables and figures of robustness suites."""

import math
import textwrap
from pathlib import Path

import numpy as np

from mpi_jax._files import replace
from mpi_jax.report.cells import Table, markdown
from mpi_jax.report.images import _canvas, _file, colour_bar, panel, write_on
from mpi_jax.report.read import read_json
from mpi_jax.report.tables import DPI

# --- generalisation ------------------------------------------------------------------

# Colour-blind safe (Okabe and Ito), in the order of the methods.
COLOURS = "#0072b2 #d55e00 #009e73 #cc79a7 #e69f00 #56b4e9 #000000".split()


def write_generalisation(workdir: Path) -> Path:
    """Writes generalisation/{table.md, drops.png, drops.pdf, shapes.png} from its
    table.json and values.npz; returns the path of table.md.

    Each file appears whole or not at all. Raises ValueError where they are missing.
    """
    folder = Path(workdir) / "generalisation"
    table = read_json(folder / "table.json")
    if not table:
        raise ValueError(
            f"{workdir}: expected generalisation/table.json; run mpi-jax generalise"
        )
    with np.load(folder / "values.npz", allow_pickle=False) as file:
        arrays = {n: file[n] for n in file.files if n.endswith("|example")}
    figure = _drop_figure(table)
    if figure is not None:
        for kind in ("png", "pdf"):
            replace(folder / f"drops.{kind}", _file(figure, kind))
    if arrays:
        replace(folder / "shapes.png", _file(_shape_figure(arrays, table["methods"])))
    path = folder / "table.md"
    tables = [_drop_table(table), *_excess_table(table)]
    text = "\n\n".join(markdown(made) for made in tables)
    replace(path, f"{text}\n".encode())
    return path


def _drop_table(table: dict) -> Table:
    def cell(line, method):
        found = line["cells"].get(method)
        if found is None or not isinstance(found["mean"], int | float):
            return "–"
        value = found["mean"]
        if line["quantity"] != "PSNR [dB]":
            return f"{value:.3g}"
        text = f"{value:.2f}"
        if drop := found.get("drop"):
            # A minus sign for a drop: what was lost.
            low, high = (-drop[k] for k in ("high", "low"))
            text += f" ({-drop['mean'] + 0:+.2f} [{low + 0:+.2f}, {high + 0:+.2f}])"
        return text

    methods = table["methods"]
    rows = [
        (
            line["suite"],
            line["case"],
            line["quantity"],
            *(cell(line, method) for method in methods),
        )
        for line in table["rows"]
    ]
    ny, nx = table["grid"]
    notes = (
        f"Up to {table['num']} images a case, {ny} x {nx} pixels, {table['model']} model, "
        f"SNR {table['snr_db']:g} dB unless the case says otherwise. In brackets: change "
        f"of the mean PSNR from the in-distribution row (families: from the first run "
        f"with all families) and its interval ({table['bootstrap']}; by image where the "
        "case keeps the images).",
        "The reconstruction always assumes the nominal scanner, and the settings chosen "
        "on validation images in distribution; a row 'tuned on such data' chooses them "
        "again. Concentrations: PSNR at the peak times the factor.",
        "Other shapes and vessels are also easier or harder in themselves, as the "
        "all-zero image shows.",
        *table["notes"],
    )
    columns = ("Suite", "Case", "Quantity", *methods.values())
    return Table("Generalisation", columns, rows, notes)


def _excess_table(table: dict) -> list[Table]:
    """The drops beyond that of the first network; none where there is no network."""
    networks = [name for name in table["methods"] if "transgan" in name]
    methods = [m for m in table["methods"] if m not in (*networks[:1], "zero")]
    rows = []
    for line in table["rows"]:
        found = [line["cells"].get(m, {}).get("excess") for m in methods]
        if networks and any(found):
            cells = (
                f"{e['mean']:+.2f} [{e['low']:+.2f}, {e['high']:+.2f}]" if e else "–"
                for e in found
            )
            rows.append((line["suite"], line["case"], *cells))
    if not rows:
        return []
    label = table["methods"][networks[0]]
    return [
        Table(
            f"Drop of the mean PSNR beyond that of {label} [dB]",
            ("Suite", "Case", *(table["methods"][m] for m in methods)),
            rows,
            (
                f"Above 0: falls further than {label}. Both methods met the same images, "
                "which the bootstrap draws together: the intervals are those of a "
                "comparison by image.",
            ),
        )
    ]


def _drop_figure(table: dict):
    """The change of PSNR of each case and method, with its interval; a panel a suite."""
    from matplotlib.figure import Figure

    suites: dict[str, list[dict]] = {}
    for line in table["rows"]:
        if any("drop" in c for c in line["cells"].values()):
            suites.setdefault(line["suite"], []).append(line)
    if not suites:
        return None
    methods = [m for m in table["methods"] if m != "zero"]
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
            drops = [line["cells"].get(method, {}).get("drop") for line in lines]
            at = [i for i, drop in enumerate(drops) if drop]
            mean, low, high = (
                -np.array([drops[i][k] for i in at]) for k in ("mean", "low", "high")
            )
            axes.errorbar(
                mean,
                np.array(at) + 0.5 * ((n + 0.5) / len(methods) - 0.5),
                xerr=np.abs(np.array([mean - high, low - mean])),
                fmt="o",
                ms=3.2,
                lw=1.2,
                color=COLOURS[n % len(COLOURS)],
                label=table["methods"][method],
            )
        axes.axvline(0, color="#5b6570", lw=0.8)
        axes.set_yticks(range(len(lines)), [line["case"] for line in lines], fontsize=8)
        axes.set_ylim(len(lines) - 0.4, -0.6)
        axes.set_title(suite, fontsize=9.5, loc="left")
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(axis="x", alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel(
        "change of the mean PSNR from in distribution [dB], 95 % interval", fontsize=9
    )
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=3, fontsize=8, frameon=False
    )
    return figure


def _shape_figure(arrays: dict[str, np.ndarray], methods: dict[str, str]):
    """Columns: unseen shapes. Rows: the truth, and what each method makes of it."""
    cases = list(dict.fromkeys(name.split("|")[1] for name in arrays))
    suite = {name.split("|")[1]: name.split("|")[0] for name in arrays}
    rows = {"truth": "Ground truth"} | {m: t for m, t in methods.items() if m != "zero"}
    size, gap, left, head = 1.05, 0.04, 1.15, 0.3
    bar = left + len(cases) * (size + gap)
    figure, canvas = _canvas(bar + 0.72, head + len(rows) * (size + gap) + gap)
    for row, (name, label) in enumerate(rows.items()):
        y = head + row * (size + gap)
        text = textwrap.fill(label, 16, break_long_words=False)
        canvas.text(
            left - 0.07, y + size / 2, text, ha="right", va="center", fontsize=8
        )
        for column, case in enumerate(cases):
            x = left + column * (size + gap)
            if row == 0:
                canvas.text(x + size / 2, y - 0.06, case, ha="center", fontsize=8)
            image = arrays[f"{suite[case]}|{case}|{name}|example"]
            box = (x, y, size, size)
            picture = panel(canvas, image, box, cmap="gray", vmin=0, vmax=1)
            if row:
                truth = arrays[f"{suite[case]}|{case}|truth|example"]
                error = max(float(np.mean((image - truth) ** 2)), 1e-12)
                write_on(
                    canvas, x + 0.05, y + 0.05, f"{-10 * math.log10(error):.1f} dB"
                )
    colour_bar(figure, picture, (bar + 0.03, head, 0.12, size), "image")
    return figure
