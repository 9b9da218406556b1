"""A run: config.json (and the metadata of weights), its log, its samples."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from mpi_jax._files import Json, read_json_lines
from mpi_jax.results.arrays import check_shapes, read_arrays, save_arrays
from mpi_jax.results.record import UNKNOWN, JsonRecord, Statistics, commit_known


@dataclass(frozen=True, kw_only=True)
class TestNumbers:
    """What shipped weights reached on test images."""

    __test__: ClassVar[bool] = False  # no class of tests, whatever pytest thinks

    num: int
    snr_db: float
    device: str
    model: str
    psnr: Statistics | None = None
    ssim: Statistics | None = None
    mse: Statistics | None = None
    dice: Statistics | None = None
    iou: Statistics | None = None


@dataclass(frozen=True, kw_only=True)
class Start:
    """One start of a run: at which step, when, by whom."""

    step: int
    time: str  # ISO 8601, UTC
    hosts: tuple[str, ...]  # of every process
    devices: str
    version: str
    commit: str
    python: str
    jax: str


@dataclass(frozen=True, kw_only=True)
class InitialWeights:
    """The file that a run's weights started from."""

    file: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class RunInfo(JsonRecord):
    """What a run is, and what made it.

    init, starts: of a work folder; from `step` on: in the metadata of weights alone.
    """

    config: dict[str, object]  # configs.to_dict
    name: str = UNKNOWN
    seed: int = 0
    version: str = UNKNOWN
    commit: str = UNKNOWN
    python: str = UNKNOWN
    jax: str = UNKNOWN
    platform: str = UNKNOWN
    device: str = UNKNOWN
    init: InitialWeights | None = None
    starts: tuple[Start, ...] = ()
    step: int | None = None
    images: int | None = None  # seen in training
    validation_psnr: float | None = None
    validation_ssim: float | None = None
    validation_dice: float | None = None
    test: TestNumbers | None = None

    @classmethod
    def upgraded(cls, value: dict[str, Json], where: str) -> dict[str, Json]:
        return commit_known(value)


@dataclass(frozen=True, kw_only=True)
class LogLine(JsonRecord):
    """Means over the steps since the last line, or (alone) a validation."""

    step: int
    images: int  # seen so far
    seconds: float | None = None
    images_per_second: float | None = None
    generator_loss: float | None = None
    mae: float | None = None
    bce: float | None = None
    dice: float | None = None
    adversarial: float | None = None
    discriminator_loss: float | None = None
    gradient_norm: float | None = None
    validation_psnr: float | None = None
    validation_ssim: float | None = None
    validation_dice: float | None = None

    @property
    def is_validation(self) -> bool:
        return self.validation_psnr is not None

    @classmethod
    def read_all(cls, path: Path) -> tuple[list[LogLine], int]:
        """Lines of a file, and the number of those that a kill has cut short."""
        values, broken = read_json_lines(path)
        return [cls.of(value, where) for where, value in values], len(broken)


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """Some validation images, and what a network made of them at one step."""

    step: int
    truth: np.ndarray  # [N, ny, nx] from 0 to 1
    true_mask: np.ndarray  # [N, ny, nx] 0 or 1
    image: np.ndarray
    mask: np.ndarray
    family: np.ndarray  # [N] names

    def write(self, path: Path) -> None:
        save_arrays(
            path, {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        )

    @classmethod
    def read(cls, path: Path) -> Samples:
        names = [f.name for f in dataclasses.fields(cls)]
        arrays = read_arrays(path, *names)
        images = {n: arrays[n] for n in names if n not in ("step", "family")}
        check_shapes(path, images, len(arrays["family"]))
        return cls(step=int(arrays["step"]), family=arrays["family"], **images)
