"""The verb train."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from mpi_jax import configs
from mpi_jax.cli.options import value_of
from mpi_jax.cli.progress import Progress

_HELP_CONFIG = "small"  # whose settings --help shows where no config is named


@dataclasses.dataclass(frozen=True)
class Options:
    """Train a config in a work folder. Every field of the config is an option.

    Defaults of these are those of the config: `mpi-jax train --config NAME --help` shows
    them, without a name those of `small`.
    """

    config: str
    """Name of a config; `mpi-jax configs` lists them."""
    workdir: Path
    """Work folder: new, empty, or with --resume that of the same config."""
    resume: bool = False
    """Go on with the run that the folder holds, from its newest checkpoint."""
    init: str | None = None
    """Start from these weights: a file, or a config that weights ship for."""
    overrides: configs.Config = dataclasses.field(
        default_factory=lambda: configs.get(_HELP_CONFIG)
    )


def defaults(arguments: Sequence[str]) -> dict[str, object]:
    """The named config's settings, where one is named."""
    name = value_of("--config", arguments)
    return {} if name is None else {"overrides": configs.get(name)}


def run(options: Options) -> None:
    """Train, and print how good the network is on validation images."""
    from mpi_jax import cluster, pretrained, train

    init = options.init and Path(options.init)
    if options.init in configs.SHIPPED:
        init = pretrained.shipped(options.init)
    with cluster.join(stops=True), Progress() as tell:
        result = train.run(
            options.overrides,
            options.workdir,
            resume=options.resume,
            init=init or None,
            tell=tell,
        )
        if cluster.is_lead():
            _print(options, result)


def _print(options: Options, result: dict[str, float]) -> None:
    if result:
        print(
            f"{options.workdir}: validation PSNR {result['validation_psnr']:.2f} dB, "
            f"SSIM {result['validation_ssim']:.3f}, Dice {result['validation_dice']:.3f}"
        )
    else:
        steps = options.overrides.steps
        print(f"{options.workdir}: all {steps} steps were done already")
