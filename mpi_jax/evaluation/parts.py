"""What is measured, part by part: kept at once, shared out over processes, joined.

    WORKDIR/evaluation.parts/KEY/NAME.npz

Names tell the parts of a call, KEY all that their arrays depend on. Every process measures
its share of those that aren't there yet, and writes each as soon as it is done; what
others measured, in another process or before a kill, is read. So the folder has to be one
that all processes see.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

import mpi_jax
from mpi_jax import _progress, cluster, methods
from mpi_jax._files import Json, from_json, read_npz, save_npz, to_json
from mpi_jax.results import Setting


def key(about: Json, files: Iterable[Path]) -> str:
    """Letters for what parts depend on: `about`, the content of files, this package,
    JAX and the kind of device.
    """
    device = jax.local_devices()[0].device_kind
    default = str(jax.dtypes.canonicalize_dtype(float))
    setting = [mpi_jax.__version__, jax.__version__, default, device]
    digest = hashlib.sha256(json.dumps([about, setting]).encode())
    modules = sorted(Path(mpi_jax.__file__).parent.rglob("*.py"))
    for path in (*files, *modules):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


class Parts:
    """The parts of one call, of all of its processes.

    Those of calls with another key are removed. Raises ValueError in all processes where
    their keys differ.
    """

    def __init__(self, folder: Path, key: str):
        cluster.check_equal("options, weights, versions and devices (as a hash)", key)
        self.folder = folder / key
        cluster.on_lead(self._sweep)
        # Nobody writes before the lead's list has reached everyone.
        names = [path.stem for path in self.folder.glob("*.npz")]
        lists = cluster.gather(" ".join(names) if cluster.is_lead() else "")
        self.kept = frozenset(lists[0].split())

    def _sweep(self) -> None:
        """Without parts of other calls, and those that a kill or a full disk has cut."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.parent.iterdir():
            if path != self.folder:
                shutil.rmtree(path, ignore_errors=True)
        for path in self.folder.iterdir():
            try:
                whole = path.suffix == ".npz" and bool(read_npz(path))
            except ValueError:
                whole = False
            if not whole:
                path.unlink()

    def left(self, names: Collection[str]) -> list[str]:
        """Those that weren't there when this call began."""
        return [name for name in names if name not in self.kept]

    def share(self, names: Collection[str]) -> list[str]:
        """Those of them that this process measures."""
        return self.left(names)[jax.process_index() :: jax.process_count()]

    def tell_kept(self, names: Collection[str], tell: _progress.Tell) -> None:
        """Says how many are there from an earlier call, if any."""
        count = len(names) - len(self.left(names))
        if count:
            tell("taken up from an earlier call", count, len(names), {})

    def write(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        save_npz(self.folder / f"{name}.npz", arrays)

    def read(self, name: str) -> dict[str, np.ndarray]:
        """A part that is measured; ValueError where there is none."""
        try:
            return read_npz(self.folder / f"{name}.npz")
        except FileNotFoundError:
            raise ValueError(
                f"{self.folder}: expected a part {name}, found none; does another "
                "evaluation of this work folder go on?"
            ) from None

    def remove(self) -> None:
        """All of them, once what they were for is written."""
        shutil.rmtree(self.folder.parent, ignore_errors=True)


# --- Methods as they were tuned


@dataclass(frozen=True)
class Chosen:
    """What was chosen for a method on validation images, as methods.Ready has it."""

    settings: dict[str, Setting]
    threshold: float
    at_edge: tuple[str, ...]

    @classmethod
    def of(cls, ready: methods.Ready) -> Chosen:
        return cls(ready.settings, ready.threshold, ready.at_edge)

    @property
    def all_settings(self) -> dict[str, Setting]:
        """With the threshold, for a table."""
        return {**self.settings, "threshold": self.threshold}


def tune(
    parts: Parts,
    tunings: Collection[str],
    ready: Callable[[str], methods.Ready],
    tell: _progress.Tell,
) -> None:
    """This process's share of some tunings: a part each, of what `ready` chooses."""
    share = parts.share(tunings)
    for done, name in enumerate(share):
        tell("tune", done, len(share), {})
        write_chosen(parts, name, ready(name))
    if share:
        tell("tune", len(share), len(share), {})


def write_chosen(parts: Parts, name: str, ready: methods.Ready) -> None:
    """A part with what was chosen for a method."""
    text = json.dumps(to_json(Chosen.of(ready)))
    parts.write(name, {"chosen": np.array(text)})


def read_chosen(parts: Parts, name: str) -> Chosen:
    """What was chosen for a method, out of its part."""
    value = json.loads(str(parts.read(name)["chosen"]))
    return from_json(Chosen, value, f"{parts.folder}, part {name}")


def as_chosen(
    problem: methods.Problem,
    method: methods.Method,
    chosen: Chosen,
    fixed_settings: Mapping[str, Any] | None = None,
) -> methods.Ready:
    """A method with settings that were chosen before. fixed_settings: that were not."""
    solve = method.prepare(problem, {**chosen.settings, **(fixed_settings or {})})
    return methods.Ready(
        method, solve, chosen.settings, chosen.threshold, chosen.at_edge
    )


# --- Files that belong together


@contextlib.contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A new folder to write into, which takes the place of `folder` at the end.

    A kill leaves the files of the old one or those of the new one, never some of both:
    between two renamings, under the names FOLDER.old and FOLDER.new, which the next call
    sees to.
    """
    new, old = (folder.with_name(f"{folder.name}.{word}") for word in ("new", "old"))
    if old.exists() and not folder.exists():
        (new if new.exists() else old).rename(folder)
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir(parents=True)
    yield new
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
