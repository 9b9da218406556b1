"""The tables of a report."""

import math
from collections.abc import Sequence

from mpi_jax.report.cells import (
    EDGE,
    NOTHING,
    Column,
    best_cells,
    edge_notes,
    given_notes,
    interval,
    interval_text,
    mean,
    mean_and_spread,
    name_cell,
    plain,
    quantile,
    setting_text,
    spread,
)
from mpi_jax.report.comparisons import claims, seeds
from mpi_jax.report.curves import growth_tables
from mpi_jax.report.read import Run
from mpi_jax.results import Info, Line, Table

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

MSE = mean("MSE", lambda line: line.mse, -1)
RMSE = mean("RMSE", lambda line: line.rmse, -1)
PSNR = mean_and_spread("PSNR [dB]", lambda line: line.psnr, 1)
PSNR_INTERVAL = interval(lambda line: line.psnr, 2)
MEDIAN = quantile("median", lambda line: line.psnr, lambda s: s.median, 1)
SSIM = mean("SSIM", lambda line: line.ssim, 1)
DICE = mean("Dice", lambda line: line.dice, 1)
SECONDS = plain("s/image", lambda line: line.seconds_per_image, ".2g")
COLUMNS = (
    MSE,
    RMSE,
    mean("nRMSE", lambda line: line.nrmse, -1),
    PSNR,
    PSNR_INTERVAL,
    MEDIAN,
    quantile("5th pct.", lambda line: line.psnr, lambda s: s.p5, 1),
    plain("pooled", lambda line: line.pooled_psnr, ".2f", 1),
    SSIM,
    DICE,
    mean("IoU", lambda line: line.iou, 1),
    SECONDS,
)
# The same for what only some evaluations have.
MORE = (
    mean("Dice, mask", lambda line: line.dice, 1),
    interval(lambda line: line.dice, 4),
    mean("Dice, thresholded", lambda line: line.dice_thresholded, 1),
    mean("IoU, thresholded", lambda line: line.iou_thresholded, 1),
    mean("SSIM, foreground", lambda line: line.foreground_ssim, 1),
    interval(lambda line: line.foreground_ssim, 4),
    plain("amount, slope", lambda n: n.amount.slope if n.amount else None, ".3f"),
    plain("amount, bias", lambda n: n.amount.bias if n.amount else None, "+.3f"),
    mean("data residual", lambda line: line.residual, 0, ".3g"),
)
README_COLUMNS = (MSE, PSNR, PSNR_INTERVAL, MEDIAN, SSIM, DICE, SECONDS)


def tables_of(run: Run) -> list[Table]:
    """All tables of a run that was evaluated, in the order of the page."""
    main = run.main
    tables = [results_table(main, COLUMNS, "Results", _notes(run.measured, main))]
    if any(line.residual is not None for line in main):
        note = (
            "Dice and IoU of the mask that the method gives, and of its image "
            "above a fraction of its maximum, chosen on validation images. SSIM "
            "where the true mask is. Amount: the sum of an image; slope of the "
            "line through all images' sums against the true ones, and mean error "
            "over the mean: 1 and 0 are right. Data residual: |S x - u| over the "
            "norm of the noise; about 1 is right, less fits the noise."
        )
        tables.append(results_table(main, MORE, "Masks, amounts, fidelity", (note,)))
    tables += _family_table(run)
    tables.append(_paper_table(main))
    tables += _snr_table(run) + claims(run) + seeds(run) + growth_tables(run)
    tables.append(_settings_table(main))
    return tables


def results_table(
    lines: Sequence[Line],
    columns: Sequence[Column],
    title: str,
    notes: tuple[str, ...] = (),
    *,
    given: bool = True,
) -> Table:
    """A row for each line; groups of results.GROUPS one after the other, and said in a
    column of their own unless not `given`.
    """
    words = ("Method", "Given") if given else ("Method",)
    return Table(
        title=title,
        columns=(*words, *(column.title for column in columns)),
        rows=tuple(
            (
                *(name_cell(line), line.group)[: len(words)],
                *(column.text(line) for column in columns),
            )
            for line in lines
        ),
        notes=(*notes, *edge_notes(lines), *(given_notes(lines) if given else ())),
        best=best_cells(lines, columns, before=len(words)),
    )


def _family_table(run: Run) -> list[Table]:
    families = list(dict.fromkeys(f for _, f in run.lines if f != "all"))
    if not families:
        return []

    def cell(line: Line | None) -> str:
        return spread(line.psnr) if line and line.psnr else NOTHING

    rows = tuple(
        (
            name_cell(line),
            line.group,
            *(cell(run.lines.get((line.method, family))) for family in families),
        )
        for line in run.main
    )
    note = "Mean ± standard deviation over the images of the family."
    return [
        Table(
            title="PSNR by family [dB]",
            columns=("Method", "Given", *families),
            rows=rows,
            notes=(note, *edge_notes(run.main)),
        )
    ]


