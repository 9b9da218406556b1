"""What verbs share: files in, files out, settings of methods."""

from __future__ import annotations

import contextlib
import io
import json
import re
import zipfile
from pathlib import Path

import mpi_jax
from mpi_jax import configs

METHODS = (
    "xspace",
    "xspace_tensor",
    "kaczmarz",
    "cgnr",
    "tikhonov",
    "nonnegative",
    "tv",
    "elastic_net",
    "transgan",
)
SHIPPED = next(iter(configs.SHIPPED))  # the weights in use where none are named


# Settings of the solvers; which method takes which, and defaults, is pipeline.METHODS.
SETTINGS = {
    "lam": "ridge regularisation, relative: to the mean row energy per voxel (kaczmarz "
    "1e-2, cgnr 0, elastic_net 1e-3), to the largest singular value squared (tikhonov "
    "1e-4). For MDF files also l_curve or discrepancy: chosen out of a row of them for "
    "each frame, with a picture of the choice beside --out",
    "lam_tv": "weight of the total variation, relative likewise (tv 1e-6)",
    "l1": "weight of the sparsity, relative to the one that leaves nothing "
    "(elastic_net 0)",
    "rho": "penalty of the splitting, relative likewise (nonnegative, tv 3e-4, "
    "xspace_tensor 3e-3)",
    "width": "standard deviation of the gridding Gaussian (xspace), correlation length of "
    "the signal's tensor (xspace_tensor) [m]; default: from the gaps of the path",
    "iterations": "sweeps (kaczmarz 10) or steps (cgnr 10, nonnegative 20, tv 100, "
    "xspace_tensor 50, elastic_net 200)",
}


def _about(config, **more) -> str:
    """What made a file, as JSON."""
    version = {"version": mpi_jax.__version__, "seed": config.seed}
    return json.dumps({**version, **more, "config": configs.to_dict(config)})


def read_npz(path: Path, *names: str) -> dict:
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


def fields(settings, arguments: list[str], verb: str):
    """Settings (a dataclass) with the fields that command-line arguments name."""
    if not arguments:
        return settings
    import tyro

    words = io.StringIO()
    try:
        with contextlib.redirect_stderr(words), contextlib.redirect_stdout(words):
            return tyro.cli(type(settings), default=settings, args=arguments)
    except SystemExit:
        # Its message is a box of several lines; keep the words.
        text = re.sub(r"\x1b\[[0-9;]*m|[╭╮╰╯│─]+", " ", words.getvalue())
        raise ValueError(
            f"{' '.join(arguments)}: {' '.join(text.split())[:300]} "
            f"(mpi-jax {verb} --help lists the fields)"
        ) from None


def print_table(workdir: Path) -> None:
    table = (workdir / "report" / "table.md").read_text()
    print(table.split("\n\n")[0] if table.startswith("|") else table)
