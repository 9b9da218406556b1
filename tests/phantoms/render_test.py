"""Polygons and ellipses: areas in closed form, coverage by counting points."""

import jax.numpy as jnp
import numpy as np
from support.drawings import brute_force, one_polygon, painted, turned

from mpi_jax import phantoms


def test_rectangle_solid_and_hollow():
    angle, wide, high, wall = 0.4, 0.5, 0.3, 0.05
    c, s = np.cos(angle), np.sin(angle)
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * (wide / 2, high / 2)
    corners = corners @ np.array([[c, s], [-s, c]])

    def solid(x, y):
        u, v = turned(x, y, angle)
        return (abs(u) <= wide / 2) & (abs(v) <= high / 2)

    def hole(x, y):
        u, v = turned(x, y, angle)
        return (abs(u) < wide / 2 - wall) & (abs(v) < high / 2 - wall)

    got = painted(one_polygon(corners))[1]
    np.testing.assert_allclose(got, brute_force(solid), atol=0.06)
    np.testing.assert_allclose(got.mean(), wide * high, rtol=2e-3)
    got = painted(one_polygon(corners, wall))[1]
    area = wide * high - (wide - 2 * wall) * (high - 2 * wall)
    np.testing.assert_allclose(got.mean(), area, rtol=4e-3)
    expected = brute_force(lambda x, y: solid(x, y) & ~hole(x, y))
    np.testing.assert_allclose(got, expected, atol=0.06)


def test_triangle_area():
    corners = np.array([[-0.3, -0.2], [0.35, -0.1], [0.05, 0.3]])
    a, b = corners[1] - corners[0], corners[2] - corners[0]
    got = painted(one_polygon(corners))[1]
    area = abs(a[0] * b[1] - a[1] * b[0]) / 2
    np.testing.assert_allclose(got.mean(), area, rtol=3e-3)
    # Row 0 is at +y: the tip with the largest y is in the upper half.
    assert np.argmax(np.asarray(got).max(axis=1) > 0) == int((0.5 - 0.3) * 64)


def test_ellipse_against_counting():
    centre, half, angle = np.array([0.1, -0.05]), np.array([0.3, 0.12]), 0.7

    def solid(x, y):
        u, v = turned(x - centre[0], y - centre[1], angle)
        return (u / half[0]) ** 2 + (v / half[1]) ** 2 <= 1

    item = phantoms.Ellipse(
        jnp.asarray(centre, jnp.float32)[None],
        jnp.array([[np.cos(angle), np.sin(angle)]], jnp.float32),
        jnp.asarray(half, jnp.float32)[None],
        jnp.array([9.0]),
    )
    box = jnp.full((1, 2), -0.5), jnp.full((1, 2), 0.5)
    proposal = phantoms.Proposal(item, jnp.arange(1), jnp.array([True]), *box)
    got = painted(proposal)[1]
    np.testing.assert_allclose(got.mean(), np.pi * half.prod(), rtol=3e-3)
    np.testing.assert_allclose(got, brute_force(solid), atol=0.06)
