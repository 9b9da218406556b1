"""Handwritten digits as strokes of a pen, and printed ones."""

import functools
import math

import jax.numpy as jnp
import numpy as np

from mpi_jax.phantoms.items import (
    DIGIT_STROKES,
    SPLITS,
    UNIT_SQUARE,
    Glyph,
    Proposal,
    Stroke,
    mm,
    turned,
)

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


def strokes(start, end, radius, owner, visible, thickest) -> Proposal:
    """Strokes with ends [items, 2] and radius [items, 2] at them.

    Lengths in units of the field of view. owner [items]: number of the object it belongs
    to; visible [items]: boolean; thickest [items] or a number: 0 for flat ones.

    Examples:
      >>> ends, radius = jnp.zeros((1, 2)), jnp.full((1, 2), 0.5)
      >>> strokes(ends, ends + 1, radius, jnp.arange(1), radius[:, 0] > 0, 0.0).upper
      Array([[1.5, 1.5]], dtype=float32)
    """
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
    height = jnp.minimum(draw.uniform(mm(3.2), mm(9)), 1.1 / count)
    angle = draw.uniform(-1, 1) * math.radians(25)
    slant = jnp.array([[1, draw.uniform(-0.3, 0.3)], [0, 1]])
    # At least .2 mm, at most what leaves the loops of an 8 open.
    pen = jnp.minimum(draw.log_uniform(mm(0.2), mm(0.8)), height * 0.14)
    place = jnp.stack([jnp.arange(3) - (count - 1) / 2, jnp.zeros(3)], axis=-1)
    return digit, height, angle, slant, pen, place, jnp.arange(3) < count


def glyphs(draw, split) -> Proposal:
    """A row of 1-3 digits of a font, sheared and turned by up to 25 degrees."""
    digit, height, angle, slant, _, place, visible = _hand(draw)
    matrix = height * turned(slant.T, angle).T  # glyph box -> page
    centre = turned(0.86 * height * place, angle)
    corners = UNIT_SQUARE * np.array([0.75, 1.0], np.float32) @ matrix.T
    corners = centre[:, None] + corners[None]
    inverse = jnp.broadcast_to(jnp.linalg.inv(matrix), (3, 2, 2))
    items = Glyph(digit, centre, inverse, jnp.full(3, height))
    lower, upper = corners.min(axis=1), corners.max(axis=1)
    return Proposal(items, jnp.arange(3), visible, lower, upper)


def pen_strokes(draw, split) -> Proposal:
    """The same drawn with a pen: curves in an unsteady hand to train on, else lines."""
    digit, height, angle, slant, pen, place, visible = _hand(draw)
    train = split == SPLITS.index("train")
    banks = jnp.stack([_bank(curved=True), _bank(curved=False)])
    points = banks[jnp.where(train, 0, 1), digit]  # [3, strokes, end, 2]
    phase = draw.uniform(0, 2 * math.pi, (2, 3, 1, 1))
    wave = jnp.sin(4 * points[..., ::-1] + jnp.stack([*phase], axis=-1))
    points = points + jnp.where(train, 0.05, 0) * wave
    middle = (0.6 + pen / height + 0.12) * height * place
    points = turned(height * points @ slant.T + middle[:, None, None], angle)
    start, end = points.reshape(-1, 2, 2).swapaxes(0, 1)
    owner = np.repeat(np.arange(3), DIGIT_STROKES)
    radius = jnp.full((len(owner), 2), pen / 2)
    return strokes(start, end, radius, jnp.asarray(owner), visible[owner], 0.0)
