"""The networks of a config."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mpi_jax import data
from mpi_jax.configs import Config, LossConfig
from mpi_jax.models import baselines, layers, variants

# Parameters of a generator by name, and under "batch_stats" its statistics if it has any.
Weights = Mapping[str, chex.ArrayTree]


class Networks(NamedTuple):
    """What is trained, and against what. discriminator is None without adversary.

    Generators take data.Inputs and return layers.Images, whichever module they are. One
    with a field axis_name has batch statistics, over the devices of that axis.
    accumulate: parts that a device's images are taken in (DataConfig).
    """

    generator: nn.Module
    discriminator: nn.Module | None
    loss: LossConfig
    accumulate: int = 1


def make_networks(config: Config) -> Networks:
    """The networks of a config, their sizes checked against the scanner.

    Raises ValueError for unknown rows, losses or sizes that don't fit.
    """
    loss = config.loss
    if loss.kind not in ("bce", "wgangp"):
        raise ValueError(f"loss.kind: expected bce or wgangp, got {loss.kind!r}")
    weights = dataclasses.asdict(loss)
    for name in ("mae", "bce", "dice", "adversarial"):
        if not weights[name] >= 0:
            raise ValueError(
                f"loss.{name}: expected a number >= 0, got {weights[name]}"
            )
    if loss.critic_steps < 1:
        raise ValueError(
            f"loss.critic_steps: expected a number >= 1, got {loss.critic_steps}"
        )
    physics = config.physics
    generator = _network("generator", config)
    row = generator.config
    have, base = 0, bool(physics.rank and physics.iterations)
    if physics.rank:
        have = len(physics.lams) + base
    if (row.features, row.base) != (have, base):
        raise ValueError(
            f"generator: {config.generator} takes {row.features} classical images, "
            f"{'one' if row.base else 'none'} of them non-negative, but the physics "
            f"settings make {have} (physics.rank {physics.rank}, {len(physics.lams)} "
            f"lams, {physics.iterations} iterations)"
        )
    if row.image_size != config.scanner.pixels:
        raise ValueError(
            f"generator: {config.generator} makes images of {row.image_size} pixels, "
            f"but scanner.pixels is {config.scanner.pixels}"
        )
    accumulate = config.data.accumulate
    if not loss.adversarial:
        _check_accumulate(accumulate, generator)
        return Networks(generator, None, loss, accumulate)
    critic = _network("discriminator", config)
    if critic.config.image_size != config.scanner.pixels:
        raise ValueError(
            f"discriminator: {config.discriminator} takes images of "
            f"{critic.config.image_size} pixels, but scanner.pixels is "
            f"{config.scanner.pixels}"
        )
    if loss.kind == "wgangp" and has_statistics(critic):
        raise ValueError(
            f"loss.kind: expected bce for {config.discriminator}, whose scores depend on "
            "the whole batch, got wgangp (its penalty is on the slope of each score)"
        )
    _check_accumulate(accumulate, generator, critic)
    return Networks(generator, critic, loss, accumulate)


def _check_accumulate(parts: int, *networks: nn.Module) -> None:
    if parts != 1 and any(has_statistics(network) for network in networks):
        raise ValueError(
            "data.accumulate: expected 1 for networks with batch statistics, which are of "
            f"all images at once, got {parts}"
        )


@runtime_checkable
class HasSignals(Protocol):
    """A scanner as far as a network knows it, simulated or calibrated."""

    @property
    def channels(self) -> int: ...

    @property
    def samples(self) -> int: ...


def check_signal(generator: nn.Module, scanner: HasSignals) -> None:
    """ValueError where a generator doesn't take the signals of a scanner."""
    size = generator.config.input_size
    if scanner.channels * scanner.samples != size:
        raise ValueError(
            f"generator: expected {scanner.channels} x {scanner.samples} inputs like the "
            f"scanner's signals (channels x samples of a period), got {size}"
        )


def _network(kind: str, config: Config) -> nn.Module:
    """The module of config.generator or config.discriminator; kind names which."""
    name = getattr(config, kind)
    tables = {
        module: getattr(module, f"{kind.upper()}S") for module in (variants, baselines)
    }
    for module, table in tables.items():
        if name not in table:
            continue
        options: dict[str, str | bool] = {"dtype": config.dtype}
        if module is variants:
            options["remat"] = config.remat
        elif config.remat:
            raise ValueError(
                f"remat: expected False for {name}, which has no Transformer blocks"
            )
        return getattr(module, kind)(name, **options)
    known = ", ".join(sorted(row for table in tables.values() for row in table))
    raise ValueError(f"{kind}: expected one of {known}; got {name!r}")


def has_statistics(network: nn.Module) -> bool:
    return hasattr(network, "axis_name")


@partial(jax.jit, static_argnames=("generator", "largest"))
def predict(
    generator: nn.Module,
    weights: Weights,
    forward: data.ForwardModel,
    voltage: Float[Array, "B C V"],
    largest: float = 1.0,
) -> layers.Images:
    """Reconstruction, refined and clipped to [0, largest], and segmentation logit (or
    None).

    weights: TrainState.average, or what a weights file holds.
    """
    params = dict(weights)
    variables = {"batch_stats": params.pop("batch_stats", {}), "params": params}
    out = generator.apply(variables, *data.inputs(forward, voltage))
    if not isinstance(out, layers.Images):
        raise ValueError(f"generator: expected one that makes Images, got {out}")
    image = data.refine(forward, voltage, out.reconstruction)
    return out._replace(reconstruction=jnp.clip(image, 0, largest))
