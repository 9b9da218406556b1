"""Products, convolution and attention in the order that a CPU is fast in."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

NARROW = 8  # fewer channels than this: XLA's slope of a kernel is as fast as ours
CHUNK = 2**20  # scores of attention at once on a CPU: 4 MB, which its cache holds


ROWS = 1024  # of a product that sums over more of them, XLA takes its time


def multiply(x, kernel, dimension_numbers=None, precision=None, **_):
    """lax.dot_general for `dense`: x [..., I] and kernel [I, O] to [..., O]."""
    return product(x, kernel)


@jax.custom_vjp
def product(x, kernel):
    """x [..., I] times kernel [I, O].

    The slope of the kernel sums over all rows of x, a product that XLA's CPU backend is
    slow in where they are many thousands: it is taken for some rows at a time here.
    """
    return jnp.matmul(x, kernel)


def product_forward(x, kernel):
    return jnp.matmul(x, kernel), (x, kernel)


def product_backward(residuals, slope):
    x, kernel = residuals
    left, right = x.reshape(-1, x.shape[-1]), slope.reshape(-1, slope.shape[-1])
    size = _largest_divisor(len(left), ROWS)
    if size > ROWS // 8:
        left, right = (a.reshape(-1, size, a.shape[-1]) for a in (left, right))
        to_kernel = _times(left.mT, right).sum(0)
    else:
        to_kernel = _times(left.T, right)
    return jnp.matmul(slope, kernel.T), to_kernel.astype(kernel.dtype)


product.defvjp(product_forward, product_backward)


def convolve_patches(x, kernel, strides, padding, **_):
    """lax.conv_general_dilated for `strided`, windows of one or two strides.

    x [B, n, n, C] and kernel [k, k, C, K] as one product of patches and matrix: blocks of
    one stride, and where the window is of two, neighbours beside each other.
    """
    window, stride = kernel.shape[0], strides[0]
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    batch, ny, nx, channels = x.shape
    x = x.reshape(batch, ny // stride, stride, nx // stride, stride, channels)
    x = x.swapaxes(2, 3)  # [B, blocks, blocks, stride, stride, C]
    if window == 2 * stride:
        x = jnp.concatenate([x[:, :-1], x[:, 1:]], axis=3)
        x = jnp.concatenate([x[:, :, :-1], x[:, :, 1:]], axis=4)
    patches = x.reshape(*x.shape[:3], -1)
    return product(patches, kernel.reshape(-1, kernel.shape[-1]))


def convolve(x, kernel, strides, padding, **settings):
    """lax.conv_general_dilated for `conv3x3`, wide kernels with a slope of our own."""
    if min(kernel.shape[2:]) < NARROW:
        return lax.conv_general_dilated(x, kernel, strides, padding, **settings)
    return convolve_wide(x, kernel)


def _plain(x, kernel):
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@jax.custom_vjp
def convolve_wide(x, kernel):
    """x [B, ny, nx, C] and kernel [3, 3, C, K] to [B, ny, nx, K].

    XLA takes the slope with respect to the kernel for a convolution with a window as
    large as the map; on a CPU that made up three quarters of a training step. Here it
    is one matrix product: three shifts of x in one direction by three of the slope in
    the other. Up to three times as fast, and closer to float64.
    """
    return _plain(x, kernel)


def convolve_forward(x, kernel):
    return _plain(x, kernel), (x, kernel)


def convolve_backward(residuals, slope):
    x, kernel = residuals
    (ny, nx), (inputs, outputs) = x.shape[1:3], kernel.shape[2:]
    transposed = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    columns = [padded[:, :, j : j + nx] for j in range(3)]
    padded_slope = jnp.pad(slope, ((0, 0), (2, 2), (0, 0), (0, 0)))
    rows = [padded_slope[:, 2 - i : 4 - i + ny] for i in range(3)]
    left = jnp.concatenate(columns, axis=-1).reshape(-1, 3 * inputs)
    right = jnp.concatenate(rows, axis=-1).reshape(-1, 3 * outputs)
    product = jnp.matmul(left.T, right, preferred_element_type=jnp.float32)
    product = product.reshape(3, inputs, 3, outputs).transpose(2, 0, 1, 3)
    return _plain(slope, transposed), product.astype(kernel.dtype)


convolve_wide.defvjp(convolve_forward, convolve_backward)


def attend(query, key, value, bias):
    """softmax(query key^T + bias) value; [N, heads, T, C / heads], bias [1, heads, T, T]."""
    weights = nn.softmax(_times(query, key.mT) + bias)
    return jnp.matmul(weights.astype(value.dtype), value)


def _times(a, b):
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


@jax.custom_vjp
def attend_in_chunks(query, key, value, bias):
    """`attend` for a CPU, up to twice as fast with its slope.

    Scores are many times as large as what goes in and out, and memory is slow: they are
    made for some cells at a time and made again for the slope (Dao et al. 2022, arXiv
    2205.14135). The slope makes them in both orders, because XLA is slow in products
    that sum over the first index of a large matrix.
    """
    return attend_forward(query, key, value, bias)[0]


def attend_forward(query, key, value, bias):
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


def attend_backward(residuals, slope):
    query, key, value, bias, mixed, level = residuals
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


attend_in_chunks.defvjp(attend_forward, attend_backward)


def _largest_divisor(number, most):
    return max(n for n in range(1, min(most, number) + 1) if number % n == 0)


def _chunks(*arrays):
    """[N, heads, T, ...] as [chunks, N / chunks, heads, T, ...], see CHUNK."""
    number, heads, tokens = arrays[0].shape[:3]
    size = _largest_divisor(number, max(CHUNK // (heads * tokens**2), 1))
    return tuple(a.reshape(-1, size, *a.shape[1:]) for a in arrays)


def _joined(array):
    return array.reshape(-1, *array.shape[2:])
