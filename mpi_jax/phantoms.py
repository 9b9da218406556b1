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
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

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

_SEEDS = {"train": 638137, "validation": 18233, "test": 26306941}


def _mm(length: float | int) -> float:
    """Millimetres in a 12.8 mm field of view -> units of the field of view."""
    return length / 12.8


# --- Items: what can be painted. `paint` gives the depth below the edge (positive
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
    licence, which allows this); tests/phantoms_test.py makes the table again.
    """
    path = pathlib.Path(__file__).with_name("glyphs.npz")
    with np.load(path, allow_pickle=False) as file:
        depth = file["depth"].astype(np.float32) * file["step"]
        return depth, file["box"].astype(np.float32)


# --- Proposals, one function per family: draws -> Proposal


class _Draws:
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


def _turned(points, angle):
    """Points [..., 2] turned by angle [...] about the origin."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    x, y = points[..., 0], points[..., 1]
    return jnp.stack([cos * x - sin * y, sin * x + cos * y], axis=-1)


def _polygons(corners, wall, visible) -> Proposal:
    """Convex polygons from 3 or 4 corners [objects, corners, 2], counter-clockwise."""
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


_UNIT_SQUARE = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], np.float32) / 2


def _bars(draw, split) -> Proposal:
    """1-6 bars side by side, or in two sets that cross."""
    number = jnp.arange(6)
    count = draw.integer(1, 7)
    # Parallel: all in the first set.
    first = jnp.where(draw.chance(), count, (count + 1) // 2)
    second = number >= first
    place = jnp.where(second, number - first, number)
    of = jnp.where(second, count - first, first)
    width = jnp.minimum(draw.log_uniform(_mm(0.2), _mm(1.2)), 0.85 / (2 * first))
    pitch = jnp.minimum(width * draw.uniform(2.0, 4.0), 0.85 / first)
    length = draw.uniform(_mm(3), _mm(11), (2,))[second.astype(int)]
    angle = draw.uniform(0, math.pi) + second * draw.uniform(0.7, 1.6)
    size = jnp.stack([length, jnp.full(6, width)], axis=-1)
    middle = jnp.stack([jnp.zeros(6), (place - (of - 1) / 2) * pitch], axis=-1)
    corners = _UNIT_SQUARE[None] * size[:, None] + middle[:, None]
    return _polygons(_turned(corners, angle[:, None]), jnp.full(6, 9.0), number < count)


def _objects(draw, split, *, shape) -> Proposal:
    """1-5 rectangles, triangles or ellipses, one in five of them hollow."""
    visible = jnp.arange(5) < draw.integer(1, 6)
    size = draw.uniform(_mm(0.4), _mm(4), (5, 2))
    angle = draw.uniform(0, 2 * math.pi, (5,))
    reach = 0.5 - MARGIN - size.max(axis=-1, keepdims=True) / 2
    centre = draw.uniform(-1, 1, (5, 2)) * reach
    wall = jnp.maximum(draw.uniform(0.15, 0.3, (5,)) * size.min(-1), _mm(0.2))
    wall = jnp.where(draw.chance(0.2, (5,)), wall, 9.0)
    if shape == "ellipses":
        axis = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
        along, across = size[:, :1] / 2 * axis, size[:, 1:] / 2 * axis[:, ::-1]
        extent = jnp.sqrt(along**2 + across**2)
        items = Ellipse(centre, axis, size / 2, wall)
        return Proposal(items, jnp.arange(5), visible, centre - extent, centre + extent)
    if shape == "rectangles":
        unit = _UNIT_SQUARE[None]
    else:  # corners on a circle, a third of a turn apart give or take 40 degrees
        turn = np.arange(3)[None] * (2 * math.pi / 3) + draw.uniform(-0.7, 0.7, (5, 3))
        unit = jnp.stack([jnp.cos(turn), jnp.sin(turn)], axis=-1) / math.sqrt(3)
        # A wall that fits the narrower inside of a triangle.
        wall = jnp.where(wall < 1, jnp.maximum(wall / 2, _mm(0.2)), wall)
    corners = _turned(unit * size[:, None], angle[:, None]) + centre[:, None]
    return _polygons(corners, wall, visible)


# Skeletons of the digits 0-9 in a box 6 wide and 10 high: strokes of points x,y. Those
# for training are curves through the points, those for validation straight lines.
_CURVES = (
    "3,10 .9,8.3 .2,5 .9,1.7 3,0 5.1,1.7 5.8,5 5.1,8.3 3,10",
    "1,7.8 3.4,10 | 3.4,10 3.4,0",
    ".4,7.6 1.2,9.4 3,10 5,9.2 5.4,7.2 4.2,4.8 2,2.2 .2,0 | .2,0 5.8,0",
    ".5,8.6 2,9.9 4,9.7 5.2,8 4.4,6 2.4,5.3 | 2.4,5.3 4.6,4.8 5.7,2.8 4.6,.6 2.4,0 "
    ".3,1.4",
    "3.8,10 .1,3.2 | .1,3.2 6,3.2 | 4.4,6 4.4,0",
    "5.3,10 1.2,10 | 1.2,10 .8,5.4 | .8,5.4 2.6,6.2 4.8,5.6 5.7,3.2 4.6,.8 2.4,0 "
    ".3,1.2",
    "4.8,10 2.4,8.2 .8,5.2 .5,2.6 1.6,.5 3.4,0 5.2,1.2 5.5,3.4 4.2,5.3 2.4,5.2 .7,3.4",
    ".3,10 5.7,10 | 5.7,10 3.6,5.4 2.3,0",
    "3,5.3 5,3.9 5.5,2 3,0 .5,2 1,3.9 3,5.3 4.7,6.7 4.9,8.6 3,10 1.1,8.6 1.3,6.7 3,5.3",
    "5.2,8 4.3,9.6 2.6,10 .9,8.8 .6,6.7 1.9,4.9 3.7,5.1 5,6.6 5.2,8 | 5.2,8 5,4 3.4,0",
)
_LINES = (
    "1,0 5,0 6,2 6,8 5,10 1,10 0,8 0,2 1,0 | 2,3.5 4,6.5",
    "1,8 3,10 3,0 | 1,0 5,0",
    "0,10 6,10 6,5 0,5 0,0 6,0",
    "0,10 6,10 6,0 0,0 | 1.5,5 6,5",
    "0,10 0,5 6,5 | 6,10 6,0",
    "6,10 0,10 0,5 6,5 6,0 0,0",
    "6,10 0,10 0,0 6,0 6,5 0,5",
    "0,8 0,10 6,10 6,8 2.5,4 2.5,0",
    "0,0 6,0 6,10 0,10 0,0 | 0,5 6,5",
    "6,5 0,5 0,10 6,10 6,0 0,0",
)


def _through(points: np.ndarray) -> np.ndarray:
    """A fine Catmull-Rom curve through points [n, 2], closed if the ends meet."""
    closed = np.array_equal(points[0], points[-1])
    before, after = (points[-2], points[1]) if closed else (points[0], points[-1])
    p = np.concatenate([before[None], points, after[None]])
    tangent = (p[2:] - p[:-2]) / 2
    t = np.linspace(0, 1, 12, endpoint=False)[None, :, None]
    p, q = points[:-1, None], points[1:, None]
    v, w = tangent[:-1, None], tangent[1:, None]
    cubic = p + t * v + t**2 * (3 * (q - p) - 2 * v - w) + t**3 * (2 * (p - q) + v + w)
    return np.concatenate([cubic.reshape(-1, 2), points[-1:]])


@functools.cache
def _bank(curved: bool) -> np.ndarray:
    """Digits as strokes [10, DIGIT_STROKES, end, 2], height 1, about the origin."""
    bank = []
    for text in _CURVES if curved else _LINES:
        lines = []
        for stroke in text.split("|"):
            points = np.array([p.split(",") for p in stroke.split()], float)
            points = (points - (3, 5)) / 10
            if curved and len(points) > 2:
                lines.append(_through(points))
            else:
                lines += [points[i : i + 2] for i in range(len(points) - 1)]
        arcs = [
            np.append(0, np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1)))
            for line in lines
        ]
        pieces = np.ones(len(lines), int)
        while pieces.sum() < DIGIT_STROKES:  # one more for the coarsest line
            pieces[
                np.argmax([a[-1] / n for a, n in zip(arcs, pieces, strict=True)])
            ] += 1
        ends = []
        for line, arc, n in zip(lines, arcs, pieces, strict=True):
            at = np.linspace(0, arc[-1], n + 1)
            nodes = np.stack([np.interp(at, arc, line[:, k]) for k in (0, 1)], axis=-1)
            ends += list(np.stack([nodes[:-1], nodes[1:]], axis=1))
        bank.append(ends)
    return np.array(bank, np.float32)


