"""Checks: what passes, what is named, and what was probably meant."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpi_jax import _checks


@pytest.mark.parametrize(
    "value", [3, np.int64(3), np.uint8(3), np.array(3), jnp.asarray(3)]
)
def test_integers_of_all_kinds_are_counts(value):
    count = _checks.check_count("iterations", value)
    assert count == 3 and type(count) is int


@pytest.mark.parametrize(
    "value", [0, -1, 2.0, np.float32(2), True, np.True_, np.array(True), "2", None]
)
def test_anything_else_is_no_count(value):
    with pytest.raises(ValueError, match="iterations: expected an integer >= 1, got"):
        _checks.check_count("iterations", value)


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_number_that_is_not_finite(kind, bad):
    values = np.ones((20, 30), np.float32)
    _checks.check_finite("u", kind(values))
    values[3, 7] = bad
    with pytest.raises(ValueError, match="u: expected finite numbers, got NaN or inf"):
        _checks.check_finite("u", kind(values))
    with pytest.raises(ValueError, match="u: expected finite numbers"):
        _checks.check_finite("u", kind(values + 0j))


def test_large_numbers_are_finite_though_their_sum_is_not():
    values = np.full(100, 3e38, np.float32)
    _checks.check_finite("u", values)
    values[::2] *= -1
    values[0] = np.inf
    with pytest.raises(ValueError, match="u: expected finite"):
        _checks.check_finite("u", values)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "bool"])
def test_kinds_of_real_numbers(dtype):
    _checks.check_real("u", jnp.ones(3, dtype))


def test_complex_numbers_are_not_real():
    with pytest.raises(ValueError, match="u: expected real numbers, got complex64"):
        _checks.check_real("u", jnp.ones(3, "complex64"))
    with pytest.raises(ValueError, match="u: expected real numbers, got complex64"):
        jax.jit(lambda u: _checks.check_real("u", u))(jnp.ones(3, "complex64"))


def test_traced_numbers_have_no_values():
    def checked(x):
        _checks.check_signal("u", x)
        _checks.check_positive("u", x)
        _checks.check_not_negative("u", x)
        _checks.DIAMETER.check("u", x)
        return x

    assert np.isnan(jax.jit(checked)(jnp.nan))
    for check in (_checks.check_positive, _checks.check_not_negative):
        with pytest.raises(ValueError, match="u: expected finite numbers >"):
            check("u", jnp.nan)


@pytest.mark.parametrize(
    "quantity, value, meant",
    [
        (_checks.DIAMETER, 30.0, "30e-9"),
        (_checks.DIAMETER, 0.03, "0.03e-6"),
        (_checks.FIELD, 12.0, "12e-3"),
        (_checks.FIELD, -12.0, "-12e-3"),
        (_checks.FIELD, 12e3, "12000e-6"),
        (_checks.LENGTH, 12.8, "12.8e-3"),
        (_checks.TEMPERATURE, 20.0, "293"),
        (_checks.RELAXATION, 3.0, "3e-6"),
        (_checks.MAGNETISATION, 480.0, "480e3"),
        (_checks.GRADIENT, 2000.0, "2000e-3"),
        (_checks.FREQUENCY, 2.5, "2.5e6"),
        (_checks.IRON, 1e5, "100000e-3"),
        (_checks.SPREAD, 10.0, "10e-2"),
    ],
)
def test_what_was_meant(quantity, value, meant):
    with pytest.raises(ValueError) as caught:
        quantity.check("x", value)
    words = str(caught.value)
    assert words.startswith(f"x: expected {quantity.unit}, "), words
    assert words.endswith(f"got {value:g}; did you mean {meant}?"), words
    number = float(meant)
    quantity.check("x", number)  # the suggestion would pass
