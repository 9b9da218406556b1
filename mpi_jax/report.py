"""A work folder -> its tables, figures and one page that opens anywhere.

    config.json, metrics.jsonl                           what was run, how it trained
    samples/STEP.npz                                     validation images meanwhile
    evaluation/{info.json, metrics.jsonl, arrays.npz}    numbers and example images
    evaluation/values.npz                                every number of every image
        ->  report/{table.md, table.json, figure2.png, figure2.pdf, snr.png,
                    training.png, samples.png, report.html}
    generalisation/{table.json, values.npz}              of mpi-jax generalise
        ->  generalisation/{table.md, drops.png, drops.pdf, shapes.png}

Reads files and nothing else: no JAX, so a report costs no device and no compilation,
and a run still under way can be looked at. Whatever is missing is named on the page.
Lengths are in millimetres on the page and in metres in the files.

`python -m mpi_jax.report README.md results` writes the tables of committed summaries
(evaluation/summary.json under another name) between their marks in a text.
"""

import base64
import html
import io
import json
import math
import os
import re
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mpi_jax import bootstrap

# Table 1 of the dual-task TransGAN paper: method, column printed as RMSE, PSNR, SSIM.
# By Jensen's inequality no images can have these PSNRs with these numbers as RMSE; read
# as MSE at peak 1 every row holds. Last: our lines (method, or kind of network) like it.
PAPER_TABLE = (
    ("x-space", ".0918", "11.0038", ".6196", ("xspace_max", "xspace")),
    (
        "System matrix (Kaczmarz)",
        *(".0166", "19.7552", ".9602"),
        ("kaczmarz_max", "kaczmarz"),
    ),
    ("CNN", ".0117", "21.4450", ".9784", ("cnn",)),
    ("ResNet", ".0094", "22.2147", ".9821", ("resnet",)),
    ("DCGAN", ".0069", "24.9417", ".9860", ("dcgan",)),
    ("Single-task TransGAN", ".0036", "28.5850", ".9929", ("single", "matched")),
    ("Dual-task TransGAN", ".0012", "39.3996", ".9976", ("dual",)),
)
# Column, key of evaluation/metrics.jsonl, statistic, sign of better (0: none is best).
COLUMNS = (
    ("MSE", "mse", "mean", -1),
    ("RMSE", "rmse", "mean", -1),
    ("nRMSE", "nrmse", "mean", -1),
    ("PSNR [dB]", "psnr", "mean", 1),
    ("95 %", "psnr", "interval", 0),
    ("median", "psnr", "median", 1),
    ("5th pct.", "psnr", "p5", 1),
    ("pooled", "pooled_psnr", None, 1),
    ("SSIM", "ssim", "mean", 1),
    ("Dice", "dice", "mean", 1),
    ("IoU", "iou", "mean", 1),
    ("s/image", "seconds_per_image", None, 0),
)
# The same for what only some evaluations have.
MORE = (
    ("Dice, mask", "dice", "mean", 1),
    ("95 %", "dice", "interval", 0),
    ("Dice, thresholded", "dice_thresholded", "mean", 1),
    ("IoU, thresholded", "iou_thresholded", "mean", 1),
    ("SSIM, foreground", "foreground_ssim", "mean", 1),
    ("95 %", "foreground_ssim", "interval", 0),
    ("amount, slope", "amount", "slope", 0),
    ("amount, bias", "amount", "bias", 0),
    ("data residual", "residual", "mean", 0),
)
README_COLUMNS = tuple(
    column
    for column in COLUMNS
    if column[0] not in ("RMSE", "nRMSE", "5th pct.", "pooled", "IoU")
)
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
TRUTH_COLOUR, MASK_COLOUR = "#35c3ff", "#ff9d2e"  # blue, orange: for colour-blind eyes
DPI = 160


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


def write(workdir: Path) -> Path:
    """Writes workdir/report from what workdir holds; returns the path of report.html.

    Each file appears whole or not at all. Raises ValueError if workdir is no work folder
    or one of its files cannot be understood.
    """
    workdir = Path(workdir)
    run = _read(workdir)
    folder = workdir / "report"
    folder.mkdir(exist_ok=True)
    tables = _tables(run) if run.rows else []
    figures = {}
    if run.arrays:
        figure = _example_figure(run.arrays)
        figures["figure2.png"] = _file(figure)
        figures["figure2.pdf"] = _file(figure, "pdf")
    if len({snr for snr, _ in run.levels}) > 1:
        figures["snr.png"] = _file(_snr_figure(run))
    if run.training or run.validation:
        figures["training.png"] = _file(_training_figure(run))
    if run.samples and not run.arrays:
        figures["samples.png"] = _file(_samples_figure(run.samples))
    if tables:
        text = "\n\n".join(_markdown(table) for table in tables)
        _replace(folder / "table.md", f"{text}\n".encode())
        found = {
            t.title: {"columns": t.columns, "rows": t.rows, "notes": t.notes}
            for t in tables
        }
        text = json.dumps(found, indent=1, ensure_ascii=False)
        _replace(folder / "table.json", f"{text}\n".encode())
    for name, content in figures.items():
        _replace(folder / name, content)
    page = folder / "report.html"
    _replace(page, _page(run, tables, figures).encode())
    return page


def save_images(
    path: Path,
    images: np.ndarray,
    titles: list[str] | None = None,
    pixel_size_mm: float | tuple[float, float] | None = None,
) -> None:
    """Writes images [N, ny, nx] (or one, [ny, nx]) side by side to a PNG file.

    All share one colour scale, from the smallest value or 0 to the largest, and a bar.
    pixel_size_mm: (x, y) or both at once [mm]; draws a scale bar.
    Raises ValueError if the shape, the titles or the pixel size do not fit, or if a
    value is not finite.
    """
    images = np.asarray(images, float)
    images = images[None] if images.ndim == 2 else images
    if images.ndim != 3 or images.size == 0:
        raise ValueError(f"images: expected shape [N, ny, nx], got {images.shape}")
    if not np.isfinite(images).all():
        raise ValueError("images: expected finite values, got NaN or infinity")
    if titles is not None and len(titles) != len(images):
        raise ValueError(f"titles: expected {len(images)}, got {len(titles)}")
    pixel = np.broadcast_to(1.0 if pixel_size_mm is None else pixel_size_mm, 2)
    if not (pixel > 0).all():
        raise ValueError(f"pixel_size_mm: expected > 0, got {pixel_size_mm}")
    columns = min(len(images), max(4, math.ceil(math.sqrt(len(images)))))
    rows = math.ceil(len(images) / columns)
    width, gap, top = 1.8, 0.1, 0.1 if titles is None else 0.32
    height = width * _aspect(images, pixel)
    bar = columns * (width + gap)
    figure, canvas = _canvas(gap + bar + 0.75, gap + rows * (height + top))
    scale = {"vmin": min(0.0, images.min()), "vmax": images.max() or 1.0}
    for i, image in enumerate(images):
        x = gap + i % columns * (width + gap)
        y = top + i // columns * (height + top)
        picture = _panel(canvas, image, (x, y, width, height), cmap="gray", **scale)
        if titles is not None:
            canvas.text(x, y - 0.06, titles[i], fontsize=9)
        if pixel_size_mm is not None:
            _scale_bar(canvas, (x, y, width, height), pixel[0] * image.shape[1])
    _colour_bar(figure, picture, (gap + bar, top, 0.12, height), "")
    _replace(Path(path), _file(figure))


