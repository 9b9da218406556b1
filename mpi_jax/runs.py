"""The work folder of a run: its config, log, samples and weights.

config.json          results.RunInfo
metrics.jsonl        results.LogLine, one for each `log_every` steps or validation
samples/STEP.npz     results.Samples, at each validation
checkpoints/         of train.checkpoint
weights.safetensors  of the best validation, with a results.RunInfo as metadata
init.safetensors     what training started from, where it was given
lock                 while a training is at work: who it is
tensorboard/         if asked for
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import importlib
import json
import math
import os
import platform
import subprocess
import warnings
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

import mpi_jax
from mpi_jax import configs, pretrained
from mpi_jax._files import write_atomically
from mpi_jax.configs import Config
from mpi_jax.results import (
    UNKNOWN,
    InitialWeights,
    LogLine,
    RunInfo,
    Samples,
    Start,
    write_lines,
)

CONFIG, LOG, WEIGHTS = "config.json", "metrics.jsonl", "weights.safetensors"
INIT, LOCK = "init.safetensors", "lock"
BUILT_FROM = "commit.txt"  # of a package that setup.py has built


def export(
    workdir: Path, weights: Any, step: int, config: Config, validation: dict[str, float]
) -> None:
    """weights.safetensors, with the folder's config and what validation gave beside."""
    line = LogLine(step=step, images=step * config.data.batch_size, **validation)
    info = dataclasses.replace(
        read_info(workdir),
        # How often a run was stopped is not a property of its weights.
        starts=(),
        step=line.step,
        images=line.images,
        validation_psnr=line.validation_psnr,
        validation_ssim=line.validation_ssim,
        validation_dice=line.validation_dice,
    )
    pretrained.export_weights(workdir / WEIGHTS, weights, info.as_json())


def best_psnr(path: Path) -> float:
    """The best validation of a log [dB]; -inf where there is none yet."""
    lines, _ = LogLine.read_all(path)
    each = (line.validation_psnr for line in lines)
    return max((psnr for psnr in each if psnr is not None), default=-math.inf)


class Log(contextlib.AbstractContextManager):
    """Lines of metrics.jsonl, and the same numbers as TensorBoard scalars if wanted."""

    def __init__(self, workdir: Path, config: Config, done: int):
        self.batch_size = config.data.batch_size
        self.file = open(workdir / LOG, "a")
        self.board = None
        if config.tensorboard:
            # Events of steps that a resumed run repeats are dropped on display.
            folder = str(workdir / "tensorboard")
            self.board = tensorboard().SummaryWriter(folder, purge_step=done + 1)

    def write(
        self, step: int, numbers: dict[str, float], seconds: float | None = None
    ) -> None:
        """One line. numbers: fields of results.LogLine; TypeError for others."""
        line = LogLine(
            step=step,
            images=step * self.batch_size,
            seconds=None if seconds is None else round(seconds, 3),
            **numbers,
        )
        self.file.write(json.dumps(line.as_json()) + "\n")
        self.file.flush()
        if self.board is not None:
            for name, value in numbers.items():
                self.board.add_scalar(name, value, step)
            self.board.flush()

    def __exit__(self, *_: object) -> None:
        self.file.close()
        if self.board is not None:
            self.board.close()


def tensorboard() -> ModuleType:
    """The module tensorboardX. Raises ValueError where it isn't installed."""
    try:
        return importlib.import_module("tensorboardX")
    except ImportError:
        raise ValueError(
            "tensorboard: expected tensorboardX to be installed; "
            "pip install 'mpi_jax[tensorboard]', or leave the option out"
        ) from None


def write_samples(workdir: Path, step: int, samples: dict[str, np.ndarray]) -> None:
    """samples/STEP.npz. samples: the fields of results.Samples but the step."""
    folder = workdir / "samples"
    folder.mkdir(exist_ok=True)
    Samples(step=step, **samples).write(folder / f"{step:08d}.npz")


def keep_lines(path: Path, step: int) -> None:
    """Drop metrics after the checkpoint that training resumes from, and broken lines."""
    lines, _ = LogLine.read_all(path) if path.exists() else ([], 0)
    write_lines(path, [line for line in lines if line.step <= step])


# Settings that may change between a run and its resumption.
_FREE = (
    *("log_every", "checkpoint_every", "checkpoint_minutes", "validate_every"),
    *("validation_images", "tensorboard", "data.folder"),
)


def prepare(
    workdir: Path, config: Config, resume: bool, init: Path | None = None
) -> None:
    """Makes a work folder with its config.json, or checks that it is this run's.

    With resume `steps` may grow, where the learning rate doesn't hang on it. init: a
    weights file to start from, of which the folder keeps a copy.

    Raises ValueError for a folder with other files in it, with a run (without resume) or
    with a run of another config or other initial weights (with it).
    """
    path = workdir / CONFIG
    settings = _plain(config)
    if path.exists():
        if not resume:
            raise ValueError(
                f"{workdir}: expected a new folder, but it holds a run; "
                "pass --resume to go on with it"
            )
        info = read_info(workdir)
        _check_same_run(workdir, config)
        if init is not None and _initial(init) != info.init:
            raise ValueError(
                f"init: expected none, or the file that {workdir} started from, "
                f"got {init}; start in a new folder"
            )
        if info.config != settings:
            dataclasses.replace(info, config=settings).write(path)
        return
    if workdir.exists() and any(p.name != LOCK for p in workdir.iterdir()):
        raise ValueError(
            f"{workdir}: expected a new or empty folder, but it holds other files"
        )
    workdir.mkdir(parents=True, exist_ok=True)
    if init is not None:
        write_atomically(workdir / INIT, Path(init).read_bytes())
    RunInfo(
        name=config.name,
        seed=config.seed,
        platform=jax.local_devices()[0].platform,
        device=f"{_devices()}, {os.cpu_count()} CPU cores",
        init=None if init is None else _initial(init),
        config=settings,
        **_versions(),
    ).write(path)


def _check_same_run(workdir: Path, config: Config) -> None:
    before = read_config(workdir)
    for name, stored, requested in _differences(_plain(before), _plain(config)):
        differing = f"{name} is {stored!r} there and {requested!r} here"
        if name == "steps" and config.steps > before.steps:
            if config.optimiser.schedule == "constant":
                continue
            differing += "; the learning rate of its schedule hangs on the steps"
        if name not in _FREE:
            raise ValueError(f"{workdir}: holds a run of another config: {differing}")


def _initial(path: Path) -> InitialWeights:
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return InitialWeights(file=Path(path).name, sha256=digest)


def add_start(workdir: Path, step: int, hosts: Sequence[str]) -> None:
    """One more start in config.json. hosts: the machine of every process."""
    start = Start(
        step=step,
        time=_now(),
        hosts=tuple(hosts),
        devices=_devices(),
        **_versions(),
    )
    info = read_info(workdir)
    dataclasses.replace(info, starts=(*info.starts, start)).write(workdir / CONFIG)


def _versions() -> dict[str, Any]:
    """Fields of results.RunInfo and results.Start."""
    return {
        "version": mpi_jax.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def _devices() -> str:
    """Those of all processes, in words."""
    return f"{jax.device_count()} x {jax.local_devices()[0].device_kind}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def sweep(workdir: Path) -> None:
    """Remove what kills have left: files that were being written."""
    for part in (*workdir.glob(".*.part"), *workdir.glob("samples/.*.part")):
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[str]:
    """Keep other trainings out of a work folder; the lock of a dead one is taken over, and
    who that was is given.

    The operating system lets go of it when a process ends, however it ends. Raises
    ValueError that names who is at work.
    """
    path, file = workdir / LOCK, None
    while file is None:
        file = open(path, "a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            who = file.read().strip() or "another process"
            file.close()
            raise ValueError(
                f"{workdir}: expected a folder that no training is at work in, but "
                f"{who} is; stop it, or wait for it"
            ) from None
        except OSError:  # a file system without locks
            warnings.warn(
                f"{workdir}: its file system has no locks, nothing keeps a second "
                "training out",
                stacklevel=2,
            )
        if not path.exists() or not os.path.samestat(
            os.fstat(file.fileno()), path.stat()
        ):
            file.close()  # its owner has just removed it
            file = None
    with file:
        file.seek(0)
        died = file.read().strip()
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}, since {_now()}\n")
        file.flush()
        try:
            yield died
        finally:
            path.unlink(missing_ok=True)


def _plain(config: Config) -> dict[str, object]:
    """The settings as JSON gives them back."""
    return json.loads(json.dumps(configs.to_dict(config)))


def _differences(
    a: dict[str, Any], b: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, object, object]]:
    for name in a:
        if isinstance(a[name], dict):
            yield from _differences(a[name], b[name], f"{prefix}{name}.")
        elif a[name] != b[name] and not (_is_nan(a[name]) and _is_nan(b[name])):
            yield prefix + name, a[name], b[name]


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def unpack(path: Path, workdir: Path) -> None:
    """Make a work folder out of a weights file: to evaluate and use, not to resume.

    Does nothing where the folder has them already. Raises ValueError where it holds
    something else.
    """
    path, workdir = Path(path), Path(workdir)
    content, metadata = path.read_bytes(), pretrained.load_weights(path)[1]
    inside = workdir / WEIGHTS
    if inside.exists() and inside.read_bytes() == content:
        return
    if workdir.exists() and any(workdir.iterdir()):
        raise ValueError(
            f"{workdir}: expected a new or empty folder, or one with {path.name} alone"
        )
    workdir.mkdir(parents=True, exist_ok=True)
    RunInfo.of(metadata, str(path)).write(workdir / CONFIG)
    write_atomically(inside, content)


def has_weights(workdir: Path) -> bool:
    """Whether a work folder has weights yet: after its first validation."""
    return (Path(workdir) / WEIGHTS).exists()


def read_info(workdir: Path) -> RunInfo:
    """What a work folder's run is; ValueError where there is none to read."""
    path = Path(workdir) / CONFIG
    try:
        return RunInfo.read(path)
    except FileNotFoundError:
        raise ValueError(
            f"{workdir}: expected a work folder of a run, but it has no config.json"
        ) from None


def read_config(workdir: Path) -> Config:
    """The config of a work folder; ValueError where there is none to read."""
    info = read_info(workdir)
    try:
        return configs.from_dict(info.config)
    except ValueError as error:
        raise ValueError(f"{Path(workdir) / CONFIG}: {error}") from None


def commit() -> str:
    """Commit of the checkout that the package runs from, or that it was built from;
    "unknown" where neither is there to tell.
    """
    package = Path(__file__).resolve().parent
    if (package.parent / ".git").exists():
        try:
            git = subprocess.run(
                ["git", "rev-parse", "--short", "HEAD"],
                cwd=package,
                capture_output=True,
                text=True,
                timeout=10,
            )
        except (OSError, subprocess.TimeoutExpired):
            return UNKNOWN
        return git.stdout.strip() if git.returncode == 0 else UNKNOWN
    try:
        return (package / BUILT_FROM).read_text().strip() or UNKNOWN
    except FileNotFoundError:
        return UNKNOWN
