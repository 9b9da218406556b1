"""The verbs demo and train."""

from __future__ import annotations

import dataclasses
import time

from mpi_jax import configs
from mpi_jax.cli.arguments import fields, print_table
from mpi_jax.cli.progress import Progress

# --- Verbs


def demo(options) -> None:
    from mpi_jax import pretrained, report, runs, train
    from mpi_jax.evaluation import table

    began = time.monotonic()
    config = configs.get(options.config)
    # Beside what is trained here: weights that ship for the same scanner. All of them
    # are shown the same signals, sampled as those that the weights were trained on.
    folders = []
    for name in configs.SHIPPED:
        stored = pretrained.load_weights(pretrained.shipped(name))[1]["config"]
        other = configs.from_dict(stored)
        oversample = other.scanner.oversample
        scanner = dataclasses.replace(config.scanner, oversample=oversample)
        same = (other.scanner, other.data.test_snr_db)
        if same == (scanner, config.data.test_snr_db):
            config = dataclasses.replace(config, scanner=scanner)
            folders.append(options.workdir / f"shipped_{name}")
    with Progress() as tell:
        train.run(config, options.workdir, resume=options.resume, tell=tell)
        for folder in folders:
            name = folder.name.removeprefix("shipped_")
            runs.unpack(pretrained.shipped(name), folder)
        table.run(options.workdir, runs=folders, num=options.num, tell=tell)
    page = report.write(options.workdir)
    print_table(options.workdir)
    print(f"\n{time.monotonic() - began:.0f} s. Open {page}")


def _train(options) -> None:
    from mpi_jax import train

    config = fields(configs.get(options.config), options.rest, "train")
    with Progress() as tell:
        result = train.run(config, options.workdir, resume=options.resume, tell=tell)
    if result:
        print(
            f"{options.workdir}: validation PSNR {result['validation_psnr']:.2f} dB, "
            f"SSIM {result['validation_ssim']:.3f}, Dice {result['validation_dice']:.3f}"
        )
    else:
        print(f"{options.workdir}: all {config.steps} steps were done already")
