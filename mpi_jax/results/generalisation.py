"""Robustness suites: lines, table, values."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from mpi_jax.results.arrays import joined, read_arrays, save_arrays
from mpi_jax.results.method import MethodInfo
from mpi_jax.results.record import SCHEMA, JsonRecord, Setting, Statistics


@dataclass(frozen=True, kw_only=True)
class Change:
    """A mean with its 95 % interval; of a drop, above 0 is worse."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class GeneralisationLine(MethodInfo, JsonRecord):
    """Numbers of one method in one case of a suite."""

    AGAIN: ClassVar[str] = "generalise"

    suite: str
    case: str
    num: int
    shows: tuple[str, ...]  # the numbers that the table has
    settings: dict[str, Setting] = field(default_factory=dict)
    at_edge: tuple[str, ...] = ()
    against: str | None = None  # "in distribution", or the method it is compared with
    paired: bool | None = None
    drop: Change | None = None  # of the PSNR
    excess: Change | None = None  # of the drop, over that of the first network
    psnr: Statistics | None = None
    ssim: Statistics | None = None
    mse: Statistics | None = None
    rmse: Statistics | None = None
    nrmse: Statistics | None = None
    dice: Statistics | None = None
    iou: Statistics | None = None
    superposition: Statistics | None = None
    unseen_energy: Statistics | None = None
    unseen_error: Statistics | None = None
    rms: Statistics | None = None
    largest: Statistics | None = None


@dataclass(frozen=True, kw_only=True)
class GeneralisationCell:
    """The mean of a row's quantity, and how far it fell."""

    mean: float
    drop: Change | None = None
    excess: Change | None = None


@dataclass(frozen=True, kw_only=True)
class GeneralisationRow:
    suite: str
    case: str
    quantity: str  # in words
    in_db: bool  # a PSNR: two digits, and its drop beside
    cells: dict[str, GeneralisationCell]  # by method


@dataclass(frozen=True, kw_only=True)
class GeneralisationTable(JsonRecord):
    """All that is printed and drawn of the suites."""

    AGAIN: ClassVar[str] = "generalise"

    methods: tuple[MethodInfo, ...]
    rows: tuple[GeneralisationRow, ...]
    first_network: str | None = None  # excesses are over its drops
    num: int
    snr_db: float
    grid: tuple[int, int]
    model: str
    bootstrap: str
    device: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class GeneralisationValues:
    """Values of each image, and the first image of cases whose shapes are new."""

    numbers: dict[
        tuple[str, str, str, str], np.ndarray
    ]  # (suite, case, method, metric)
    truths: dict[tuple[str, str], np.ndarray]  # (suite, case) -> [ny, nx]
    images: dict[tuple[str, str, str], np.ndarray]  # (suite, case, method) -> [ny, nx]

    def write(self, path: Path) -> None:
        parts: list[tuple[tuple[str, ...], np.ndarray]] = [
            *((("number", *k), v) for k, v in self.numbers.items()),
            *((("truth", *k), v) for k, v in self.truths.items()),
            *((("image", *k), v) for k, v in self.images.items()),
        ]
        save_arrays(path, {joined(path, name): v for name, v in parts})

    @classmethod
    def read(cls, path: Path) -> GeneralisationValues:
        values = cls(numbers={}, truths={}, images={})
        for name, v in read_arrays(path).items():
            match name.split("|"):
                case ["number", suite, case, method, metric]:
                    values.numbers[suite, case, method, metric] = v
                case ["truth", suite, case]:
                    values.truths[suite, case] = v
                case ["image", suite, case, method]:
                    values.images[suite, case, method] = v
                case ["schema"]:
                    pass
                case _:
                    raise ValueError(
                        f"{path}: expected arrays of schema {SCHEMA}, got {name!r}; run "
                        "mpi-jax generalise again"
                    )
        return values
