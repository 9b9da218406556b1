"""The verb generalise."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mpi_jax._spelling import expect_one_of
from mpi_jax.cli.evaluate import check_methods
from mpi_jax.cli.files import check_num
from mpi_jax.cli.progress import Progress


@dataclasses.dataclass(frozen=True)
class Options:
    """How far methods fall on other shapes, vessels, noise, scanners and concentrations,
    and what they invent: one table."""

    workdir: Path
    """Work folder of a run."""
    runs: tuple[Path, ...] = ()
    """Further work folders, on the same scanner, whose networks take part."""
    methods: tuple[str, ...] = ()
    """Some of xspace, xspace_tensor, kaczmarz, cgnr, tikhonov, elastic_net, nonnegative,
    tv, and the run's network by the name of its config. Default: tikhonov, kaczmarz,
    nonnegative, and the network where the run has weights."""
    num: int = 60
    """Images a case."""
    suites: tuple[str, ...] = ()
    """Some of families, shapes, vessels, snr, operator, linearity, hallucination.
    Default: all. Finished ones are not measured again."""


def run(options: Options) -> None:
    """Measure the suites and print the table."""
    from mpi_jax import cluster

    with cluster.join():
        _generalise(options)


def _generalise(options: Options) -> None:
    from mpi_jax import cluster, phantoms, report
    from mpi_jax.evaluation import cases, generalise

    check_num(options.num, len(phantoms.FAMILIES))
    cluster.on_lead(lambda: check_methods(options.methods, options.workdir))
    for suite in options.suites:
        expect_one_of("--suites", suite, cases.SUITES)
    with Progress() as tell:
        generalise.run(
            options.workdir,
            runs=options.runs,
            names=options.methods or None,
            num=options.num,
            suites=options.suites or None,
            tell=tell,
        )

    def tell_results() -> None:
        path = report.write_generalisation(options.workdir)
        print(path.read_text(), end="")

    cluster.on_lead(tell_results)
