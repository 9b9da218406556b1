"""Drawings painted by the package, and by counting points."""

import jax.numpy as jnp
import numpy as np

from mpi_jax import phantoms
from mpi_jax.phantoms import render


def painted(proposal, shape=(64, 64)):
    """(concentration, coverage) of a proposal where it lies, every object at 1."""
    drawing = phantoms.Drawing(
        proposal.items,
        jnp.where(proposal.visible, 1.0, 0.0),
        proposal.lower,
        proposal.upper,
        jnp.float32(1),
        jnp.zeros(2),
        jnp.array([1.0, 0.0, 0.0]),
    )
    return render._render(drawing, shape, jnp.array([0.5, 0.5]))


def brute_force(inside_of, n=64, s=16):
    """Coverage [n, n] by counting s x s points per pixel; inside_of(x, y) -> bool."""
    at = (np.arange(n * s) + 0.5) / (n * s) - 0.5
    x, y = np.meshgrid(at, -at)
    return inside_of(x, y).reshape(n, s, n, s).mean(axis=(1, 3))


def one_polygon(corners, wall=9.0):
    corners = jnp.asarray(corners, jnp.float32)[None]
    return phantoms.polygons(corners, jnp.array([wall]), jnp.array([True]))


def turned(x, y, angle):
    c, s = np.cos(angle), np.sin(angle)
    return c * x + s * y, c * y - s * x
