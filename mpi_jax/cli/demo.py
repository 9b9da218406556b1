"""The verb demo."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mpi_jax import configs
from mpi_jax.cli.files import check_num
from mpi_jax.cli.progress import Progress

if TYPE_CHECKING:
    from mpi_jax import results


@dataclasses.dataclass(frozen=True)
class Options:
    """The main job, small: train, evaluate, report. Minutes on two CPU cores."""

    workdir: Path = Path("mpi_jax_demo")
    """Work folder."""
    config: str = "small"
    """Name of a config; `mpi-jax configs` lists them."""
    num: int = 600
    """Test images."""
    resume: bool = False
    """Go on with the run that the folder holds, from its newest checkpoint."""


def run(options: Options) -> None:
    """Train, evaluate beside classical methods and shipped networks, write the page."""
    began = time.monotonic()
    config = configs.get(options.config)
    from mpi_jax import phantoms, pretrained, report, runs, train
    from mpi_jax.evaluation import table

    check_num(options.num, len(phantoms.FAMILIES))
    shipped = {n: options.workdir / f"shipped_{n}" for n in _beside(config)}
    with Progress() as tell:
        train.run(config, options.workdir, resume=options.resume, tell=tell)
        for name, folder in shipped.items():
            runs.unpack(pretrained.shipped(name), folder)
        folders = list(shipped.values())
        lines = table.run(options.workdir, runs=folders, num=options.num, tell=tell)
    page = report.write(options.workdir)
    print(_table(lines))
    print(f"\n{time.monotonic() - began:.0f} s. Open {Path(page).resolve()}")


def _beside(config: configs.Config) -> list[str]:
    """Configs whose shipped weights know this scanner and its test signals."""
    from mpi_jax import pretrained

    names = []
    for name in configs.SHIPPED:
        metadata = pretrained.load_weights(pretrained.shipped(name))[1]
        shipped_config = configs.from_dict(metadata["config"])
        signals = (shipped_config.scanner, shipped_config.data.test_snr_db)
        if signals == (config.scanner, config.data.test_snr_db):
            names.append(name)
    return names


def _table(lines: Sequence[results.Line]) -> str:
    """The lines of an evaluation over all families, as text."""
    rows = [("method", "PSNR [dB]", "SSIM", "Dice", "s/image")]
    for line in lines:
        if line.family == "all" and line.psnr and line.ssim and line.dice:
            numbers = (line.psnr.mean, line.ssim.mean, line.dice.mean)
            psnr, ssim, dice = numbers
            words = f"{psnr:.2f}", f"{ssim:.4f}", f"{dice:.4f}"
            rows.append((line.label, *words, f"{line.seconds_per_image:.2g}"))
    width = max(len(label) for label, *_ in rows)
    return "\n".join(
        f"{label:{width}}" + "".join(f"{number:>11}" for number in numbers)
        for label, *numbers in rows
    )
