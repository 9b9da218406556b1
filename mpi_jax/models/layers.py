"""Parts of the networks: what all of them take and give, and the Transformer's parts.

| symbol | meaning                                          |
|--------|--------------------------------------------------|
| B      | batch                                            |
| w      | side of an attention cell in tokens, T = w^2     |
| C      | channels; each of `heads` heads sees C / heads   |

Maps are [B, ny, nx, C]. Blocks work on tokens [B, cells, T, C]: attention never leaves
a cell, so a map is cut into cells once per stage and not once per block.

The design is that of TransGAN (Jiang, Chang, Wang 2021, arXiv 2102.07074): PixelNorm,
learned relative position bias, grid cells without shift, bicubic and pixel-shuffle
up-sampling. This is an independent implementation of the description. Ours: attention
bias built without a gather, float32 softmax and norms under bfloat16 activations, and
on a CPU the kernels' slopes in products and convolutions, and attention in chunks.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from mpi_jax.models.cpu import (
    attend,
    attend_in_chunks,
    convolve,
    convolve_patches,
    multiply,
)

Norm = Literal["pixel", "layer"]
Dtype = Literal["float32", "bfloat16"]
Tokens = Float[Array, "batch cells tokens channels"]
Maps = Float[Array, "batch ny nx channels"]
NewMaps = Float[Array, "batch _ny _nx _channels"]  # of another size
# An underscore leaves a size to `expect`, whose messages users see.
Signals = Float[Array | np.ndarray, "batch _length"]
Features = Float[Array | np.ndarray, "_batch _ny _nx _features"]
Bases = Float[Array | np.ndarray, "_batch _ny _nx"]
Critiqued = Float[Array | np.ndarray, "batch _ny _nx _channels"]

START = 8  # pixels per side of the first map that a stem makes

small_normal = nn.initializers.truncated_normal(0.02)
fan_in_normal = nn.initializers.lecun_normal()


class Images(NamedTuple):
    """Output of a generator, float32."""

    reconstruction: Float[Array, "batch ny nx"]
    segmentation: Float[Array, "batch ny nx"] | None  # logit; None for a single task


def expect(name: str, value: Any, shape: tuple[int, ...] | None) -> None:
    """ValueError unless value has this shape; shape None: unless there is no value."""
    came = None if value is None else tuple(value.shape)
    if came != shape:
        raise ValueError(f"{name}: expected {shape or None}, got {came}")


def row(table: dict[str, Any], name: str, overrides: dict[str, Any]) -> Any:
    """A config of a table by its name, with fields replaced; ValueError for others."""
    if name not in table:
        raise ValueError(f"name: expected one of {sorted(table)}, got {name!r}")
    return dataclasses.replace(table[name], **overrides)


class PixelNorm(nn.Module):
    """x / sqrt(mean over channels of x^2 + 1e-8), without parameters.

    From Karras et al. 2018 (arXiv 1710.10196).
    """

    dtype: Dtype = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "*b channels"]) -> Float[Array, "*b channels"]:
        x = x.astype(jnp.float32)  # squares of bfloat16 lose what the mean needs
        power = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        return (x * lax.rsqrt(power + 1e-8)).astype(self.dtype)


def normalisation(kind: Norm, dtype: Dtype, name: str) -> nn.Module:
    """The norm called `kind`; statistics in float32 either way."""
    if kind == "pixel":
        return PixelNorm(dtype, name=name)
    if kind == "layer":
        return nn.LayerNorm(dtype=dtype, name=name)
    raise ValueError(f"norm: expected 'pixel' or 'layer', got {kind!r}")


def toeplitz(table: Float[Array, "offsets ..."]) -> Float[Array, "w w ..."]:
    """Spread table [2w - 1, ...] over pairs: out[q, k] = table[k - q + w - 1].

    A row with one empty entry appended, repeated and cut one entry shorter, shifts by
    one per row. Copies and reshapes only, so the gradient is sums, not a scatter.
    """
    w = (len(table) + 1) // 2
    rest = table.shape[1:]
    row = jnp.concatenate([table, jnp.zeros((1, *rest), table.dtype)])
    rows = jnp.broadcast_to(row[None], (w, *row.shape)).reshape(w * 2 * w, *rest)
    return rows[: w * (2 * w - 1)].reshape(w, 2 * w - 1, *rest)[:, w - 1 :]


def relative_bias(
    table: Float[Array, "offsets offsets heads"],
) -> Float[Array, "heads tokens tokens"]:
    """Bias of every query and key in a cell; it depends on their offset alone.

    table [2w - 1, 2w - 1, heads] is indexed by (key - query + w - 1) in y and in x.
    """
    heads = table.shape[-1]
    in_y = toeplitz(table)  # query y, key y, offset x, heads
    both = toeplitz(jnp.moveaxis(in_y, 2, 0))  # query x, key x, query y, key y, heads
    tokens = both.shape[0] ** 2
    return both.transpose(4, 2, 0, 3, 1).reshape(heads, tokens, tokens)


def conv3x3(channels: int, dtype: Dtype, name: str) -> nn.Conv:
    """3 x 3 convolution that keeps the size of the map; Flax's, but see `_convolve`."""
    ours = convolve if jax.default_backend() == "cpu" else None
    return nn.Conv(channels, (3, 3), dtype=dtype, name=name, conv_general_dilated=ours)


