"""What survives a run: checkpoints to resume from (Orbax), weights to use (safetensors).

A checkpoint appears whole or not at all; the newest two and the best one are kept.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp

State = TypeVar("State")


@contextlib.contextmanager
def manager(folder: Path) -> Iterator[ocp.CheckpointManager]:
    """A CheckpointManager on a folder, closed at the end; saving errors are raised.

    The policy is explicit because the older options (max_to_keep with best_fn) delete
    the newest step when it isn't among the best.
    """
    # Orbax tells every step of every save, and errors that are raised anyway.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
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


def save(
    manager: ocp.CheckpointManager,
    step: int,
    state: chex.ArrayTree,
    config: dict[str, Any],
    psnr: float,
) -> None:
    """Start writing a checkpoint; the state is copied first, the disk comes later."""
    state = jax.device_get(state)
    # Orbax finds a full disk in background threads, and each prints its own story.
    folder = Path(manager.directory)
    needed = 2 * sum(np.asarray(a).nbytes for a in jax.tree.leaves(state)) + 2**20
    if shutil.disk_usage(folder).free < needed:
        raise _full(folder)
    args = ocp.args.Composite(
        state=ocp.args.StandardSave(state),
        config=ocp.args.JsonSave(config),
    )
    manager.save(step, args=args, metrics={"psnr": float(psnr)}, force=True)


def restore(
    manager: ocp.CheckpointManager, template: State, step: int | None = None
) -> tuple[int, State]:
    """(step, state) of a step, by default the newest; template: a state of that shape."""
    step = manager.latest_step() if step is None else step
    args = ocp.args.Composite(
        state=ocp.args.StandardRestore(jax.device_get(template)),
        config=ocp.args.JsonRestore(),
    )
    state = manager.restore(step, args=args).state
    chex.assert_trees_all_equal_structs(template, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(template, state)
    return step, state


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
