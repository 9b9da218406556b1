"""Phantoms: areas in closed form, a brute-force renderer, splits, glyphs, batches."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.textpath import TextPath

from mpi_jax import phantoms
from mpi_jax.phantoms import items, render

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


def grid(ny: int, nx: int | None = None, fov=(0.0128, 0.0128, 0.0128)):
    return types.SimpleNamespace(shape=(ny, nx or ny), field_of_view=np.array(fov))


G32 = grid(32)


@jax.jit
def batch32(split, start):
    """One compiled batch serves every split and start."""
    return phantoms.batch(split, start, 48, G32)


@pytest.fixture(scope="module")
def many():
    """Images, masks, families of the first 192 of every split, [3, 192, ...]."""
    splits = [
        [np.asarray(part) for part in batch32(jnp.int32(s), jnp.int32(48 * b))]
        for s in range(3)
        for b in range(4)
    ]
    return [
        np.stack(p).reshape(3, 192, *p[0].shape[1:]) for p in zip(*splits, strict=True)
    ]


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


@pytest.mark.parametrize("thickest", [0.0, 0.1])
def test_stroke_is_a_capsule_and_its_chord(thickest):
    ends = jnp.array([[-0.2, 0.0]]), jnp.array([[0.2, 0.0]])
    radius = jnp.array([[0.1, 0.1]])
    one = jnp.arange(1)
    proposal = phantoms.strokes(*ends, radius, one, one == 0, thickest)
    concentration, coverage = painted(proposal)
    np.testing.assert_allclose(coverage.mean(), 0.4 * 0.2 + np.pi * 0.1**2, rtol=3e-3)
    if thickest:  # half chord / radius: half a disc across, half a ball at the ends
        volume = 0.4 * np.pi * 0.1 / 2 + 2 / 3 * np.pi * 0.1**2
        np.testing.assert_allclose(concentration.mean(), volume, rtol=1e-2)
    else:
        np.testing.assert_allclose(concentration, coverage, atol=1e-6)  # two roundings


def test_range_masks_families_and_fill(many):
    images, masks, families = many
    assert images.dtype == np.float32 and masks.dtype == np.float32
    assert np.isfinite(images).all() and images.min() >= 0 and images.max() <= 1
    assert set(np.unique(masks)) == {0.0, 1.0}
    assert (masks.sum(axis=(2, 3)) > 0).all()
    for split in families:
        np.testing.assert_array_equal(np.bincount(split, minlength=6), [32] * 6)
    # FILL bounds the coverage, which no image outweighs and every mask is near.
    assert (images.mean(axis=(2, 3)) < phantoms.FILL[1] + 0.01).all()
    assert (masks.mean(axis=(2, 3)) < phantoms.FILL[1] + 0.05).all()
    assert (masks.mean(axis=(2, 3)) > phantoms.FILL[0] / 2).all()


def test_margin_and_touching(many):
    images = many[0].reshape(-1, 32, 32)
    rim = np.ones((32, 32), bool)
    rim[1:-1, 1:-1] = False
    touching = (images[:, rim] > 0).any(axis=1).mean()
    assert 0.05 < touching < 0.16


def test_splits_do_not_share_an_image(many):
    images = many[0].reshape(-1, 32, 32)
    seen = {np.round(image * 255).astype(np.uint8).tobytes() for image in images}
    assert len(seen) == len(images)


def test_batch_is_the_images():
    images, _, families = batch32(jnp.int32(1), jnp.int32(101))
    one = jax.jit(lambda i: phantoms.image("validation", i, G32))
    for k in range(0, 48, 7):  # 7 = 6 + 1: every family in turn
        assert int(families[k]) == (101 + k) % 6
        np.testing.assert_allclose(images[k], one(jnp.int32(101 + k)), atol=1e-5)


@pytest.mark.parametrize("split", range(3))
def test_batch_from_any_start(split, many):
    """The same index from another start, hence in another place of another vmap."""
    shifted = batch32(jnp.int32(split), jnp.int32(5))
    for got, expected in zip(shifted, many, strict=True):
        np.testing.assert_allclose(got, expected[split, 5:53], atol=1e-5)


def test_same_picture_at_two_sizes_and_scales():
    key = jax.random.key(3)
    coarse = phantoms.sample(key, grid(32), "triangles")
    fine = phantoms.sample(key, grid(64, fov=(0.037, 0.037, 0.02)), "triangles")
    mean = fine.reshape(32, 2, 32, 2).mean(axis=(1, 3))
    assert coarse.max() > 0
    np.testing.assert_allclose(mean, coarse, atol=0.03)


def test_masks_from_the_image_agree_with_coverage(many):
    images, masks, _ = (part.reshape(-1, *part.shape[2:]) for part in many)
    got = np.asarray(phantoms.mask(jnp.asarray(images)))
    dice = 2 * (got * masks).sum((1, 2)) / (got.sum((1, 2)) + masks.sum((1, 2)))
    assert np.median(dice) > 0.95
    assert not phantoms.mask(jnp.zeros((8, 8))).any()


def test_glyphs_are_dejavu():
    depth, box = items._atlas()
    np.testing.assert_allclose(box, GLYPH_BOX)
    for digit in range(10):
        expected = np.clip(glyph_depth(digit), -127 * GLYPH_STEP, 127 * GLYPH_STEP)
        np.testing.assert_allclose(depth[digit], expected, atol=0.51 * GLYPH_STEP)


def test_murray():
    share = jnp.array([0.5, 0.7, 0.9])
    (first, angle), (second, other) = phantoms.murray(share), phantoms.murray(1 - share)
    np.testing.assert_allclose(first**3 + second**3, 1, rtol=1e-5)
    # Equal branches: cos a = 2^(-1/3), about 37.5 degrees to either side.
    np.testing.assert_allclose(jnp.cos(angle[0]), 2 ** (-1 / 3), rtol=1e-5)
    assert (other[1:] > angle[1:]).all()  # the thin branch turns more


def test_errors_name_what_came():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="family: expected one of bars.*got 'blob'"):
        phantoms.sample(key, G32, "blob")
    with pytest.raises(ValueError, match="split: expected one of train.*got 'dev'"):
        phantoms.batch("dev", 0, 6, G32)
    with pytest.raises(ValueError, match="grid.shape: expected"):
        phantoms.sample(key, types.SimpleNamespace(shape=(8,), field_of_view=(1, 1, 1)))
