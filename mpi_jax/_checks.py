"""Checks of arguments: one wording of every complaint, `name: expected ..., got ...`.

Shapes and kinds are checked always. Values only where they are there: inside jit, grad
and vmap an array is traced, has no values, and passes.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def expect(holds: Any, name: str, expected: Any, got: Any) -> None:
    """ValueError that names the argument, what was expected and what came."""
    if not holds:
        raise ValueError(f"{name}: expected {expected}, got {got}")


def concrete(value: Any) -> np.ndarray | None:
    """The values as a NumPy array, or None while JAX traces them."""
    return None if isinstance(value, jax.core.Tracer) else np.asarray(value)


def brief(values: np.ndarray) -> str:
    """The values for a message, the middle of long arrays left out."""
    return np.array2string(values, threshold=6, edgeitems=2, precision=4)


def is_integer(value: Any) -> bool:
    """Whether it is a whole number of Python, NumPy or JAX; True and False are not."""
    if isinstance(value, (bool, np.bool_)):
        return False
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


def check_count(name: str, value: Any, least: int = 1) -> int:
    """The value as an int; ValueError unless it is an integer >= least."""
    holds = is_integer(value) and operator.index(value) >= least
    expect(holds, name, f"an integer >= {least}", repr(value))
    return operator.index(value)


def check_flags(**flags: Any) -> None:
    for name, flag in flags.items():
        expect(isinstance(flag, (bool, np.bool_)), name, "True or False", repr(flag))


def check_real(name: str, array: Any) -> None:
    """ValueError for complex numbers where real ones are meant, and for no numbers."""
    dtype = array.dtype if hasattr(array, "dtype") else np.asarray(array).dtype
    # jnp's, not NumPy's: bfloat16 is a number, too.
    kinds = (jnp.floating, jnp.integer, jnp.bool_)
    expect(any(jnp.issubdtype(dtype, k) for k in kinds), name, "real numbers", dtype)


def check_finite(name: str, array: Any) -> None:
    """ValueError for NaN and infinities, in real and complex numbers."""
    if not isinstance(array, jax.core.Tracer):
        expect(_all_finite(array), name, "finite numbers", "NaN or infinity")


def check_signal(name: str, array: Any) -> None:
    """ValueError unless the numbers are real and finite."""
    check_real(name, array)
    check_finite(name, array)


def _all_finite(array):
    on_device = isinstance(array, jax.Array)
    if on_device and any(device.platform != "cpu" for device in array.devices()):
        return bool(jnp.isfinite(array).all())
    if on_device and not array.is_fully_addressable:
        return bool(jnp.isfinite(array).all())
    values = np.asarray(array)
    with np.errstate(over="ignore", invalid="ignore"):
        # A sum is several times faster than a look at each number. It keeps NaN and
        # infinity; where it overflows by itself the numbers are looked at.
        return bool(np.isfinite(values.sum()) or np.isfinite(values).all())


def check_not_negative(name: str, value: Any) -> None:
    if (values := concrete(value)) is not None:
        holds = np.isfinite(values).all() and (values >= 0).all()
        expect(holds, name, "finite numbers >= 0", brief(values))


def check_positive(name: str, value: Any) -> None:
    if (values := concrete(value)) is not None:
        holds = np.isfinite(values).all() and (values > 0).all()
        expect(holds, name, "finite numbers > 0", brief(values))


@dataclasses.dataclass(frozen=True)
class Quantity:
    """A physical quantity: its unit, and sizes beyond which a number is a slip.

    low, high: bounds of |value|, wide, both allowed, as is 0 where low is 0. usual: a
    range in which a corrected number is plausible. slips: factors of other units over
    this one, as people write them ("e-3": milli); the first that leads into the usual
    range is suggested, and then `offset`, added.
    """

    unit: str
    low: float
    high: float
    usual: tuple[float, float]
    slips: tuple[str, ...] = ("e-3", "e-6", "e-9")
    offset: float | None = None

    def suggestion(self, value: float) -> str | None:
        """The number that was probably meant, as text."""
        low, high = self.usual
        for factor in self.slips:
            if low <= abs(value) * float(f"1{factor}") <= high:
                return f"{value:g}{factor}"
        if self.offset is not None and low <= value + self.offset <= high:
            return f"{value + self.offset:.3g}"
        return None

    def check(self, name: str, value: Any) -> None:
        """ValueError for a concrete number beyond the bounds, with the likely one."""
        if (values := concrete(value)) is None:
            return
        sizes = np.abs(values)
        wrong = (sizes < self.low) | (sizes > self.high)
        if not wrong.any():
            return
        got = float(values[wrong][0])
        meant = self.suggestion(got)
        hint = f"; did you mean {meant}?" if meant else ""
        expect(False, name, f"{self.unit}, {self._bounds()}", f"{got:g}{hint}")

    def _bounds(self):
        if self.low == 0:
            return f"at most {self.high:g} in size"
        return f"between {self.low:g} and {self.high:g}"


# Bounds: nothing that was ever built or simulated lies near them, scaled models included.
DIAMETER = Quantity("metres [m]", 1e-10, 1e-6, (1e-9, 3e-7), ("e-9", "e-10", "e-6"))
MAGNETISATION = Quantity("amperes per metre [A/m]", 1e3, 1e7, (1e4, 3e6), ("e3",))
TEMPERATURE = Quantity("kelvin [K]", 100.0, 2e3, (200.0, 700.0), (), 273.15)
IRON = Quantity("mmol/L", 0.0, 7e4, (1e-3, 1e4), ("e-3", "e-6"))
SPREAD = Quantity("a spread of log(diameter)", 0.0, 2.0, (0.01, 1.0), ("e-2",))
RELAXATION = Quantity("seconds [s]", 0.0, 0.1, (1e-9, 1e-3), ("e-6", "e-9"))
FIELD = Quantity("tesla [T]", 0.0, 1.0, (1e-4, 0.3))
GRADIENT = Quantity("tesla per metre [T/m]", 0.0, 200.0, (0.05, 50.0), ("e-3",))
FREQUENCY = Quantity("hertz [Hz]", 100.0, 1e12, (1e3, 1e9), ("e6", "e3", "e9"))
LENGTH = Quantity("metres [m]", 0.0, 4.0, (1e-5, 0.7))
DISTANCE = Quantity("metres [m]", 0.0, 10.0, (1e-5, 0.7))


def check_phase(name: str, value: Any) -> None:
    """ValueError for phases beyond one turn, with what degrees or radians would be."""
    if (values := concrete(value)) is None or not np.any(np.abs(values) > 1):
        return
    got = float(values[np.abs(values) > 1][0])
    degrees = got / 360 if abs(got) > 2 * math.pi else got / (2 * math.pi)
    unit = "degrees" if abs(got) > 2 * math.pi else "rad"
    expect(
        False,
        name,
        "turns, at most 1 in size (1/4: cosine)",
        f"{got:g}; did you mean {degrees:.4g}, which is {got:g} {unit}?",
    )