def save_l_curve(
    path: Path,
    lams: np.ndarray,
    residual: np.ndarray,
    solution: np.ndarray,
    index: int,
    images: np.ndarray,
) -> None:
    """Writes an L-curve and six of the images along it to a PNG file.

    lams [L], falling; residual, solution [L]: norms of the data misfit and of the image;
    index: of the chosen lam, which is marked; images [L, ny, nx], each shown on a scale
    of its own. Raises ValueError if the shapes do not fit.
    """
    from matplotlib.figure import Figure

    lams, residual, solution = (
        np.asarray(a, float) for a in (lams, residual, solution)
    )
    images = np.asarray(images, float)
    shapes = [a.shape for a in (lams, residual, solution)] + [images.shape[:1]]
    if len(set(shapes)) > 1 or images.ndim != 3 or not 0 <= index < len(lams):
        raise ValueError(
            "lams, residual, solution, images: expected one entry of each for every lam "
            f"and the index of one; got {shapes} and {index}"
        )
    shown = np.linspace(0, len(lams) - 1, min(6, len(lams))).round().astype(int)
    shown[np.abs(shown - index).argmin()] = index
    figure = Figure(figsize=(9, 3.6), dpi=DPI, layout="constrained", facecolor="white")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.15))
    curve = left.subplots()
    curve.loglog(residual, solution, ".-", color="0.5", lw=0.8)
    curve.loglog(residual[shown], solution[shown], "o", color="0.25", ms=4)
    curve.loglog(residual[index], solution[index], "o", color=MASK_COLOUR, ms=8)
    for n in shown:
        place = {"textcoords": "offset points", "xytext": (5, 5), "fontsize": 7}
        curve.annotate(
            f"{lams[n]:.0e}", (residual[n], solution[n]), **place, clip_on=False
        )
    curve.set_xlabel("norm of the data misfit (arb. unit)", fontsize=9)
    curve.set_ylabel("norm of the image (arb. unit)", fontsize=9)
    curve.tick_params(labelsize=8, which="both")
    curve.spines[["top", "right"]].set_visible(False)
    panels = right.subplots(2, 3)
    for axes in panels.flat:
        axes.axis("off")
    for axes, n in zip(panels.flat, shown, strict=False):
        axes.imshow(images[n], cmap="gray", vmin=0, vmax=images[n].max() or 1.0)
        colour = MASK_COLOUR if n == index else "black"
        axes.set_title(f"λ = {lams[n]:.0e}", fontsize=9, color=colour)
    _replace(Path(path), _file(figure))


# --- reading -------------------------------------------------------------------------


def _read(workdir: Path) -> Run:
    evaluation = workdir / "evaluation"
    remarks = []
    config = _read_json(workdir / "config.json")
    log = _read_lines(workdir, "metrics.jsonl", remarks)
    results = _read_lines(workdir, "evaluation/metrics.jsonl", remarks)
    if not (config or log or results):
        raise ValueError(
            f"workdir: expected a work folder with config.json, metrics.jsonl or "
            f"evaluation/, found none of them in {workdir}"
        )
    if not config:
        remarks.append("No config.json: the settings of this run are not known.")
    if not log:
        remarks.append("No training yet (metrics.jsonl): run mpi-jax train.")
    if not results:
        remarks.append("No evaluation yet (evaluation/): run mpi-jax evaluate.")
    arrays = _read_arrays(evaluation / "arrays.npz")
    if results and not arrays:
        remarks.append("No example images (evaluation/arrays.npz): no figure.")
    # A resumed run repeats steps, a repeated evaluation its rows: the later ones count.
    try:
        training = {line["step"]: line for line in log if "images" in line}
        validation = {line["step"]: line for line in log if "validation_psnr" in line}
        info = _read_json(evaluation / "info.json")
        main = info.get("snr_db")
        rows = {
            (line["method"], line["family"]): line
            for line in results
            if line.get("snr_db", main) == main
        }
        levels = {
            (float(line["snr_db"]), line["method"]): line
            for line in results
            if line["family"] == "all" and line.get("snr_db") is not None
        }
    except KeyError as missing:
        raise ValueError(
            f"{workdir}: a line of metrics.jsonl lacks {missing}"
        ) from None
    return Run(
        name=str(config.get("name", workdir.resolve().name)),
        config=config,
        training=[training[step] for step in sorted(training)],
        validation=[validation[step] for step in sorted(validation)],
        rows=rows,
        info=info,
        arrays=arrays,
        levels=levels,
        values=_read_values(evaluation / "values.npz"),
        samples=_read_samples(workdir / "samples"),
        remarks=remarks,
    )


