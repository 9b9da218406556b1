"""Paired comparisons of runs, and of seeds."""

import re

import numpy as np

from mpi_jax import bootstrap
from mpi_jax.report.cells import Run, Table


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


def claims(run: Run) -> list[Table]:
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


def seeds(run: Run) -> list[Table]:
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
