"""Examples made on the device from an index, and what a network is given of them.

Image i of a split is a function of (split, i), its noise of (key, i): batches don't
depend on the number of devices, resuming needs the step alone, and an epoch costs no
disk. Images are grey images of 8 bits, so that a file of them says the same as the
stream that draws them. One line of data:

    phantoms.batch -> `Pictures`, or a file of them                  0 ... 255
    Pictures -> system_matrix.forward -> noise -> `Examples`         what is true
    Examples.voltage -> `inputs` -> `Inputs`                         what a network sees
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt8

from mpi_jax import phantoms, scanner, system_matrix
from mpi_jax.data.forward_model import ForwardModel
from mpi_jax.noise import add_noise, band_noise, noise_level


class Pictures(NamedTuple):
    """What a file holds of examples: image [B, ny, nx] in steps of 1/255, mask, family.

    The mask was decided before the image was rounded.
    """

    image: UInt8[Array | np.ndarray, "B ny nx"]
    mask: Bool[Array | np.ndarray, "B ny nx"]
    family: Int[Array | np.ndarray, " B"]


class Examples(NamedTuple):
    """What is true: image and mask [B, ny, nx], noisy voltage [B, C, V], family [B]."""

    image: Float[Array, "B ny nx"]
    mask: Float[Array, "B ny nx"]
    voltage: Float[Array, "B C V"]
    family: Int[Array | np.ndarray, " B"]

    @property
    def family_names(self) -> np.ndarray:
        """The name of each example's family, [B]."""
        return np.array(phantoms.FAMILIES)[np.asarray(self.family)]


def pictures(
    split: Int[Array, ""] | int,
    start: Int[Array, ""] | int,
    size: int,
    grid: scanner.Grid,
    families: tuple[str, ...] = phantoms.FAMILIES,
    images: int | None = None,
) -> Pictures:
    """Pictures start ... start + size - 1 of phantoms.SPLITS[split]; pure.

    families, images: the stream's, see phantoms.indices.
    """
    image, mask, family = phantoms.batch(split, start, size, grid, families, images)
    return Pictures(jnp.round(255 * image).astype(jnp.uint8), mask > 0, family)


def observe(
    forward: ForwardModel,
    pictures: Pictures,
    start: Int[Array, ""] | int,
    snr_db: Float[Array, " 2"],
    key: PRNGKeyArray,
) -> Examples:
    """What the scanner measures of pictures from position `start` of a stream; pure.

    snr_db: smallest and largest power SNR [dB], drawn uniformly for each example.
    """
    chex.assert_equal_shape([pictures.image, pictures.mask])
    chex.assert_tree_shape_prefix(pictures, (len(pictures.family),))
    image = jnp.asarray(pictures.image, jnp.float32) / 255
    u = system_matrix.forward(forward.matrix, image)
    low, high = snr_db[0], snr_db[1]
    index = start + jnp.arange(len(image))

    def noisy(i, u):
        level, noise = jax.random.split(jax.random.fold_in(key, i))
        # An infinite SNR leaves u as it is; inf - inf must not make a NaN of it.
        span = jnp.where(high == low, 0.0, high - low)
        snr = low + span * jax.random.uniform(level)
        if forward.frequency_selection is None:
            return add_noise(noise, u, snr)
        return u + noise_level(u, snr) * band_noise(
            noise, u, forward.frequency_selection
        )

    mask = jnp.asarray(pictures.mask, jnp.float32)
    return Examples(image, mask, jax.vmap(noisy)(index, u), pictures.family)


def fixed_noise() -> PRNGKeyArray:
    """Key of the noise of everything but training: one for all seeds, so that runs
    compare.

    Examples:
      >>> fixed_noise().shape
      ()
    """
    return jax.random.key(2718)


def training_keys(seed: int) -> tuple[PRNGKeyArray, PRNGKeyArray]:
    """Keys of a run: of the noise of its training signals, and of its steps."""
    noise, _, steps = jax.random.split(jax.random.key(seed), 3)
    return noise, steps


def draw(
    forward: ForwardModel,
    split: str,
    start: int,
    size: int,
    snr_db: float | tuple[float, float],
    key: PRNGKeyArray | None = None,
    families: tuple[str, ...] = phantoms.FAMILIES,
) -> Examples:
    """Examples of a split by name at one SNR [dB] or a range, compiled once for all.

    key: noise; by default that of validation and test signals, the same for every run.
    """
    pair = jnp.broadcast_to(jnp.asarray(snr_db, jnp.float32), (2,))
    key = fixed_noise() if key is None else key
    number = phantoms.SPLITS.index(split)
    # All six arguments as in `stream`: one traced and compiled program for both.
    drawn = draw_pictures(number, start, size, forward.scanner.grid, families, None)
    return _observe(forward, drawn, start, pair, key)


def draw_batches(
    forward: ForwardModel,
    split: str,
    count: int,
    size: int,
    snr_db: float,
    start: int = 0,
) -> Examples:
    """At least `count` examples of a split from `start` on, joined: whole batches of
    `size`, for which `draw` is compiled already where a run was trained with that size.

    Raises ValueError for a count or a size below 1.
    """
    if count < 1 or size < 1:
        raise ValueError(
            f"count, size: expected whole numbers >= 1, got {count} and {size}"
        )
    batches = [
        draw(forward, split, first, size, snr_db)
        for first in range(start, start + count, size)
    ]
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *batches)


# What is compiled for one device and any split serves all who draw that many.
draw_pictures = jax.jit(pictures, static_argnames=("size", "families", "images"))
_observe = jax.jit(observe)