def _read_json(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, got {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def _read_lines(workdir: Path, name: str, remarks: list[str]) -> list[dict]:
    """Objects of a JSON-lines file. A line cut short by a kill is left out and told."""
    path = workdir / name
    if not path.is_file():
        return []
    values, broken = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            value = json.loads(line) if line.strip() else None
        except ValueError:
            value, broken = None, broken + 1
        if isinstance(value, dict):
            values.append(value)
    if broken:
        remarks.append(f"{name}: {broken} unreadable line(s) left out.")
    return values


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        shape = arrays["truth"].shape
        names = [f"{kind}_{m}" for m in arrays["methods"] for kind in ("image", "mask")]
        wrong = [n for n in ("mask", *names) if arrays[n].shape != shape]
        missing = {"family", "pixel_size", "labels"} - arrays.keys()
    except Exception as error:  # a cut zip file raises one of many
        raise ValueError(f"{path}: cannot be read: {error!r}") from None
    if wrong or missing or len(shape) != 3:
        raise ValueError(
            f"{path}: expected arrays of shape {shape}, wrong: {wrong}, "
            f"missing: {sorted(missing)}"
        )
    return arrays


def _read_values(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # a cut zip file raises one of many
        raise ValueError(f"{path}: cannot be read: {error!r}") from None


SAMPLES_SHOWN = 5  # validations, from the first to the newest


def _read_samples(folder: Path) -> list[dict[str, np.ndarray]]:
    paths = sorted(folder.glob("*.npz"))
    places = np.linspace(0, len(paths) - 1, min(SAMPLES_SHOWN, len(paths)))
    samples = []
    for path in (paths[round(place)] for place in places):
        try:
            with np.load(path, allow_pickle=False) as file:
                found = {name: file[name] for name in file.files}
            shape = found["truth"].shape
            fine = (
                found["step"].shape == ()
                and len(found["family"]) == shape[0]
                and all(
                    found[name].shape == shape
                    for name in ("true_mask", "image", "mask")
                )
            )
        except Exception as error:  # a cut zip file raises one of many
            raise ValueError(f"{path}: cannot be read: {error!r}") from None
        if len(shape) != 3 or not fine:
            raise ValueError(f"{path}: expected images and masks of one shape")
        samples.append(found)
    return samples


# --- tables --------------------------------------------------------------------------


def _tables(run: Run) -> list[Table]:
    methods = list(dict.fromkeys(method for method, _ in run.rows))
    labels = {m: str(line.get("label", m)) for (m, _), line in run.rows.items()}
    families = list(dict.fromkeys(f for _, f in run.rows if f != "all"))
    main = [(m, run.rows[m, "all"]) for m in methods if (m, "all") in run.rows]
    tables = [
        Table(
            "Results",
            ("Method", *(column[0] for column in COLUMNS)),
            [
                (labels[m], *(_cell(line, key, part) for _, key, part, _ in COLUMNS))
                for m, line in main
            ],
            _notes(run.info, main),
            _best(main),
        )
    ]
    if any("residual" in line for _, line in main):
        tables.append(
            Table(
                "Masks, amounts, fidelity",
                ("Method", *(column[0] for column in MORE)),
                [
                    (labels[m], *(_cell(line, key, part) for _, key, part, _ in MORE))
                    for m, line in main
                ],
                (
                    "Dice and IoU of the mask that the method gives, and of its image "
                    "above a fraction of its maximum, chosen on validation images. SSIM "
                    "where the true mask is. Amount: the sum of an image; slope of the "
                    "line through all images' sums against the true ones, and mean error "
                    "over the mean: 1 and 0 are right. Data residual: |S x - u| over the "
                    "norm of the noise; about 1 is right, less fits the noise.",
                ),
                _best(main, MORE),
            )
        )
    if families:

        def row(method):
            lines = (run.rows.get((method, family), {}) for family in families)
            return (labels[method], *(_cell(line, "psnr", "mean") for line in lines))

        note = "Mean ± standard deviation over the images of the family."
        columns = ("Method", *families)
        rows = [row(method) for method in methods]
        tables.append(Table("PSNR by family [dB]", columns, rows, (note,)))
    tables.append(_paper_table(main))
    tables += _snr_table(run, labels) + _claims(run) + _seeds(run)
    tables.append(
        Table(
            "Settings",
            ("Method", "Settings", "Mask"),
            [
                (
                    labels[method],
                    ", ".join(f"{k} = {v}" for k, v in line.get("settings", {}).items())
                    or "–",
                    str(line.get("segmentation", "–")),
                )
                for method, line in main
            ],
        )
    )
    return tables


def _kind(line: dict) -> str:
    """What network a line belongs to (dual, matched, cnn, ...), else its method."""
    return line.get("about", {}).get("kind", line["method"])


def _paper_table(main: list[tuple[str, dict]]) -> Table:
    rows = []
    for name, *printed, kinds in PAPER_TABLE:
        ours = [line for _, line in main if _kind(line) in kinds]
        for line in ours or [{}]:
            numbers = (
                _cell(line, key, "mean") for key in ("mse", "rmse", "psnr", "ssim")
            )
            rows.append((name, str(line.get("label", "–")), *numbers, *printed))
    return Table(
        "Table 1 of the dual-task TransGAN paper, ours beside it",
        (
            *("Method", "Ours", "MSE", "RMSE", "PSNR [dB]", "SSIM"),
            *("printed as RMSE, read as MSE", "printed PSNR [dB]", "printed SSIM"),
        ),
        rows,
        (
            "The last three columns are copied from the paper. Its data, noise and system "
            "matrix are not public: these numbers belong to other images and are not "
            "comparable with ours, the SSIM least of all (window and range not stated).",
            "The paper heads its error column RMSE. Mean PSNR is at least "
            "20 log10(1 / mean RMSE) for any images of peak 1; every printed row "
            "breaks that bound, by 10 to 20 dB, and keeps the one for MSE.",
        ),
    )


def _snr_table(run: Run, labels: dict[str, str]) -> list[Table]:
    levels = sorted({snr for snr, _ in run.levels}, reverse=True)
    if len(levels) < 2:
        return []
    rows = [
        (
            label,
            *(
                f"{_value(line, 'psnr', 'mean'):.2f} {_cell(line, 'psnr', 'interval')}"
                for line in (run.levels.get((snr, method), {}) for snr in levels)
            ),
        )
        for method, label in labels.items()
    ]
    note = (
        "Mean over images with its 95 % interval. Classical methods, controls' settings and thresholds are tuned for each SNR; "
        "networks are as they were trained."
    )
    columns = ("Method", *(_snr_name(snr) for snr in levels))
    return [Table("PSNR by SNR of the signal [dB]", columns, rows, (note,))]


def _snr_name(snr: float) -> str:
    return f"{snr:g} dB" if math.isfinite(snr) else "noise-free"


def _groups(run: Run) -> dict[str, tuple[dict, list[str]]]:
    """Networks that differ by their seed only: group -> what they are, their methods."""
    groups: dict[str, tuple[dict, list[str]]] = {}
    for (method, family), line in run.rows.items():
        about = line.get("about", {})
        if family == "all" and "group" in about:
            label = re.sub(r"(, (seed|run) \d+)+$", "", str(line["label"]))
            groups.setdefault(about["group"], ({**about, "label": label}, []))
            groups[about["group"]][1].append(method)
    return groups


def _stack(run: Run, methods: list[str], metric: str) -> np.ndarray:
    """Values [S, N] of runs on the main test signals."""
    main = f"{float(run.values['main_snr_db']):g}"
    return np.stack([run.values[f"{main}/{method}/{metric}"] for method in methods])


def _claims(run: Run) -> list[Table]:
    """Does the second task help? Paired differences of the runs that are there."""
    groups = _groups(run) if run.values else {}
    rows = []

    def cell(ones, others, first, second):
        found = bootstrap.paired(_stack(run, ones, first), _stack(run, others, second))
        low, high = found["low"], found["high"]
        told = "better" if low > 0 else "worse" if high < 0 else "not told apart"
        digits = 2 if first == "psnr" else 4
        numbers = (f"{found[k]:+.{digits}f}" for k in ("difference", "low", "high"))
        return "{} [{}, {}] {}".format(*numbers, told)

    def compare(words, ones, others, mask):
        cells = [cell(ones, others, m, m) for m in ("psnr", "ssim")]
        cells.append(cell(ones, others, "dice", mask))
        rows.append((words, *cells, f"{len(ones)}, {len(others)}"))

    for about, ones in groups.values():
        if about["kind"] != "dual":
            continue
        own = about["label"]
        for other, methods in groups.values():
            if bool(other["physics"]) != bool(about["physics"]) or methods == ones:
                continue
            adversary = about["adversarial"], other["adversarial"]
            masks = [(line["bce"], line["dice"]) for line in (about, other)]
            if other["kind"] in ("matched", "single"):
                if adversary[0] == adversary[1]:
                    words = f"{own} against {other['label']}"
                    compare(words, ones, methods, "dice_thresholded")
            elif other["kind"] == "dual" and masks[0] == masks[1]:
                if adversary[0] > 0 == adversary[1]:
                    words = f"{own} against the same without adversary"
                    compare(words, ones, methods, "dice")
            elif other["kind"] == "dual" and adversary[0] == adversary[1]:
                if masks[0] < masks[1]:
                    words = f"{own} against {other['label']}"
                    compare(words, ones, methods, "dice")
        dice = cell(ones, ones, "dice", "dice_thresholded")
        words = f"{own}: its mask against its own thresholded image"
        rows.append((words, "–", "–", dice, f"{len(ones)}"))
    if not rows:
        return []
    notes = (
        "The paper's claim is that the two tasks promote each other. Differences of means "
        "on the same test images, first less second, with 95 % intervals of a paired "
        "bootstrap over images, and over seeds where a network has several; with one seed "
        "each, the spread from training to training is not in them. The matched network "
        "has one task and the parameters and arithmetic of the dual-task one. Dice is of "
        "the predicted mask, and of the thresholded image where a network predicts none.",
    )
    columns = ("Compared", "PSNR [dB]", "SSIM", "Dice", "seeds")
    return [Table("Do the two tasks promote each other?", columns, rows, notes)]


def _seeds(run: Run) -> list[Table]:
    """Networks of several seeds: means with intervals over images and seeds."""
    rows = []
    for about, methods in (_groups(run) if run.values else {}).values():
        if len(methods) > 1:
            cells = [about["label"], str(len(methods))]
            for metric in ("psnr", "ssim", "dice"):
                values = _stack(run, methods, metric)
                low, high = bootstrap.interval(values)
                each = values.mean(axis=1, dtype=float)
                digits = 2 if metric == "psnr" else 4
                cells.append(
                    f"{each.mean():.{digits}f} ± {each.std(ddof=1):.{digits}f}"
                )
                cells.append(f"[{low:.{digits}f}, {high:.{digits}f}]")
            rows.append(tuple(cells))
    if not rows:
        return []
    columns = ("Method", "seeds", "PSNR [dB]", "95 %", "SSIM", "95 %", "Dice", "95 %")
    note = "Mean ± standard deviation over seeds; intervals over images and seeds."
    return [Table("Several seeds", columns, rows, (note,))]


def readme_table(paths: list[Path]) -> str:
    """Markdown of committed summaries, one table with its conditions for each file."""
    parts = []
    for path in map(Path, paths):
        summary = _read_json(path)
        if not summary.get("rows"):
            raise ValueError(f"{path}: expected a summary of mpi-jax evaluate")
        main = [(line["method"], line) for line in summary["rows"]]
        grid = " x ".join(str(n) for n in summary["grid"])
        seen = sorted(
            {
                line["about"]["images_seen"]
                for _, line in main
                if line.get("about", {}).get("images_seen")
            }
        )
        words = [
            f"`{summary['config']}` at commit {summary['commit']}, seed {summary['seed']}",
            f"{summary['num']:,} test images of {grid} pixels",
            f"{summary['model']} model",
            f"power SNR {_snr_name(float(summary['snr_db']))}",
            f"timed on {summary['device']}",
        ]
        if seen:
            counts = " or ".join(f"{n:,}" for n in seen)
            words.append(
                f"networks trained on {counts} images ({summary['trained_on']})"
            )
        table = Table(
            "",
            ("Method", *(column[0] for column in README_COLUMNS)),
            [
                (
                    str(line["label"]),
                    *(_cell(line, key, part) for _, key, part, _ in README_COLUMNS),
                )
                for _, line in main
            ],
            best=_best(main, README_COLUMNS),
        )
        body = _markdown(table).split("\n\n")[1]
        note = f"SSIM: {summary['ssim']}; intervals: {summary['intervals']}."
        parts += ["; ".join(words) + ".", body, note]
    return "\n\n".join(parts)


def fill(text: str, folder: Path) -> str:
    """The text with the tables between its marks made anew from the files of a folder:
    the main tables of evaluations (their summary.json), and others by their titles (out
    of report/table.json).

    <!-- results: small.json small64.json --> ... <!-- end of results -->
    <!-- tables: table32.json: Several seeds; Settings --> ... <!-- end of results -->
    """

    def made(found):
        if found[1] == "results":
            body = readme_table([Path(folder) / name for name in found[2].split()])
        else:
            name, titles = found[2].split(": ")
            body = _tables_of(Path(folder) / name, titles.split("; "))
        return f"<!-- {found[1]}: {found[2]} -->\n\n{body}\n\n{END}"

    marks = rf"<!-- (results|tables): (.*?) -->\n.*?{END}"
    return re.sub(marks, made, text, flags=re.DOTALL)


def _tables_of(path: Path, titles: list[str]) -> str:
    """Markdown of some of the tables that `write` kept in report/table.json."""
    tables, parts = _read_json(path), []
    for title in titles:
        if title not in tables:
            raise ValueError(f"{path}: expected a table {title!r}, got {list(tables)}")
        columns, rows, notes = (tables[title][k] for k in ("columns", "rows", "notes"))
        table = Table(title, tuple(columns), [tuple(r) for r in rows], tuple(notes))
        _, body = _markdown(table).split("\n\n", 1)
        parts.append(f"**{title}**\n\n{body}")
    return "\n\n".join(parts)


END = "<!-- end of results -->"


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


def _best(rows: list[tuple[str, dict]], columns=COLUMNS) -> frozenset[tuple[int, int]]:
    best = set()
    for column, (_, key, part, sign) in enumerate(columns, start=1):
        if not sign:
            continue
        values = np.array([_value(line, key, part) for _, line in rows]) * sign
        if len(values) > 1 and not np.isnan(values).all():
            winners = np.flatnonzero(values == np.nanmax(values))
            best |= {(int(row), column) for row in winners}
    return frozenset(best)


def _notes(info: dict, rows: list[tuple[str, dict]]) -> tuple[str, ...]:
    num = info.get("num") or max((line.get("num", 0) for _, line in rows), default=0)
    known = {
        "grid": " x ".join(str(n) for n in info.get("grid", ())) + " pixels",
        "snr_db": f"SNR {info.get('snr_db')} dB",
        "noise": f"noise: {info.get('noise')}",
        "model": f"signal model: {info.get('model')}",
        "seed": f"seed {info.get('seed')}",
        "device": f"timed on {info.get('device')}",
    }
    facts = [text for key, text in known.items() if info.get(key) is not None]
    return (
        "; ".join([f"{num} test images", *facts]) + ".",
        "Means over test images; PSNR at peak 1: mean ± standard deviation, median and "
        "5th percentile over images, and pooled, 10 log10(1 / mean MSE). "
        f"Intervals: {info.get('intervals', 'not recorded')}.",
        f"SSIM: {info.get('ssim', 'settings not recorded')}. Dice and IoU: of the "
        "predicted mask where the method has one, else of the thresholded image (see "
        "Settings). Bold: best of its column.",
    )


def _markdown(table: Table) -> str:
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


# --- figures -------------------------------------------------------------------------
# Drawn on one canvas in inches with y downward: exact places, and far quicker than an
# axes for each of a hundred panels.


def _canvas(width: float, height: float):
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    canvas = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    canvas.axis("off")
    canvas.set_autoscale_on(False)
    return figure, canvas


def _panel(canvas, image, box, **scale):
    x, y, width, height = box
    return canvas.imshow(
        image,
        extent=(x, x + width, y + height, y),
        aspect="auto",
        interpolation="nearest",
        **scale,
    )


def _outline(canvas, mask, box, colour) -> None:
    x, y, width, height = box
    ny, nx = mask.shape
    if not mask.any():
        return
    # One pixel of padding closes the outline of an object that touches the border.
    xs = x + (np.arange(-1, nx + 1) + 0.5) * width / nx
    ys = y + (np.arange(-1, ny + 1) + 0.5) * height / ny
    padded = np.pad(mask.astype(float), 1)
    canvas.contour(xs, ys, padded, levels=[0.5], colors=colour, linewidths=0.9)


def _scale_bar(canvas, box, width_mm: float) -> None:
    x, y, width, height = box
    power = 10.0 ** math.floor(math.log10(0.4 * width_mm))
    length = max(n * power for n in (1, 2, 5) if n * power <= 0.4 * width_mm)
    end, base = x + 0.06 * width + length / width_mm * width, y + 0.93 * height
    canvas.plot([x + 0.06 * width, end], [base, base], color="white", linewidth=2)
    _write_on(canvas, x + 0.06 * width, base - 0.05, f"{length:g} mm", va="bottom")


def _write_on(canvas, x: float, y: float, text: str, va: str = "top") -> None:
    from matplotlib.patheffects import withStroke  # readable on bright pixels as well

    rim = [withStroke(linewidth=1.8, foreground="black")]
    canvas.text(x, y, text, color="white", fontsize=8, va=va, path_effects=rim)


def _colour_bar(figure, picture, box, label: str, extend: str = "neither") -> None:
    total_width, total_height = figure.get_size_inches()
    x, y, width, height = box
    place = (
        x / total_width,
        1 - (y + height) / total_height,
        width / total_width,
        height / total_height,
    )
    bar = figure.colorbar(picture, cax=figure.add_axes(place), extend=extend)
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8)


def _aspect(images: np.ndarray, pixel) -> float:
    """Height over width of a panel; pixel is (x, y)."""
    return images.shape[-2] * pixel[1] / (images.shape[-1] * pixel[0])


def _example_figure(arrays: dict[str, np.ndarray]):
    """Truth and methods by family: each image with its masks, and its error."""
    truth, mask = arrays["truth"], arrays["mask"]
    names = [str(family) for family in arrays["family"]]
    examples = [names.index(family) for family in dict.fromkeys(names)]
    methods = [str(method) for method in arrays["methods"]]
    errors = {m: np.abs(arrays[f"image_{m}"] - truth) for m in methods}
    shown = [errors[m][e] for m in methods for e in examples]
    # Round and a little below the largest: one hot pixel must not dim all the others.
    top = math.ceil(10 * np.percentile(shown, 99.5)) / 10 if shown else 0
    grey = {"cmap": "gray", "vmin": 0, "vmax": 1}
    heat = {"cmap": "magma", "vmin": 0, "vmax": max(top, 0.1)}

    # Few methods are columns, errors below the images; many are rows, errors beside.
    tall = len(methods) > 7
    size, gap = (0.74 if tall else 1.05), 0.04
    left, head = (1.4, 0.5) if tall else (0.32, 0.72)
    height = size * _aspect(truth, arrays["pixel_size"].astype(float))
    if tall:
        across, down = 2 * size + gap + 0.12, height + gap
        shape = len(examples), 1 + len(methods)
    else:
        across, down = size + gap, 2 * height + gap + 0.12
        shape = 1 + len(methods), len(examples)

    def places(method: int, example: int):
        """Boxes of an image and its error."""
        column, row = (example, method) if tall else (method, example)
        x, y = left + column * across, head + row * down
        other = (x + size + gap, y) if tall else (x, y + height + gap)
        return (x, y, size, height), (*other, size, height)

    bar = left + shape[0] * across + 0.06
    figure, canvas = _canvas(bar + 0.72, head + shape[1] * down)
    for m, label in enumerate(["Ground truth", *map(str, arrays["labels"])]):
        (x, y, _, _), _ = places(m, 0)
        if tall:
            text = textwrap.fill(label, 20, break_long_words=False)
            style = {"ha": "right", "va": "center", "fontsize": 8}
            canvas.text(left - 0.08, y + height / 2, text, **style)
        else:
            text = textwrap.fill(label, 15, break_long_words=False)
            style = {"ha": "center", "va": "bottom", "fontsize": 8.5}
            canvas.text(x + size / 2, head - 0.07, text, **style)
    for row, e in enumerate(examples):
        (x, y, _, _), _ = places(0, row)
        style = {"ha": "center", "fontsize": 9.5}
        if tall:
            canvas.text(x + size + gap / 2, head - 0.07, names[e], va="bottom", **style)
        else:
            style |= {"va": "center", "rotation": 90}
            canvas.text(left / 2, y + height, names[e], **style)
    style = {"fontsize": 8, "va": "top"}
    canvas.text(left, 0.06, "Outlines:", **style)
    canvas.text(left + 0.56, 0.06, "true mask", color="#0077b6", **style)
    canvas.text(left + 1.3, 0.06, "mask of the method", color="#c05a00", **style)
    error_picture = None
    for row, e in enumerate(examples):
        box, other = places(0, row)
        picture = _panel(canvas, truth[e], box, **grey)
        _outline(canvas, mask[e], box, TRUTH_COLOUR)
        _panel(canvas, mask[e], other, **grey)
        _write_on(canvas, other[0] + 0.05, other[1] + 0.05, "mask")
        for m, method in enumerate(methods, start=1):
            box, other = places(m, row)
            _panel(canvas, arrays[f"image_{method}"][e], box, **grey)
            _outline(canvas, mask[e], box, TRUTH_COLOUR)
            _outline(canvas, arrays[f"mask_{method}"][e], box, MASK_COLOUR)
            error = errors[method][e]
            error_picture = _panel(canvas, error, other, **heat)
            psnr = -10 * math.log10(max(float(np.mean(error**2)), 1e-12))
            _write_on(canvas, other[0] + 0.05, other[1] + 0.05, f"{psnr:.1f} dB")
    width_mm = 1e3 * float(arrays["pixel_size"][0]) * truth.shape[-1]
    _scale_bar(canvas, (left, head, size, height), width_mm)
    long = (2 * height if tall else height) - 0.1
    _colour_bar(figure, picture, (bar, head + 0.05, 0.13, long), "image")
    if error_picture is not None:
        place = (bar, head + long + gap + 0.15, 0.13, long)
        _colour_bar(figure, error_picture, place, "|error|", extend="max")
    return figure


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
    lines = _read_lines(folder, "metrics.jsonl", [])
    if not lines or not (folder / "arrays.npz").is_file():
        raise ValueError(
            f"{folder}: expected arrays.npz and metrics.jsonl of figure3, found none"
        )
    with np.load(folder / "arrays.npz", allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    figure = _measured_figure(arrays, lines)
    _replace(folder / "figure3.png", _file(figure, "png"))
    _replace(folder / "figure3.pdf", _file(figure, "pdf"))
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
    _replace(folder / "table.md", f"{_markdown(table)}\n".encode())
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
    height = size * _aspect(truth, pixel)
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
        picture = _panel(canvas, truth[row], box, **grey)
        _outline(canvas, mask, box, TRUTH_COLOUR)
        for column, label in enumerate(labels):
            x = left + (column + 1) * (size + gap)
            box, found = (x, y, size, height), numbers[phantom, label]
            _panel(canvas, images[column, row], box, **grey)
            _outline(canvas, mask, box, TRUTH_COLOUR)
            _outline(canvas, arrays[f"mask_{column}"][row], box, MASK_COLOUR)
            _write_on(canvas, x + 0.05, y + 0.05, f"× {found['factor']:.2g}")
            box = (x, below, size, height)
            error_picture = _panel(canvas, errors[column, row], box, **heat)
            text = f"nRMSE {found['scaled_nrmse']:.2f}"
            _write_on(canvas, x + 0.05, below + 0.05, text)
    _scale_bar(canvas, (left, head, size, height), 1e3 * pixel[0] * truth.shape[-1])
    place = (bar, head + 0.05, 0.13, height - 0.1)
    _colour_bar(figure, picture, place, "[mmol/L]", extend="max")
    place = (bar, head + height + gap + 0.05, 0.13, height - 0.1)
    _colour_bar(figure, error_picture, place, "|error| [mmol/L]", extend="max")
    return figure


def _samples_figure(samples: list[dict[str, np.ndarray]]):
    """Rows: validation images. Columns: the truth, then what the network made of them."""
    newest = samples[-1]
    size, gap, left, head = 1.05, 0.04, 0.32, 0.3
    height = size * _aspect(newest["truth"], (1, 1))
    width = left + (1 + len(samples)) * (size + gap)
    figure, canvas = _canvas(width, head + len(newest["truth"]) * (height + gap))
    columns = [("Ground truth", "truth", "true_mask", newest)]
    columns += [(f"step {int(s['step']):,}", "image", "mask", s) for s in samples]
    for column, (title, image, mask, found) in enumerate(columns):
        x = left + column * (size + gap)
        canvas.text(x + size / 2, head - 0.07, title, ha="center", fontsize=8.5)
        for row, family in enumerate(found["family"]):
            box = (x, head + row * (height + gap), size, height)
            middle = box[1] + height / 2
            if not column:
                style = {"rotation": 90, "ha": "center", "va": "center", "fontsize": 9}
                canvas.text(left / 2, middle, str(family), **style)
            _panel(canvas, found[image][row], box, cmap="gray", vmin=0, vmax=1)
            _outline(
                canvas, found[mask][row], box, MASK_COLOUR if column else TRUTH_COLOUR
            )
    return figure


def _training_figure(run: Run):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.6), dpi=DPI, layout="constrained", facecolor="white")
    panels = (
        (
            run.training,
            "Losses",
            ("generator_loss", "mae", "bce", "dice"),
        ),
        (run.training, "Adversary", ("adversarial", "discriminator_loss")),
        (run.validation, "Validation PSNR [dB]", ("validation_psnr",)),
        (run.training, "Images per second", ("images_per_second",)),
    )
    for axes, (lines, title, keys) in zip(
        figure.subplots(2, 2).flat, panels, strict=True
    ):
        for key in keys:
            points = [(line["step"], line[key]) for line in lines if key in line]
            if points:
                marker = "." if len(points) < 40 else None
                axes.plot(
                    *zip(*points, strict=True),
                    marker=marker,
                    lw=1.3,
                    label=key.replace("_", " "),
                )
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel("step", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if not axes.lines:
            axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center")
        elif len(keys) > 1:
            # Above the axes, beside the title: no curve can run under it.
            place = {"loc": "lower right", "bbox_to_anchor": (1, 0.98), "ncols": 4}
            axes.legend(fontsize=8, frameon=False, columnspacing=1, **place)
        if keys[0] == "generator_loss":
            axes.set_yscale("log", nonpositive="mask")
        if keys[0] == "images_per_second":
            axes.set_ylim(0, 1.08 * axes.get_ylim()[1])
    return figure


def _snr_figure(run: Run):
    """PSNR against the SNR of the signal, with intervals; noise-free at the right."""
    from matplotlib.figure import Figure

    levels = sorted({snr for snr, _ in run.levels})
    finite = [snr for snr in levels if math.isfinite(snr)]
    end = max(finite, default=0.0) + 10
    at = {snr: snr if math.isfinite(snr) else end for snr in levels}
    methods = list(dict.fromkeys(method for _, method in run.levels))
    figure = Figure(figsize=(9, 4.8), dpi=DPI, layout="constrained", facecolor="white")
    axes = figure.subplots()
    for i, method in enumerate(methods):
        lines = [
            (at[s], run.levels[s, method]) for s in levels if (s, method) in run.levels
        ]
        x = np.array([place for place, _ in lines])
        mean, low, high = (
            np.array([_value(line, "psnr", part) for _, line in lines])
            for part in ("mean", "low", "high")
        )
        axes.errorbar(
            # Side by side: intervals of several methods don't hide each other.
            x + 0.25 * (i - (len(methods) - 1) / 2),
            mean,
            yerr=[mean - low, high - mean],
            label=textwrap.fill(str(lines[0][1].get("label", method)), 30),
            color=f"C{i % 10}",
            marker="osD^v<>Pp*"[i % 10],
            markersize=4,
            linestyle=("-", "--", ":")[i // 10 % 3],
            linewidth=1.2,
            capsize=2,
        )
    axes.set_xticks([at[s] for s in levels], [_snr_name(s) for s in levels])
    axes.set_xlabel("power SNR of the signal", fontsize=9)
    axes.set_ylabel("PSNR [dB]", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


# --- generalisation ------------------------------------------------------------------

# Colour-blind safe (Okabe and Ito), in the order of the methods.
COLOURS = "#0072b2 #d55e00 #009e73 #cc79a7 #e69f00 #56b4e9 #000000".split()


def write_generalisation(workdir: Path) -> Path:
    """Writes generalisation/{table.md, drops.png, drops.pdf, shapes.png} from its
    table.json and values.npz; returns the path of table.md.

    Each file appears whole or not at all. Raises ValueError where they are missing.
    """
    folder = Path(workdir) / "generalisation"
    table = _read_json(folder / "table.json")
    if not table:
        raise ValueError(
            f"{workdir}: expected generalisation/table.json; run mpi-jax generalise"
        )
    with np.load(folder / "values.npz", allow_pickle=False) as file:
        arrays = {n: file[n] for n in file.files if n.endswith("|example")}
    figure = _drop_figure(table)
    if figure is not None:
        for kind in ("png", "pdf"):
            _replace(folder / f"drops.{kind}", _file(figure, kind))
    if arrays:
        _replace(folder / "shapes.png", _file(_shape_figure(arrays, table["methods"])))
    path = folder / "table.md"
    tables = [_drop_table(table), *_excess_table(table)]
    text = "\n\n".join(_markdown(made) for made in tables)
    _replace(path, f"{text}\n".encode())
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
            picture = _panel(canvas, image, box, cmap="gray", vmin=0, vmax=1)
            if row:
                truth = arrays[f"{suite[case]}|{case}|truth|example"]
                error = max(float(np.mean((image - truth) ** 2)), 1e-12)
                _write_on(
                    canvas, x + 0.05, y + 0.05, f"{-10 * math.log10(error):.1f} dB"
                )
    _colour_bar(figure, picture, (bar + 0.03, head, 0.12, size), "image")
    return figure


# --- files ---------------------------------------------------------------------------


def _file(figure, kind: str = "png") -> bytes:
    buffer = io.BytesIO()
    # Without a date a PDF is the same every time.
    about = {"CreationDate": None} if kind == "pdf" else None
    figure.savefig(buffer, format=kind, dpi=DPI, metadata=about)
    return buffer.getvalue()


def _replace(path: Path, content: bytes) -> None:
    """Writes a file under another name first: a crash leaves the old file or the new."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


# --- page ----------------------------------------------------------------------------

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5b6570; --paper: #fff;
  --box: #f4f6f8; --line: #d8dee4; --mark: #0b6e4f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #9aa5b1;
  --paper: #14171a; --box: #1e2226; --line: #363c43; --mark: #5fd3a8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem 1rem 3rem; max-width: 70rem; color: var(--ink);
  background: var(--paper); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p { max-width: 46rem; margin: .5rem 0; }
.soft { color: var(--soft); font-size: .88rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr));
  gap: .7rem; margin: 1.2rem 0; padding: 0; list-style: none; }
.cards li { background: var(--box); border-radius: .5rem; padding: .7rem .9rem; }
.cards b { display: block; font-size: 1.35rem; color: var(--mark); }
.remarks { border-left: .25rem solid #d08700; margin: 1rem 0; padding: .2rem 1rem;
  background: var(--box); }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: .5rem; }
table { border-collapse: collapse; width: 100%; font-size: .88rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .7rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); font-weight: 600; white-space: normal; min-width: 4.4rem; }
tbody tr:last-child > * { border-bottom: 0; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--paper);
  white-space: normal; min-width: 8rem; max-width: 13rem; }
tbody th { font-weight: 500; }
.text { text-align: left; white-space: normal; }
td strong { color: var(--mark); }
figure { margin: 0; }
figure .wide { background: #fff; max-width: 60rem; }
img { display: block; width: 100%; min-width: 40rem; height: auto; }
figcaption { margin-top: .5rem; }
pre { overflow-x: auto; background: var(--box); padding: .8rem; border-radius: .5rem;
  font-size: .8rem; }
summary { cursor: pointer; font-weight: 600; margin-top: 2.2rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
"""
CAPTIONS = {
    "figure2.png": (
        "Examples",
        "One test image of each family: the truth, and what each method makes of its "
        "signal. With each image its absolute error and its PSNR at peak 1. One "
        "colour scale for all images and one for all errors.",
    ),
    "snr.png": (
        "Noise",
        "Mean PSNR on the same test images against the SNR of their signals, with 95 % "
        "intervals. Points are set side by side.",
    ),
    "samples.png": (
        "Samples of the training",
        "The same validation images at some validations, the newest last, with the mask "
        "of the network; first the truth with the true mask.",
    ),
    "training.png": (
        "Training",
        "Losses as minimised, before weighting; PSNR on the validation images; speed.",
    ),
}
PROVENANCE = (
    "name",
    "seed",
    "version",
    "commit",
    "python",
    "jax",
    "platform",
    "device",
)


def _page(run: Run, tables: list[Table], figures: dict[str, bytes]) -> str:
    """The report as one HTML text: styles and figures inside, nothing loaded."""
    title = f"Magnetic particle imaging: run {run.name}"
    remarks = "".join(f"<p>{html.escape(remark)}</p>" for remark in run.remarks)
    cards = "".join(
        f"<li><b>{html.escape(value)}</b>{html.escape(name)}</li>"
        for value, name in _headlines(run)
    )
    facts = [(key, run.config[key]) for key in PROVENANCE if key in run.config]
    evaluated = [(f"evaluation: {key}", value) for key, value in run.info.items()]
    provenance = "".join(
        f"<dt>{html.escape(key)}</dt><dd>{html.escape(_plain(value))}</dd>"
        for key, value in facts + evaluated
    )
    settings = json.dumps(run.config.get("config", {}), indent=2, ensure_ascii=False)
    images = {
        name: _html_figure(run, name, data)
        for name, data in figures.items()
        if name in CAPTIONS
    }
    shown = [_html_table(table) for table in tables]
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>",
            f"<h1>{html.escape(title)}</h1>",
            f'<div class="remarks" role="note">{remarks}</div>' if remarks else "",
            f'<ul class="cards">{cards}</ul>' if cards else "",
            *shown[:1],
            images.get("figure2.png", ""),
            *shown[1:],
            images.get("snr.png", ""),
            images.get("samples.png", ""),
            images.get("training.png", ""),
            f"<details><summary>Configuration</summary><pre>{html.escape(settings)}</pre>"
            "</details>",
            f"<h2>Provenance</h2><dl>{provenance}</dl>" if provenance else "",
            "</body>\n</html>\n",
        ]
    )


def _headlines(run: Run) -> list[tuple[str, str]]:
    cards = []
    ranked = sorted(
        (line for (_, family), line in run.rows.items() if family == "all"),
        key=lambda line: np.nan_to_num(_value(line, "psnr", "mean"), nan=-np.inf),
    )
    if ranked:
        best = ranked[-1]
        label = str(best.get("label", best["method"]))
        cards = [
            (f"{_value(best, 'psnr', 'mean'):.2f} dB", f"best mean PSNR: {label}"),
            (f"{_value(best, 'ssim', 'mean'):.3f}", "its SSIM"),
            (f"{_value(best, 'dice', 'mean'):.3f}", "its Dice overlap"),
            (str(run.info.get("num", best.get("num", "–"))), "test images"),
        ]
    if run.training:
        last = run.training[-1]
        cards.append(
            (f"{last['step']:,}", f"training steps, {last['images']:,} images")
        )
    return cards


def _html_table(table: Table) -> str:
    title = html.escape(table.title)
    head = "".join(
        f'<th scope="col"{" class=text" if c in TEXT_COLUMNS else ""}>'
        f"{html.escape(c)}</th>"
        for c in table.columns
    )
    body = []
    for i, (first, *rest) in enumerate(table.rows):
        cells = [f'<th scope="row">{html.escape(first)}</th>']
        for j, cell in enumerate(rest, start=1):
            text = html.escape(cell)
            text = f"<strong>{text}</strong>" if (i, j) in table.best else text
            kind = ' class="text"' if table.columns[j] in TEXT_COLUMNS else ""
            cells.append(f"<td{kind}>{text}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    notes = "".join(f'<p class="soft">{html.escape(note)}</p>' for note in table.notes)
    # The box scrolls, not the page; tabindex lets a keyboard scroll it too.
    return (
        f"<section><h2>{title}</h2>"
        f'<div class="wide" role="region" aria-label="{title}" tabindex="0"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
        f"{notes}</section>"
    )


def _html_figure(run: Run, name: str, content: bytes) -> str:
    title, caption = CAPTIONS[name]
    if name == "figure2.png":
        labels = ", ".join(str(label) for label in run.arrays["labels"])
        families = ", ".join(dict.fromkeys(str(f) for f in run.arrays["family"]))
        alt = f"Grid of images. Columns: ground truth, {labels}. Rows: {families}."
    elif name == "snr.png":
        alt = "Chart: mean PSNR of each method against the SNR of the test signals."
    elif name == "samples.png":
        steps = ", ".join(f"step {sample['step']}" for sample in run.samples)
        families = ", ".join(str(f) for f in run.samples[-1]["family"])
        alt = f"Grid of images. Columns: ground truth, {steps}. Rows: {families}."
    else:
        alt = "Four charts over training steps: losses, adversary, PSNR, images/s."
    data = base64.b64encode(content).decode()
    return (
        f'<section><h2>{title}</h2><figure><div class="wide" role="region" '
        f'aria-label="{title}" tabindex="0"><img alt="{html.escape(alt)}" '
        f'src="data:image/png;base64,{data}"></div>'
        f'<figcaption class="soft">{caption}</figcaption></figure></section>'
    )


def _plain(value) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m mpi_jax.report README.md results")
    page, folder = map(Path, sys.argv[1:])
    _replace(page, fill(page.read_text(encoding="utf-8"), folder).encode())
