"""Linear operators of the iterative solvers."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float, Inexact

from mpi_jax._checks import check_count, check_finite, concrete, expect
from mpi_jax._linalg import matmul


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LinearOperator:
    """S as two functions, for whole batches: c [..., P] -> u [..., M] and its adjoint.

    To hand one over to a jitted function, give its arrays through
    jax.tree_util.Partial(function, arrays): they are then traced, not compiled in.
    """

    forward: Callable
    adjoint: Callable
    shape: tuple[int, int] = dataclasses.field(metadata={"static": True})


Matrix = Inexact[Array | np.ndarray, "M P"]


def as_operator(S: Array | np.ndarray | LinearOperator) -> LinearOperator:
    """A matrix S [M, P] as an operator; operators with their functions as Partial.

    Raises:
      ValueError: if S is neither, is empty, or has values that are not finite.

    Examples:
      >>> import numpy as np
      >>> S = np.array([[2.0, 1.0], [0.0, 1.0], [1.0, 0.0]])  # [M, P]
      >>> c = np.array([1.0, 3.0])
      >>> operator = as_operator(S)
      >>> print(operator.forward(c[None]))
      [[5. 3. 1.]]
    """
    if isinstance(S, LinearOperator):
        return LinearOperator(_partial(S.forward), _partial(S.adjoint), S.shape)
    S = jnp.asarray(S)
    holds = S.ndim == 2 and S.size > 0 and jnp.issubdtype(S.dtype, jnp.inexact)
    expected = "a LinearOperator or a matrix [M, P] of floating or complex numbers"
    expect(holds, "S", expected, f"shape {S.shape}, {S.dtype}")
    check_finite("S", S)
    M, P = S.shape
    return LinearOperator(Partial(rows, S), Partial(columns, S), (M, P))


def _partial(function):
    return function if isinstance(function, Partial) else Partial(function)


def rows(S, c):
    return matmul(c, S.T)


def columns(S, u):
    return matmul(u, S.conj())


def gradient(grid: tuple[int, ...]) -> LinearOperator:
    """Forward differences of an image of `grid` voxels, one row per axis and voxel.

    c [..., P] in C order of the grid -> [..., axes * P], axis by axis; 0 in the last
    voxel of each axis (reflecting edge), in units of c per voxel.

    Raises:
      ValueError: if grid is not a tuple of integers >= 1.

    Examples:
      >>> import numpy as np
      >>> slopes = gradient((2, 3)).forward(np.arange(6.0))  # [[0, 1, 2], [3, 4, 5]]
      >>> print(slopes.reshape(2, 2, 3)[0])  # along y
      [[3. 3. 3.]
       [0. 0. 0.]]
    """
    grid = tuple(check_count("grid", n) for n in grid)
    expect(len(grid) > 0, "grid", "at least one axis", grid)
    size, axes = math.prod(grid), range(-len(grid), 0)

    def forward(c):
        image = c.reshape(*c.shape[:-1], *grid)
        parts = [_pad(jnp.diff(image, axis=axis), axis, 0) for axis in axes]
        return jnp.stack(parts, -1 - len(grid)).reshape(*c.shape[:-1], -1)

    def adjoint(y):
        y = y.reshape(*y.shape[:-1], len(grid), *grid)
        total = jnp.zeros((*y.shape[: -1 - len(grid)], *grid), y.dtype)
        for part, axis in enumerate(axes):
            one = lax.index_in_dim(y, part, y.ndim - len(grid) - 1, keepdims=False)
            inner = lax.slice_in_dim(one, 0, grid[axis] - 1, axis=one.ndim + axis)
            total = total - jnp.diff(_pad(inner, axis, 1), axis=axis)
        return total.reshape(*y.shape[: -1 - len(grid)], size)

    return LinearOperator(Partial(forward), Partial(adjoint), (len(grid) * size, size))


def _pad(array, axis, before):
    widths = [(0, 0)] * array.ndim
    widths[axis] = (before, 1)
    return jnp.pad(array, widths)


def mean_energy(S: Matrix) -> Float[Array, ""]:
    """||S||_F^2 / P [unit of S squared], the unit of a relative lam of `kaczmarz.solve`.

    In float32 it is 0 for entries below 1e-22; ValueError unless S is a matrix.

    Examples:
      >>> import numpy as np
      >>> S = np.array([[2.0, 1.0], [0.0, 1.0], [1.0, 0.0]])  # [M, P]
      >>> c = np.array([1.0, 3.0])
      >>> print(mean_energy(S))  # (4 + 1 + 1 + 1) / 2
      3.5
    """
    S = jnp.asarray(S)
    expect(S.ndim == 2, "S", "a matrix [M, P]", f"shape {S.shape}")
    return jnp.sum(jnp.square(S.real) + jnp.square(S.imag)) / S.shape[1]


def system(S, u):
    """Operator and u as arrays, or a ValueError that names the argument."""
    S, u = as_operator(S), jnp.asarray(u)
    M, P = S.shape
    holds = u.ndim > 0 and u.shape[-1] == M and u.size > 0
    expect(holds, "u", f"shape [..., {M}]", f"shape {u.shape}")
    holds = jnp.issubdtype(u.dtype, jnp.inexact)
    expect(holds, "u", "floating or complex numbers", u.dtype)
    # Real images tell the kind of S.
    c = jax.ShapeDtypeStruct((*u.shape[:-1], P), jnp.finfo(u.dtype).dtype)
    signal, back = jax.eval_shape(S.forward, c), jax.eval_shape(S.adjoint, u)
    expected, got = (u.shape, c.shape), (signal.shape, back.shape)
    expect(got == expected, "S", f"products of shapes {expected}", got)
    kinds = [jnp.iscomplexobj(array) for array in (signal, back, u)]
    kind = f"the kind of S ({signal.dtype}): both real or both complex"
    expect(len(set(kinds)) == 1, "u", kind, u.dtype)
    check_finite("u", u)
    return S, u


def parameter(name, value, u):
    value = jnp.asarray(value)
    holds = value.ndim == 0 and not jnp.iscomplexobj(value)
    expect(holds, name, "a real number", f"shape {value.shape}, {value.dtype}")
    if (number := concrete(value)) is not None:
        holds = np.isfinite(number) and number >= 0
        expect(holds, name, "a finite number >= 0", number)
    return value.astype(jnp.finfo(u.dtype).dtype)