def _strokes(start, end, radius, owner, visible, thickest) -> Proposal:
    """Strokes with ends [items, 2] and radius [items, 2] at them."""
    items = Stroke(
        start, end - start, radius, jnp.broadcast_to(thickest, (len(start),))
    )
    lower = jnp.minimum(start - radius[:, :1], end - radius[:, 1:])
    upper = jnp.maximum(start + radius[:, :1], end + radius[:, 1:])
    return Proposal(items, owner, visible, lower, upper)


def _hand(draw):
    """What all rows of digits share: digits, height, turn and shear, pen, which of 3."""
    count = draw.integer(1, 4)
    digit = draw.integer(0, 10, (3,))
    height = jnp.minimum(draw.uniform(_mm(3.2), _mm(9)), 1.1 / count)
    angle = draw.uniform(-1, 1) * math.radians(25)
    slant = jnp.array([[1, draw.uniform(-0.3, 0.3)], [0, 1]])
    # At least .2 mm, at most what leaves the loops of an 8 open.
    pen = jnp.minimum(draw.log_uniform(_mm(0.2), _mm(0.8)), height * 0.14)
    place = jnp.stack([jnp.arange(3) - (count - 1) / 2, jnp.zeros(3)], axis=-1)
    return digit, height, angle, slant, pen, place, jnp.arange(3) < count