def dense(features: int, **settings: Any) -> nn.Dense:
    """Flax's Dense, with a product for the CPU where that is."""
    ours = multiply if jax.default_backend() == "cpu" else None
    return nn.Dense(features, dot_general=ours, **settings)


def strided(
    channels: int, window: int, stride: int, padding: int, dtype: Dtype, name: str
) -> nn.Conv:
    """Convolution over windows of one stride or two; Flax's, but see `convolve_patches`."""
    ours = convolve_patches if jax.default_backend() == "cpu" else None
    return nn.Conv(
        channels,
        (window, window),
        strides=stride,
        padding=padding,
        dtype=dtype,
        name=name,
        conv_general_dilated=ours,
    )


class Attention(nn.Module):
    """Multi-head self-attention within each cell.

    QKV from one Dense without bias, scores q.k / sqrt(C / heads) plus relative bias,
    softmax in float32, output Dense with bias. `window` is w; None leaves out the
    relative bias, for tokens that do not lie on a square.
    """

    heads: int
    window: int | None
    dtype: Dtype = "float32"

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        batch, cells, tokens, channels = x.shape
        if channels % self.heads:
            raise ValueError(
                f"heads: expected a divisor of {channels} channels, got {self.heads}"
            )
        width = channels // self.heads
        qkv = dense(
            3 * channels,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=small_normal,
            name="qkv",
        )(x)
        query, key, value = qkv.reshape(
            batch * cells, tokens, 3, self.heads, width
        ).transpose(2, 0, 3, 1, 4)
        query = query * width**-0.5
        if self.window is None:
            mixed = attend(query, key, value, 0.0)
        else:
            if tokens != self.window**2:
                raise ValueError(
                    f"x: expected cells of {self.window**2} tokens, got {tokens}"
                )
            side = 2 * self.window - 1
            table = self.param("relative", small_normal, (side, side, self.heads))
            cpu = jax.default_backend() == "cpu"
            attention = attend_in_chunks if cpu else attend
            mixed = attention(query, key, value, relative_bias(table)[None])
        mixed = mixed.swapaxes(1, 2)
        return dense(channels, dtype=self.dtype, kernel_init=small_normal, name="out")(
            mixed.reshape(x.shape)
        )


class Mlp(nn.Module):
    """Two Dense layers with an exact GELU between, four times as wide inside."""

    dtype: Dtype = "float32"

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        channels = x.shape[-1]
        hidden = dense(
            4 * channels, dtype=self.dtype, kernel_init=small_normal, name="widen"
        )(x)
        return dense(
            channels, dtype=self.dtype, kernel_init=small_normal, name="narrow"
        )(nn.gelu(hidden, approximate=False))


class Block(nn.Module):
    """Pre-norm Transformer block: x + attention(norm x), then x + mlp(norm x)."""

    heads: int
    window: int | None
    norm: Norm = "pixel"
    dtype: Dtype = "float32"

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        normal = normalisation(self.norm, self.dtype, "norm_attention")(x)
        attention = Attention(self.heads, self.window, self.dtype, name="attention")
        x = x + attention(normal)
        normal = normalisation(self.norm, self.dtype, "norm_mlp")(x)
        return x + Mlp(self.dtype, name="mlp")(normal)


