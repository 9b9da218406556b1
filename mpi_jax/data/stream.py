"""Pictures of a training step, drawn on the device or read from a built data set."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import chex
import jax
import numpy as np

from mpi_jax import phantoms, scanner
from mpi_jax.configs import Config
from mpi_jax.data.examples import Pictures, draw_pictures, pictures
from mpi_jax.data.tfds import Reader

# Of a step: position of each device's first picture in the stream [D], and the pictures
# [D, B / D, ...].
Shards = tuple[np.ndarray, Pictures]


def training_pictures(
    config: Config,
    grid: scanner.Grid,
    process: tuple[int, int] = (0, 1),
    devices: int | None = None,
) -> Callable[[int], Shards]:
    """Pictures of a training step: step -> Shards.

    One row for each device of this process (default: the local ones). process: (this one,
    how many), of which each draws or reads its own share. The same bits from both
    sources, for any step, in any order; the files of the next step are read while this
    one is used. Raises ValueError for settings that don't fit, or not to the data set.
    """
    settings = config.data
    if settings.images < 0:
        raise ValueError(f"data.images: expected a number >= 0, got {settings.images}")
    if settings.source not in ("stream", "tfds"):
        raise ValueError(
            f"data.source: expected stream or tfds, got {settings.source!r}"
        )
    if settings.source == "stream" and settings.folder:
        raise ValueError("data.folder: only with data.source tfds")
    start_of, size = _starts(config, process, devices)
    images, families = settings.images or None, settings.families
    phantoms.indices(np.zeros(1, int), families, images)  # complain early
    if settings.source == "stream":
        return _drawn("train", start_of, size, grid, families, images)

    reader = Reader(settings.folder, "train", grid.shape)
    images = images or len(reader)
    if images > len(reader):
        raise ValueError(
            f"data.images: expected at most the {len(reader)} training images of "
            f"{settings.folder}, got {images}"
        )

    def read(step: int) -> Shards:
        start = start_of(step)
        position = start[:, None] + np.arange(size)
        return start, reader(np.asarray(phantoms.indices(position, families, images)))

    return _read_ahead(read)


def validation_pictures(
    config: Config, grid: scanner.Grid, process: tuple[int, int] = (0, 1)
) -> Callable[[int], Shards]:
    """The validation images of the config's families, as many at once as in training."""
    start_of, size = _starts(config, process, None)
    return _drawn("validation", start_of, size, grid, config.data.families, None)


def _starts(
    config: Config, process: tuple[int, int], devices: int | None
) -> tuple[Callable[[int], np.ndarray], int]:
    """step -> position of each device's first picture, and how many each device gets."""
    batch_size, devices = config.data.batch_size, devices or jax.local_device_count()
    shares = process[1] * devices
    if batch_size < 1 or batch_size % shares:
        raise ValueError(
            f"data.batch_size: expected a multiple of the {shares} devices, "
            f"got {batch_size}"
        )
    size, parts = batch_size // shares, config.data.accumulate
    if parts < 1 or size % parts:
        raise ValueError(
            f"data.accumulate: expected a divisor of the {size} images of a device, "
            f"got {parts}"
        )
    first = size * (process[0] * devices + np.arange(devices))
    return lambda step: step * batch_size + first, size


@functools.cache
def _draw_shards() -> Callable[..., Pictures]:
    """One program for all splits, of the devices of this process alone."""
    return jax.pmap(
        pictures,
        in_axes=(None, 0, None, None, None, None),
        static_broadcasted_argnums=(2, 4, 5),
        devices=jax.local_devices(),
    )


def _drawn(
    split: str,
    start_of: Callable[[int], np.ndarray],
    size: int,
    grid: scanner.Grid,
    families: tuple[str, ...],
    images: int | None,
) -> Callable[[int], Shards]:
    number = phantoms.SPLITS.index(split)

    def draw(step: int) -> Shards:
        start = start_of(step)
        if len(start) == 1:
            # A Python integer as in `examples.draw`: the same compiled program.
            one = draw_pictures(number, int(start[0]), size, grid, families, images)
            shards = jax.tree.map(lambda a: a[None], one)
        else:
            shards = _draw_shards()(number, start, size, grid, families, images)
        chex.assert_tree_shape_prefix(shards, (len(start), size))
        return start, shards

    return draw


def _read_ahead(read: Callable[[int], Shards]) -> Callable[[int], Shards]:
    """The same, with the next step read in a thread while this one is used."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="mpi_jax-read")
    ahead: dict[int, Future[Shards]] = {}

    def of_step(step: int) -> Shards:
        future = ahead.pop(step, None)
        ahead.clear()
        shards = read(step) if future is None else future.result()
        ahead[step + 1] = pool.submit(read, step + 1)
        return shards

    return of_step
