"""Curves of a report."""

import math
import textwrap

import numpy as np

from mpi_jax.report.cells import Run, _value
from mpi_jax.report.tables import DPI, snr_name


def training_figure(run: Run):
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


def snr_figure(run: Run):
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
    axes.set_xticks([at[s] for s in levels], [snr_name(s) for s in levels])
    axes.set_xlabel("power SNR of the signal", fontsize=9)
    axes.set_ylabel("PSNR [dB]", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure
