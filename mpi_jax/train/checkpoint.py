"""Checkpoints to resume from (Orbax).

A checkpoint appears whole or not at all; the newest two and the best one are kept. Each
holds a checksum of every leaf, for a disk may give back other bytes than it was given.
All processes call every function here; the state is the same in all of them.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
import shutil
import sys
import warnings
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp

from mpi_jax import cluster

State = TypeVar("State")


@contextlib.contextmanager
def manager(folder: Path) -> Iterator[ocp.CheckpointManager]:
    """A CheckpointManager on a folder, closed at the end; saving errors are raised.

    The policy is explicit because the older options (max_to_keep with best_fn) delete
    the newest step when it isn't among the best.
    """
    _quiet()
    policies = ocp.checkpoint_managers
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy(
            [
                policies.LatestN(2),
                policies.BestN(get_metric_fn=lambda m: m["psnr"], reverse=False, n=1),
            ]
        ),
        best_fn=lambda m: m["psnr"],
        best_mode="max",
        cleanup_tmp_directories=True,
    )
    with _disk_errors(folder):
        with ocp.CheckpointManager(os.path.abspath(folder), options=options) as store:
            yield store


def _quiet() -> None:
    """Orbax tells every step of every save, and errors that are raised anyway."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)


def save(
    manager: ocp.CheckpointManager,
    step: int,
    state: chex.ArrayTree,
    config: dict[str, Any],
    psnr: float = -math.inf,
) -> None:
    """Start writing a checkpoint; the state is copied first, the disk comes later.

    psnr: of its validation [dB], where there was one.
    """
    state = jax.device_get(state)
    # Orbax finds a full disk in background threads, and each prints its own story.
    folder = Path(manager.directory)
    needed = 2 * sum(np.asarray(a).nbytes for a in jax.tree.leaves(state)) + 2**20
    if shutil.disk_usage(folder).free < needed:
        raise _full(folder)
    args = ocp.args.Composite(
        state=ocp.args.StandardSave(state),
        config=ocp.args.JsonSave(config),
        checksums=ocp.args.JsonSave({"leaves": checksums(state)}),
    )
    manager.save(step, args=args, metrics={"psnr": float(psnr)}, force=True)


def checksums(state: chex.ArrayTree) -> list[int]:
    """CRC-32 of the bytes of every leaf."""
    leaves = jax.tree.leaves(jax.device_get(state))
    return [zlib.crc32(np.asarray(leaf).tobytes()) for leaf in leaves]


def restore(folder: Path, template: State, step: int) -> State:
    """The state of a step; template: a state of that shape.

    Raises ValueError for a checkpoint that is damaged or of another network.
    """
    args = ocp.args.Composite(
        state=ocp.args.StandardRestore(jax.device_get(template)),
        checksums=ocp.args.JsonRestore(),
    )
    path = Path(os.path.abspath(folder)) / str(step)
    _quiet()
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
            restored = reader.restore(path, args=args)
        state = restored.state
        chex.assert_trees_all_equal_structs(template, state)
        chex.assert_trees_all_equal_shapes_and_dtypes(template, state)
        # What the manager will want to know of it.
        json.loads((path / "metrics" / "metrics").read_text())["psnr"]
    except Exception as error:  # one of many, by what is missing or cut
        _drop_late_reads()
        words = " ".join(str(error).split())[:120] or type(error).__name__
        raise ValueError(f"{path}: can't be read ({words})") from error
    if checksums(state) != restored.checksums["leaves"]:
        raise ValueError(f"{path}: holds other bytes than were written")
    return state


def _drop_late_reads() -> None:
    """Not a word about the reads that were under way when one of them failed.

    Orbax closes its event loop at the first error; for every read that ends later,
    TensorStore's threads would print a traceback, which says that the loop is closed.
    """
    hook = sys.unraisablehook

    def heard(lost):
        if str(lost.exc_value) != "Event loop is closed":
            hook(lost)

    sys.unraisablehook = heard


def restore_newest(folder: Path, template: State) -> tuple[int, State] | None:
    """(step, state) of the newest checkpoint that is whole, or None where there is none.

    Newer ones that are damaged are renamed to STEP.broken, with a warning each. To be
    called while no manager is open on the folder.
    """
    _sweep(folder)
    for step in sorted(_steps(folder), reverse=True):
        words = ""
        try:
            state = restore(folder, template, step)
        except ValueError as error:
            words = str(error)
        complaint = next(filter(None, cluster.gather(words)), "")
        if not complaint:
            return step, state
        cluster.on_lead(partial(_set_aside, folder, step))
        if cluster.is_lead():
            warnings.warn(f"checkpoint {step} is skipped: {complaint}", stacklevel=2)
    return None


def best_step(folder: Path) -> int | None:
    """The step with the best validation among the checkpoints; None without any."""
    scores = {}
    for step in _steps(folder):
        with contextlib.suppress(OSError, ValueError, KeyError):
            text = (folder / str(step) / "metrics" / "metrics").read_text()
            scores[step] = float(json.loads(text)["psnr"])
    best = max(scores, key=lambda step: scores[step], default=None)
    return None if best is None or scores[best] == -math.inf else best


def _steps(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    return [int(path.name) for path in folder.iterdir() if path.name.isdecimal()]


def _sweep(folder: Path) -> None:
    """Steps that a kill left empty or half written, as Orbax marks them."""

    def remove() -> None:
        for path in (folder / str(step) for step in _steps(folder)):
            empty = not any(path.iterdir())
            if empty or not ocp.utils.is_checkpoint_finalized(path):
                shutil.rmtree(path)

    cluster.on_lead(remove)


def _set_aside(folder: Path, step: int) -> None:
    broken = folder / f"{step}.broken"
    if broken.exists():
        shutil.rmtree(broken)
    (folder / str(step)).rename(broken)


def finish(manager: ocp.CheckpointManager) -> None:
    """Wait until everything saved is on disk, and raise what went wrong."""
    manager.wait_until_finished()
    manager.check_for_errors()


@contextlib.contextmanager
def _disk_errors(folder):
    """A full disk as the OSError it is, however deep in a library it was noticed."""
    try:
        yield
    except Exception as error:
        words = " ".join(str(error).split())
        full = "No space left" in words or "File too large" in words
        full = full or getattr(error, "errno", None) in (errno.ENOSPC, errno.EFBIG)
        if not full:
            raise
        raise _full(folder) from error


def _full(folder) -> OSError:
    return OSError(
        errno.ENOSPC,
        f"no space left to save a checkpoint in {folder}; earlier ones are intact",
    )
