"""The verb figure3."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mpi_jax._spelling import expect_one_of
from mpi_jax.cli.progress import Progress


@dataclasses.dataclass(frozen=True)
class Options:
    """The paper's Figure 3: measured Open MPI phantoms by the system matrix and by
    networks trained on one plane of its calibration, beside the drawing of the phantoms.
    Writes figure3.png, figure3.pdf, table.md.
    """

    runs: tuple[Path, ...]
    """Work folders of runs of open_mpi configs: one calibration, plane and grid."""
    measurements: tuple[Path, ...]
    """MDF measurements, one for each phantom."""
    out: Path
    """Folder of the figure."""
    phantoms: tuple[str, ...] = ("shape", "resolution")
    """Which phantom each measurement is of: shape, resolution, concentration."""
    calibration: Path | None = None
    """The MDF calibration. Default: in the place that the runs know."""
    periods: tuple[int, int] | None = None
    """Periods of the measurements with the phantom's plane in the calibration's, the first
    and the one behind the last. Default: those with its offset field."""
    background: str = "mean"
    """What the measurements lose: none, or their background frames' mean or
    interpolated."""


def run(options: Options) -> None:
    """Reconstruct, draw the figure, print its table."""
    from mpi_jax import phantoms, report
    from mpi_jax.evaluation import figure3

    for name in options.phantoms:
        expect_one_of("--phantoms", name, phantoms.open_mpi.PHANTOMS)
    with Progress() as tell:
        figure3.run(
            options.runs,
            options.measurements,
            options.phantoms,
            options.out,
            calibration=options.calibration,
            periods=options.periods,
            background=options.background,
            tell=tell,
        )
    path = report.write_measured(options.out)
    print(path.read_text())
    print(f"{options.out / 'figure3.png'}, {options.out / 'figure3.pdf'}, {path}")
