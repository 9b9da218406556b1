"""The verb check."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mpi_jax.cli.options import POSITIONAL


@dataclasses.dataclass(frozen=True)
class Options:
    """What in an MDF file contradicts the format; exit code 2 if any."""

    file: Path = dataclasses.field(metadata=POSITIONAL)
    """MDF file (.mdf, .h5)."""


def run(options: Options) -> None:
    """Print every contradiction; ValueError where there are any."""
    from mpi_jax import mdf

    problems = mdf.check(options.file)
    if problems:
        print("\n".join(problems))
        raise ValueError(f"{options.file}: {len(problems)} contradictions (above)")
    print(f"{options.file}: nothing to complain about")
