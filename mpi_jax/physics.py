"""From concentration to voltage: Langevin particles in a moving field-free point.

Symbols (SI; axes in brackets):
    B [T, P, 3]   field at sample n and pixel p           [T]
    xi = beta B   Langevin argument as a vector; x = |xi|, z = x^2
    L(x) = coth x - 1/x,  f = L / x,  q = (L' - f) / z = 2 df/dz
    c [..., P]    concentration, image value 1 = the tracer's reference
    u [..., C, V] voltage (receive channel, sample)       [V] or [A m^2/s], see Receiver

model="tensor" is the physics: the moment follows the direction of the field,
    d<m>/dt = m beta (f dB/dt + q xi (xi . dB/dt)),
whose terms are all smooth in z, so that values and derivatives stay finite where the
field vanishes. model="mpirf" is the scalar kernel of the MPIRF simulator (Shen et al.,
github.com/XiaoYaoNet/MPIRF), u = m beta dB/dt sum_p c_p L'(x_p): the part L/x of the
tensor is missing, so it isn't the derivative of any magnetisation in 2D. It is here
because published data was made with it.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from mpi_jax.scanner import Scanner

MODELS = ("tensor", "mpirf")

# Largest [samples, pixels] block evaluated at once: bounds memory, fills the cache.
_BLOCK = 2**20


def _series(terms: int) -> np.ndarray:
    """c_k with L(x)/x = sum_k c_k x^(2k-2), for k = 1..terms."""
    n = np.arange(1, 2000)
    zeta = [np.pi**2 / 6, np.pi**4 / 90]
    zeta += [float(np.sum(n ** (-2.0 * k))) for k in range(3, terms + 1)]
    k = np.arange(1, terms + 1)
    return 2 * (-1.0) ** (k + 1) * np.array(zeta[:terms]) / np.pi ** (2 * k)


_SERIES = _series(16)


def _horner(coefficients: np.ndarray, z: Array) -> Array:
    value = jnp.full_like(z, coefficients[-1])
    for c in coefficients[-2::-1]:
        value = value * z + c
    return value


def langevin(z: Float[Array, "*n"]) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """f = L(x)/x and q = (L'(x) - L(x)/x)/x^2 at z = x^2 >= 0; L'(x) = f + z q.

    Power series below x = 1 (its radius is pi), exponentials above; no sinh or cosh,
    which overflow. Both branches get harmless arguments where the other one holds, so
    that gradients are finite everywhere, 0 included.
    """
    # Eight terms reach float32's rounding at x = 1, sixteen float64's.
    terms = 16 if z.dtype == jnp.float64 else 8
    c = _SERIES[:terms]
    small = z < 1
    zs = jnp.where(small, z, 0)
    f_small = _horner(c, zs)
    q_small = _horner(2 * np.arange(1, terms) * c[1:], zs)

    zl = jnp.where(small, 1, z)
    x = jnp.sqrt(zl)
    e = jnp.exp(-2 * x)
    gap = 1 - e  # x >= 1: no cancellation
    f = (1 + e) / (gap * x) - 1 / zl
    q = (1 / zl - 4 * e / (gap * gap) - f) / zl
    return jnp.where(small, f_small, f), jnp.where(small, q_small, q)


def _dtype():
    return jnp.result_type(float)


def check_model(model: str) -> None:
    if model not in MODELS:
        raise ValueError(f"model: expected one of {MODELS}, got {model!r}")


def response(
    scanner: Scanner,
    drive_field: Float[Array, "T 3"],
    drive_rate: Float[Array, "T 3"],
    model: str = "tensor",
) -> Float[Array, "C T P"]:
    """Signal of unit concentration in each pixel, for given samples of the drive field.

    drive_field [T, 3] T, drive_rate [T, 3] T/s; the result is in the receiver's scaling.
    """
    tracer, receiver, grid = scanner.tracer, scanner.receiver, scanner.grid
    dtype = drive_field.dtype
    selection = jnp.asarray(scanner.selection_field.offset, dtype)[None] + (
        grid.positions() @ jnp.asarray(scanner.selection_field.gradient).T
    ).astype(dtype)
    beta = jnp.asarray(tracer.beta, dtype)
    # Axis by axis, so that no [T, P, 3] array comes into being.
    xi = [beta * (drive_field[:, k, None] + selection[None, :, k]) for k in range(3)]
    rate = [drive_rate[:, k, None] for k in range(3)]
    z = sum(a * a for a in xi)
    f, q = langevin(z)

    scale = jnp.asarray(tracer.moment * tracer.beta, dtype)
    if receiver.scaling == "si":
        cell = jnp.prod(grid.pitch)
        scale = -scale * jnp.asarray(cell * tracer.number_density, dtype)
    if model == "tensor":
        along = q * sum(a * b for a, b in zip(xi, rate, strict=True))
        parts = [f * b + along * a for a, b in zip(xi, rate, strict=True)]
    else:
        kernel = f + z * q
        parts = [kernel * b for b in rate]
    sensitivity = scale * jnp.asarray(receiver.sensitivity, dtype)
    return jnp.stack(
        [sum(p * s for p, s in zip(parts, c, strict=True)) for c in sensitivity]
    )


def block_starts(scanner: Scanner) -> tuple[np.ndarray, int]:
    """Starts and length of the time blocks that cover a period.

    The last block is moved back to end with the period: it repeats some samples instead
    of needing a padded copy.
    """
    samples = scanner.samples
    length = min(samples, max(1, _BLOCK // scanner.grid.size))
    starts = np.minimum(np.arange(0, samples, length), samples - length)
    return starts, length


def voltage(
    scanner: Scanner,
    concentration: Float[Array | np.ndarray, "*batch_and_grid"],
    model: str = "tensor",
) -> Float[Array, "*batch C V"]:
    """Voltage of one period for concentrations [..., *grid.shape], without a matrix.

    For many calls on one scanner build the matrix once (system_matrix.simulate) and use
    system_matrix.forward. Differentiable in everything; the backward pass recomputes
    the kernel block by block. Raises ValueError on a shape that isn't the grid's.
    """
    check_model(model)
    shape = scanner.grid.shape
    if concentration.shape[-len(shape) :] != shape:
        raise ValueError(
            f"concentration: expected shape [..., {', '.join(map(str, shape))}] like the "
            f"grid, got {list(concentration.shape)}"
        )
    return _voltage(scanner, jnp.asarray(concentration, _dtype()), model)


@partial(jax.jit, static_argnames="model")
def _voltage(scanner, concentration, model):
    batch = concentration.shape[: -len(scanner.grid.shape)]
    images = concentration.reshape(-1, scanner.grid.size).T
    field, rate = (a.astype(_dtype()) for a in scanner.drive_field.field())
    starts, length = block_starts(scanner)

    @jax.checkpoint
    def block(start):
        rows = [jax.lax.dynamic_slice_in_dim(a, start, length) for a in (field, rate)]
        kernel = response(scanner, *rows, model)
        flat = kernel.reshape(-1, scanner.grid.size)
        product = jnp.matmul(flat, images, precision="highest")
        return product.reshape(*kernel.shape[:2], -1)

    blocks = jax.lax.map(block, jnp.asarray(starts))  # [blocks, C, T, B]
    index = starts[:, None] + np.arange(length)
    # Where blocks overlap both hold the same value; keep the first.
    _, first = np.unique(index.reshape(-1), return_index=True)
    blocks = blocks.transpose(3, 1, 0, 2)
    u = blocks.reshape(*blocks.shape[:2], -1)[..., first]
    return u.reshape(*batch, *u.shape[1:])


def spectrum(u: Float[Array, "*batch V"]) -> Array:
    """Unnormalised rfft over one period, [..., K = V//2 + 1] complex."""
    return jnp.fft.rfft(u, axis=-1)


def noise_level(
    u: Float[Array, "*batch C V"], snr_db: Float[Array, "*batch"] | float
) -> Float[Array, "*batch 1 1"]:
    """Standard deviation of white noise at a power SNR of snr_db [dB] for each signal.

    SNR = 10 log10(mean u^2 / sigma^2), the mean over all channels and samples of that
    signal. An infinite SNR gives 0.
    """
    power = jnp.mean(u**2, axis=(-2, -1), keepdims=True)
    ratio = jnp.broadcast_to(jnp.asarray(snr_db, u.dtype), u.shape[:-2])
    return jnp.sqrt(power) * 10 ** (-ratio[..., None, None] / 20)


def add_noise(
    key: PRNGKeyArray,
    u: Float[Array, "*batch C V"],
    snr_db: Float[Array, "*batch"] | float,
) -> Float[Array, "*batch C V"]:
    """u plus white Gaussian noise at a power SNR of snr_db [dB], one sigma a signal."""
    noise = jax.random.normal(key, u.shape, u.dtype)
    return u + noise_level(u, snr_db) * noise
