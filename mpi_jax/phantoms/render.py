"""Items to a picture: antialiased, without overlap."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mpi_jax.phantoms.families import propose
from mpi_jax.phantoms.items import (
    FAMILIES,
    FILL,
    MARGIN,
    PREVIEW,
    SPLITS,
    TILE,
    TOUCHING,
    TRIES,
    Drawing,
    Draws,
    Proposal,
    turned,
)


def _compose(numbers, proposal: Proposal, half) -> Drawing:
    """Give the objects concentrations and the picture a place; half: FOV / 2 [2]."""
    # Half of the images are all 1, four in ten have a level per object, one a ramp.
    share, several, rest = numbers
    draw = Draws(rest)
    several = (0.2 + 0.8 * several)[proposal.owner]
    level = jnp.where((share >= 0.5) & (share < 0.9), several, 1.0)
    level = jnp.where(proposal.visible, level, 0.0)
    low = jnp.where(share >= 0.9, draw.uniform(0.2, 0.6), 1.0)
    slope = turned(jnp.array([1.0, 0.0]), draw.uniform(0, 2 * math.pi))
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

        painted = lax.fori_loop(0, jnp.sum(near), one, (empty, empty))
    else:
        # Unrolled, a group of items is one fused pass over the points.
        painted, _ = lax.scan(add, (empty, empty), layers, unroll=2)
    concentration, coverage = painted
    return concentration * factor, coverage


def _draw(values, kind: str, family, split, half) -> Drawing:
    """The first of TRIES proposals whose fill is within FILL, else the last.

    values: `_values` of the picture.
    """
    at = _centres(PREVIEW)
    x, y = at[None] * half[0], at[:, None] * half[1]

    def attempt(number):
        proposal, numbers = propose(values[number], kind, family, split)
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


def _centres(count: int) -> np.ndarray:
    """Of so many equal cells from -1 to 1."""
    return (np.arange(count, dtype=np.float32) + 0.5) / count * 2 - 1


def _render(drawing: Drawing, shape: tuple[int, int], half):
    """Concentration and coverage, means over the pixels, [ny, nx] each."""
    ny, nx = shape
    # Sub-pixels of at most 1/256 where 2 to 8 per pixel and axis can give that.
    sy, sx = (min(8, max(2, math.ceil(256 / n))) for n in shape)
    all_across, all_down = (jnp.asarray(_centres(n)) for n in (nx * sx, ny * sy))
    width = half[0] / (nx * sx) + half[1] / (ny * sy)

    def pixels(across, down):
        sub_pixels = _paint(
            drawing, across[None] * half[0], -down[:, None] * half[1], width
        )
        shape = len(down) // sy, sy, len(across) // sx, sx
        return tuple(f.reshape(shape).mean(axis=(1, 3)) for f in sub_pixels)

    if jax.default_backend() != "cpu":
        return pixels(all_across, all_down)
    # Tiles, so that items which are elsewhere can be left out; the last may overlap.
    ty, tx = (min(n, max(1, TILE // s)) for n, s in ((ny, sy), (nx, sx)))
    rows, columns = (-(-n // t) for n, t in ((ny, ty), (nx, tx)))
    empty = jnp.zeros(shape)

    def tile(number, images):
        y = jnp.minimum(number // columns * ty, ny - ty)
        x = jnp.minimum(number % columns * tx, nx - tx)
        drawn = pixels(
            lax.dynamic_slice(all_across, (x * sx,), (tx * sx,)),
            lax.dynamic_slice(all_down, (y * sy,), (ty * sy,)),
        )
        return tuple(
            lax.dynamic_update_slice(f, m, (y, x))
            for f, m in zip(images, drawn, strict=True)
        )

    return lax.fori_loop(0, rows * columns, tile, (empty, empty))


@functools.partial(jax.jit, static_argnames=("shape", "kind"))
def picture(values, half, split, family, shape, kind):
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
