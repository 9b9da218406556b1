"""Arrays of results as .npz files with a schema, and what is looked at in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from mpi_jax._files import read_npz, save_npz
from mpi_jax.results.record import SCHEMA


def save_arrays(path: Path, arrays: dict[str, object]) -> None:
    named = {name: np.asarray(array) for name, array in arrays.items()}
    save_npz(path, {"schema": np.array(SCHEMA), **named})


def read_arrays(path: Path, *names: str) -> dict[str, np.ndarray]:
    arrays = read_npz(path, *names)
    schema = arrays.get("schema", np.array(1))
    if schema.shape != () or schema not in (1, SCHEMA):
        raise ValueError(
            f"{path}: expected schema 1 or {SCHEMA}, got {schema!r}, of another version "
            "of mpi_jax"
        )
    return arrays


def check_shapes(path: Path, arrays: dict[str, np.ndarray], count: int) -> None:
    shape = arrays["truth"].shape
    wrong = [n for n, a in arrays.items() if a.shape != shape]
    if len(shape) != 3 or shape[0] != count or wrong:
        raise ValueError(
            f"{path}: expected images and masks of one shape [{count}, ny, nx], got "
            f"{list(shape)} for truth, others for {', '.join(wrong) or 'none'}"
        )


def check_lengths(path: Path, count: int, arrays: Iterable[np.ndarray]) -> None:
    if wrong := [a.shape for a in arrays if a.shape != (count,)]:
        raise ValueError(
            f"{path}: expected numbers [{count}], one for each image, got {wrong[0]}"
        )


def read_pixel_size(path: Path, arrays: dict[str, np.ndarray]) -> tuple[float, float]:
    size = arrays["pixel_size"]
    if size.shape != (2,) or not (size > 0).all():
        raise ValueError(f"{path}: expected pixel_size (x, y) > 0 [m], got {size}")
    return float(size[0]), float(size[1])


def joined(path: Path, words: Sequence[str]) -> str:
    if any("|" in word for word in words):
        raise ValueError(f"{path}: expected names without '|', got {list(words)}")
    return "|".join(words)
