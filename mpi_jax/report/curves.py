"""How networks grow with the number of images that they were trained on."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from mpi_jax import bootstrap
from mpi_jax.report.cells import NOTHING, formatted, interval_text
from mpi_jax.report.images import DPI, quiet
from mpi_jax.report.read import Run, mean_psnr
from mpi_jax.results import Line, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TAIL = 30  # budgets from this part of the largest on are fitted
_DIFFERENCE = re.compile(r", (budget of [\d,]+ images|(seed|run) \d+)")


@dataclass(frozen=True)
class Growth:
    """Networks that differ in their budget and seed only: images -> runs."""

    label: str
    given: str
    runs: dict[int, list[Line]] = field(default_factory=dict)


@dataclass(frozen=True)
class PowerLaw:
    """mean PSNR = start + slope log10(images): an error that falls as a power of them.

    meets: images at which that line is level with a reference; each with the ends of its
    interval.
    """

    start: float
    slope: tuple[float, float, float]  # dB for ten times the images
    meets: tuple[float, float, float]


def power_law(
    images: Sequence[int],
    psnr: Sequence[Float[np.ndarray, "_S _N"]],
    reference: Float[np.ndarray, " _N"],
) -> PowerLaw:
    """Least squares through the means; intervals by a bootstrap over images and runs.

    psnr: of the runs of each number of images, [S, N]; reference: of another method on
    the same N test images. Raises ValueError for fewer than two numbers of images.
    """
    if len(set(images)) < 2 or len(images) != len(psnr):
        raise ValueError(
            f"images: expected two numbers or more, one for each of {len(psnr)} groups "
            f"of runs, got {list(images)}"
        )
    x = np.log10(np.asarray(images, float))

    def fitted(means, level):
        slope, start = np.polyfit(x, means, 1)
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            return start, slope, 10 ** ((level - start) / slope)

    *means, level = bootstrap.means(*psnr, reference)
    start, slope, meets = fitted(
        np.array([np.mean(values, dtype=float) for values in psnr]), np.mean(reference)
    )
    _, slopes, crossings = fitted(np.stack(means), level)
    # A line that falls never meets what is above it. No mean of infinite numbers here.
    crossings = np.where(slopes > 0, crossings, math.inf)
    low, high = np.percentile(crossings, [2.5, 97.5], method="nearest")
    return PowerLaw(
        float(start),
        (float(slope), *bootstrap.ends(slopes)),
        (float(meets) if slope > 0 else math.inf, float(low), float(high)),
    )


def growths(run: Run) -> list[Growth]:
    """Networks of the table of which there are several budgets."""
    by_label: dict[str, Growth] = {}
    for line in run.main:
        if line.network is not None and line.network.budget is not None:
            label = _DIFFERENCE.sub("", line.label)
            growth = by_label.setdefault(label, Growth(label, line.group))
            growth.runs.setdefault(line.network.budget, []).append(line)
    return [growth for growth in by_label.values() if len(growth.runs) > 1]


def best_classical(run: Run) -> Line | None:
    """The line of the classical method with the best mean PSNR."""
    lines = [n for n in run.main if n.kind == "classical" and n.psnr is not None]
    return max(lines, key=mean_psnr, default=None)


def law_of(run: Run, growth: Growth) -> PowerLaw | None:
    """The power law of its larger budgets; None where values or a reference lack."""
    reference = best_classical(run)
    largest = max(growth.runs)
    images = sorted(n for n in growth.runs if n * TAIL >= largest)
    if run.values is None or reference is None or len(images) < 2:
        return None
    values = run.values
    psnr = [
        np.stack([values.main(line.method, "psnr") for line in growth.runs[n]])
        for n in images
    ]
    return power_law(images, psnr, values.main(reference.method, "psnr"))


def growth_tables(run: Run) -> list[Table]:
    """PSNR, SSIM and Dice of every budget, and the power laws."""
    every, reference = growths(run), best_classical(run)
    if not every:
        return []
    numbers = ("PSNR [dB]", "95 %", "SSIM", "95 %", "Dice", "95 %")
    tables = [
        Table(
            title="More images",
            columns=("Method", "Given", "images", *numbers),
            rows=tuple(row for growth in every for row in _rows(growth)),
        )
    ]
    laws = [(g, law) for g in every if (law := law_of(run, g)) is not None]
    if laws and reference is not None:
        columns = (
            "Method",
            "ten times the images [dB]",
            f"level with {reference.label}",
        )
        rows = (
            (g.label, _interval(law.slope, "+.2f"), _interval(law.meets, ".1e"))
            for g, law in laws
        )
        note = (
            f"Least squares through mean PSNR against log10(images), budgets from a {TAIL}th "
            "of the largest on; 95 % intervals by a bootstrap over test images and runs. "
            "How far a line holds beyond its points is not known."
        )
        title = "What ten times the images bring"
        tables.append(
            Table(title=title, columns=columns, rows=tuple(rows), notes=(note,))
        )
    return tables


def _rows(growth: Growth) -> Iterator[tuple[str, ...]]:
    for images, lines in sorted(growth.runs.items()):
        for line in lines:
            cells = [growth.label, growth.given, f"{images:,}"]
            for statistics, digits in ((line.psnr, 2), (line.ssim, 4), (line.dice, 4)):
                mean = (
                    formatted(f".{digits}f")(statistics.mean) if statistics else NOTHING
                )
                cells += [
                    mean,
                    interval_text(statistics, digits) if statistics else NOTHING,
                ]
            yield tuple(cells)


def _interval(numbers: tuple[float, float, float], form: str) -> str:
    texts = [f"{n:{form}}" if math.isfinite(n) else "never" for n in numbers]
    return "{} [{}, {}]".format(*texts)


def growth_figure(run: Run) -> "Figure":
    """PSNR, SSIM and Dice against images, power laws dotted, the best classical method."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), dpi=DPI, layout="constrained", facecolor="white")
    reference = best_classical(run)
    panels = figure.subplots(1, 3)
    for axes, metric, title in zip(
        panels, ("psnr", "ssim", "dice"), ("PSNR [dB]", "SSIM", "Dice"), strict=True
    ):
        for i, growth in enumerate(growths(run)):
            points = [
                (images, getattr(line, metric))
                for images, lines in sorted(growth.runs.items())
                for line in lines
                if getattr(line, metric) is not None
            ]
            x = np.array([images for images, _ in points])
            mean = np.array([s.mean for _, s in points])
            ends = np.array([[s.mean - s.low, s.high - s.mean] for _, s in points]).T
            axes.errorbar(
                x, mean, yerr=ends, color=f"C{i}", marker="osD^v"[i % 5],
                markersize=4, linewidth=1.2, capsize=2, label=growth.label,
            )  # fmt: skip
            law = law_of(run, growth) if metric == "psnr" else None
            if law is not None:
                line = np.array([max(x) / TAIL, 10 * max(x)])
                fitted = law.start + law.slope[0] * np.log10(line)
                axes.plot(line, fitted, color=f"C{i}", linestyle=":", linewidth=1)
        if reference is not None and getattr(reference, metric) is not None:
            level = getattr(reference, metric).mean
            axes.axhline(
                level, color="0.4", linestyle="--", linewidth=1, label=reference.label
            )
        axes.set_xscale("log")
        axes.set_xlabel("training images", fontsize=9)
        axes.set_title(title, fontsize=10, loc="left")
        quiet(axes)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=2, fontsize=8, frameon=False
    )
    return figure
