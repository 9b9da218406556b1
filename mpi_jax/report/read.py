"""What a report reads of a work folder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from mpi_jax.results import (
    Examples,
    Info,
    Line,
    LogLine,
    RunInfo,
    Samples,
    Values,
    in_groups,
    read_lines,
)

T = TypeVar("T")
SAMPLES_SHOWN = 5  # validations, from the first to the newest


@dataclass(frozen=True)
class Run:
    """What a work folder holds; what it lacks is None or empty."""

    name: str
    info: RunInfo | None
    training: list[LogLine]
    validation: list[LogLine]
    # (method, family) -> numbers at the main SNR, in the groups of results.GROUPS
    lines: dict[tuple[str, str], Line]
    measured: Info | None
    examples: Examples | None
    levels: dict[tuple[float, str], Line]  # (SNR [dB], method), all families
    values: Values | None
    samples: list[Samples]  # of some validations, the newest last
    remarks: list[str]  # missing or unreadable parts, in words

    @property
    def main(self) -> list[Line]:
        """The lines over all families at the main SNR."""
        return [line for (_, family), line in self.lines.items() if family == "all"]


def read(workdir: Path) -> Run:
    """All of a work folder that a report shows.

    Raises ValueError if it is no work folder or one of its files can't be understood.
    """
    workdir = Path(workdir)
    evaluation = workdir / "evaluation"
    remarks: list[str] = []
    info = _if_there(RunInfo.read, workdir / "config.json")
    log, cut = _if_there(LogLine.read_all, workdir / "metrics.jsonl") or ([], 0)
    path = evaluation / "metrics.jsonl"
    lines = in_groups(read_lines(Line, path)) if path.is_file() else []
    if not (info or log or cut or lines):
        raise ValueError(
            f"workdir: expected a work folder with config.json, metrics.jsonl or "
            f"evaluation/, found none of them in {workdir}"
        )
    measured = _if_there(Info.read, evaluation / "info.json")
    examples = _if_there(Examples.read, evaluation / "arrays.npz")
    if not info:
        remarks.append("No config.json: the settings of this run are not known.")
    if not log:
        remarks.append("No training yet (metrics.jsonl): run mpi-jax train.")
    if cut:
        remarks.append(f"metrics.jsonl: {cut} unreadable line(s) left out.")
    if not lines:
        remarks.append("No evaluation yet (evaluation/): run mpi-jax evaluate.")
    if lines and not examples:
        remarks.append("No example images (evaluation/arrays.npz): no figure.")
    # A resumed run repeats steps: the later ones count.
    validation = {line.step: line for line in log if line.is_validation}
    training = {line.step: line for line in log if not line.is_validation}
    main = measured.snr_db if measured else lines[0].snr_db if lines else None
    return Run(
        name=info.name if info else workdir.resolve().name,
        info=info,
        training=[training[step] for step in sorted(training)],
        validation=[validation[step] for step in sorted(validation)],
        lines={(n.method, n.family): n for n in lines if n.snr_db == main},
        measured=measured,
        examples=examples,
        levels={(n.snr_db, n.method): n for n in lines if n.family == "all"},
        values=_if_there(Values.read, evaluation / "values.npz"),
        samples=_read_samples(workdir / "samples"),
        remarks=remarks,
    )


def mean_psnr(line: Line) -> float:
    """PSNR for a ranking; one that isn't known is the worst."""
    return float(np.nan_to_num(line.psnr.mean, nan=-np.inf)) if line.psnr else -np.inf


def _if_there(read_file: Callable[[Path], T], path: Path) -> T | None:
    return read_file(path) if path.is_file() else None


def _read_samples(folder: Path) -> list[Samples]:
    paths = sorted(folder.glob("*.npz"))
    places = np.linspace(0, len(paths) - 1, min(SAMPLES_SHOWN, len(paths)))
    return [Samples.read(paths[round(place)]) for place in places]
