"""Methods measured on test images: lines, summary, values, examples."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from mpi_jax._files import Json
from mpi_jax.results.arrays import (
    check_lengths,
    check_shapes,
    read_arrays,
    read_pixel_size,
    save_arrays,
)
from mpi_jax.results.method import Kind, MethodInfo, Network
from mpi_jax.results.record import (
    SCHEMA,
    UNKNOWN,
    JsonRecord,
    Setting,
    Statistics,
    commit_known,
)


@dataclass(frozen=True, kw_only=True)
class Amounts:
    """Sums of images against the true sums: slope 1 and bias 0 are right."""

    slope: float
    bias: float  # mean error over the mean


@dataclass(frozen=True, kw_only=True)
class Line(MethodInfo, JsonRecord):
    """Numbers of one method on the test images of a family ("all": of every family)."""

    snr_db: float
    family: str
    num: int
    settings: dict[str, Setting] = field(default_factory=dict)
    at_edge: tuple[str, ...] = ()  # settings found at an end of what was tried
    segmentation: Literal["predicted", "thresholded"] = "thresholded"
    network: Network | None = None
    mse: Statistics | None = None
    rmse: Statistics | None = None
    nrmse: Statistics | None = None
    psnr: Statistics | None = None
    ssim: Statistics | None = None
    foreground_ssim: Statistics | None = None
    dice: Statistics | None = None
    iou: Statistics | None = None
    dice_thresholded: Statistics | None = None
    iou_thresholded: Statistics | None = None
    residual: Statistics | None = None  # |S x - u| over the norm of the noise
    amount: Amounts | None = None
    pooled_psnr: float | None = None
    seconds_per_image: float | None = None

    @classmethod
    def upgraded(cls, value: dict[str, Json], where: str) -> dict[str, Json]:
        value = {"label": value.get("method"), "num": 0, **value}
        about = value.pop("about", None)
        if isinstance(about, dict) and about:
            about = commit_known(about)
            names = {"kind": "variant", "physics": "rank"}
            value["network"] = {names.get(n, n): v for n, v in about.items()}
            value["physics"] = bool(about.get("physics"))
        return {"kind": kind_of_version_1(value.get("method")), **value}


@dataclass(frozen=True, kw_only=True)
class Info(JsonRecord):
    """What was measured, and how."""

    num: int
    snr_db: float  # of the main test signals
    noise: str
    model: str
    seed: int
    seconds: float
    device: str
    ssim: str
    intervals: str = "not recorded"
    grid: tuple[int, int]  # (ny, nx)


@dataclass(frozen=True, kw_only=True)
class Summary(Info):
    """The main lines over all families, with all that a table says of them."""

    config: str
    run: str = ""  # method of the network of the work folder; "": wasn't evaluated
    commit: str = UNKNOWN
    version: str = UNKNOWN
    trained_on: str = UNKNOWN
    rows: tuple[Line, ...]
    schema: int = SCHEMA  # of the file that it was read from

    @classmethod
    def of(cls, value: dict[str, Json], where: str) -> Summary:
        schema = value.get("schema", 1)
        summary = super().of(value, where)
        if not summary.rows:
            raise ValueError(f"{where}: expected rows of methods, got none")
        return dataclasses.replace(summary, schema=1 if schema == 1 else SCHEMA)

    @classmethod
    def upgraded(cls, value: dict[str, Json], where: str) -> dict[str, Json]:
        value, rows = commit_known(value), value.get("rows")
        if not isinstance(rows, list):
            raise ValueError(f"{where}: expected a summary of mpi-jax evaluate")
        more: dict[str, Json] = {"family": "all", "snr_db": value.get("snr_db")}
        rows = [n | more if isinstance(n, dict) else n for n in rows]
        named = [n.get("method") for n in rows if isinstance(n, dict)]
        value["run"] = _RUN_OF_VERSION_1 if _RUN_OF_VERSION_1 in named else ""
        value["rows"] = [
            Line.upgraded(n, where) if isinstance(n, dict) else n for n in rows
        ]
        return value

    def as_json(self) -> dict[str, Json]:
        """With six digits: enough for tables, and small files to commit."""
        rounded = _rounded(super().as_json())
        assert isinstance(rounded, dict)
        return rounded | {"schema": SCHEMA}


@dataclass(frozen=True, kw_only=True, eq=False)
class Values:
    """Every number of every test image."""

    main_snr_db: float
    family: np.ndarray  # [N] names
    # (SNR [dB], method, metric) -> [N]
    numbers: dict[tuple[float, str, str], np.ndarray]

    def main(self, method: str, metric: str) -> np.ndarray:
        """[N], at the main SNR."""
        return self.numbers[self.main_snr_db, method, metric]

    def write(self, path: Path) -> None:
        about = {"main_snr_db": self.main_snr_db, "family": self.family}
        named = {
            f"{float(snr)!r}/{method}/{metric}": np.asarray(v, np.float32)
            for (snr, method, metric), v in self.numbers.items()
        }
        save_arrays(path, about | named)

    @classmethod
    def read(cls, path: Path) -> Values:
        arrays = read_arrays(path, "main_snr_db", "family")
        numbers = {}
        for name in (n for n in arrays if "/" in n):
            snr, rest = name.split("/", 1)
            method, metric = rest.rsplit("/", 1)
            numbers[float(snr), method, metric] = arrays[name]
        check_lengths(path, len(arrays["family"]), numbers.values())
        main = float(arrays["main_snr_db"])
        return cls(main_snr_db=main, family=arrays["family"], numbers=numbers)


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """One test image of each family: the truth, and what each method makes of it."""

    truth: np.ndarray  # [F, ny, nx] from 0 to 1
    mask: np.ndarray  # [F, ny, nx] 0 or 1
    family: tuple[str, ...]
    pixel_size: tuple[float, float]  # (x, y) [m]
    labels: dict[str, str]  # of the methods, in their order
    images: dict[str, np.ndarray]  # method -> [F, ny, nx]
    masks: dict[str, np.ndarray]

    def write(self, path: Path) -> None:
        save_arrays(
            path,
            {
                "truth": self.truth,
                "mask": self.mask,
                "family": np.array(self.family),
                "pixel_size": np.array(self.pixel_size),
                "methods": np.array(list(self.labels)),
                "labels": np.array(list(self.labels.values())),
                **{f"image_{m}": v for m, v in self.images.items()},
                **{f"mask_{m}": v for m, v in self.masks.items()},
            },
        )

    @classmethod
    def read(cls, path: Path) -> Examples:
        names = ("truth", "mask", "family", "pixel_size", "methods", "labels")
        methods = [str(m) for m in read_arrays(path, *names)["methods"]]
        each = [f"{kind}_{m}" for m in methods for kind in ("image", "mask")]
        arrays = read_arrays(path, *names, *each)
        pictures = {n: arrays[n] for n in ("truth", "mask", *each)}
        check_shapes(path, pictures, len(arrays["family"]))
        labels = [str(label) for label in arrays["labels"]]
        if len(labels) != len(methods):
            raise ValueError(f"{path}: expected a label for each method, got {labels}")
        return cls(
            truth=arrays["truth"],
            mask=arrays["mask"],
            family=tuple(map(str, arrays["family"])),
            pixel_size=read_pixel_size(path, arrays),
            labels=dict(zip(methods, labels, strict=True)),
            images={m: arrays[f"image_{m}"] for m in methods},
            masks={m: arrays[f"mask_{m}"] for m in methods},
        )


def _rounded(value: Json) -> Json:
    if isinstance(value, dict):
        return {name: _rounded(v) for name, v in value.items()}
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


# --- Version 1

_RUN_OF_VERSION_1 = "transgan"  # whatever the network of the work folder was
_CONTROLS_OF_VERSION_1 = (
    *("zero", "mean", "nearest", "ridge", "xspace_max", "kaczmarz_max"),
)
_CLASSICAL_OF_VERSION_1 = (
    *("xspace", "xspace_tensor", "kaczmarz", "tikhonov", "nonnegative", "tv"),
)


def kind_of_version_1(method: Json) -> Kind:
    """Which files of version 1 leave to the names that methods had then."""
    if method in _CONTROLS_OF_VERSION_1:
        return "control"
    return "classical" if method in _CLASSICAL_OF_VERSION_1 else "learned"
