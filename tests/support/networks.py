"""Inputs and parameters of networks, drawn here."""

import math

import jax
import jax.numpy as jnp


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def inputs(config, batch=2):
    side = (config.image_size, config.image_size)
    several = (
        normal(1, batch, config.input_size),
        normal(2, batch, *side, config.features) if config.features else None,
        normal(3, batch, *side) if config.base else None,
    )
    if config.local_rounds == 1:
        return several
    measured = normal(4, batch, 5), jnp.ones(5), normal(5, config.image_size**2, 5)
    return *several, measured


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
