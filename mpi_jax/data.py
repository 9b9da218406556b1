"""Examples made on the device from an index, and what a network is given of them.

Image i of a split is a function of (split, i), its noise of (key, i): batches don't
depend on the number of devices, resuming needs the step alone, and an epoch costs no
disk. One line of data:

    phantoms.batch -> system_matrix.forward -> noise -> `Examples`   what is true
    Examples.voltage -> `inputs` -> `Inputs`                         what a network sees
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from mpi_jax import phantoms, physics, scanner, system_matrix
from mpi_jax.configs import Config
from mpi_jax.reconstruct import variational

PRESETS = {"paper": scanner.paper, "open_mpi_2d": scanner.open_mpi_2d}
_SCALE_IMAGES = 120  # training images that set the scale of the signals


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Operator:
    """The fixed arrays of a run: how images become signals and signals become inputs.

    matrix [C, V, P] in the receiver's unit; scale [C, 1]: standard deviation of the
    noise-free training signals of each channel, which the network's signals are divided
    by (one number a channel, never one a signal, so that concentration survives);
    basis: truncated SVD of the matrix, None without physics features.
    """

    scanner: scanner.Scanner
    matrix: Float[Array, "C V P"]
    scale: Float[Array, "C 1"]
    basis: variational.SpectralBasis | None
    lams: Float[Array, " L"]
    iterations: int = dataclasses.field(metadata={"static": True})
    refine: int = dataclasses.field(metadata={"static": True})


class Examples(NamedTuple):
    """What is true: image and mask [B, ny, nx], noisy voltage [B, C, V], family [B]."""

    image: Float[Array, "B ny nx"]
    mask: Float[Array, "B ny nx"]
    voltage: Float[Array, "B C V"]
    family: Int[Array, " B"]


class Inputs(NamedTuple):
    """What a generator gets: arguments of models.transgan.Generator.

    signal [B, C * V]; features [B, ny, nx, L + 1] (Tikhonov images, then the base) and
    base [B, ny, nx] (the non-negative image), both None without physics features. With
    0 iterations there is no base, and L features.
    """

    signal: Float[Array, "B M"]
    features: Float[Array, "B ny nx F"] | None
    base: Float[Array, "B ny nx"] | None


def make_scanner(config: Config) -> scanner.Scanner:
    """The scanner of a config. ValueError for unknown presets or sizes."""
    settings = config.scanner
    if settings.preset not in PRESETS:
        raise ValueError(
            f"scanner.preset: expected one of {', '.join(PRESETS)}; "
            f"got {settings.preset!r}"
        )
    physics.check_model(settings.model)
    return PRESETS[settings.preset](settings.pixels)


def simulator(config: Config) -> Operator:
    """What examples need: the calibration of a config's scanner. Scale 1, no basis."""
    made = make_scanner(config)
    return Operator(
        scanner=made,
        matrix=system_matrix.simulate(made, config.scanner.model),
        scale=jnp.ones((made.channels, 1)),
        basis=None,
        lams=jnp.asarray(config.physics.lams, jnp.float32),
        iterations=config.physics.iterations,
        refine=config.physics.refine,
    )


def build(config: Config) -> Operator:
    """What training needs: the simulator, its matrix decomposed, its signals scaled."""
    operator = simulator(config)
    if config.physics.rank:
        flat = operator.matrix.reshape(-1, operator.scanner.grid.size)
        basis = variational.spectral_basis(
            flat, config.physics.rank, config.physics.rho
        )
        operator = dataclasses.replace(operator, basis=basis)
    size = config.data.batch_size
    starts = range(0, max(_SCALE_IMAGES, size), size)
    u = [draw(operator, "train", i, size, np.inf).voltage for i in starts]
    scale = jnp.sqrt(jnp.mean(jnp.square(jnp.concatenate(u)), axis=(0, 2)))[:, None]
    return dataclasses.replace(operator, scale=scale)


