"""The verb evaluate."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mpi_jax._spelling import expect_one_of
from mpi_jax.cli.files import check_num, print_table
from mpi_jax.cli.progress import Progress


@dataclasses.dataclass(frozen=True)
class Options:
    """Tune and measure methods on test images. Several processes share the work; a call
    that was cut off is gone on with."""

    workdir: Path
    """Work folder of a run."""
    shipped: str | None = None
    """Make the work folder out of the weights that ship with the package, of this config:
    small64, small32."""
    methods: tuple[str, ...] = ()
    """Some of xspace, xspace_tensor, kaczmarz, cgnr, tikhonov, elastic_net, nonnegative,
    tv, and the run's network by the name of its config; controls zero, mean, nearest,
    ridge, xspace_max, kaczmarz_max. Default: xspace, kaczmarz, tikhonov, nonnegative, tv,
    and the network where the run has weights."""
    runs: tuple[Path, ...] = ()
    """Further work folders of the same scanner and test settings, whose networks are
    evaluated beside."""
    snr: tuple[float, ...] = ()
    """Power SNRs of the test signals [dB], as inf 60 40 30 20; methods are tuned for each.
    Default: the config's."""
    num: int = 600
    """Test images."""


def run(options: Options) -> None:
    """Evaluate, write the report, print its first table."""
    from mpi_jax import cluster

    with cluster.join():
        _evaluate(options)


def _evaluate(options: Options) -> None:
    from mpi_jax import cluster, phantoms, pretrained, report, runs
    from mpi_jax.evaluation import table

    check_num(options.num, len(phantoms.FAMILIES))

    def prepare() -> None:
        if options.shipped is not None:
            runs.unpack(pretrained.shipped(options.shipped), options.workdir)
        check_methods(options.methods, options.workdir)

    def tell_results() -> None:
        report.write(options.workdir)
        print_table(options.workdir)

    cluster.on_lead(prepare)
    with Progress() as tell:
        table.run(
            options.workdir,
            names=options.methods or None,
            runs=options.runs,
            num=options.num,
            snr=options.snr or None,
            tell=tell,
        )
    cluster.on_lead(tell_results)


def check_methods(names: tuple[str, ...], workdir: Path) -> None:
    """ValueError for a method that is none, and not the run's network, before any work."""
    from mpi_jax import runs
    from mpi_jax.methods.table import METHODS

    known = (*METHODS, runs.read_config(workdir).name)
    for name in names:
        expect_one_of("--methods", name, known)
