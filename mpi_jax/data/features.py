"""What a network is given of a signal."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from mpi_jax.data.forward_model import ForwardModel
from mpi_jax.reconstruct import admm, spectral


class Inputs(NamedTuple):
    """What a generator gets: arguments of models.transgan.Generator.

    signal [B, C * V]; features [B, ny, nx, L + 1] (Tikhonov images, then the base), base
    [B, ny, nx] (the non-negative image) and measured, the signal in the singular basis:
    coefficients [B, k], s [k], V [P, k]; all None without physics
    features. With 0 iterations there is no base, and L features.
    """

    signal: Float[Array, "B M"]
    features: Float[Array, "B ny nx F"] | None
    base: Float[Array, "B ny nx"] | None
    measured: tuple[Array, Array, Array] | None = None


def scaled(
    forward: ForwardModel, voltage: Float[Array, "B C V"]
) -> Float[Array, "B M"]:
    """Voltages over the scale of their channel, one row [C V] each."""
    return (voltage / forward.scale[None]).reshape(len(voltage), -1)


def inputs(forward: ForwardModel, voltage: Float[Array, "B C V"]) -> Inputs:
    """Network inputs of measured voltages; nothing but the operator is used of truth."""
    signal = scaled(forward, voltage)
    if forward.whitening is not None:
        signal = signal @ forward.whitening
    if forward.basis is None:
        return Inputs(signal, None, None)
    flat = voltage.reshape(len(voltage), -1)
    shape = (len(voltage), *forward.scanner.grid.shape)
    tikhonov = spectral.tikhonov(forward.basis, flat, forward.lams)
    images = jnp.moveaxis(tikhonov.reshape(shape[0], -1, *shape[1:]), 1, -1)
    coefficients = spectral.project(forward.basis, flat) / forward.basis.scale
    measured = coefficients, forward.basis.s, forward.basis.V
    if not forward.iterations:
        return Inputs(signal, images, None, measured)
    base = admm.nonnegative(forward.basis, flat, iterations=forward.iterations).reshape(
        shape
    )
    features = jnp.concatenate([images, base[..., None]], -1)
    return Inputs(signal, features, base, measured)


def refine(
    forward: ForwardModel,
    voltage: Float[Array, "B C V"],
    image: Float[Array, "B ny nx"],
) -> Float[Array, "B ny nx"]:
    """A network's images, made consistent with the measured voltages.

    A few steps towards the non-negative image that explains them, from the network's:
    strong singular values are set by the measurement, weak ones by the network.
    """
    if forward.basis is None or not forward.refine:
        return image
    count = len(voltage)
    return admm.nonnegative(
        forward.basis,
        voltage.reshape(count, -1),
        iterations=forward.refine,
        start=image.reshape(count, -1),
    ).reshape(image.shape)
