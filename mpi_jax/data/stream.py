"""Pictures of a training step, drawn on the device or read from a built data set."""

from __future__ import annotations

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mpi_jax import phantoms, scanner
from mpi_jax.configs import Config
from mpi_jax.data.examples import Pictures, draw_pictures, pictures
from mpi_jax.data.tfds import Reader


def training_pictures(
    config: Config,
    grid: scanner.Grid,
    process: tuple[int, int] = (0, 1),
    devices: int | None = None,
) -> Callable[[int], tuple[np.ndarray, Pictures]]:
    """Pictures of a training step: step -> (start [D], Pictures [D, B / D, ...]).

    One row for each device of this process (default: the local ones); start: position
    of its first picture in the stream. process: (this one, how many), of which each
    draws or reads its own share. The same bits from both sources, for any step, in any
    order. Raises ValueError for settings that don't fit, or not to the data set.
    """
    settings, devices = config.data, devices or jax.local_device_count()
    shares = process[1] * devices
    if settings.batch_size < 1 or settings.batch_size % shares:
        raise ValueError(
            f"data.batch_size: expected a multiple of the {shares} devices, "
            f"got {settings.batch_size}"
        )
    if settings.images < 0:
        raise ValueError(f"data.images: expected a number >= 0, got {settings.images}")
    if settings.source not in ("stream", "tfds"):
        raise ValueError(
            f"data.source: expected stream or tfds, got {settings.source!r}"
        )
    if settings.source == "stream" and settings.folder:
        raise ValueError("data.folder: only with data.source tfds")
    size = settings.batch_size // shares
    first = size * (process[0] * devices + np.arange(devices))
    images, families = settings.images or None, settings.families
    phantoms.indices(jnp.zeros(1, int), families, images)  # complain early

    if settings.source == "tfds":
        reader = Reader(settings.folder, "train", grid.shape)
        images = images or len(reader)
        if images > len(reader):
            raise ValueError(
                f"data.images: expected at most the {len(reader)} training images of "
                f"{settings.folder}, got {images}"
            )

        def read_or_draw(start):
            position = start[:, None] + np.arange(size)
            index = np.asarray(phantoms.indices(position, families, images))
            return reader(index)

    elif devices == 1:

        def read_or_draw(start):
            # A Python integer as in `examples.draw`: the same compiled program.
            one = draw_pictures(0, int(start[0]), size, grid, families, images)
            return jax.tree.map(lambda a: a[None], one)

    else:
        drawn = jax.pmap(lambda start: pictures(0, start, size, grid, families, images))

        def read_or_draw(start):
            return drawn(start)

    def of_step(step):
        start = step * settings.batch_size + first
        shards = read_or_draw(start)
        chex.assert_tree_shape_prefix(shards, (devices, size))
        return start, shards

    return of_step
