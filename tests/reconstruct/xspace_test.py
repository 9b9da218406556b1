"""x-space: against the reference simulator's trace and image, and in closed form."""

import dataclasses

import jax
import numpy as np
import pytest

from mpi_jax import physics, scanner
from mpi_jax.reconstruct import xspace, xspace_tensor


@pytest.mark.parametrize("case, amplitude", [("p17", 1.6e-3), ("dot33", 3.2e-3)])
def test_reference_trace_and_image(shared, case, amplitude):
    """The published algorithm's samples, and its image by SciPy's interpolation."""
    interpolate = pytest.importorskip("scipy.interpolate")
    golden = np.load(shared / "golden" / "mpirf_cases.npz", allow_pickle=False)

    def ref(key):
        return golden[f"{case}/{key}"]

    with jax.enable_x64(True):
        s = scanner.mpirf(amplitude=(amplitude, amplitude))
        trace = np.asarray(xspace.native_signal(s, ref("voltage_xy")))
        points = np.asarray(s.field_free_point()[0])[:, :2]
    trace = trace / trace.max()
    np.testing.assert_allclose(trace, ref("xspace_trace_normalised"), atol=2e-8)
    # The reference grids with SciPy, whose nodes are the pixels' own.
    x, y, _ = (np.asarray(a) for a in s.grid.axes())
    xx, yy = np.meshgrid(x, y)
    image = interpolate.griddata(points, trace, (xx, yy), method="cubic")[1:-1, 1:-1]
    expected = ref("xspace_image")
    np.testing.assert_allclose(image / np.nanmax(image), expected, atol=2e-3)
    # Our own gridding of the same signal shows the same picture.
    ours = np.asarray(xspace.reconstruct(s, ref("voltage_xy"), model="mpirf"))[
        1:-1, 1:-1
    ]
    assert np.corrcoef(ours.ravel(), expected.ravel())[0, 1] > 0.98


@pytest.mark.parametrize("waveform", ["triangle", "sine"])
@pytest.mark.parametrize("slow", [0, 1])
def test_width_of_a_line_by_line_path(waveform, slow):
    """1/2.5 of the widest gap between lines, seen where the path crosses the middle."""
    fast, n = 1 - slow, 24
    divider, waves = [0, 0, 0], ["sine"] * 3
    divider[fast], divider[slow], waves[slow] = 50, 50 * n, waveform
    base = scanner.paper(64)
    drive = dataclasses.replace(
        base.drive_field, divider=tuple(divider), waveform=tuple(waves)
    )
    s = dataclasses.replace(base, drive_field=drive)
    path = np.asarray(s.field_free_point()[0])
    up = path[np.gradient(path[:, slow]) > 0]
    crossed = np.flatnonzero(np.diff(np.sign(up[:, fast])))
    gap = np.diff(np.sort(up[crossed, slow])).max()
    width = float(xspace.default_width(s))
    np.testing.assert_allclose(width, gap / 2.5, rtol=0.06)


def test_width_of_one_line():
    base = scanner.paper(16)
    drive = dataclasses.replace(base.drive_field, divider=(102, 0, 0))
    s = dataclasses.replace(base, drive_field=drive)
    np.testing.assert_allclose(xspace.default_width(s), 0.4e-3, rtol=1e-6)


@pytest.mark.parametrize("model", ["tensor", "mpirf"])
def test_gain_against_quadrature(model):
    """Closed-form integral of the kernel over a disc against the sum over its pixels."""
    s = scanner.paper(400)
    positions = np.asarray(s.grid.positions(), np.float64)
    r = np.linalg.norm(positions[:, :2], axis=1)
    x = s.tracer.beta * 2.0 * r[r < 6.4e-3]
    slope, f = 1 / x**2 - 1 / np.sinh(x) ** 2, (1 / np.tanh(x) - 1 / x) / x
    kernel = (slope + f) / 2 if model == "tensor" else slope
    expected = s.tracer.moment * s.tracer.beta * kernel.sum()
    np.testing.assert_allclose(xspace.gain(s, model), expected, rtol=2e-3)


@pytest.mark.parametrize("model", ["tensor", "mpirf"])
def test_uniform_image_has_unit_value(model):
    s = scanner.paper(32)
    y, x = np.mgrid[:32, :32] - 15.5
    disc = (x**2 + y**2 < 16**2).astype(float)
    u = physics.voltage(s, disc, model=model)
    image = np.asarray(xspace.reconstruct(s, u, model=model))
    np.testing.assert_allclose(image[14:18, 14:18], 1.0, atol=0.1)


def test_dot_stands_where_it_is():
    s = scanner.paper(64)
    images = np.zeros((2, 64, 64))
    images[0, 20, 45] = images[1, 40, 12] = 1
    u = physics.voltage(s, images)
    got = np.asarray(xspace.reconstruct(s, u))
    for image, (row, column) in zip(got, [(20, 45), (40, 12)], strict=True):
        peak = np.unravel_index(np.argmax(image), image.shape)
        assert np.hypot(peak[0] - row, peak[1] - column) <= 3
    single = xspace.reconstruct(s, u[1])
    np.testing.assert_allclose(single, got[1], rtol=1e-4, atol=1e-6 * got[1].max())


def test_si_signal_gives_the_same_image():
    s = scanner.paper(16)
    si = dataclasses.replace(s, receiver=dataclasses.replace(s.receiver, scaling="si"))
    image = np.eye(16)
    a = xspace.reconstruct(s, physics.voltage(s, image))
    b = xspace.reconstruct(si, physics.voltage(si, image))
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_bad_input():
    s = scanner.paper(8)
    with pytest.raises(ValueError, match=r"u: expected shape \[..., 2, 1632\]"):
        xspace.reconstruct(s, np.ones((2, 1633)))
    with pytest.raises(ValueError, match="width"):
        xspace.reconstruct(s, np.ones((2, 1632)), width=0.0)
    with pytest.raises(ValueError, match="2D grid"):
        xspace.reconstruct(scanner.open_mpi_3d(4), np.ones((3, 53856)))
    with pytest.raises(ValueError, match="model"):
        xspace.reconstruct(s, np.ones((2, 1632)), model="debye")


def test_what_x_space_does_not_know_is_refused():
    s = scanner.paper(8)
    u = np.zeros((2, 1632), np.float32)
    tracer = dataclasses.replace(s.tracer, relaxation_time=1e-6)
    maps = np.broadcast_to(np.eye(2, 3)[..., None], (2, 3, 64))
    receiver = dataclasses.replace(s.receiver, sensitivity=maps)
    for changes, word in (
        ({"tracer": tracer}, "relaxation"),
        ({"receiver": receiver}, "maps"),
    ):
        other = dataclasses.replace(s, **changes)
        with pytest.raises(ValueError, match=word):
            xspace.reconstruct(other, u)
        with pytest.raises(ValueError, match=word):
            xspace_tensor.tensor_plan(other)
