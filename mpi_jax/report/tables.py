"""The tables of a report."""

import math

import numpy as np

from mpi_jax.report.cells import Run, Table, _cell, _value
from mpi_jax.report.comparisons import claims, seeds

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
TRUTH_COLOUR, MASK_COLOUR = "#35c3ff", "#ff9d2e"  # blue, orange: for colour-blind eyes
DPI = 160


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
    tables += _snr_table(run, labels) + claims(run) + seeds(run)
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
    columns = ("Method", *(snr_name(snr) for snr in levels))
    return [Table("PSNR by SNR of the signal [dB]", columns, rows, (note,))]


def snr_name(snr: float) -> str:
    return f"{snr:g} dB" if math.isfinite(snr) else "noise-free"


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
