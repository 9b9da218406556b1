"""Phantoms that no network is trained on: other shapes, and vessels grown another way.

An image is a function of (key, grid) as in `phantoms`, drawn on the host: there are few
of them, and nothing has to be compiled. Positions are (x, y) in units of the shorter
side of the field of view from its centre, y upwards; parameters never depend on the
grid. Edges are soft on sub-pixels of about 1/256, a pixel is the mean over its own.

    star      Siemens star: sectors that narrow towards the centre
    spiral    an arm of one width and pitch
    derenzo   six sectors of discs, a diameter each, two diameters apart
    letters   one to three capitals drawn with a pen
    blobs     sums of Gaussians: no edge anywhere
    cone, tubes, cubes   Open MPI Data's phantoms, scaled into the field of view
    colony    vessels by space colonisation (not in SHAPES: another generator of a family)
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped

from mpi_jax._checks import check_count, expect
from mpi_jax.phantoms import open_mpi
from mpi_jax.scanner import Grid

MARGIN = 0.05  # empty border, as in phantoms

Rng = np.random.Generator
Image = Float[np.ndarray, "ny nx"]
# paint(x [nx], y [ny], width of an edge) -> concentration at these points, [ny, nx]
Paint = Callable[[np.ndarray, np.ndarray, float], np.ndarray]


def _depth(level: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Paint:
    """Paint of what is inside, from the depth below the edge at points x, y."""

    def paint(x, y, width):
        return np.clip(0.5 + level(x[None], y[:, None]) / width, 0, 1)

    return paint


def _turned(x, y, angle):
    cos, sin = math.cos(angle), math.sin(angle)
    return cos * x + sin * y, cos * y - sin * x


def _place(rng: Rng, reach: float) -> np.ndarray:
    """A centre whose surroundings within `reach` stay inside of the margin."""
    return rng.uniform(-1, 1, 2) * max(0.0, 0.5 - MARGIN - reach)


def _star(rng: Rng) -> Paint:
    spokes, radius = rng.integers(5, 15), rng.uniform(0.25, 0.42)
    (cx, cy), start = _place(rng, radius), rng.uniform(0, 1)

    def depth(x, y):
        r = np.hypot(x - cx, y - cy)
        turn = np.arctan2(y - cy, x - cx) / (2 * math.pi) * spokes + start
        # A quarter of a spoke's period from its middle to its edge, as a length.
        edge = (0.25 - np.abs(turn - np.round(turn))) * (2 * math.pi / spokes) * r
        return np.minimum(edge, radius - r)

    return _depth(depth)


def _spiral(rng: Rng) -> Paint:
    turns, radius = rng.uniform(1.5, 3.2), rng.uniform(0.28, 0.42)
    (cx, cy), start = _place(rng, radius), rng.uniform(-math.pi, math.pi)
    side = rng.choice((-1, 1))
    pitch = radius / (turns + 0.5)
    half = pitch * rng.uniform(0.15, 0.28)

    def depth(x, y):
        x, y = _turned(x - cx, side * (y - cy), start)
        r, turn = np.hypot(x, y), np.arctan2(y, x) / (2 * math.pi)
        lap = np.clip(np.round(r / pitch - 0.25 - turn), 0, None)
        at = turn + lap  # turns along the arm of the nearest lap
        off = np.abs(r - pitch * (at + 0.25))
        ends = np.minimum(at, turns - at) * 2 * math.pi * r
        return np.minimum(half - off, ends)

    return _depth(depth)


def _derenzo(rng: Rng) -> Paint:
    radius = rng.uniform(0.36, 0.44)
    (cx, cy), start = _place(rng, radius), rng.uniform(0, 2 * math.pi)
    discs = []
    for sector, diameter in enumerate(rng.permutation(np.linspace(0.03, 0.085, 6))):
        along = start + sector * math.pi / 3
        rows = int((radius / diameter - 1.5) / math.sqrt(3)) + 1
        for row in range(max(rows, 1)):
            # Rows of a triangular lattice with its tip near the centre.
            out = diameter * (1.2 + math.sqrt(3) * row)
            for place in 2 * diameter * (np.arange(row + 1) - row / 2):
                if math.hypot(out, place) + diameter / 2 > radius:
                    continue
                x = out * math.cos(along) - place * math.sin(along)
                y = out * math.sin(along) + place * math.cos(along)
                discs.append((cx + x, cy + y, diameter / 2))
    ends = np.array(discs)
    return _strokes(ends[:, :2], ends[:, :2], np.repeat(ends[:, 2:], 2, axis=1))


# Capitals in a box 6 wide and 10 high: lines through points x,y.
_CAPITALS = {
    "A": "0,0 3,10 6,0 | 1.2,4 4.8,4",
    "C": "6,8 4.5,10 1.5,10 0,8 0,2 1.5,0 4.5,0 6,2",
    "E": "6,10 0,10 0,0 6,0 | 0,5 4.5,5",
    "F": "6,10 0,10 0,0 | 0,5 4.5,5",
    "H": "0,0 0,10 | 6,0 6,10 | 0,5 6,5",
    "K": "0,0 0,10 | 6,10 0,4.5 | 2,6.4 6,0",
    "M": "0,0 0,10 3,4 6,10 6,0",
    "N": "0,0 0,10 6,0 6,10",
    "P": "0,0 0,10 4.5,10 6,8.8 6,6 4.5,4.8 0,4.8",
    "R": "0,0 0,10 4.5,10 6,8.8 6,6 4.5,4.8 0,4.8 | 3,4.8 6,0",
    "S": "6,8.5 4.5,10 1.5,10 0,8.5 0,6.5 6,3.5 6,1.5 4.5,0 1.5,0 0,1.5",
    "T": "0,10 6,10 | 3,10 3,0",
    "V": "0,10 3,0 6,10",
    "W": "0,10 1.5,0 3,7 4.5,0 6,10",
    "X": "0,0 6,10 | 6,0 0,10",
    "Y": "0,10 3,5 6,10 | 3,5 3,0",
    "Z": "0,10 6,10 0,0 6,0",
}


def _letters(rng: Rng) -> Paint:
    count = rng.integers(1, 4)
    height = rng.uniform(0.3, 0.62) if count == 1 else 0.88 / count
    pen = height * rng.uniform(0.05, 0.09)
    angle = rng.uniform(-1, 1) * math.radians(25)
    lines = []
    for place, letter in enumerate(rng.choice(list(_CAPITALS), count, replace=False)):
        for stroke in _CAPITALS[letter].split("|"):
            points = np.array([p.split(",") for p in stroke.split()], float)
            points = (points - (3, 5)) / 10 * height
            points[:, 0] += 0.85 * height * (place - (count - 1) / 2)
            lines += list(np.stack([points[:-1], points[1:]], axis=1))
    x, y = np.moveaxis(np.array(lines), -1, 0)
    ends = np.stack(_turned(x, y, angle), axis=-1)
    ends += _place(rng, np.abs(ends).max() + pen)
    return _strokes(ends[:, 0], ends[:, 1], np.full((len(ends), 2), pen))


def _blobs(rng: Rng) -> Paint:
    count = rng.integers(2, 7)
    sigma = rng.uniform(0.04, 0.11, count)
    centre = rng.uniform(-1, 1, (count, 2)) * (0.5 - 2 * sigma[:, None])
    height = rng.uniform(0.4, 1, count)

    def bells(x, y):
        across = np.exp(-0.5 * ((x - centre[:, :1]) / sigma[:, None]) ** 2)
        return across, np.exp(-0.5 * ((y - centre[:, 1:]) / sigma[:, None]) ** 2)

    # The sum is largest at one of the centres, or near it and hardly larger.
    peak = np.einsum("n,np,np->p", height, *bells(*centre.T)).max()

    def paint(x, y, width):
        across, down = bells(x, y)
        return np.minimum(np.einsum("n,ny,nx->yx", height / peak, down, across), 1)

    return paint


def _strokes(start, end, radius, thickest: float = 0.0) -> Paint:
    """Lines with round ends from start to end [n, 2], radius [n, 2] at the two.

    thickest: 0: flat; else brightness is the chord of a round tube over 2 thickest.
    """

    def paint(x, y, width):
        image = np.zeros((y.size, x.size))
        for a, b, (r, s) in zip(start, end, radius, strict=True):
            # Only around the stroke: hundreds of them cover little each.
            reach = max(r, s) + width
            low, high = np.minimum(a, b) - reach, np.maximum(a, b) + reach
            columns = slice(*np.searchsorted(x, (low[0], high[0])))
            rows = slice(*np.searchsorted(-y, (-high[1], -low[1])))
            dx, dy = x[None, columns] - a[0], y[rows, None] - a[1]
            step = b - a
            along = (dx * step[0] + dy * step[1]) / max(step @ step, 1e-12)
            along = np.clip(along, 0, 1)
            distance = np.hypot(dx - along * step[0], dy - along * step[1])
            thickness = r + along * (s - r)
            value = np.clip(0.5 + (thickness - distance) / width, 0, 1)
            if thickest:
                value *= np.sqrt(np.maximum(thickness**2 - distance**2, 0)) / thickest
            image[rows, columns] = np.maximum(image[rows, columns], value)
        return image

    return paint


def colonise(
    attractors: Float[np.ndarray, "A 2"],
    root: Float[np.ndarray, " 2"],
    *,
    step: float = 0.02,
    influence: float = 0.2,
    kill: float = 0.04,
) -> tuple[Float[np.ndarray, "N 2"], Int[np.ndarray, " N"]]:
    """Nodes [N, 2] of a tree that grows towards attractors, and the parent of each.

    In every round each attractor draws its nearest node, if that is within `influence`;
    nodes that are drawn sprout one `step` in the mean direction, and attractors with a
    node within `kill` go. Parents come before their children; the root is its own.
    Space colonisation (Runions et al. 2007), for vessels as in arXiv 2306.10941. Until
    an attractor is within influence the tree grows towards the nearest one.

    Args: positions and lengths in one unit of any kind.

    Examples:
      >>> nodes, parents = colonise(np.array([[0.0, 0.1]]), np.zeros(2), step=0.03)
      >>> parents.tolist()
      [0, 0, 1, 2]
    """
    nodes, parents = [np.asarray(root, float)], [0]
    remaining = np.asarray(attractors, float)
    # Each round that sprouts nothing ends it; a bound all the same.
    for _ in range(4 * len(remaining) + round(4 / step)):
        if not len(remaining):
            break
        have = np.array(nodes)
        gap = np.linalg.norm(remaining[:, None] - have[None], axis=-1)
        nearest, distance = gap.argmin(axis=1), gap.min(axis=1)
        draws = distance <= max(influence, distance.min())
        sprouts = []
        for node in np.unique(nearest[draws]):
            toward = remaining[draws & (nearest == node)] - have[node]
            toward = toward[np.argsort(np.linalg.norm(toward, axis=1))]
            toward /= np.linalg.norm(toward, axis=1, keepdims=True)
            # The mean direction; where attractors cancel or a branch stands there
            # already (a node would swing between two for ever), that of the nearest.
            for way in (toward.sum(axis=0), toward[0]):
                new = have[node] + step * way / max(np.linalg.norm(way), 1e-9)
                if np.linalg.norm(have - new[None], axis=1).min() > 0.3 * step:
                    sprouts.append((new, node))
                    break
        if not sprouts:
            break
        nodes += [new for new, _ in sprouts]
        parents += [int(node) for _, node in sprouts]
        fresh = np.array([new for new, _ in sprouts])
        gap = np.linalg.norm(remaining[:, None] - fresh[None], axis=-1).min(axis=1)
        remaining = remaining[gap > kill]
    return np.array(nodes), np.array(parents)


def murray_radii(parents: Int[np.ndarray, " N"], tip: float) -> Float[np.ndarray, " N"]:
    """Radii [N] of a tree by Murray's law, r^3 = sum of the children's r^3.

    Args:
      parents: of each node, as `colonise` gives them.
      tip: radius of the tips, any unit; the result has it, too.

    Examples:
      >>> murray_radii(np.array([0, 0, 0]), 1.0).round(2).tolist()
      [1.26, 1.0, 1.0]
    """
    cubes = np.zeros(len(parents))
    for node in range(len(parents) - 1, 0, -1):
        cubes[node] = cubes[node] or tip**3
        cubes[parents[node]] += cubes[node]
    cubes[0] = cubes[0] or tip**3
    return np.cbrt(cubes)


def _colony(rng: Rng) -> Paint:
    count, size = rng.integers(25, 90), rng.uniform(0.28, 0.42, 2)
    angle, turn = rng.uniform(0, 2 * math.pi, count), rng.uniform(0, 2 * math.pi)
    spread = np.sqrt(rng.uniform(0, 1, count))[:, None]
    points = spread * size[None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    root = np.array([rng.uniform(-0.5, 0.5) * size[0], -size[1]])
    points, root = (
        np.stack(_turned(p.T[0], p.T[1], turn), axis=-1) for p in (points, root)
    )
    nodes, parents = colonise(points, root, kill=rng.uniform(0.03, 0.06))
    radius = murray_radii(parents, rng.uniform(0.006, 0.01))
    thickest = radius.max() if rng.random() < 0.5 else 0.0
    radius = np.stack([radius[parents], radius], axis=-1)[1:]
    # A side branch begins as wide as it is, not as its parent.
    radius[:, 0] = np.minimum(radius[:, 0], 1.5 * radius[:, 1])
    return _strokes(nodes[parents[1:]], nodes[1:], radius, thickest)


_PAINT: dict[str, Callable[[Rng], Paint]] = {
    "star": _star,
    "spiral": _spiral,
    "derenzo": _derenzo,
    "letters": _letters,
    "blobs": _blobs,
    "colony": _colony,
}
# Open MPI phantom, thickness and height of the slice in it [m].
_SLICES = {
    "cone": ("shape", 1e-3, (0.0,)),
    "tubes": ("resolution", 1e-3, (0.0,)),
    "cubes": ("concentration", 1e-3, (-3e-3, 3e-3)),
}
SHAPES = (*(name for name in _PAINT if name != "colony"), *_SLICES)
NAMES = (*SHAPES, "colony")


def _open_mpi(rng: Rng, shape: tuple[int, int], half: np.ndarray, name: str) -> Image:
    """A slice through an Open MPI phantom of some 24 mm, mirrored and turned at random."""
    phantom, thickness, heights = _SLICES[name]
    side = rng.uniform(26e-3, 34e-3)  # [m] the shorter side of the field of view
    centre = rng.uniform(-1, 1, 2) * (side - 25e-3) / 2
    if name == "tubes":
        centre[1] -= 1.6e-3  # they reach from 8.75 to -12 mm in y
    swap, mirror = rng.random() < 0.5, rng.choice((-1, 1), 2)
    counts, sides = np.array(shape[::-1]), 2 * half * side
    if swap:
        counts, sides = counts[::-1], sides[::-1]
    grid = Grid(
        (int(counts[1]), int(counts[0])),
        (*sides.tolist(), thickness),
        (*centre.tolist(), float(rng.choice(heights))),
    )
    lines = None if phantom == "concentration" else max(4, 2 * -(-128 // max(shape)))
    image = open_mpi.phantom(phantom, grid, supersampling=lines)
    image = image.T if swap else image
    return image[:: mirror[1], :: mirror[0]] / max(image.max(), 1e-12)


def sample(key: PRNGKeyArray | Shaped[Array, ""], grid: Grid, name: str) -> Image:
    """One picture: mean concentration of each pixel [ny, nx], in [0, 1].

    Half of them reach 1, the others a level between 0.2 and 1.

    Args:
      key: of jax.random.
      grid: of an image; field_of_view [m].
      name: one of NAMES.

    Raises:
      ValueError: on other names and on grids that aren't images.

    Examples:
      >>> grid = Grid((8, 8), (12.8e-3, 12.8e-3, 1e-3))
      >>> sample(jax.random.key(0), grid, "star").shape
      (8, 8)
    """
    expect(name in NAMES, "name", f"one of {', '.join(NAMES)}", repr(name))
    expect(len(grid.shape) == 2, "grid.shape", "(ny, nx)", grid.shape)
    ny, nx = grid.shape
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    level = 1.0 if rng.random() < 0.5 else rng.uniform(0.2, 1)
    sides = np.asarray(grid.field_of_view, float)[:2]
    half = sides / sides.min() / 2
    if name in _SLICES:
        return level * _open_mpi(rng, (ny, nx), half, name)
    paint = _PAINT[name](rng)
    sy, sx = (min(8, max(2, math.ceil(256 / n))) for n in grid.shape)
    x = ((np.arange(nx * sx) + 0.5) / (nx * sx) * 2 - 1) * half[0]
    y = ((np.arange(ny * sy) + 0.5) / (ny * sy) * 2 - 1)[::-1] * half[1]
    sub_pixels = paint(x, y, half[0] / (nx * sx) + half[1] / (ny * sy))
    return level * sub_pixels.reshape(ny, sy, nx, sx).mean(axis=(1, 3))


def batch(name: str, count: int, grid: Grid) -> Float[np.ndarray, "count ny nx"]:
    """Pictures 0 ... count - 1 of a name, the same on every grid; float32.

    Args:
      name: one of NAMES.
      count: how many, at least 1.
      grid: of an image; field_of_view [m].

    Returns:
      Concentrations [count, ny, nx] in [0, 1].

    Raises:
      ValueError: on other names, counts and grids.

    Examples:
      >>> batch("blobs", 2, Grid((8, 8), (12.8e-3, 12.8e-3, 1e-3))).shape
      (2, 8, 8)
    """
    expect(name in NAMES, "name", f"one of {', '.join(NAMES)}", repr(name))
    count = check_count("count", count)
    shape_key = jax.random.key(NAMES.index(name), impl="threefry2x32")
    keys = (jax.random.fold_in(shape_key, i) for i in range(count))
    return np.stack([sample(k, grid, name) for k in keys]).astype(np.float32)
