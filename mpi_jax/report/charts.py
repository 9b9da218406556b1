"""Curves of a report."""

import math
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from mpi_jax.report.images import DPI, quiet
from mpi_jax.report.read import Run
from mpi_jax.report.tables import snr_name
from mpi_jax.results import LogLine, Statistics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curve = Callable[[LogLine], float | None]


def training_figure(run: Run) -> "Figure":
    """Losses, adversary, validation and speed over the steps of a training."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.6), dpi=DPI, layout="constrained", facecolor="white")
    panels: tuple[tuple[str, list[LogLine], dict[str, Curve]], ...] = (
        (
            "Losses",
            run.training,
            {
                "generator loss": lambda line: line.generator_loss,
                "mae": lambda line: line.mae,
                "bce": lambda line: line.bce,
                "dice": lambda line: line.dice,
            },
        ),
        (
            "Adversary",
            run.training,
            {
                "adversarial": lambda line: line.adversarial,
                "discriminator loss": lambda line: line.discriminator_loss,
            },
        ),
        (
            "Validation PSNR [dB]",
            run.validation,
            {"PSNR": lambda line: line.validation_psnr},
        ),
        (
            "Images per second",
            run.training,
            {"images per second": lambda line: line.images_per_second},
        ),
    )
    losses, adversary, validation, speed = figure.subplots(2, 2).flat
    every = (losses, adversary, validation, speed)
    for axes, (title, lines, curves) in zip(every, panels, strict=True):
        for label, curve in curves.items():
            points = [(n.step, value) for n in lines if (value := curve(n)) is not None]
            if points:
                marker = "." if len(points) < 40 else None
                axes.plot(
                    *zip(*points, strict=True), marker=marker, lw=1.3, label=label
                )
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel("step", fontsize=9)
        quiet(axes)
        if not axes.lines:
            axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center")
        elif len(curves) > 1:
            # Above the axes, beside the title: no curve can run under it.
            place = {"loc": "lower right", "bbox_to_anchor": (1, 0.98), "ncols": 4}
            axes.legend(fontsize=8, frameon=False, columnspacing=1, **place)
    losses.set_yscale("log", nonpositive="mask")
    speed.set_ylim(0, 1.08 * speed.get_ylim()[1])
    return figure


def snr_figure(run: Run) -> "Figure":
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
        psnr = [line.psnr or Statistics(mean=math.nan) for _, line in lines]
        mean = np.array([s.mean for s in psnr])
        low, high = np.array([s.low for s in psnr]), np.array([s.high for s in psnr])
        axes.errorbar(
            # Side by side: intervals of several methods don't hide each other.
            x + 0.25 * (i - (len(methods) - 1) / 2),
            mean,
            yerr=[mean - low, high - mean],
            label=textwrap.fill(lines[0][1].label, 30),
            color=f"C{i % 10}",
            marker="osD^v<>Pp*"[i % 10],
            markersize=4,
            linestyle=("-", "--", ":")[i // 10 % 3],
            linewidth=1.2,
            capsize=2,
        )
    axes.set_xticks([at[s] for s in levels], [snr_name(s) for s in levels])
    axes.set_xlabel("power SNR of the signal", fontsize=9)
    axes.set_ylabel("PSNR [dB]", fontsize=9)
    quiet(axes)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure
