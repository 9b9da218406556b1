"""Open MPI phantoms: iron totals, layers, orientation and a second route by sampling."""

import numpy as np
import pytest

from mpi_jax import phantoms
from mpi_jax.scanner import Grid

COARSE = Grid((19, 19, 19), (38e-3, 38e-3, 19e-3))
FINE = Grid((37, 37, 37), (37e-3, 37e-3, 18.5e-3))


@pytest.fixture(scope="module")
def volumes():
    return {
        (name, grid.shape): phantoms.open_mpi.phantom(name, grid)
        for name in phantoms.open_mpi.PHANTOMS
        for grid in (COARSE, FINE)
    }


def voxel(grid):
    """[m^3]"""
    return np.prod(np.array(grid.field_of_view) / grid.counts)


def cone_volume():
    """Frustum 22 mm long from radius 1 mm to 1 mm + 22 mm tan 10 degrees [m^3]."""
    a, b = 1e-3, 1e-3 + 22e-3 * np.tan(np.pi / 18)
    return np.pi * 22e-3 / 3 * (a * a + a * b + b * b)


@pytest.mark.parametrize("grid", [COARSE, FINE], ids=["19", "37"])
def test_iron(volumes, grid):
    """Iron [mol]; 1 mmol/L is 1 mol/m^3. The tubes' union has 81.0 mm^3."""
    total = {
        n: volumes[n, grid.shape].sum() * voxel(grid)
        for n in phantoms.open_mpi.PHANTOMS
    }
    assert total["shape"] == pytest.approx(50 * cone_volume(), rel=1e-4)
    assert total["shape"] == pytest.approx(34.2e-6, rel=1e-2)
    assert total["resolution"] == pytest.approx(4.05e-6, rel=1e-2)
    values = 44.4 + 100 + 29.6 + 8.77 + 19.7 + 66.6 + 13.1 + 5.85
    assert total["concentration"] == pytest.approx(values * 8e-9, rel=1e-12)