def examples(
    operator: Operator,
    split: Int[Array, ""] | int,
    start: Int[Array, ""] | int,
    size: int,
    snr_db: Float[Array, " 2"],
    key: PRNGKeyArray,
) -> Examples:
    """Examples start ... start + size - 1 of phantoms.SPLITS[split]; pure.

    snr_db: smallest and largest power SNR [dB], drawn uniformly for each example.
    """
    images, masks, families = phantoms.batch(split, start, size, operator.scanner.grid)
    u = system_matrix.forward(operator.matrix, images)
    low, high = snr_db[0], snr_db[1]
    index = start + jnp.arange(size)

    def noisy(i, u):
        level, noise = jax.random.split(jax.random.fold_in(key, i))
        # An infinite SNR leaves u as it is; inf - inf must not make a NaN of it.
        span = jnp.where(high == low, 0.0, high - low)
        snr = low + span * jax.random.uniform(level)
        return physics.add_noise(noise, u, snr)

    return Examples(images, masks, jax.vmap(noisy)(index, u), families)


def inputs(operator: Operator, voltage: Float[Array, "B C V"]) -> Inputs:
    """Network inputs of measured voltages; nothing but the operator is used of truth."""
    signal = (voltage / operator.scale[None]).reshape(len(voltage), -1)
    if operator.basis is None:
        return Inputs(signal, None, None)
    flat = voltage.reshape(len(voltage), -1)
    shape = (len(voltage), *operator.scanner.grid.shape)
    tikhonov = variational.tikhonov(operator.basis, flat, operator.lams)
    images = jnp.moveaxis(tikhonov.reshape(shape[0], -1, *shape[1:]), 1, -1)
    if not operator.iterations:
        return Inputs(signal, images, None)
    base = variational.nonnegative(
        operator.basis, flat, iterations=operator.iterations
    ).reshape(shape)
    return Inputs(signal, jnp.concatenate([images, base[..., None]], -1), base)


def refine(
    operator: Operator, voltage: Float[Array, "B C V"], image: Float[Array, "B ny nx"]
) -> Float[Array, "B ny nx"]:
    """A network's images, made consistent with the measured voltages.

    A few steps towards the non-negative image that explains them, from the network's:
    strong singular values are set by the measurement, weak ones by the network.
    """
    if operator.basis is None or not operator.refine:
        return image
    count = len(voltage)
    return variational.nonnegative(
        operator.basis,
        voltage.reshape(count, -1),
        iterations=operator.refine,
        start=image.reshape(count, -1),
    ).reshape(image.shape)


# Noise of everything but training: one for all seeds, so that runs compare.
_NOISE_SEED = 2718


def draw(
    operator: Operator,
    split: str,
    start: int,
    size: int,
    snr_db: float | tuple[float, float],
    key: PRNGKeyArray | None = None,
) -> Examples:
    """`examples` of a split by name at one SNR [dB] or a range, compiled once for all.

    key: noise; by default that of validation and test signals, the same for every run.
    """
    pair = jnp.broadcast_to(jnp.asarray(snr_db, jnp.float32), (2,))
    key = jax.random.key(_NOISE_SEED) if key is None else key
    return _draw(operator, phantoms.SPLITS.index(split), start, size, pair, key)


_draw = jax.jit(examples, static_argnames="size")


def check_voltage(scanner: scanner.Scanner, voltage: np.ndarray) -> np.ndarray:
    """A measured voltage as [N, C, V] float32; ValueError where it can't be one.

    Takes [C, V], [N, C, V] or flat [C * V], [N, C * V].
    """
    channels, samples = scanner.channels, scanner.samples
    u = np.asarray(voltage)
    if u.ndim and u.shape[-1] == channels * samples:
        u = u.reshape(*u.shape[:-1], channels, samples)
    if u.ndim not in (2, 3) or u.shape[-2:] != (channels, samples):
        raise ValueError(
            f"voltage: expected [N, {channels}, {samples}] or [N, {channels * samples}] "
            f"(channels x samples of one period), got shape {list(np.shape(voltage))}"
        )
    if not np.issubdtype(u.dtype, np.floating):
        raise ValueError(f"voltage: expected real numbers, got {u.dtype}")
    if not np.isfinite(u).all():
        bad = int(np.size(u) - np.isfinite(u).sum())
        raise ValueError(f"voltage: expected finite numbers, got {bad} NaN or infinite")
    return u.reshape(-1, channels, samples).astype(np.float32)
