"""What verbs share: files in, files out."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mpi_jax
from mpi_jax import configs

if TYPE_CHECKING:
    import numpy as np

MDF = (".mdf", ".h5", ".hdf5")  # how names of MDF files end


def about(config: configs.Config, **more: Any) -> str:
    """What made a file, as JSON."""
    version = {"version": mpi_jax.__version__, "seed": config.seed}
    return json.dumps({**version, **more, "config": configs.to_dict(config)})


def read_npz(path: Path, *names: str) -> dict[str, np.ndarray]:
    """Arrays of an .npz file; ValueError for files that can't be read or lack one."""
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("a single array")
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise ValueError(
            f"{path}: expected an .npz file of arrays, got one that can't be read "
            f"({' '.join(str(error).split())[:120]})"
        ) from None
    missing = [name for name in names if name not in arrays]
    if missing:
        raise ValueError(
            f"{path}: expected the arrays {', '.join(names)}; missing "
            f"{', '.join(missing)}, it holds {', '.join(arrays) or 'none'}"
        )
    return arrays


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