def _settings_table(main: Sequence[Line]) -> Table:
    rows = tuple(
        (
            name_cell(line),
            line.group,
            ", ".join(f"{k} = {setting_text(v)}" for k, v in line.settings.items())
            or NOTHING,
            line.segmentation,
        )
        for line in main
    )
    columns = ("Method", "Given", "Settings", "Mask")
    return Table(title="Settings", columns=columns, rows=rows, notes=edge_notes(main))


def _paper_table(main: Sequence[Line]) -> Table:
    """The paper's rows and ours like them; below, apart, ours with physics."""

    def numbers(line: Line) -> tuple[str, ...]:
        return tuple(column.text(line) for column in (MSE, RMSE, PSNR, SSIM))

    rows: list[tuple[str, ...]] = []
    for name, *printed, like in PAPER_TABLE:
        ours = [n for n in main if _variant(n) in like and n.group != "physics"]
        for line in ours:
            rows.append((name, name_cell(line), line.group, *numbers(line), *printed))
        if not ours:
            rows.append((name, *(NOTHING,) * 6, *printed))
    for line in main:
        if line.group == "physics":
            apart = ("not in the paper", name_cell(line), line.group)
            rows.append((*apart, *numbers(line), *(NOTHING,) * 3))
    return Table(
        title="Table 1 of the dual-task TransGAN paper, ours beside it",
        columns=(
            *("Method", "Ours", "Given", "MSE", "RMSE", "PSNR [dB]", "SSIM"),
            *("printed as RMSE, read as MSE", "printed PSNR [dB]", "printed SSIM"),
        ),
        rows=tuple(rows),
        notes=(
            "The last three columns are copied from the paper. Its data, noise and system "
            "matrix are not public: these numbers belong to other images and are not "
            "comparable with ours, the SSIM least of all (window and range not stated).",
            "The paper heads its error column RMSE. Mean PSNR is at least "
            "20 log10(1 / mean RMSE) for any images of peak 1; every printed row "
            "breaks that bound, by 10 to 20 dB, and keeps the one for MSE.",
        ),
    )


def _variant(line: Line) -> str:
    """What network a line belongs to (dual, matched, cnn, ...), else its method."""
    return line.network.variant if line.network else line.method


def _snr_table(run: Run) -> list[Table]:
    levels = sorted({snr for snr, _ in run.levels}, reverse=True)
    if len(levels) < 2:
        return []

    def cell(line: Line | None) -> str:
        if line is None or line.psnr is None:
            return NOTHING
        text = f"{line.psnr.mean:.2f} {interval_text(line.psnr, 2)}"
        return f"{text} {EDGE}" if line.at_edge else text

    rows = tuple(
        (
            line.label,
            line.group,
            *(cell(run.levels.get((snr, line.method))) for snr in levels),
        )
        for line in run.main
    )
    note = (
        "Mean over images with its 95 % interval. Classical methods, controls' settings "
        "and thresholds are tuned for each SNR; networks are as they were trained."
    )
    return [
        Table(
            title="PSNR by SNR of the signal [dB]",
            columns=("Method", "Given", *map(snr_name, levels)),
            rows=rows,
            notes=(note, *edge_notes(run.levels.values())),
        )
    ]


def snr_name(snr: float) -> str:
    """A level of noise in words."""
    return f"{snr:g} dB" if math.isfinite(snr) else "noise-free"


def _notes(info: Info | None, lines: Sequence[Line]) -> tuple[str, ...]:
    num = info.num if info else max((line.num for line in lines), default=0)
    facts = [f"{num} test images"]
    if info:
        facts += [
            " x ".join(str(n) for n in info.grid) + " pixels",
            f"SNR {info.snr_db} dB",
            f"noise: {info.noise}",
            f"signal model: {info.model}",
            f"seed {info.seed}",
            f"timed on {info.device}",
        ]
    return (
        "; ".join(facts) + ".",
        "Means over test images; PSNR at peak 1: mean ± standard deviation, median and "
        "5th percentile over images, and pooled, 10 log10(1 / mean MSE). "
        f"Intervals: {info.intervals if info else 'not recorded'}.",
        f"SSIM: {info.ssim if info else 'settings not recorded'}. Dice and IoU: of the "
        "predicted mask where the method has one, else of the thresholded image (see "
        "Settings). Bold: best of its column.",
    )
