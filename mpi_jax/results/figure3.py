"""Measured phantoms: lines and images of Figure 3."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from mpi_jax._files import Json
from mpi_jax.results.arrays import (
    check_shapes,
    read_arrays,
    read_pixel_size,
    save_arrays,
)
from mpi_jax.results.method import MethodInfo
from mpi_jax.results.record import JsonRecord, Setting


@dataclass(frozen=True, kw_only=True)
class Figure3Line(MethodInfo, JsonRecord):
    """A measured phantom by one method, against its nominal place and filling."""

    AGAIN: ClassVar[str] = "figure3"

    phantom: str
    mask: str  # where the mask is from
    settings: dict[str, Setting] = field(default_factory=dict)
    at_edge: tuple[str, ...] = ()
    nrmse: float
    psnr: float  # [dB], at the largest true value
    correlation: float
    dice: float  # of what is above half the largest value
    mask_dice: float
    iron: float  # [umol] in the plane
    true_iron: float
    factor: float  # that fits the truth best; the next two are with it
    scaled_nrmse: float
    scaled_psnr: float
    residual: float  # of the signal, relative


@dataclass(frozen=True, kw_only=True, eq=False)
class Figure3Images:
    truth: np.ndarray  # [K, ny, nx] [mmol/L]
    phantoms: tuple[str, ...]  # K names
    pixel_size: tuple[float, float]
    images: dict[str, np.ndarray]  # method -> [K, ny, nx] [mmol/L]
    masks: dict[str, np.ndarray]
    about: dict[str, Json]  # the files and settings that it was made of

    def write(self, path: Path) -> None:
        methods = list(self.images)
        save_arrays(
            path,
            {
                "truth": self.truth,
                "phantoms": np.array(self.phantoms),
                "pixel_size": np.array(self.pixel_size),
                "methods": np.array(methods),
                "about": np.array(json.dumps(self.about)),
                **{f"image_{n}": self.images[m] for n, m in enumerate(methods)},
                **{f"mask_{n}": self.masks[m] for n, m in enumerate(methods)},
            },
        )

    @classmethod
    def read(cls, path: Path) -> Figure3Images:
        names = ("truth", "phantoms", "pixel_size", "methods", "about")
        methods = [str(m) for m in read_arrays(path, *names)["methods"]]
        each = [f"{k}_{n}" for n in range(len(methods)) for k in ("image", "mask")]
        arrays = read_arrays(path, *names, *each)
        pictures = {n: arrays[n] for n in ("truth", *each)}
        check_shapes(path, pictures, len(arrays["phantoms"]))
        return cls(
            truth=arrays["truth"],
            phantoms=tuple(map(str, arrays["phantoms"])),
            pixel_size=read_pixel_size(path, arrays),
            images={m: arrays[f"image_{n}"] for n, m in enumerate(methods)},
            masks={m: arrays[f"mask_{n}"] for n, m in enumerate(methods)},
            about=json.loads(str(arrays["about"])),
        )
