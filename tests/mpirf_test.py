"""Files of the paper's simulator, MPIRF: scanner, voltage and system matrix agree with them."""

import dataclasses

import jax
import numpy as np
import pytest
from support.errors import largest, nrms

from mpi_jax import physics, scanner, system_matrix


def test_repeated_end_point_cannot_be_filtered():
    s = scanner.mpirf(amplitude=(1.6e-3, 1.6e-3))
    s = dataclasses.replace(s, tracer=scanner.Tracer(relaxation_time=1e-6))
    with pytest.raises(ValueError, match="whole periods"):
        physics.voltage(s, np.ones(s.grid.shape))


# Cases as handed to the unmodified simulator (amplitude X, Y before its axis swap).
MPIRF_CASES = {
    "p17": dict(amplitude=(1.6e-3, 1.6e-3), gradient=(2.0, 2.0)),
    "rand17_asym": dict(
        amplitude=(1.6e-3, 1.2e-3),
        gradient=(2.0, 1.0),
        core_diameter=25e-9,
        saturation_magnetisation=4.74e5,
        temperature=310.0,
    ),
    "dot33": dict(amplitude=(3.2e-3, 3.2e-3), gradient=(2.0, 2.0)),
}


@pytest.fixture(scope="module")
def golden(shared):
    return np.load(shared / "golden" / "mpirf_cases.npz", allow_pickle=False)


@pytest.mark.parametrize("case", MPIRF_CASES)
def test_mpirf_files_float64(golden, case):
    def ref(key):
        return golden[f"{case}/{key}"]

    with jax.enable_x64(True):
        s = scanner.mpirf(**MPIRF_CASES[case])
        assert s.grid.shape == (ref("n_rows_y"), ref("n_cols_x"))
        x, y, _ = s.grid.axes()
        np.testing.assert_allclose(x, ref("grid_x_cols_m"), atol=1e-15)
        np.testing.assert_allclose(y, ref("grid_y_rows_m"), atol=1e-15)
        np.testing.assert_allclose(s.tracer.moment, ref("moment_Am2"), rtol=1e-12)
        u0 = float(golden["const/U0"])
        np.testing.assert_allclose(s.tracer.beta * u0, ref("beta_m_per_A"), rtol=1e-12)
        drive, rate = s.drive_field.field()
        assert largest(drive[:, :2].T, u0 * ref("H_drive_A_per_m")) < 1e-12
        assert largest(rate[:, :2].T, u0 * ref("dHdt_A_per_m_s")) < 1e-12
        assert (
            largest(
                physics.voltage(s, ref("phantom"), model="mpirf"), ref("voltage_xy")
            )
            < 1e-6
        )
        matrix = system_matrix.simulate(s, model="mpirf")[
            :, :, ref("system_matrix_cols")
        ]
        expected = np.stack([ref("system_matrix_time_x"), ref("system_matrix_time_y")])
        assert largest(matrix, expected) < (5e-6 if case == "rand17_asym" else 1e-6)


@pytest.mark.parametrize("case", MPIRF_CASES)
def test_mpirf_files_float32(golden, case):
    s = scanner.mpirf(**MPIRF_CASES[case])
    u = physics.voltage(s, golden[f"{case}/phantom"], model="mpirf")
    assert nrms(u, golden[f"{case}/voltage_xy"]) < 1e-6


@pytest.mark.parametrize("x64, rtol", [(False, 1e-6), (True, 1e-8)])
@pytest.mark.parametrize(
    "model, norm, x100, y100",
    [
        ("tensor", 9.6588927244e-11, 5.2577872542e-12, 4.8586551591e-12),
        ("mpirf", 3.5799010705e-11, 4.8397960343e-13, 5.0049995784e-13),
    ],
)
def test_reference_numbers(x64, rtol, model, norm, x100, y100):
    """One unit pixel, and an image of ones (the tensor model's norm is known)."""
    images = np.zeros((2, 128, 128))
    images[0, 32, 42] = 1
    images[1] = 1
    with jax.enable_x64(x64):
        s = scanner.paper(oversample=1)  # the numbers are of point samples
        u, ones = physics.voltage(s, images, model=model)
        np.testing.assert_allclose(np.linalg.norm(u), norm, rtol=rtol)
        np.testing.assert_allclose(u[:, 100], [x100, y100], rtol=5 * rtol)
        if model == "tensor":
            np.testing.assert_allclose(
                np.linalg.norm(ones), 8.7444534678e-07, rtol=rtol
            )
