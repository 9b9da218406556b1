"""Paired comparisons of runs, and of seeds."""

import re
from dataclasses import dataclass, field

import numpy as np

from mpi_jax import bootstrap
from mpi_jax.report.cells import NOTHING
from mpi_jax.report.read import Run
from mpi_jax.results import Network, Table, Values


@dataclass(frozen=True)
class Group:
    """Networks that differ by their seed only."""

    label: str
    given: str
    network: Network  # of the first of them
    methods: list[str] = field(default_factory=list)


def _groups(run: Run) -> list[Group]:
    groups: dict[str, Group] = {}
    for line in run.main:
        if line.network is not None:
            label = re.sub(r"(, (seed|run) \d+)+$", "", line.label)
            fresh = Group(label, line.group, line.network)
            groups.setdefault(line.network.group, fresh).methods.append(line.method)
    return list(groups.values())


def _stack(values: Values, group: Group, metric: str) -> np.ndarray:
    """Values [S, N] of a group's runs on the main test signals."""
    return np.stack([values.main(method, metric) for method in group.methods])


def _difference(
    values: Values, one: Group, other: Group, first: str, second: str
) -> str:
    """Mean of a metric of one less that of another metric of the other, in words."""
    difference = bootstrap.paired(
        _stack(values, one, first), _stack(values, other, second)
    )
    low, high = difference["low"], difference["high"]
    verdict = "better" if low > 0 else "worse" if high < 0 else "not told apart"
    digits = 2 if first == "psnr" else 4
    numbers = (f"{difference[k]:+.{digits}f}" for k in ("difference", "low", "high"))
    return "{} [{}, {}] {}".format(*numbers, verdict)


def _compared(one: Group, other: Group) -> tuple[str, str] | None:
    """How a dual-task network and another differ, where it is in one thing alone; and
    the metric of the other's masks.
    """
    a, b = one.network, other.network
    if bool(a.rank) != bool(b.rank) or one is other:
        return None
    same_masks = (a.bce, a.dice) == (b.bce, b.dice)
    same_adversary = a.adversarial == b.adversarial
    if b.variant in ("matched", "single") and same_adversary:
        return f"{one.label} against {other.label}", "dice_thresholded"
    if b.variant == "dual" and same_masks and a.adversarial > 0 == b.adversarial:
        return f"{one.label} against the same without adversary", "dice"
    lighter = (a.bce, a.dice) < (b.bce, b.dice)
    if b.variant == "dual" and same_adversary and lighter:
        return f"{one.label} against {other.label}", "dice"
    return None


def claims(run: Run) -> list[Table]:
    """Does the second task help? Paired differences of the runs that are there."""
    values = run.values
    if values is None:
        return []
    groups, rows = _groups(run), []
    for one in groups:
        if one.network.variant != "dual":
            continue
        for other in groups:
            if compared := _compared(one, other):
                words, mask = compared
                cells = [
                    _difference(values, one, other, first, second)
                    for first, second in (("psnr",) * 2, ("ssim",) * 2, ("dice", mask))
                ]
                count = f"{len(one.methods)}, {len(other.methods)}"
                rows.append((words, one.given, *cells, count))
        dice = _difference(values, one, one, "dice", "dice_thresholded")
        words = f"{one.label}: its mask against its own thresholded image"
        count = f"{len(one.methods)}"
        rows.append((words, one.given, NOTHING, NOTHING, dice, count))
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
    return [
        Table(
            title="Do the two tasks promote each other?",
            columns=("Compared", "Given", "PSNR [dB]", "SSIM", "Dice", "seeds"),
            rows=tuple(rows),
            notes=notes,
        )
    ]


def seeds(run: Run) -> list[Table]:
    """Networks of several seeds: means with intervals over images and seeds."""
    rows = []
    for group in _groups(run) if run.values else []:
        if run.values and len(group.methods) > 1:
            cells = [group.label, group.given, str(len(group.methods))]
            for metric in ("psnr", "ssim", "dice"):
                values = _stack(run.values, group, metric)
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
    numbers = ("PSNR [dB]", "95 %", "SSIM", "95 %", "Dice", "95 %")
    note = "Mean ± standard deviation over seeds; intervals over images and seeds."
    return [
        Table(
            title="Several seeds",
            columns=("Method", "Given", "seeds", *numbers),
            rows=tuple(rows),
            notes=(note,),
        )
    ]