@pytest.mark.parametrize(
    "grid, layers",
    [(COARSE, [5, 6, 7, 11, 12, 13]), (FINE, [*range(10, 15), *range(22, 27)])],
    ids=["19", "37"],
)
def test_cubes_fill_their_layers_and_nothing_at_zero(volumes, grid, layers):
    volume = volumes["concentration", grid.shape]
    filled = np.flatnonzero(volume.any(axis=(1, 2)))
    np.testing.assert_array_equal(filled, layers)
    # The middle layer's index is n // 2, where z = 0.
    assert not volume[grid.shape[0] // 2].any()


def test_cubes_by_hand():
    """A voxel inside has the cube's value, one cut by its corner an eighth of it."""
    grid = Grid((37, 37, 37), (37e-3, 37e-3, 18.5e-3))
    volume = phantoms.open_mpi.phantom("concentration", grid)
    # z = (iz - 18) / 2, y = 18 - row, x = column - 18 [mm]
    for x, y, z, value in [
        (6, 6, 3, 44.4), (6, -6, 3, 100), (-6, -6, 3, 29.6), (-6, 6, 3, 8.77),
        (6, 6, -3, 19.7), (6, -6, -3, 66.6), (-6, -6, -3, 13.1), (-6, 6, -3, 5.85),
    ]:  # fmt: skip
        at = 18 + 2 * z, 18 - y, 18 + x
        assert volume[at] == pytest.approx(value, rel=1e-12)
        assert volume[at[0] + 2, at[1] - 1, at[2] + 1] == pytest.approx(value / 8)


def test_orientation(volumes):
    shape, resolution = volumes["shape", FINE.shape], volumes["resolution", FINE.shape]

    def at(volume, x, y, z):  # [mm]
        return volume[round(18 + 2 * z), round(18 - y), round(18 + x)]

    # The cone is wide at -x: 4.7 mm at x = -10, 1.2 mm at x = 10.
    assert at(shape, -10, 4, 0) == pytest.approx(50)
    assert at(shape, 10, 4, 0) == at(shape, 13, 0, 0) == at(shape, -13, 0, 0) == 0
    # Tubes meet at y = +8.75: in z = 0 one runs to -x (30 deg), one to +x (20 deg).
    down = 8.75 + 10
    assert at(resolution, down * np.tan(np.pi / 9), -10, 0) > 20
    assert at(resolution, -down * np.tan(np.pi / 6), -10, 0) > 20
    assert at(resolution, -down * np.tan(np.pi / 9), -10, 0) == 0
    assert at(resolution, down * np.tan(np.pi / 6), -10, 0) == 0
    # One to +z by 10 deg, one to -z by 15 deg.
    assert at(resolution, 0, -10, down * np.tan(np.pi / 18)) > 20
    assert at(resolution, 0, -10, -down * np.tan(np.pi / 12)) > 20
    assert at(resolution, 0, -10, down * np.tan(np.pi / 12)) == 0
    assert at(resolution, 0, 10, 0) == at(resolution, 0, -13, 0) == 0


def test_symmetry(volumes):
    cone = volumes["shape", FINE.shape]
    np.testing.assert_allclose(cone, cone[::-1], atol=1e-9)
    np.testing.assert_allclose(cone, cone[:, ::-1], atol=1e-9)
    cubes = volumes["concentration", FINE.shape] > 0
    for axis in range(3):
        np.testing.assert_array_equal(cubes, np.flip(cubes, axis))


@pytest.mark.parametrize("name", phantoms.open_mpi.PHANTOMS)
def test_grids_agree_by_volume(name):
    """A grid of twice the pitch holds means over blocks of eight voxels."""
    fine = Grid((36, 36, 36), (36e-3, 36e-3, 18e-3))
    coarse = Grid((18, 18, 18), (36e-3, 36e-3, 18e-3))
    # With these the lines through both grids are the same.
    few, many = (None, None) if name == "concentration" else (4, 8)
    blocks = phantoms.open_mpi.phantom(name, fine, supersampling=few)
    blocks = blocks.reshape(18, 2, 18, 2, 18, 2).mean(axis=(1, 3, 5))
    got = phantoms.open_mpi.phantom(name, coarse, supersampling=many)
    np.testing.assert_allclose(got, blocks, atol=1e-9)


@pytest.mark.parametrize("name", phantoms.open_mpi.PHANTOMS)
def test_slice_is_that_of_the_volume(volumes, name):
    for iz in (12, 18):
        centre = (0.0, 0.0, (iz - 18) * 0.5e-3)
        image = phantoms.open_mpi.phantom(
            name, Grid((37, 37), (37e-3, 37e-3, 0.5e-3), centre)
        )
        np.testing.assert_allclose(image, volumes[name, FINE.shape][iz], atol=1e-9)


@pytest.mark.parametrize("name", ["shape", "resolution"])
def test_against_random_points(volumes, name):
    """Each layer's share of points inside, from the inequalities that define the bodies."""
    rng = np.random.default_rng(0)
    x, y, z = (rng.uniform(-h, h, 2_000_000) for h in (12.5, 12.5, 6.0))  # [mm]
    if name == "shape":
        inside = np.hypot(y, z) <= 1 + (11 - x) * np.tan(np.pi / 18)
        inside &= np.abs(x) <= 11
    else:
        degrees = np.deg2rad([0, 20, -30])
        flat = [(np.tan(a), -1, 0) for a in degrees]
        steep = [(0, -1, np.tan(np.deg2rad(a))) for a in (10, -15)]
        p = np.stack([x, y - 8.75, z], axis=-1)
        inside = np.zeros(x.shape, bool)
        for axis in flat + steep:
            along = p @ (np.array(axis) / np.linalg.norm(axis))
            far = np.sum(p * p, axis=-1) - along**2
            inside |= (far <= 0.25) & (along >= 0)
        inside &= (y >= -12) & (y <= 8.75)
    box = 25 * 25 * 12 / x.size  # [mm^3] a point
    grid = np.arange(-9.25, 9.3, 0.5)
    for axis, values, edges in [
        ((1, 2), z, grid),
        ((0, 2), y, grid * 2),
        ((0, 1), x, grid * 2),
    ]:
        expected = np.histogram(values[inside], edges)[0] * box
        got = volumes[name, FINE.shape].sum(axis=axis) / 50 * 0.5
        got = got[::-1] if axis == (0, 2) else got
        np.testing.assert_allclose(got, expected, atol=5 * np.sqrt(box * got.max()))


def test_bad_input():
    with pytest.raises(ValueError, match="name: expected one of shape"):
        phantoms.open_mpi.phantom("rotation", COARSE)
    for odd in (5, 0):
        with pytest.raises(ValueError, match="supersampling: expected an even number"):
            phantoms.open_mpi.phantom("shape", COARSE, supersampling=odd)
    with pytest.raises(ValueError, match="supersampling: expected None"):
        phantoms.open_mpi.phantom("concentration", COARSE, supersampling=16)