def block(remat: bool, **settings) -> nn.Module:
    """A Block; with remat its activations are computed again in the backward pass.

    Attention maps dominate the memory of a training step. Parameter names do not depend
    on remat, because `name` is one of the settings.
    """
    return (nn.remat(Block) if remat else Block)(**settings)


class Stage(nn.Module):
    """Learned positions, then `depth` blocks in cells of side `window`, on one map."""

    depth: int
    heads: int
    window: int
    norm: Norm = "pixel"
    dtype: Dtype = "float32"
    remat: bool = False

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        size = x.shape[1:3]
        position = self.param("position", small_normal, x.shape[1:])
        x = to_cells(x + position[None].astype(self.dtype), self.window)
        for index in range(self.depth):
            x = block(
                self.remat,
                heads=self.heads,
                window=self.window,
                norm=self.norm,
                dtype=self.dtype,
                name=f"block_{index}",
            )(x)
        return from_cells(x, *size)


def to_cells(x: Maps, window: int) -> Tokens:
    """Cut a map into non-overlapping cells of side `window`, row by row.

    Raises ValueError if the cells do not tile the map.
    """
    batch, ny, nx, channels = x.shape
    if ny % window or nx % window:
        raise ValueError(f"window: expected a divisor of {ny} and {nx}, got {window}")
    x = x.reshape(batch, ny // window, window, nx // window, window, channels)
    return x.swapaxes(2, 3).reshape(batch, -1, window**2, channels)


def from_cells(x: Tokens, ny: int, nx: int) -> Maps:
    """The map [B, ny, nx, C] whose cells are x; inverse of `to_cells`."""
    batch, _, tokens, channels = x.shape
    w = round(tokens**0.5)
    x = x.reshape(batch, ny // w, nx // w, w, w, channels)
    return x.swapaxes(2, 3).reshape(batch, ny, nx, channels)


def pixel_shuffle(x: Maps) -> NewMaps:
    """[B, ny, nx, 4 C] to [B, 2 ny, 2 nx, C].

    Channel 4 c + 2 i + j goes to channel c of the pixel in row i, column j of its 2 x 2
    square (Shi et al. 2016, arXiv 1609.05158). ValueError unless channels are in fours.
    """
    batch, ny, nx, channels = x.shape
    if channels % 4:
        raise ValueError(f"x: expected channels in fours, got {channels}")
    x = x.reshape(batch, ny, nx, channels // 4, 2, 2)
    return x.transpose(0, 1, 4, 2, 5, 3).reshape(batch, 2 * ny, 2 * nx, -1)


def resize(x: Maps, size: int, method: str = "bicubic") -> NewMaps:
    """The map x at size x size pixels; same channels."""
    return jax.image.resize(x, (len(x), size, size, x.shape[-1]), method)


def average_pool(x: Maps, size: int) -> NewMaps:
    """Means over equal blocks of pixels, size x size of them. Sizes must divide."""
    batch, ny, nx, channels = x.shape
    if ny % size or nx % size:
        raise ValueError(f"size: expected a divisor of {ny} and {nx}, got {size}")
    x = x.reshape(batch, size, ny // size, size, nx // size, channels)
    return x.mean(axis=(2, 4))


class Upsample(nn.Module):
    """Twice the pixels per side, `channels` out.

    shuffle False: bicubic, which keeps the channels. shuffle True: pixel shuffle, which
    turns C channels into C / 4. A Dense goes first only where that misses the width.
    """

    channels: int
    shuffle: bool
    dtype: Dtype = "float32"

    @nn.compact
    def __call__(self, x: Maps) -> NewMaps:
        needed = 4 * self.channels if self.shuffle else self.channels
        if x.shape[-1] != needed:
            x = dense(needed, dtype=self.dtype, kernel_init=small_normal, name="width")(
                x
            )
        return pixel_shuffle(x) if self.shuffle else resize(x, 2 * x.shape[1])
