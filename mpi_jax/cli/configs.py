"""The verb configs."""

from __future__ import annotations

import dataclasses

from mpi_jax import configs


@dataclasses.dataclass(frozen=True)
class Options:
    """The configs as a table: name, what, image size, network."""


def run(options: Options) -> None:
    """Print a line for each config."""
    rows = [["name", "what", "image size", "network"]]
    for name, what in configs.CONFIGS.items():
        config = configs.get(name)
        pixels = config.scanner.pixels
        rows.append([name, what, f"{pixels} x {pixels}", config.generator])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    for row in rows:
        cells = (f"{cell:{width}}" for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