def _glyphs(draw, split) -> Proposal:
    """A row of 1-3 digits of a font, sheared and turned by up to 25 degrees."""
    digit, height, angle, slant, _, place, visible = _hand(draw)
    matrix = height * _turned(slant.T, angle).T  # glyph box -> page
    centre = _turned(0.86 * height * place, angle)
    corners = _UNIT_SQUARE * np.array([0.75, 1.0], np.float32) @ matrix.T
    corners = centre[:, None] + corners[None]
    inverse = jnp.broadcast_to(jnp.linalg.inv(matrix), (3, 2, 2))
    items = Glyph(digit, centre, inverse, jnp.full(3, height))
    lower, upper = corners.min(axis=1), corners.max(axis=1)
    return Proposal(items, jnp.arange(3), visible, lower, upper)


def _pen(draw, split) -> Proposal:
    """The same drawn with a pen: curves in an unsteady hand to train on, else lines."""
    digit, height, angle, slant, pen, place, visible = _hand(draw)
    train = split == SPLITS.index("train")
    banks = jnp.stack([_bank(curved=True), _bank(curved=False)])
    points = banks[jnp.where(train, 0, 1), digit]  # [3, strokes, end, 2]
    phase = draw.uniform(0, 2 * math.pi, (2, 3, 1, 1))
    wave = jnp.sin(4 * points[..., ::-1] + jnp.stack([*phase], axis=-1))
    points = points + jnp.where(train, 0.05, 0) * wave
    middle = (0.6 + pen / height + 0.12) * height * place
    points = _turned(height * points @ slant.T + middle[:, None, None], angle)
    start, end = points.reshape(-1, 2, 2).swapaxes(0, 1)
    owner = np.repeat(np.arange(3), DIGIT_STROKES)
    radius = jnp.full((len(owner), 2), pen / 2)
    return _strokes(start, end, radius, jnp.asarray(owner), visible[owner], 0.0)


def murray(share: Float[Array, "*n"]) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """Radius and angle [rad] of a branch that carries `share` of its parent's flow.

    Relative to the parent's radius. Murray's law (PNAS 12, 207, 1926): flow goes with
    r^3, so r_p^3 = r_1^3 + r_2^3, and least work gives the angle to the parent,
    cos a_1 = (r_p^4 + r_1^4 - r_2^4) / (2 r_p^2 r_1^2).
    """
    radius = jnp.cbrt(share)
    other = jnp.cbrt(1 - share)
    cosine = (1 + radius**4 - other**4) / (2 * radius**2)
    return radius, jnp.arccos(jnp.clip(cosine, -1, 1))


class _Branch(NamedTuple):
    """How branches leave their parents; all have a leading axis [BRANCHES]."""

    parent: Array  # earlier branch; itself: a root
    node: Array  # of the parent at which it leaves
    turn: Array  # angle to the parent [rad]; absolute for a root
    origin: Array  # [2] of a root
    ratio: Array  # of the radius to the parent's; absolute for a root
    length: Array
    bend: Array  # [STEPS] heading relative to the first
    taper: Array  # relative loss of radius from start to end


def _grow(branches: _Branch):
    """Nodes [BRANCHES, STEPS + 1, 2] and radii there [BRANCHES, STEPS + 1]."""

    def grow(tree, item):
        number, branch = item
        root = branch.parent == number
        x, y, heading, radius = tree[branch.parent, branch.node]
        heading = jnp.where(root, 0, heading) + branch.turn
        radius = jnp.where(root, 1, radius) * branch.ratio
        radius = radius * (1 - branch.taper * jnp.linspace(0, 1, STEPS + 1))
        headings = heading + branch.bend
        step = branch.length / STEPS * _turned(jnp.array([[1.0, 0.0]]), headings)
        origin = jnp.where(root, branch.origin, jnp.stack([x, y]))
        nodes = jnp.concatenate([jnp.zeros((1, 2)), jnp.cumsum(step, axis=0)])
        nodes = nodes + origin[None]
        headings = jnp.append(headings[:1], headings)
        state = jnp.concatenate([nodes, headings[:, None], radius[:, None]], axis=-1)
        return tree.at[number].set(state), None

    tree = jnp.zeros((BRANCHES, STEPS + 1, 4))
    tree, _ = lax.scan(grow, tree, (jnp.arange(BRANCHES), branches))
    return tree[..., :2], tree[..., 3]


def _forks(draw):
    """One or two roots that fork by Murray's law; headings are Ornstein-Uhlenbeck."""
    number = jnp.arange(BRANCHES)
    roots = draw.integer(1, 3)
    root = number < roots
    parent = jnp.where(root, number, (number - roots) // 2)  # breadth first
    depth = (
        (number >= roots).astype(int) + (number >= 3 * roots) + (number >= 7 * roots)
    )
    # Twins share their parent's numbers: one takes `share` to one side, one the rest.
    twin = (number - roots) % 2
    share = draw.uniform(0.5, 0.9, (BRANCHES,))[parent]
    side = jnp.where(draw.chance(0.5, (BRANCHES,))[parent], 1, -1)
    ratio, angle = murray(jnp.where(twin == 0, share, 1 - share))
    toward = draw.uniform(-math.pi, math.pi) + jnp.where(number == 1, 2.2, 0.0)
    heading = toward + 0.4 * draw.normal((BRANCHES,))
    start = -0.35 * jnp.stack([jnp.cos(toward), jnp.sin(toward)], axis=-1)
    widest = draw.log_uniform(_mm(0.2), _mm(0.8), (BRANCHES,))
    length = 0.34 * 0.82**depth * draw.uniform(0.65, 1.25, (BRANCHES,))
    # d theta = -kappa theta ds + sigma dW, exactly, on the nodes of a branch.
    decay = draw.uniform(0.75, 0.97)
    lag = np.arange(STEPS)[:, None] - np.arange(STEPS)[None]
    kernel = jnp.where(lag >= 0, decay ** np.maximum(lag, 0), 0)
    noise = draw.uniform(0.08, 0.32) * draw.normal((BRANCHES, STEPS))
    branches = _Branch(
        parent=parent,
        node=jnp.full(BRANCHES, STEPS),
        turn=jnp.where(root, heading, jnp.where(twin == 0, 1, -1) * side * angle),
        origin=start + 0.1 * draw.normal((BRANCHES, 2)),
        ratio=jnp.where(root, widest, ratio),
        length=length,
        bend=noise @ kernel.T,
        taper=draw.uniform(0.0, 0.2, (BRANCHES,)),
    )
    family = jnp.where(roots == 1, 0, number)
    for _ in range(3):  # down to the root
        family = family[jnp.minimum(parent, family)]
    return branches, family, 3 * roots


def _laterals(draw):
    """A bowed stem with side branches in turn left and right, twigs on those.

    The other generator: no law of radii, wide angles, smooth arcs instead of noise.
    """
    parent = np.array([0, 0, 0, 0, 1, 1, 2, 2, 3])
    depth = np.array([0, 1, 1, 1, 2, 2, 2, 2, 2])
    node = np.array([0, 2, 4, 6, 3, 6, 3, 6, 4])
    side = np.array([0, 1, -1, 1, -1, 1, 1, -1, -1])
    flip = jnp.where(draw.chance(), 1, -1)
    angle = draw.uniform(math.radians(35), math.radians(75), (BRANCHES,))
    heading = draw.uniform(-math.pi, math.pi)
    s = np.linspace(0, 1, STEPS, dtype=np.float32)[None]
    arc = draw.uniform(-0.9, 0.9, (BRANCHES, 1)) * s
    sway = jnp.sin(draw.uniform(2, 6) * s + draw.uniform(0, 6.28))
    ratio = draw.uniform(0.5, 0.8, (BRANCHES,))
    branches = _Branch(
        parent=jnp.asarray(parent),
        node=jnp.asarray(node) - draw.integer(0, 2, (BRANCHES,)) * (depth > 0),
        turn=jnp.where(depth == 0, heading, flip * side * angle),
        origin=jnp.zeros((BRANCHES, 2)),
        ratio=jnp.where(depth == 0, _mm(0.25) + _mm(0.7) * (ratio - 0.5), ratio),
        length=0.7 * 0.62**depth * draw.uniform(0.75, 1.2, (BRANCHES,)),
        bend=arc + 0.3 * (sway - sway[:, :1]),
        taper=draw.uniform(0.25, 0.5, (BRANCHES,)),
    )
    return branches, jnp.zeros(BRANCHES, int), jnp.int32(4)


def _vessels(draw, split) -> Proposal:
    """Trees of vessels, flat or with the chord of a round tube as brightness."""
    branches, family, fewest = lax.cond(
        split == SPLITS.index("test"),
        lambda values: _laterals(_Draws(values)),
        lambda values: _forks(_Draws(values)),
        draw.unit((DRAWS - 96,)),
    )
    nodes, radius = _grow(branches)
    # Thinner than .1 mm is not drawn, nor what hangs on it (radii fall downstream);
    # trees stop early.
    drawn = jnp.arange(BRANCHES) < draw.integer(fewest, BRANCHES + 1)
    drawn &= radius[:, 0] >= _mm(0.1)
    # One image in five: a stenosis or an aneurysm in one of the first branches.
    lesion = jnp.where(draw.chance(), -0.65, 0.9)
    lesion *= draw.chance(0.2)
    at = draw.uniform(2, STEPS - 2)
    bump = jnp.exp(-0.5 * ((np.arange(STEPS + 1) - at) / 0.9) ** 2)
    sick = jnp.arange(BRANCHES) == draw.integer(0, 3)
    radius = radius * (1 + lesion * sick[:, None] * bump[None])
    thickest = jnp.max(jnp.where(drawn[:, None], radius, 0))
    return _strokes(
        nodes[:, :-1].reshape(-1, 2),
        nodes[:, 1:].reshape(-1, 2),
        jnp.stack([radius[:, :-1], radius[:, 1:]], axis=-1).reshape(-1, 2),
        jnp.repeat(family, STEPS, total_repeat_length=BRANCHES * STEPS),
        jnp.repeat(drawn, STEPS, total_repeat_length=BRANCHES * STEPS),
        jnp.where(draw.chance(), thickest, 0),
    )


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
    "strokes": _Kind({"numbers": _pen, "vessels": _vessels}, 3 * DIGIT_STROKES),
    "glyphs": _Kind({"numbers": _glyphs}, 3),
}
_KIND_OF = {
    name: kind
    for kind in ("polygons", "ellipses", "strokes")
    for name in _KINDS[kind][0]
}


def _propose(values, kind: str, family, split):
    """A proposal of the family with this number, filled up to the items of its kind, and
    the uniform numbers that are left to compose it with: one, one an item, seven.
    """

    def of(propose):
        draw = _Draws(values)
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


# --- From a proposal to pixels


def _compose(numbers, proposal: Proposal, half) -> Drawing:
    """Give the objects concentrations and the picture a place; half: FOV / 2 [2]."""
    # Half of the images are all 1, four in ten have a level per object, one a ramp.
    share, several, rest = numbers
    draw = _Draws(rest)
    several = (0.2 + 0.8 * several)[proposal.owner]
    level = jnp.where((share >= 0.5) & (share < 0.9), several, 1.0)
    level = jnp.where(proposal.visible, level, 0.0)
    low = jnp.where(share >= 0.9, draw.uniform(0.2, 0.6), 1.0)
    slope = _turned(jnp.array([1.0, 0.0]), draw.uniform(0, 2 * math.pi))
    slope = slope * (1 - low) / 2 / jnp.sum(jnp.abs(slope) * half)
    ramp = jnp.append((1 + low) / 2, slope)

    visible = proposal.visible[:, None]
    lower = jnp.min(jnp.where(visible, proposal.lower, jnp.inf), axis=0)
    upper = jnp.max(jnp.where(visible, proposal.upper, -jnp.inf), axis=0)
    inner = half - MARGIN
    scale = jnp.minimum(1.0, jnp.min(2 * inner / (upper - lower)))
    lower, upper = scale * lower, scale * upper
    shift = draw.uniform(0, 1, (2,)) * (2 * inner - (upper - lower))
    shift = shift - inner - lower
    # Over one of the four edges, by up to 8 % of the field of view.
    over = jnp.where(draw.chance(), half - upper, -half - lower)
    over = over + jnp.sign(over) * draw.uniform(0.01, 0.08)
    side = draw.integer(0, 2 * round(1 / TOUCHING))
    shift = jnp.where(jnp.arange(2) == side, over, shift)
    boxes = proposal.lower, proposal.upper
    return Drawing(proposal.items, level, *boxes, scale, shift, ramp)


