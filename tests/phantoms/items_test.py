"""The atlas of glyphs against the font's outlines."""

import numpy as np
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.textpath import TextPath

from mpi_jax.phantoms import items

GLYPH_BOX = (1.0, 1.3)  # width and height that the atlas covers [digit heights]
GLYPH_STEP = 0.2 / 127


def outline(digit: int) -> Path:
    """A digit of DejaVu Sans with the zero's height 1, box centred on the origin."""
    font = FontProperties(family="DejaVu Sans")
    zero = TextPath((0, 0), "0", size=100, prop=font).get_extents()
    path = TextPath((0, 0), str(digit), size=100, prop=font)
    box = path.get_extents()
    middle = np.array([(box.x0 + box.x1) / 2, (zero.y0 + zero.y1) / 2])
    return Path((path.vertices - middle) / zero.height, path.codes)


def inside(path: Path, points: np.ndarray) -> np.ndarray:
    """Even-odd rule over the closed contours of a path; points [n, 2]."""
    loops = [p for p in path.to_polygons() if len(p) > 2]
    return (
        sum(Path(loop).contains_points(points).astype(int) for loop in loops) % 2 == 1
    )


def glyph_points(n: int) -> np.ndarray:
    """Centres of n x n pixels of the atlas box, row 0 on top: [n * n, 2]."""
    at = (np.arange(n) + 0.5) / n - 0.5
    x, y = np.meshgrid(at * GLYPH_BOX[0], -at * GLYPH_BOX[1])
    return np.stack([x.ravel(), y.ravel()], axis=-1)


def glyph_depth(digit: int) -> np.ndarray:
    """Distance to the outline, positive inside, [48, 48]."""
    path, points = outline(digit), glyph_points(48)
    nearest = np.full(len(points), np.inf)
    for loop in path.to_polygons():
        for a, b in zip(loop[:-1], loop[1:], strict=True):
            edge = b - a
            t = np.clip((points - a) @ edge / max(edge @ edge, 1e-12), 0, 1)
            away = np.linalg.norm(points - a - t[:, None] * edge, axis=1)
            nearest = np.minimum(nearest, away)
    return np.where(inside(path, points), nearest, -nearest).reshape(48, 48)


def test_glyphs_are_dejavu():
    depth, box = items._atlas()
    np.testing.assert_allclose(box, GLYPH_BOX)
    for digit in range(10):
        expected = np.clip(glyph_depth(digit), -127 * GLYPH_STEP, 127 * GLYPH_STEP)
        np.testing.assert_allclose(depth[digit], expected, atol=0.51 * GLYPH_STEP)
