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
on a CPU the kernels' slope in 3 x 3 convolutions and attention in chunks.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

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
NARROW = 8  # fewer channels than this: XLA's slope of a kernel is as fast as ours
CHUNK = 2**20  # scores of attention at once on a CPU: 4 MB, which its cache holds

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
    cpu = jax.default_backend() == "cpu"
    special = {"conv_general_dilated": _convolve} if cpu else {}
    return nn.Conv(channels, (3, 3), dtype=dtype, name=name, **special)


def _convolve(x, kernel, strides, padding, **settings):
    """lax.conv_general_dilated for `conv3x3`, wide kernels with a slope of our own."""
    if min(kernel.shape[2:]) < NARROW:
        return lax.conv_general_dilated(x, kernel, strides, padding, **settings)
    return _convolve_wide(x, kernel)


def _plain(x, kernel):
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@jax.custom_vjp
def _convolve_wide(x, kernel):
    """x [B, ny, nx, C] and kernel [3, 3, C, K] to [B, ny, nx, K].

    XLA takes the slope with respect to the kernel for a convolution with a window as
    large as the map; on a CPU that made up three quarters of a training step. Here it
    is one matrix product: three shifts of x in one direction by three of the slope in
    the other. Up to three times as fast, and closer to float64.
    """
    return _plain(x, kernel)


def _convolve_forward(x, kernel):
    return _plain(x, kernel), (x, kernel)


def _convolve_backward(kept, slope):
    x, kernel = kept
    (ny, nx), (inputs, outputs) = x.shape[1:3], kernel.shape[2:]
    transposed = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    columns = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    columns = [columns[:, :, j : j + nx] for j in range(3)]
    rows = jnp.pad(slope, ((0, 0), (2, 2), (0, 0), (0, 0)))
    rows = [rows[:, 2 - i : 4 - i + ny] for i in range(3)]
    left = jnp.concatenate(columns, axis=-1).reshape(-1, 3 * inputs)
    right = jnp.concatenate(rows, axis=-1).reshape(-1, 3 * outputs)
    product = jnp.matmul(left.T, right, preferred_element_type=jnp.float32)
    product = product.reshape(3, inputs, 3, outputs).transpose(2, 0, 1, 3)
    return _plain(slope, transposed), product.astype(kernel.dtype)


_convolve_wide.defvjp(_convolve_forward, _convolve_backward)


def _attend(query, key, value, bias):
    """softmax(query key^T + bias) value; [N, heads, T, C / heads], bias [1, heads, T, T]."""
    weights = nn.softmax(_times(query, key.mT) + bias)
    return jnp.matmul(weights.astype(value.dtype), value)


def _times(a, b):
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


@jax.custom_vjp
def _attend_in_chunks(query, key, value, bias):
    """`_attend` for a CPU, up to twice as fast with its slope.

    Scores are many times as large as what goes in and out, and memory is slow: they are
    made for some cells at a time and made again for the slope (Dao et al. 2022, arXiv
    2205.14135). The slope makes them in both orders, because XLA is slow in products
    that sum over the first index of a large matrix.
    """
    return _attend_forward(query, key, value, bias)[0]


def _attend_forward(query, key, value, bias):
    def some(parts):
        query, key, value = parts
        scores = _times(query, key.mT) + bias
        largest = scores.max(-1, keepdims=True)
        weights = jnp.exp(scores - largest)
        total = weights.sum(-1, keepdims=True)
        mixed = _times(weights.astype(value.dtype), value) / total
        return mixed.astype(value.dtype), largest + jnp.log(total)

    mixed, level = jax.tree.map(_joined, lax.map(some, _chunks(query, key, value)))
    return mixed, (query, key, value, bias, mixed, level)


def _attend_backward(kept, slope):
    query, key, value, bias, mixed, level = kept
    along = jnp.sum(slope * mixed, -1, keepdims=True, dtype=jnp.float32)

    def some(total, parts):
        query, key, value, slope, level, along = parts
        weights = jnp.exp(_times(query, key.mT) + bias - level)
        scores = weights * (_times(slope, value.mT) - along)
        turned = jnp.exp(
            _times(key, query.mT) + bias.mT - level.mT
        )  # [..., key, query]
        turned_scores = turned * (_times(value, slope.mT) - along.mT)
        slopes = (
            _times(scores.astype(key.dtype), key).astype(query.dtype),
            _times(turned_scores.astype(query.dtype), query).astype(key.dtype),
            _times(turned.astype(slope.dtype), slope).astype(value.dtype),
        )
        return total + scores, slopes  # XLA is slow in sums over cells: one at the end

    parts = _chunks(query, key, value, slope, level, along)
    zeros = jnp.zeros((parts[0].shape[1], *bias.shape[1:]), jnp.float32)
    total, slopes = lax.scan(some, zeros, parts)
    return *map(_joined, slopes), total.sum(0, keepdims=True)


_attend_in_chunks.defvjp(_attend_forward, _attend_backward)


def _chunks(*arrays):
    """[N, heads, T, ...] as [chunks, N / chunks, heads, T, ...], see CHUNK."""
    number, heads, tokens = arrays[0].shape[:3]
    most = max(CHUNK // (heads * tokens**2), 1)
    size = max(n for n in range(1, min(most, number) + 1) if number % n == 0)
    return tuple(a.reshape(-1, size, *a.shape[1:]) for a in arrays)


def _joined(array):
    return array.reshape(-1, *array.shape[2:])


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
        qkv = nn.Dense(
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
            mixed = _attend(query, key, value, 0.0)
        else:
            if tokens != self.window**2:
                raise ValueError(
                    f"x: expected cells of {self.window**2} tokens, got {tokens}"
                )
            side = 2 * self.window - 1
            table = self.param("relative", small_normal, (side, side, self.heads))
            cpu = jax.default_backend() == "cpu"
            attend = _attend_in_chunks if cpu else _attend
            mixed = attend(query, key, value, relative_bias(table)[None])
        mixed = mixed.swapaxes(1, 2)
        return nn.Dense(
            channels, dtype=self.dtype, kernel_init=small_normal, name="out"
        )(mixed.reshape(x.shape))


class Mlp(nn.Module):
    """Two Dense layers with an exact GELU between, four times as wide inside."""

    dtype: Dtype = "float32"

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        channels = x.shape[-1]
        hidden = nn.Dense(
            4 * channels, dtype=self.dtype, kernel_init=small_normal, name="widen"
        )(x)
        return nn.Dense(
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
            x = nn.Dense(
                needed, dtype=self.dtype, kernel_init=small_normal, name="width"
            )(x)
        return pixel_shuffle(x) if self.shuffle else resize(x, 2 * x.shape[1])