def _paint(drawing: Drawing, x, y, width):
    """Concentration and coverage at points x [1, nx], y [ny, 1]; edge of this width."""
    factor = drawing.ramp[0] + drawing.ramp[1] * x + drawing.ramp[2] * y
    x = (x - drawing.shift[0]) / drawing.scale
    y = (y - drawing.shift[1]) / drawing.scale
    sharpness = drawing.scale / width

    def add(carry, layer):
        concentration, coverage = carry
        item, level = layer
        depth, brightness = item.paint(x, y)
        inside = jnp.clip(0.5 + depth * sharpness, 0, 1) * (level > 0)
        concentration = jnp.maximum(concentration, level * brightness * inside)
        return (concentration, jnp.maximum(coverage, inside)), None

    empty = jnp.zeros((y.shape[0], x.shape[1]))
    layers = (drawing.items, drawing.level)
    if jax.default_backend() == "cpu":
        # Only what is seen and near: most strokes of a vessel tree are elsewhere.
        near = drawing.level > 0
        for points, axis in ((x, 0), (y, 1)):
            near &= drawing.lower[:, axis] - 1 / sharpness <= jnp.max(points)
            near &= drawing.upper[:, axis] + 1 / sharpness >= jnp.min(points)
        order = jnp.argsort(~near)
        layers = jax.tree.map(lambda a: a[order], layers)

        def one(i, carry):
            return add(carry, jax.tree.map(lambda a: a[i], layers))[0]

        found = lax.fori_loop(0, jnp.sum(near), one, (empty, empty))
    else:
        # Unrolled, a group of items is one fused pass over the points.
        found, _ = lax.scan(add, (empty, empty), layers, unroll=2)
    concentration, coverage = found
    return concentration * factor, coverage


def _draw(values, kind: str, family, split, half) -> Drawing:
    """The first of TRIES proposals whose fill is within FILL, else the last.

    values: `_values` of the picture.
    """
    at = (np.arange(PREVIEW, dtype=np.float32) + 0.5) / PREVIEW * 2 - 1
    x, y = at[None] * half[0], at[:, None] * half[1]

    def attempt(number):
        proposal, numbers = _propose(values[number], kind, family, split)
        drawing = _compose(numbers, proposal, half)
        # Edges as of a fine grid: a soft edge would thicken what is thin.
        return number + 1, drawing, jnp.mean(_paint(drawing, x, y, 1 / 256)[1])

    def rejected(state):
        number, _, fill = state
        return (number < TRIES) & ((fill < FILL[0]) | (fill > FILL[1]))

    # The loop starts from an empty drawing, so that a proposal is compiled once.
    empty = jax.eval_shape(attempt, jnp.int32(0))
    empty = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), empty)
    return lax.while_loop(rejected, lambda state: attempt(state[0]), empty)[1]


