"""The work folder of a run: its config, log, samples and weights."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import platform
import subprocess
from pathlib import Path

import jax
import numpy as np

import mpi_jax
from mpi_jax import configs, pretrained
from mpi_jax._files import write_atomically
from mpi_jax.configs import Config


def export(workdir, weights, step, config, result) -> None:
    about = json.loads((workdir / "config.json").read_text())
    about |= {"step": step, "images": step * config.data.batch_size, **result}
    pretrained.export_weights(workdir / "weights.safetensors", weights, about)


def best_psnr(path: Path) -> float:
    lines = (json.loads(line) for line in path.read_text().splitlines())
    return max(
        (n["validation_psnr"] for n in lines if "validation_psnr" in n),
        default=-math.inf,
    )


class Log(contextlib.AbstractContextManager):
    """Lines of metrics.jsonl, and the same numbers as TensorBoard scalars if wanted."""

    def __init__(self, workdir: Path, config: Config, done: int):
        self.batch_size = config.data.batch_size
        self.file = open(workdir / "metrics.jsonl", "a")
        self.board = None
        if config.tensorboard:
            # Events of steps that a resumed run repeats are dropped on display.
            folder = str(workdir / "tensorboard")
            self.board = tensorboard().SummaryWriter(folder, purge_step=done + 1)

    def write(self, step: int, numbers: dict, seconds: float = 0.0) -> None:
        line = {"step": step, "images": step * self.batch_size}
        if seconds:
            line["seconds"] = round(seconds, 3)
        self.file.write(json.dumps({**line, **numbers}) + "\n")
        self.file.flush()
        if self.board is not None:
            for name, value in numbers.items():
                self.board.add_scalar(name, value, step)
            self.board.flush()

    def __exit__(self, *_):
        self.file.close()
        if self.board is not None:
            self.board.close()


def tensorboard():
    try:
        import tensorboardX
    except ImportError:
        raise ValueError(
            "tensorboard: expected tensorboardX to be installed; "
            "pip install 'mpi_jax[tensorboard]', or leave the option out"
        ) from None
    return tensorboardX


def write_samples(workdir: Path, step: int, samples: dict) -> None:
    """samples/STEP.npz, whole or not at all."""
    (workdir / "samples").mkdir(exist_ok=True)
    content = io.BytesIO()
    np.savez_compressed(content, step=step, **samples)
    write_atomically(workdir / "samples" / f"{step:08d}.npz", content.getvalue())


def keep_lines(path: Path, step: int) -> None:
    """Drop metrics after the checkpoint that training resumes from, and broken lines."""
    kept = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    write_atomically(path, "".join(f"{line}\n" for line in kept))


# Settings that may change between a run and its resumption.
_FREE = (
    *("log_every", "checkpoint_every", "validation_images", "tensorboard"),
    "data.folder",
)


def prepare(workdir: Path, config: Config, resume: bool) -> None:
    path = workdir / "config.json"
    wanted = json.loads(json.dumps(configs.to_dict(config)))
    if path.exists():
        if not resume:
            raise ValueError(
                f"{workdir}: expected a new folder, but it holds a run; "
                "pass --resume to go on with it"
            )
        have = read_config(workdir)
        have = json.loads(json.dumps(configs.to_dict(have)))
        differing = [
            f"{name} is {have_value!r} there and {wanted_value!r} here"
            for name, have_value, wanted_value in _differences(have, wanted)
            if name not in _FREE
        ]
        if differing:
            raise ValueError(
                f"{workdir}: holds a run of another config: {differing[0]}"
            )
        return
    if workdir.exists() and any(workdir.iterdir()):
        raise ValueError(
            f"{workdir}: expected a new or empty folder, but it holds other files"
        )
    workdir.mkdir(parents=True, exist_ok=True)
    device = jax.local_devices()[0]
    text = {
        "name": config.name,
        "seed": config.seed,
        "version": mpi_jax.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "platform": device.platform,
        "device": f"{jax.local_device_count()} x {device.device_kind}, "
        f"{os.cpu_count()} CPU cores",
        "config": wanted,
    }
    write_atomically(path, json.dumps(text, indent=1))


def _differences(a: dict, b: dict, prefix: str = ""):
    for name in a:
        if isinstance(a[name], dict):
            yield from _differences(a[name], b[name], f"{prefix}{name}.")
        elif a[name] != b[name] and not (_is_nan(a[name]) and _is_nan(b[name])):
            yield prefix + name, a[name], b[name]


def _is_nan(value) -> bool:
    return isinstance(value, float) and math.isnan(value)


def unpack(path: Path, workdir: Path) -> None:
    """Make a work folder out of a weights file: to evaluate and use, not to resume.

    Does nothing where the folder has them already. Raises ValueError where it holds
    something else.
    """
    path, workdir = Path(path), Path(workdir)
    content, about = path.read_bytes(), pretrained.load_weights(path)[1]
    own = workdir / "weights.safetensors"
    if own.exists() and own.read_bytes() == content:
        return
    if workdir.exists() and any(workdir.iterdir()):
        raise ValueError(
            f"{workdir}: expected a new or empty folder, or one with {path.name} alone"
        )
    workdir.mkdir(parents=True, exist_ok=True)
    write_atomically(workdir / "config.json", json.dumps(about, indent=1))
    write_atomically(own, content)


def read_config(workdir: Path) -> Config:
    """The config of a work folder; ValueError where there is none to read."""
    path = Path(workdir) / "config.json"
    try:
        return configs.from_dict(json.loads(path.read_text())["config"])
    except FileNotFoundError:
        raise ValueError(
            f"{workdir}: expected a work folder of a run, but it has no config.json"
        ) from None
    except (json.JSONDecodeError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: can't be read as a config ({error})") from None


def _commit() -> str | None:
    """Commit of the checkout that the package runs from, None outside of one."""
    here = Path(__file__).resolve().parent
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    tracked = (here.parent / ".git").exists()
    return found.stdout.strip() or None if tracked and found.returncode == 0 else None
