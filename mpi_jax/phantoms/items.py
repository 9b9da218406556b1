"""What phantoms are drawn of, and the random numbers that place it."""

import functools
import math
import pathlib
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

FAMILIES = ("bars", "rectangles", "triangles", "ellipses", "numbers", "vessels")
SPLITS = ("train", "validation", "test")

FILL = (0.005, 0.35)  # accepted mean coverage of the field of view
TRIES = 16  # proposals before the last one is taken as it is
MARGIN = 0.05  # empty border
TOUCHING = 0.1  # share of the images that run over an edge instead
PREVIEW = 64  # points per axis of the picture on which the fill is judged
BRANCHES, STEPS = 9, 7  # of a vessel tree; strokes per branch
DIGIT_STROKES = 24
TILE = 64  # sub-pixels per side of what is painted at once on a CPU
DRAWS = 256  # uniform random numbers set aside for a picture

SEEDS = {"train": 638137, "validation": 18233, "test": 26306941}


def mm(length: float | int) -> float:
    """Millimetres in a 12.8 mm field of view -> units of the field of view."""
    return length / 12.8


# Items are what can be painted. `paint` gives the depth below the edge (positive
# inside, exact near the edge only) and a brightness. Fields carry a leading axis of
# items, which the painter's scan takes off.


class Polygon(NamedTuple):
    """Convex polygon as half-planes normal . p <= offset; `wall` thick if hollow."""

    normal: Array  # [items, 4, 2]
    offset: Array  # [items, 4]
    wall: Array  # [items]

    def paint(self, x, y):
        sides = zip(self.normal, self.offset, strict=True)
        depth = functools.reduce(
            jnp.minimum, [h - (n[0] * x + n[1] * y) for n, h in sides]
        )
        return jnp.minimum(depth, self.wall - depth), 1.0


class Ellipse(NamedTuple):
    centre: Array  # [items, 2]
    axis: Array  # [items, 2] unit vector along the first half axis
    half: Array  # [items, 2] half axes
    wall: Array  # [items]

    def paint(self, x, y):
        x, y = x - self.centre[0], y - self.centre[1]
        u = (x * self.axis[0] + y * self.axis[1]) / self.half[0]
        v = (y * self.axis[0] - x * self.axis[1]) / self.half[1]
        # First order distance to a level line: (1 - f) / |grad f|, f = hypot(u, v).
        f2 = u * u + v * v + 1e-6
        slope = jnp.sqrt((u / self.half[0]) ** 2 + (v / self.half[1]) ** 2 + 1e-6)
        depth = (jnp.sqrt(f2) - f2) / slope
        # The formula falls back to 0 at the centre; there the edge is far away.
        depth = jnp.where(f2 < 0.25, jnp.maximum(depth, 0.4 * self.half.min()), depth)
        return jnp.minimum(depth, self.wall - depth), 1.0


class Stroke(NamedTuple):
    """Line with round ends whose radius changes linearly from start to end."""

    start: Array  # [items, 2]
    step: Array  # [items, 2] end - start
    radius: Array  # [items, 2] at start and end
    thickest: Array  # [items] 0: flat; else brightness is chord / (2 thickest)

    def paint(self, x, y):
        x, y = x - self.start[0], y - self.start[1]
        length2 = jnp.maximum(jnp.sum(self.step**2), 1e-12)
        along = x * (self.step[0] / length2) + y * (self.step[1] / length2)
        along = jnp.clip(along, 0, 1)
        x, y = x - along * self.step[0], y - along * self.step[1]
        radius = self.radius[0] + along * (self.radius[1] - self.radius[0])
        chord2 = radius * radius - (x * x + y * y)
        # r - d = (r^2 - d^2) / (r + d), and d = r at the edge: no root for the depth.
        depth = chord2 * (1 / (self.radius[0] + self.radius[1]))
        per_thickest = jnp.where(self.thickest > 0, 1 / self.thickest, 0.0)
        chord = jnp.sqrt(jnp.maximum(chord2, 0)) * per_thickest
        return depth, jnp.where(self.thickest > 0, chord, 1.0)


