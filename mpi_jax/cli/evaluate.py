"""The verbs evaluate, generalise, figure3 and report."""

from __future__ import annotations

from mpi_jax.cli.arguments import print_table
from mpi_jax.cli.progress import Progress


def _evaluate(options) -> None:
    from mpi_jax import pretrained, report, runs
    from mpi_jax.evaluation import table

    if options.shipped is not None:
        runs.unpack(pretrained.shipped(options.shipped), options.workdir)
    with Progress() as tell:
        table.run(
            options.workdir,
            methods=options.methods,
            runs=options.runs,
            num=options.num,
            snr=options.snr,
            tell=tell,
        )
    report.write(options.workdir)
    print_table(options.workdir)


def _figure3(options) -> None:
    from mpi_jax import report
    from mpi_jax.evaluation import figure3

    with Progress() as tell:
        figure3.run(
            options.runs,
            options.measurements,
            options.phantoms,
            options.out,
            calibration=options.calibration,
            periods=None if options.periods is None else tuple(options.periods),
            background=options.background,
            tell=tell,
        )
    path = report.write_measured(options.out)
    print(path.read_text())
    print(f"{options.out / 'figure3.png'}, {options.out / 'figure3.pdf'}, {path}")


def _generalise(options) -> None:
    from mpi_jax import report
    from mpi_jax.evaluation import generalise

    with Progress() as tell:
        generalise.run(
            options.workdir,
            runs=options.runs,
            methods=options.methods,
            num=options.num,
            suites=options.suites,
            tell=tell,
        )
    print(report.write_generalisation(options.workdir).read_text(), end="")


def _report(options) -> None:
    from mpi_jax import report

    print(report.write(options.workdir))
