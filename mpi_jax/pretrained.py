"""Weights that ship with the package, and the file format of all exported weights."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from mpi_jax.configs import SHIPPED


def shipped(name: str) -> Path:
    """The file of the weights that ship for a config, after a look at its hash.

    Raises ValueError for a config without, and for a file that isn't the one released.
    """
    if name not in SHIPPED:
        raise ValueError(
            f"weights: expected a config that they ship for ({', '.join(SHIPPED)}), "
            f"got {name!r}; train it, and name its work folder"
        )
    path = Path(__file__).parent / "weights" / f"{name}.safetensors"
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SHIPPED[name]:
        raise ValueError(
            f"{path}: expected the released file with SHA-256 {SHIPPED[name]}, got {found}"
        )
    return path


def export_weights(path: Path, params: Any, metadata: dict) -> None:
    """Write parameters (a nested dict) to one safetensors file, with metadata as JSON.

    Under a temporary name first: an existing file is replaced whole or not at all.
    """
    path = Path(path)
    flat = {
        "/".join(k): np.asarray(v)
        for k, v in flatten_dict(jax.device_get(params)).items()
    }
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        safetensors.numpy.save_file(flat, part, {"mpi_jax": json.dumps(metadata)})
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load_weights(path: Path) -> tuple[Any, dict]:
    """(parameters, metadata) of a file of export_weights.

    Raises FileNotFoundError, or ValueError for a file that isn't one or is cut short.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "no weights file", str(path))
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = json.loads((file.metadata() or {})["mpi_jax"])
            flat = {tuple(k.split("/")): file.get_tensor(k) for k in file.keys()}
    except (safetensors.SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path}: expected a safetensors file written by mpi_jax, got one that "
            f"can't be read ({' '.join(str(error).split())})"
        ) from error
    return unflatten_dict(flat), metadata