class Glyph(NamedTuple):
    """Digit from the atlas of signed distances."""

    digit: Array  # [items]
    centre: Array  # [items, 2]
    matrix: Array  # [items, 2, 2] page -> glyph box, in glyph heights
    height: Array  # [items]

    def paint(self, x, y):
        distance, box = _atlas()
        x, y = x - self.centre[0], y - self.centre[1]
        across = self.matrix[0, 0] * x + self.matrix[0, 1] * y
        down = -(self.matrix[1, 0] * x + self.matrix[1, 1] * y)
        rows, columns = distance.shape[1:]
        across = jnp.clip((across / box[0] + 0.5) * columns - 0.5, 0, columns - 1.001)
        down = jnp.clip((down / box[1] + 0.5) * rows - 0.5, 0, rows - 1.001)
        column, row = jnp.floor(across), jnp.floor(down)
        p, q = across - column, down - row
        corner = (self.digit * rows + row.astype(int)) * columns + column.astype(int)
        flat = jnp.asarray(distance).ravel()
        above = flat[corner] * (1 - p) + flat[corner + 1] * p
        below = flat[corner + columns] * (1 - p) + flat[corner + columns + 1] * p
        return (above * (1 - q) + below * q) * self.height, 1.0


class Proposal(NamedTuple):
    """Items before they have a place and a concentration."""

    items: Any  # one of the classes above
    owner: Array  # [items] number of the object an item belongs to
    visible: Array  # [items] bool
    lower: Array  # [items, 2] bounding boxes
    upper: Array  # [items, 2]


class Drawing(NamedTuple):
    """A picture without a grid."""

    items: Any
    level: Array  # [items] concentration, 0: not drawn
    lower: Array  # [items, 2] bounding boxes, as drawn
    upper: Array  # [items, 2]
    scale: Array  # page = scale * drawn + shift
    shift: Array  # [2]
    ramp: Array  # [3] factor on the concentration: ramp . (1, x, y)


@functools.cache
def _atlas() -> tuple[np.ndarray, np.ndarray]:
    """Depth [10, 48, 48] in glyph heights, and the box (width, height) it covers.

    Outlines of the digits of DejaVu Sans (matplotlib's default font; Bitstream Vera
    licence, which allows this); tests/phantoms/stream_test.py makes the table again.
    """
    path = pathlib.Path(__file__).with_name("glyphs.npz")
    with np.load(path, allow_pickle=False) as file:
        depth = file["depth"].astype(np.float32) * file["step"]
        return depth, file["box"].astype(np.float32)


class Draws:
    """The random numbers of one proposal, drawn at once and handed out in order.

    Every call of jax.random compiles to a generator of its own; with one for each of
    the twenty numbers of a picture, compiling them took longer than a training run.
    """

    def __init__(self, values):
        self.values, self.used = values, 0

    def unit(self, shape=()):
        first, self.used = self.used, self.used + math.prod(shape)
        if self.used > len(self.values):
            raise ValueError(f"DRAWS: a picture needs more than {len(self.values)}")
        return self.values[first : self.used].reshape(shape)

    def uniform(self, low, high, shape=()):
        return low + (high - low) * self.unit(shape)

    def log_uniform(self, low, high, shape=()):
        return jnp.exp(self.uniform(math.log(low), math.log(high), shape))

    def integer(self, low, high, shape=()):
        """low ... high - 1"""
        return jnp.floor(self.uniform(low, high, shape)).astype(int)

    def chance(self, p=0.5, shape=()):
        return self.unit(shape) < p

    def normal(self, shape=()):
        u = 2 * self.unit(shape) - 1
        return math.sqrt(2) * lax.erf_inv(jnp.clip(u, -1 + 1e-6, 1 - 1e-6))


def turned(points, angle):
    """Points [..., 2] turned by angle [...] about the origin."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    x, y = points[..., 0], points[..., 1]
    return jnp.stack([cos * x - sin * y, sin * x + cos * y], axis=-1)


def polygons(corners, wall, visible) -> Proposal:
    """Convex polygons from 3 or 4 corners [objects, corners, 2], counter-clockwise.

    Lengths in units of the field of view. wall [objects]: thickness, large for filled
    ones; visible [objects]: boolean.

    Examples:
      >>> corners = jnp.array([[[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
      >>> polygons(corners, jnp.ones(1), jnp.ones(1, bool)).upper.tolist()
      [[1.0, 1.0]]
    """
    edge = jnp.roll(corners, -1, axis=1) - corners
    normal = jnp.stack([edge[..., 1], -edge[..., 0]], axis=-1)
    normal /= jnp.linalg.norm(normal, axis=-1, keepdims=True)
    offset = jnp.sum(normal * corners, axis=-1)
    more = ((0, 0), (0, 4 - corners.shape[1]))  # a side said twice changes nothing
    items = Polygon(
        jnp.pad(normal, (*more, (0, 0)), mode="edge"),
        jnp.pad(offset, more, mode="edge"),
        wall,
    )
    owner = jnp.arange(len(corners))
    return Proposal(items, owner, visible, corners.min(axis=1), corners.max(axis=1))


UNIT_SQUARE = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], np.float32) / 2
