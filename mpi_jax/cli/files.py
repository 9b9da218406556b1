"""What verbs share: files in, files out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

MDF = (".mdf", ".h5", ".hdf5")  # how names of MDF files end


def save_npz(
    path: Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]
) -> None:
    """An .npz file of arrays, with what made them as JSON."""
    import numpy as np

    from mpi_jax import _files

    text = json.dumps(about, default=lambda a: np.asarray(a).tolist())
    _files.save_npz(path, {**arrays, "about": np.array(text)})


def check_out(path: Path, suffixes: tuple[str, ...] = (".npz",)) -> None:
    """Complain about an unusable output path before the work, not after it."""
    if path.suffix not in suffixes:
        raise ValueError(
            f"--out: expected a name that ends in {' or '.join(suffixes)}, got {path}"
        )
    if not path.parent.is_dir():
        raise ValueError(f"--out: folder {path.parent} doesn't exist")


def check_num(num: int, least: int = 1) -> None:
    """ValueError for too few images, before any work."""
    if num < least:
        few = "one image of each family, " if least > 1 else ""
        raise ValueError(f"--num: expected at least {least}, {few}got {num}")


def print_table(workdir: Path) -> None:
    """The first table of an evaluation."""
    table = (workdir / "report" / "table.md").read_text()
    print(table.split("\n\n")[0] if table.startswith("|") else table)
