"""Frozen dataclasses that are pytrees, and checks of their fields."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mpi_jax._checks import (
    Quantity,
    brief,
    check_count,
    check_finite,
    check_real,
    concrete,
    expect,
)

BOLTZMANN = 1.380649e-23  # [J/K]
VACUUM_PERMEABILITY = 4e-7 * math.pi  # [T m/A]
# Magnetite Fe3O4: three iron atoms per formula unit.
MAGNETITE_MOLAR_MASS = 0.231533  # [kg/mol]
MAGNETITE_DENSITY = 5170.0  # [kg/m^3]

# Leaves: numbers or arrays when built; vmap may stack them along leading axes.
Scalar = Float[Array | np.ndarray, "*batch"] | float | int
Vector = Float[Array | np.ndarray, "*batch 3"] | Sequence[Scalar]
Matrix = Float[Array | np.ndarray, "*batch 3 3"]


Class = TypeVar("Class")


def static(*, default=dataclasses.MISSING):
    """A field that is no leaf: part of the tree's structure, so that jit sees it."""
    return dataclasses.field(default=default, metadata={"static": True})


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, static))
def pytree(cls: type[Class]) -> type[Class]:
    """A frozen dataclass as a pytree that is checked when built, not when rebuilt.

    JAX rebuilds pytrees around tracers, shapes and axis numbers, so that must not run
    __post_init__, as jax.tree_util.register_dataclass would.
    """
    cls = dataclasses.dataclass(frozen=True)(cls)
    _register(cls)
    return cls


def _register(cls):
    fields = dataclasses.fields(cls)
    static = [f.name for f in fields if f.metadata.get("static")]
    leaves = [f.name for f in fields if not f.metadata.get("static")]

    def flatten(obj):
        children = [(jax.tree_util.GetAttrKey(n), getattr(obj, n)) for n in leaves]
        return children, tuple(getattr(obj, n) for n in static)

    def unflatten(values, children):
        obj = object.__new__(cls)
        for name, value in zip(leaves + static, (*children, *values), strict=True):
            object.__setattr__(obj, name, value)
        return obj

    jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)


def array(values):
    """A list of numbers in float64, or of tracers as a traced array.

    Examples:
      >>> array([1, 2])
      array([1., 2.])
    """
    traced = any(isinstance(v, jax.core.Tracer) for v in values)
    return jnp.stack(values) if traced else np.asarray(values, np.float64)


def numbers(
    obj,
    name: str,
    last_axes: tuple[int, ...] = (),
    quantity: Quantity | None = None,
    *,
    positive: bool = False,
) -> np.ndarray | None:
    """Check a leaf's last axes, values and size; return it as a NumPy array.

    None where a scanner is built inside jit or grad and the leaf has no value.
    """
    value = getattr(obj, name)
    if isinstance(value, (list, tuple)):
        value = array(value)
        object.__setattr__(obj, name, value)
    where, shape = f"{type(obj).__name__}.{name}", np.shape(value)
    ends = shape[max(len(shape) - len(last_axes), 0) :]
    expect(ends == last_axes, where, f"shape ending in {last_axes}", shape)
    if (values := concrete(value)) is None:
        return None
    check_finite(where, values)
    if positive:
        expect(np.all(values > 0), where, "positive numbers", brief(values))
    if quantity is not None:
        check_real(where, values)
        quantity.check(where, values)
    return values


def not_negative(obj, name: str, quantity: Quantity) -> None:
    """Check a leaf that may be None: a number >= 0 of likely size."""
    if getattr(obj, name) is not None:
        values = numbers(obj, name, (), quantity)
        if values is not None:
            where = f"{type(obj).__name__}.{name}"
            expect(np.all(values >= 0), where, "a number >= 0 or None", brief(values))


def count(obj, name: str) -> None:
    """Check an integer >= 1, NumPy's among them, and keep it as an int."""
    value = check_count(f"{type(obj).__name__}.{name}", getattr(obj, name))
    object.__setattr__(obj, name, value)
