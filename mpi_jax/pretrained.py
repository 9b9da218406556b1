"""Weights that ship with the package, and the file format of all exported weights."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from mpi_jax._files import write_atomically
from mpi_jax.configs import SHIPPED

Params = dict[str, Any]  # nested, of arrays


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
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != SHIPPED[name]:
        raise ValueError(
            f"{path}: expected the released file with SHA-256 {SHIPPED[name]}, got {digest}"
        )
    return path


def export_weights(path: Path, params: Params, metadata: Mapping[str, object]) -> None:
    """Write parameters (a nested dict) to one safetensors file, with metadata as JSON.

    An existing file is replaced whole or not at all.
    """
    flat = {
        "/".join(k): np.asarray(v)
        for k, v in flatten_dict(jax.device_get(params)).items()
    }
    about = {"mpi_jax": json.dumps(metadata)}
    # Not save_file: what it writes nobody but its owner may read, whatever the umask.
    write_atomically(path, safetensors.numpy.save(flat, about))


def load_weights(path: Path) -> tuple[Params, dict[str, Any]]:
    """(parameters, metadata) of a file of export_weights; the metadata of a run's weights
    is a results.RunInfo.

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
