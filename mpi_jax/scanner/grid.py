"""The grid of voxels that concentrations live on."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mpi_jax._checks import (
    DISTANCE,
    LENGTH,
    check_count,
    check_signal,
    expect,
    is_integer,
)
from mpi_jax.scanner._pytree import Vector, numbers, pytree, static


@pytree
class Grid:
    """Pixels (ny, nx) or voxels (nz, ny, nx) of a field of view.

    field_of_view [3] (x, y, z) m, edge to edge (z: slice thickness of an image),
    centre [3] m. Pixel centres lie at (i + 1/2) * pitch from the edge.

    Examples:
      >>> grid = Grid((4, 8), (16e-3, 8e-3, 1e-3))
      >>> grid.size, grid.counts
      (32, (8, 4, 1))
    """

    shape: tuple[int, ...] = static()
    field_of_view: Vector
    centre: Vector = (0.0, 0.0, 0.0)

    def __post_init__(self):
        shape = tuple(self.shape) if np.ndim(self.shape) == 1 else ()
        expect(
            len(shape) in (2, 3) and all(is_integer(n) and n >= 1 for n in shape),
            "Grid.shape",
            "(ny, nx) or (nz, ny, nx), whole numbers >= 1",
            self.shape,
        )
        object.__setattr__(self, "shape", tuple(int(n) for n in shape))
        numbers(self, "field_of_view", (3,), LENGTH, positive=True)
        numbers(self, "centre", (3,), DISTANCE)

    @property
    def size(self) -> int:
        """P, number of pixels or voxels."""
        return math.prod(self.shape)

    @property
    def counts(self) -> tuple[int, int, int]:
        """(nx, ny, nz)"""
        ny, nx = self.shape[-2:]
        return nx, ny, self.shape[0] if len(self.shape) == 3 else 1

    @property
    def pitch(self) -> Float[Array, " 3"]:
        """Pixel size (x, y, z) [m]."""
        return jnp.asarray(self.field_of_view) / np.array(self.counts)

    def axes(self) -> tuple[Array, Array, Array]:
        """x of each column, y of each row, z of each slice [m]; y falls with the row.

        Examples:
          >>> x, y, z = Grid((2, 2), (2e-3, 2e-3, 1e-3)).axes()
          >>> print(x, y)
          [-0.0005  0.0005] [ 0.0005 -0.0005]
        """
        x, y, z = (
            centre + (np.arange(n) + 0.5 - n / 2) * pitch
            for n, pitch, centre in zip(
                self.counts, self.pitch, jnp.asarray(self.centre), strict=True
            )
        )
        return x, y[::-1], z

    def positions(self) -> Float[Array, "P 3"]:
        """Pixel centres [P, 3] m, flat in the order of `image.reshape(-1)`.

        Examples:
          >>> Grid((2, 3), (3e-3, 2e-3, 1e-3)).positions().shape
          (6, 3)
        """
        x, y, z = self.axes()
        zz, yy, xx = jnp.meshgrid(z, y, x, indexing="ij")
        return jnp.stack([xx, yy, zz], axis=-1).reshape(-1, 3)

    def refined(self, factor: int) -> Grid:
        """The same field of view with `factor` pixels in place of one, on each axis.

        For phantoms: a signal from a finer grid than the reconstruction's is no inverse
        crime. In "moment" scaling each pixel counts by its value, whatever its size, so
        signals of a refined grid are factor^(number of axes) larger; "si" is per volume.
        Raises ValueError unless factor is an integer >= 1.

        Examples:
          >>> Grid((2, 3), (3e-3, 2e-3, 1e-3)).refined(2).shape
          (4, 6)
        """
        factor = check_count("factor", factor)
        shape = tuple(factor * n for n in self.shape)
        return dataclasses.replace(self, shape=shape)

    def average(
        self, fine: Float[Array | np.ndarray, "*batch_and_fine_grid"]
    ) -> Float[Array, "*batch_and_grid"]:
        """Mean of each pixel of images [..., *fine shape] on a refined grid of this one.

        Returns [..., *shape]. Raises ValueError on axes that are not multiples of this
        grid's, and on images that are complex, NaN or infinite.

        Examples:
          >>> print(Grid((1, 2), (2e-3, 1e-3, 1e-3)).average(np.ones((2, 4))))
          [[1. 1.]]
        """
        n = len(self.shape)
        batch, axes = fine.shape[: fine.ndim - n], fine.shape[fine.ndim - n :]
        expect(
            len(axes) == n
            and all(
                a % b == 0 and a >= b for a, b in zip(axes, self.shape, strict=True)
            ),
            "fine",
            f"trailing axes that are multiples of {self.shape}",
            f"shape {list(fine.shape)}",
        )
        check_signal("fine", fine)
        split = [k for a, b in zip(axes, self.shape, strict=True) for k in (b, a // b)]
        within = tuple(range(len(batch) + 1, len(batch) + 2 * n, 2))
        return jnp.mean(jnp.asarray(fine).reshape(*batch, *split), axis=within)