def _render(drawing: Drawing, shape: tuple[int, int], half):
    """Concentration and coverage, means over the pixels, [ny, nx] each."""
    ny, nx = shape
    # Sub-pixels of at most 1/256 where 2 to 8 per pixel and axis can give that.
    sy, sx = (min(8, max(2, math.ceil(256 / n))) for n in shape)
    across = (np.arange(nx * sx, dtype=np.float32) + 0.5) / (nx * sx) * 2 - 1
    down = (np.arange(ny * sy, dtype=np.float32) + 0.5) / (ny * sy) * 2 - 1
    width = half[0] / (nx * sx) + half[1] / (ny * sy)

    def pixels(across, down):
        fine = _paint(drawing, across[None] * half[0], -down[:, None] * half[1], width)
        shape = len(down) // sy, sy, len(across) // sx, sx
        return tuple(f.reshape(shape).mean(axis=(1, 3)) for f in fine)

    if jax.default_backend() != "cpu":
        return pixels(across, down)
    # Tiles, so that items which are elsewhere can be left out; the last may overlap.
    ty, tx = (min(n, max(1, TILE // s)) for n, s in ((ny, sy), (nx, sx)))
    rows, columns = (-(-n // t) for n, t in ((ny, ty), (nx, tx)))
    across, down = jnp.asarray(across), jnp.asarray(down)
    empty = jnp.zeros(shape)

    def tile(number, found):
        y = jnp.minimum(number // columns * ty, ny - ty)
        x = jnp.minimum(number % columns * tx, nx - tx)
        made = pixels(
            lax.dynamic_slice(across, (x * sx,), (tx * sx,)),
            lax.dynamic_slice(down, (y * sy,), (ty * sy,)),
        )
        return tuple(
            lax.dynamic_update_slice(f, m, (y, x))
            for f, m in zip(found, made, strict=True)
        )

    return lax.fori_loop(0, rows * columns, tile, (empty, empty))


@functools.partial(jax.jit, static_argnames=("shape", "kind"))
def _picture(values, half, split, family, shape, kind):
    """Concentration and mask of one image; the numbers of split and family are traced."""

    def painted(kind):
        drawing = _draw(values, kind, family, split, half)
        concentration, coverage = _render(drawing, shape, half)
        return jnp.clip(concentration, 0, 1), _covered(coverage)

    if kind != "strokes":
        return painted(kind)
    glyphs = split == SPLITS.index("test")
    glyphs &= family == FAMILIES.index("numbers")
    return lax.cond(glyphs, lambda: painted("glyphs"), lambda: painted("strokes"))


def _covered(coverage):
    """Coverage >= 1/2; where nothing is covered fully, relative to the most covered.

    The relative rule keeps a line thinner than half a pixel a line on a coarse grid.
    """
    return coverage >= jnp.maximum(0.5 * jnp.max(coverage), 1e-6)


def _geometry(grid):
    """(shape, half the field of view [2] in units of its shorter side) of a grid."""
    shape = tuple(int(n) for n in grid.shape)
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(f"grid.shape: expected (ny, nx), got {grid.shape}")
    sides = jnp.asarray(grid.field_of_view, jnp.float32)[:2]
    return shape, sides / jnp.min(sides) / 2


def _one_of(name: str, value, names: tuple[str, ...]):
    if value not in names:
        raise ValueError(f"{name}: expected one of {', '.join(names)}, got {value!r}")
    return value


def _family_number(family):
    return FAMILIES.index(_one_of("family", family, FAMILIES))


def _split_number(split):
    """The number of a split; a traced number stays as it is."""
    if isinstance(split, str):
        return SPLITS.index(_one_of("split", split, SPLITS))
    return split


def _by_number(number, key, grid, split):
    """Picture of the family FAMILIES[number]; number may be traced."""
    split = jnp.asarray(_split_number(split))
    shape, half = _geometry(grid)
    kinds = list(dict.fromkeys(_KIND_OF.values()))
    values = _values(key)
    if isinstance(number, int):
        return _picture(values, half, split, number, shape, _KIND_OF[FAMILIES[number]])
    which = jnp.asarray([kinds.index(_KIND_OF[name]) for name in FAMILIES])[number]
    makers = [functools.partial(_picture, shape=shape, kind=kind) for kind in kinds]
    return lax.switch(which, makers, values, half, split, number)


# --- The public functions


def sample_with_mask(
    key: PRNGKeyArray, grid, family: str | None = None, split: str = "train"
) -> tuple[Float[Array, "ny nx"], Bool[Array, "ny nx"]]:
    """As `sample`, with the mask of the pixels that the phantom covers."""
    if family is None:
        choice, key = random.split(key)
        return _by_number(random.randint(choice, (), 0, 6), key, grid, split)
    return _by_number(_family_number(family), key, grid, split)


def sample(
    key: PRNGKeyArray, grid, family: str | None = None, split: str = "train"
) -> Float[Array, "ny nx"]:
    """A random phantom of a family (None: any), concentration in [0, 1].

    grid: an object with shape (ny, nx) and field_of_view (x, y, z) [m]. Sizes follow
    the field of view. Numbers and vessels are drawn another way in every split.
    """
    return sample_with_mask(key, grid, family, split)[0]


def _key(split, index):
    seed = jnp.asarray(list(_SEEDS.values()))[split]
    return random.fold_in(random.key(seed, impl="threefry2x32"), index)


def _values(key):
    """Uniform random numbers of all proposals for a picture, [TRIES, DRAWS]."""
    keys = jax.vmap(functools.partial(random.fold_in, key))(jnp.arange(TRIES))
    return jax.vmap(lambda key: random.uniform(key, (DRAWS,)))(keys)


def image(split: str, index, grid) -> Float[Array, "ny nx"]:
    """Image `index` of a split: the same picture on every grid and for every seed.

    Its family is FAMILIES[index % 6].
    """
    return _by_number(
        index % len(FAMILIES), _key(_split_number(split), index), grid, split
    )[0]


def indices(
    position: Int[Array, "*n"],
    families: tuple[str, ...] = FAMILIES,
    images: int | None = None,
) -> Int[Array, "*n"]:
    """Which images of a split stand at these positions of a stream.

    The stream takes the families in turn, by default all six: image i at position i.
    With fewer, the others' images are passed over. images: how many a split has, None:
    it never ends. Each family then starts again at its own first image, so that the
    stream stays balanced whatever the number.

    Raises ValueError for families that are unknown, repeated or none, and for fewer
    images than one of each family.
    """
    for family in families:
        _family_number(family)
    if not families or len(set(families)) < len(families):
        raise ValueError(f"families: expected different names, got {families}")
    stride = len(FAMILIES)
    if images is not None and images < stride:
        raise ValueError(f"images: expected at least {stride}, got {images}")
    numbers = sorted(_family_number(family) for family in families)
    place, turn = position % len(numbers), position // len(numbers)
    if images is not None:
        counts = [len(range(number, images, stride)) for number in numbers]
        turn = turn % jnp.asarray(counts)[place]
    return stride * turn + jnp.asarray(numbers)[place]


def _each(make, items):
    """make(item) for every item, with the same bits however many there are.

    One at a time on a CPU: what a picture is painted on then stays in the cache (up to
    four times the speed), and no bit depends on the size of the batch. Chosen by the
    default backend, for lax.platform_dependent traces every picture twice.
    """
    if jax.default_backend() == "cpu":
        return lax.map(make, items)
    return jax.vmap(make)(items)


def batch(
    split,
    start,
    size: int,
    grid,
    families: tuple[str, ...] = FAMILIES,
    images: int | None = None,
) -> tuple[Float[Array, "size ny nx"], Float[Array, "size ny nx"], Int[Array, " size"]]:
    """Images, masks (0 or 1) and family numbers of start ... start + size - 1.

    These are positions in the stream of `indices`, with its families and its length; by
    default images themselves. `start` may be traced, and so may split if given by its
    number in SPLITS: one compiled function then serves all three. Every image is drawn
    by its own family only (a switch under vmap would draw all six for each image).
    """
    split = jnp.asarray(_split_number(split))
    shape, half = _geometry(grid)
    start = jnp.asarray(start, jnp.int32)
    place = np.arange(size)
    # Checked here, and sorted as they take turns.
    wanted = indices(start + place, families, images)
    chosen = [number for number, name in enumerate(FAMILIES) if name in families]
    stride = len(chosen)
    first = (np.arange(stride) - start) % stride  # place in the batch, per family
    turns = np.arange(-(-size // stride))
    own = indices(start + first[:, None] + stride * turns[None], families, images)
    values = jax.vmap(lambda index: _values(_key(split, index)))(own.reshape(-1))
    values = values.reshape(*own.shape, *values.shape[1:])
    made = {}
    for kind in dict.fromkeys(_KIND_OF[FAMILIES[number]] for number in chosen):
        slots = [i for i, n in enumerate(chosen) if _KIND_OF[FAMILIES[n]] == kind]

        def make(item, kind=kind):
            return _picture(item[0], half, split, item[1], shape, kind)

        items = values[np.asarray(slots)], own[np.asarray(slots)] % len(FAMILIES)
        items = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), items)
        parts = _each(make, items)
        parts = [part.reshape(len(slots), len(turns), *shape) for part in parts]
        made |= {i: part for i, *part in zip(slots, *parts, strict=True)}
    pictures, masks = (
        jnp.stack(p) for p in zip(*map(made.get, range(stride)), strict=True)
    )
    slot = (start + place) % stride
    turn = (place - first[slot]) // stride
    found = pictures[slot, turn], masks[slot, turn].astype(jnp.float32)
    return *found, wanted % len(FAMILIES)


def mask(concentration: Float[Array, "*batch ny nx"]) -> Bool[Array, "*batch ny nx"]:
    """The mask that belongs to a concentration, from the image alone.

    A pixel belongs to the phantom if it holds at least half of the most in its 3 x 3
    neighbourhood, which for a flat object is a coverage of 1/2 whatever its level, and
    more than a tenth of the image's maximum, which takes the dim rest out.
    """
    window = (1,) * (concentration.ndim - 2) + (3, 3)
    around = lax.reduce_window(
        concentration, -jnp.inf, lax.max, window, (1,) * concentration.ndim, "SAME"
    )
    most = jnp.max(concentration, axis=(-2, -1), keepdims=True)
    return (concentration >= 0.5 * around) & (concentration > 0.0999 * most)
