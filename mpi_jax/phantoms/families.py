"""Six families of phantoms, drawn on the device from a key: concentration [ny, nx].

The families are those of the paper: bars, rectangles, triangles, ellipses, numbers and
vessels. An image of a split is a function of (split, index) alone, so a data set needs
no disk, and parameters never depend on the grid: only the sampling does.

Lengths are in units of the shorter side of the field of view; the constants below are
written in millimetres of a 12.8 mm field of view, which `_mm` converts. Positions are
(x, y) from the centre, y upwards. A picture is drawn in four steps:

    propose   items of one kind (polygons, ellipses, strokes or glyphs) from a key
    compose   concentrations for the objects, a place in the field of view
    preview   reject pictures that are nearly empty or too full
    render    soft coverage on sub-pixels of about 1/256, then the mean over each pixel
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mpi_jax.phantoms.digits import glyphs, pen_strokes
from mpi_jax.phantoms.items import (
    DIGIT_STROKES,
    FAMILIES,
    MARGIN,
    UNIT_SQUARE,
    Draws,
    Ellipse,
    Proposal,
    mm,
    polygons,
    turned,
)
from mpi_jax.phantoms.vessels import vessels


def _bars(draw, split) -> Proposal:
    """1-6 bars side by side, or in two sets that cross."""
    number = jnp.arange(6)
    count = draw.integer(1, 7)
    # Parallel: all in the first set.
    first = jnp.where(draw.chance(), count, (count + 1) // 2)
    second = number >= first
    place = jnp.where(second, number - first, number)
    of = jnp.where(second, count - first, first)
    width = jnp.minimum(draw.log_uniform(mm(0.2), mm(1.2)), 0.85 / (2 * first))
    pitch = jnp.minimum(width * draw.uniform(2.0, 4.0), 0.85 / first)
    length = draw.uniform(mm(3), mm(11), (2,))[second.astype(int)]
    angle = draw.uniform(0, math.pi) + second * draw.uniform(0.7, 1.6)
    size = jnp.stack([length, jnp.full(6, width)], axis=-1)
    middle = jnp.stack([jnp.zeros(6), (place - (of - 1) / 2) * pitch], axis=-1)
    corners = UNIT_SQUARE[None] * size[:, None] + middle[:, None]
    return polygons(turned(corners, angle[:, None]), jnp.full(6, 9.0), number < count)


def _objects(draw, split, *, shape) -> Proposal:
    """1-5 rectangles, triangles or ellipses, one in five of them hollow."""
    visible = jnp.arange(5) < draw.integer(1, 6)
    size = draw.uniform(mm(0.4), mm(4), (5, 2))
    angle = draw.uniform(0, 2 * math.pi, (5,))
    reach = 0.5 - MARGIN - size.max(axis=-1, keepdims=True) / 2
    centre = draw.uniform(-1, 1, (5, 2)) * reach
    wall = jnp.maximum(draw.uniform(0.15, 0.3, (5,)) * size.min(-1), mm(0.2))
    wall = jnp.where(draw.chance(0.2, (5,)), wall, 9.0)
    if shape == "ellipses":
        axis = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
        along, across = size[:, :1] / 2 * axis, size[:, 1:] / 2 * axis[:, ::-1]
        extent = jnp.sqrt(along**2 + across**2)
        items = Ellipse(centre, axis, size / 2, wall)
        return Proposal(items, jnp.arange(5), visible, centre - extent, centre + extent)
    if shape == "rectangles":
        unit = jnp.asarray(UNIT_SQUARE)[None]
    else:  # corners on a circle, a third of a turn apart give or take 40 degrees
        turn = np.arange(3)[None] * (2 * math.pi / 3) + draw.uniform(-0.7, 0.7, (5, 3))
        unit = jnp.stack([jnp.cos(turn), jnp.sin(turn)], axis=-1) / math.sqrt(3)
        # A wall that fits the narrower inside of a triangle.
        wall = jnp.where(wall < 1, jnp.maximum(wall / 2, mm(0.2)), wall)
    corners = turned(unit * size[:, None], angle[:, None]) + centre[:, None]
    return polygons(corners, wall, visible)


class _Kind(NamedTuple):
    """Families that one program paints: a program takes seconds to compile."""

    propose: dict[str, Any]  # family -> (draws, split) -> Proposal
    items: int  # the most of any of them


_KINDS = {
    "polygons": _Kind(
        {
            "bars": _bars,
            "rectangles": functools.partial(_objects, shape="rectangles"),
            "triangles": functools.partial(_objects, shape="triangles"),
        },
        6,
    ),
    "ellipses": _Kind({"ellipses": functools.partial(_objects, shape="ellipses")}, 5),
    # Numbers: the test split's are glyphs, the others' are drawn with a pen.
    "strokes": _Kind({"numbers": pen_strokes, "vessels": vessels}, 3 * DIGIT_STROKES),
    "glyphs": _Kind({"numbers": glyphs}, 3),
}
KIND_OF = {
    name: kind
    for kind in ("polygons", "ellipses", "strokes")
    for name in _KINDS[kind][0]
}


def propose(values, kind: str, family, split):
    """A proposal of the family with this number, filled up to the items of its kind, and
    the uniform numbers that are left to compose it with: one, one an item, seven.
    """

    def of(propose):
        draw = Draws(values)
        proposal = propose(draw, split)
        numbers = draw.unit(), draw.unit(proposal.owner.shape), draw.unit((7,))
        missing = _KINDS[kind].items - len(proposal.owner)

        def filled(a):
            if a.ndim == 0:
                return a
            more = ((0, missing),) + ((0, 0),) * (a.ndim - 1)
            return jnp.pad(a, more, mode="edge")

        visible = jnp.pad(proposal.visible, (0, missing))
        numbers = numbers[0], filled(numbers[1]), numbers[2]
        return jax.tree.map(filled, proposal)._replace(visible=visible), numbers

    names = list(_KINDS[kind].propose)
    branch = [names.index(name) if name in names else 0 for name in FAMILIES]
    branches = [functools.partial(of, f) for f in _KINDS[kind].propose.values()]
    return lax.switch(jnp.asarray(branch)[family], branches)
