"""Draw the data set in parts: files that appear whole or not at all, by threads.

A part is an .npz file of some hundred images of one split, named after the first. Which
parts there are, and every bit in them, depends on the variant alone, not on the number
of threads or on how often the work was stopped.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

import mpi_jax
from mpi_jax import data, phantoms, scanner, system_matrix

DRAWN = 60  # pictures a call


@dataclasses.dataclass(frozen=True)
class Variant:
    """What there is to draw: side [pixels], images of each split, stored signals or not.

    part: images a file, a multiple of DRAWN where it is larger.
    """

    side: int
    train: int
    test: int
    signals: bool = False
    part: int = 600

    @property
    def parts(self) -> list[tuple[str, int, int]]:
        """(split, first image, number of images) of every file."""
        return [
            (split, start, min(self.part, count - start))
            for split, count in (("train", self.train), ("test", self.test))
            for start in range(0, count, self.part)
        ]


def prepare(variant: Variant, folder: Path) -> None:
    """Make the folder, or check that what it holds can be gone on with.

    Raises ValueError for parts of another variant or from other versions.
    """
    about = dataclasses.asdict(variant) | {
        "mpi_jax": mpi_jax.__version__,
        "jax": jax.__version__,
        "platform": jax.default_backend(),
    }
    path = folder / "about.json"
    if path.exists():
        have = json.loads(path.read_text())
        if have != about:
            raise ValueError(
                f"{folder}: expected parts of {about}, found those of {have}; delete the "
                "folder to begin again"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    _whole(path, lambda file: file.write(json.dumps(about).encode()))


def name(folder: Path, split: str, start: int) -> Path:
    return folder / f"{split}-{start:07d}.npz"


def missing(variant: Variant, folder: Path) -> list[tuple[str, int, int]]:
    return [part for part in variant.parts if not name(folder, *part[:2]).exists()]


def draw(
    variant: Variant, folder: Path, workers: int
) -> Iterator[tuple[str, int, int]]:
    """Draw what is missing with so many threads; yields each part as it is there.

    A picture is painted by one core, outside of Python, so that threads are as good as
    processes and share what the first of them compiled.
    """
    todo = missing(variant, folder)
    if todo:
        _fields(variant, *todo[0][:2])  # compiled here, once
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        jobs = {pool.submit(draw_part, variant, folder, *p): p for p in todo}
        try:
            for job in concurrent.futures.as_completed(jobs):
                job.result()
                yield jobs[job]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def draw_part(
    variant: Variant, folder: Path, split: str, start: int, count: int
) -> None:
    """One part: image [n, side, side] uint8, mask [n, side^2 / 8] packed, family [n],
    and signal [n, 2, 1632] float32 where the variant stores it.
    """
    starts = range(start, start + count, min(DRAWN, variant.part))
    batches = [_fields(variant, split, first) for first in starts]
    arrays = {
        field: np.concatenate([part[field] for part in batches])[:count]
        for field in batches[0]
    }
    _whole(name(folder, split, start), lambda file: np.savez_compressed(file, **arrays))


def _fields(variant, split, start):
    """The arrays of `draw_part` for as many images as are drawn in one call."""
    size, number = min(DRAWN, variant.part), phantoms.SPLITS.index(split)
    grid = _scanner(variant.side).grid
    pictures = data.draw_pictures(number, start, size, grid)
    fields = {
        "image": np.asarray(pictures.image),
        "mask": np.packbits(np.asarray(pictures.mask).reshape(size, -1), axis=-1),
        "family": np.asarray(pictures.family, np.int32),
    }
    if variant.signals:
        fields["signal"] = np.asarray(_signals(variant.side)(pictures.image))
    return fields


def load(variant: Variant, folder: Path, split: str, start: int, count: int) -> dict:
    """The arrays of a part, drawn first if it isn't there or can't be read."""
    path = name(folder, split, start)
    for _ in range(2):
        with contextlib.suppress(OSError, ValueError, KeyError, zipfile.BadZipFile):
            with np.load(path, allow_pickle=False) as file:
                arrays = {field: file[field] for field in file.files}
            if all(len(array) == count for array in arrays.values()):
                return arrays
        draw_part(variant, folder, split, start, count)
    raise ValueError(f"{path}: can't be read right after it was written")


@functools.cache
def _scanner(side):
    return scanner.paper(side)


@functools.cache
def _signals(side):
    """Images [n, side, side] in steps of 1/255 -> noise-free signals [n, 2, 1632]."""
    matrix = system_matrix.simulate(_scanner(side), "tensor")

    def signals(matrix, image):
        image = image.astype(np.float32) / 255
        return system_matrix.forward(matrix, image)

    return functools.partial(jax.jit(signals), matrix)


def _whole(path: Path, write) -> None:
    """The whole file or none of it, also if the machine stops."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with open(part, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
