"""The phantoms of Open MPI Data as concentrations on any grid."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from mpi_jax._checks import expect, is_integer
from mpi_jax.scanner import Grid

# Concentration of a filled voxel of the shape and the resolution phantom [mmol(Fe)/L].
FILLING = 50.0

# Frustum: half length, radius at the mount's end [m], tangent of the half angle.
_CONE = 11e-3, 1e-3, np.tan(np.deg2rad(10))

# Tubes: radius, y of the point where they meet, y of their other end [m], directions.
_TUBES = 0.5e-3, 8.75e-3, -12e-3
_DIRECTIONS = (
    (0.0, -1.0, 0.0),
    (np.tan(np.deg2rad(20)), -1.0, 0.0),
    (-np.tan(np.deg2rad(30)), -1.0, 0.0),
    (0.0, -1.0, np.tan(np.deg2rad(10))),
    (0.0, -1.0, -np.tan(np.deg2rad(15))),
)

# Cubes: edge [m]; centre (x, y, z) [m] and concentration [mmol(Fe)/L] of each.
_EDGE = 2e-3
_CUBES = (
    ((6e-3, 6e-3, 3e-3), 44.4),
    ((6e-3, -6e-3, 3e-3), 100.0),
    ((-6e-3, -6e-3, 3e-3), 29.6),
    ((-6e-3, 6e-3, 3e-3), 8.77),
    ((6e-3, 6e-3, -3e-3), 19.7),
    ((6e-3, -6e-3, -3e-3), 66.6),
    ((-6e-3, -6e-3, -3e-3), 13.1),
    ((-6e-3, 6e-3, -3e-3), 5.85),
)

# Where lines along x, at given y and z, are inside: start and end [m] of one interval for
# each convex part, end <= start where there is none.
Chords = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def phantom(
    name: str, grid: Grid, *, supersampling: int | None = None
) -> Float[np.ndarray, "*planes ny nx"]:
    """Mean concentration of each voxel [mmol(Fe)/L], [nz, ny, nx] or [ny, nx], float64.

    An image is the slice of the grid's thickness at its centre in z: `concentration` is
    empty at z = 0. Cubes are exact. Of cone and tubes the length inside a voxel is exact
    along x and averaged over supersampling^2 lines in y and z, by default 16^2 and as
    many more as keep the lines within 1/16 mm; an even number, for the faces lie where
    an odd one puts its lines.

    Args:
      name: one of PHANTOMS: shape (the cone), resolution (tubes), concentration (cubes).
      grid: of pixels or voxels.
      supersampling: lines along y and z in a voxel.

    Raises:
      ValueError: on an unknown name, on an odd supersampling or one below 2, and on any
        for the exact `concentration`.

    Examples:
      >>> grid = Grid((5, 5, 5), (25e-3, 25e-3, 25e-3))
      >>> phantom("shape", grid, supersampling=2).shape
      (5, 5, 5)
    """
    expect(name in PHANTOMS, "name", f"one of {', '.join(PHANTOMS)}", repr(name))
    # From the numbers themselves: the grid's own axes may be float32.
    counts = grid.counts
    centre, extent = (np.asarray(a, float) for a in (grid.centre, grid.field_of_view))
    edges = [
        c + size * (np.arange(n + 1) / n - 0.5)
        for c, size, n in zip(centre, extent, counts, strict=True)
    ]
    if name == "concentration":
        expect(
            supersampling is None,
            "supersampling",
            "None for the concentration phantom, whose cubes are exact",
            supersampling,
        )
        volume = _cubes(*edges)
    else:
        if supersampling is None:
            widest = np.max(extent / np.array(counts))
            supersampling = max(16, 2 * int(np.ceil(8e3 * widest * (1 - 1e-6))))
        even = (
            is_integer(supersampling) and supersampling >= 2 and not supersampling % 2
        )
        expect(even, "supersampling", "an even number >= 2", supersampling)
        volume = FILLING * _filled(_CONVEX[name], edges, supersampling)
    volume = volume[:, ::-1]  # row 0 at the largest y
    return volume if len(grid.shape) == 3 else volume[0]


def _inside(edges: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Share of each cell between edges [n + 1] that lies in the intervals, [..., n]."""
    reached = np.clip(edges, start[..., None], end[..., None])
    return np.diff(reached, axis=-1) / np.diff(edges)


def _cubes(x, y, z) -> np.ndarray:
    centres = np.array([centre for centre, _ in _CUBES])
    shares = [
        _inside(edges, c - _EDGE / 2, c + _EDGE / 2)
        for edges, c in zip((x, y, z), centres.T, strict=True)
    ]
    values = np.array([value for _, value in _CUBES])
    return np.einsum("c,cx,cy,cz->zyx", values, *shares, optimize=True)


def _cone(y, z):
    length, radius, slope = _CONE
    # x where the surface has come down to the line's distance from the axis
    surface = length - (np.hypot(y, z) - radius) / slope
    end = np.minimum(surface, length)
    return np.full_like(end, -length)[None], end[None]


def _tubes(y, z):
    radius, meeting, low = _TUBES
    y = y - meeting
    direction = np.array(_DIRECTIONS)
    dx, dy, dz = (direction / np.linalg.norm(direction, axis=1)[:, None]).T[
        ..., None, None
    ]
    along = y * dy + z * dz  # of a point at x = 0
    # Distance from the axis: x^2 + y^2 + z^2 - (x dx + along)^2 <= radius^2
    a = 1 - dx**2
    middle = dx * along / a
    square = middle**2 - (y**2 + z**2 - along**2 - radius**2) / a
    reach = np.sqrt(np.maximum(square, 0))
    start, end = middle - reach, middle + reach
    # Only beyond the plane through the meeting point: x dx + along >= 0.
    with np.errstate(divide="ignore", invalid="ignore"):
        plane = -along / dx
    start = np.where(dx > 0, np.maximum(start, plane), start)
    end = np.where(dx < 0, np.minimum(end, plane), end)
    outside = (dx == 0) & (along < 0) | (y > 0) | (y < low - meeting)
    return start, np.where(outside, start, end)


_CONVEX: dict[str, Chords] = {"shape": _cone, "resolution": _tubes}
PHANTOMS = (*_CONVEX, "concentration")


def _filled(chords: Chords, edges: list[np.ndarray], lines: int) -> np.ndarray:
    """Share of each voxel that lies in the union of convex parts, [nz, ny, nx]."""
    x, y, z = edges
    offsets = (np.arange(lines) + 0.5) / lines

    def positions(a):
        return (a[:-1, None] + np.diff(a)[:, None] * offsets).reshape(-1)

    y, z = positions(y), positions(z).reshape(-1, lines)
    planes = []
    for heights in z:  # one slice at a time bounds the memory
        start, end = chords(y[:, None], heights[None])
        order = np.argsort(start, axis=0)
        start = np.take_along_axis(start, order, axis=0)
        end = np.take_along_axis(end, order, axis=0)
        # Parts overlap: each begins where those before it have come to.
        before = np.maximum.accumulate(end, axis=0)[:-1]
        start = np.concatenate([start[:1], np.maximum(start[1:], before)])
        share = _inside(x, start, np.maximum(end, start)).sum(axis=0)
        planes.append(share.reshape(-1, lines * lines, x.size - 1).mean(axis=1))
    return np.stack(planes)
