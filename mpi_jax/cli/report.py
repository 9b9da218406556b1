"""The verb report."""

from __future__ import annotations

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Options:
    """Tables, figures and report.html of a work folder."""

    workdir: Path
    """Work folder of a run, also of one under way."""


def run(options: Options) -> None:
    """Write the report; print where it is."""
    from mpi_jax import report

    print(report.write(options.workdir))
