"""Measured voltages at the door."""

import numpy as np
import pytest

from mpi_jax import data, scanner


@pytest.mark.parametrize("shape", [(2, 1632), (3264,), (5, 2, 1632), (5, 3264)])
def test_voltages_in_any_layout(shape):
    u = data.check_voltage(scanner.paper(8), np.ones(shape))
    assert u.shape[1:] == (2, 1632) and u.dtype == np.float32


@pytest.mark.parametrize(
    "voltage, words",
    [
        (np.ones((2, 1633)), r"expected \[N, 2, 1632\] or \[N, 3264\]"),
        (np.full((2, 1632), np.nan), "3264 NaN"),
        (np.ones((2, 1632), complex), "real numbers"),
        (np.ones((2, 1632), int), "real numbers"),
    ],
)
def test_bad_voltages(voltage, words):
    with pytest.raises(ValueError, match=words):
        data.check_voltage(scanner.paper(8), voltage)
