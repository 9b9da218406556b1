"""x-space reconstruction: the signal seen as samples of a field along the scan path.

In the Langevin model u[n] = S A(r[n]) rate[n], with r[n] the field-free point, rate the
drive field's derivative, S the coils' directions and A = m beta (c * kernel) a field of
symmetric matrices (Goodwill and Conolly 2010, IEEE TMI 29(11):1851; März and Weinmann
2016, Inverse Probl. Imaging 10:1087, call it the core operator).

`reconstruct` is the published algorithm: v^T A v along the direction of motion v, blurred
by the kernel, 0.7 to 1.7 mm wide for the paper's scan. Gridding solves, at each pixel,
the least squares problem of a locally constant A over the samples near it:
sum_n w (u . rate) / sum_n w |rate|^2, with a Gaussian w of the distance. That is the
velocity-normalised signal (u . rate) / |rate|^2 averaged with the weights that its noise
asks for, and nothing is divided by the speed of a turning point.

`xspace_tensor.reconstruct_tensor` takes the matrices for what they are, in steps that are shared by all
signals of a scan and prepared once by `tensor_plan`:

1. Least squares for A over all channels and samples, with a penalty on roughness.
2. Its trace tr A, whose kernel L' + L/x is the same in all directions.
3. Non-negative deconvolution with that kernel, jointly with what a high pass took away.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mpi_jax import _checks
from mpi_jax._checks import LENGTH, check_positive, concrete, expect

# Largest part of the field across the slice, as a Langevin argument; see check_plane.
_FLAT = 0.5


def native_signal(
    scanner, u: Float[Array | np.ndarray, "*batch C V"]
) -> Float[Array, "*batch V"]:
    """Velocity-normalised signal (u . rate) / |rate|^2 [u's unit per T/s], per sample.

    Meant for a look along the path; it grows without bound where the field-free point
    turns around, which `reconstruct` avoids.

    Examples:
      >>> import jax
      >>> from mpi_jax import phantoms, physics, scanner
      >>> s = scanner.paper(16)
      >>> c = phantoms.sample(jax.random.key(0), s.grid, "ellipses")
      >>> u = physics.voltage(s, c)  # [C, V]
      >>> native_signal(s, u).shape  # a value a sample
      (1632,)
    """
    check_signal(u, scanner.channels, scanner.samples)
    rate = scanner.receiver.sensitivity @ _rate(scanner).T
    power = jnp.sum(_rate(scanner) ** 2, axis=-1)
    return jnp.sum(jnp.asarray(u) * rate, axis=-2) / power


def _rate(scanner) -> Float[Array, "V 3"]:
    return scanner.drive_field.field()[1].astype(jnp.result_type(float))


def gain(scanner, model: str = "tensor") -> Float[Array, ""]:
    """Native signal of a disc of unit concentration that fills the field of view.

    In x = beta g |r| the direction-averaged tensor kernel is (L' + L/x) / 2, and
    x L' + L is the derivative of x L, so its integral over a disc of radius R is
    pi R L(R) in closed form; for the scalar kernel L' it is 2 pi (R L - log(sinh R / R)).
    Unit: that of native_signal, per unit image value.

    Examples:
      >>> from mpi_jax import scanner
      >>> s = scanner.paper(16)
      >>> bool(gain(s, model="tensor") > gain(s, model="mpirf") > 0)  # it has L / x as well
      True
    """
    check_model(model)
    tracer, grid = scanner.tracer, scanner.grid
    g = jnp.abs(jnp.diagonal(jnp.asarray(scanner.selection_field.gradient))[:2])
    slope = tracer.beta * jnp.sqrt(g[0] * g[1])
    radius = slope * jnp.min(jnp.asarray(grid.field_of_view)[:2]) / 2
    product = radius / jnp.tanh(radius) - 1  # R L(R)
    if model == "tensor":
        integral = jnp.pi * product
    else:
        log_sinh = radius + jnp.log1p(-jnp.exp(-2 * radius)) - jnp.log(2.0)
        integral = 2 * jnp.pi * (product - log_sinh + jnp.log(radius))
    pixel = grid.pitch[0] * grid.pitch[1]
    scale = tracer.moment * tracer.beta
    if scanner.receiver.scaling == "si":
        scale = -scale * tracer.number_density * jnp.prod(grid.pitch)
    return scale * integral / (slope**2 * pixel)


def reconstruct(
    scanner,
    u: Float[Array | np.ndarray, "*batch C V"],
    *,
    width: float | None = None,
    model: str = "tensor",
) -> Float[Array, "*batch ny nx"]:
    """x-space images [..., ny, nx] of 2D signals [..., C, V], in units of the image.

    scanner: a Scanner; u in its receiver's scaling, one period, all frequencies kept.
    width [m]: standard deviation of the gridding Gaussian, by default wide enough for
    the widest gap that the path leaves, so that every pixel has samples near it.
    model: whose point-spread function scales the image (see `gain`).
    Raises ValueError on 3D grids, on signals of another shape, on width <= 0.

    Examples:
      >>> import jax
      >>> from mpi_jax import phantoms, physics, scanner
      >>> s = scanner.paper(16)
      >>> c = phantoms.sample(jax.random.key(0), s.grid, "ellipses")
      >>> u = physics.voltage(s, c)  # [C, V]
      >>> image = reconstruct(s, u)
      >>> image.shape
      (16, 16)
    """
    check_scanner(scanner)
    check_plane(scanner)
    check_model(model)
    check_signal(u, scanner.channels, scanner.samples)
    if width is None:
        width = default_width(scanner)
    else:
        check_positive("width", width)
        check_length("width", width, scanner)
    return _reconstruct(scanner, jnp.asarray(u, jnp.result_type(float)), width, model)


def check_model(model):
    expect(model in ("tensor", "mpirf"), "model", "'tensor' or 'mpirf'", repr(model))


def check_scanner(scanner):
    """ValueError unless x-space knows the kernel of this scanner's images."""
    scanner.check_single()
    scanner.check_field_free_point()
    shape = scanner.grid.shape
    expect(len(shape) == 2, "scanner", "a 2D grid", f"shape {shape}")
    receiver, tracer = scanner.receiver, scanner.tracer
    unknown = {
        "coil maps": jnp.ndim(receiver.sensitivity) > 2,
        "a transfer function": receiver.transfer_function is not None,
        "relaxation": tracer.relaxation_time is not None,
        "a size distribution": tracer.diameter_spread is not None,
    }
    named = ", ".join(name for name, is_present in unknown.items() if is_present)
    expect(
        not named,
        "scanner",
        "homogeneous coils, no filters and one core size for x-space",
        f"{named}; correct the signal first or use a system matrix",
    )


def check_plane(scanner):
    """ValueError unless the field-free point moves within the grid's slice.

    Beside it the field has a part across the slice, and the kernel is flatter than the
    one that scales the image: by 2 % where that part is a Langevin argument of 0.5
    ("mpirf": 5 %).
    Numbers that are traced can't be looked at.
    """
    field, drive = scanner.selection_field, scanner.drive_field
    with jax.ensure_compile_time_eval():  # known numbers stay known inside jit
        beta = scanner.tracer.beta
    values = (field.gradient, field.offset, drive.amplitude, scanner.grid.centre, beta)
    known = [value for value in map(concrete, values) if value is not None]
    if len(known) < len(values):
        return
    gradient, offset, amplitude, centre, beta = known
    driven = np.array([n > 0 for n in drive.divider])
    across = np.linalg.inv(gradient.astype(np.float64))[2]
    away = abs(across @ offset + centre[2]) + np.abs(across) @ (amplitude * driven)
    # Along the slice the smallest field is that distance times 1 / |across|.
    argument = beta * away / np.linalg.norm(across)
    expect(
        argument <= _FLAT,
        "scanner",
        "a field-free point that moves within the grid's slice, for x-space",
        f"one that is up to {away:.2g} m away from it; move the grid's centre, or use "
        "xspace_tensor or a system matrix",
    )


def check_length(name, value, scanner):
    """ValueError for a length [m] beyond the field of view: most likely millimetres."""
    fields = concrete(scanner.grid.field_of_view)
    if fields is not None:
        largest = float(fields[:2].max())
        dataclasses.replace(LENGTH, high=largest).check(name, value)


def check_signal(u, channels, samples):
    expect(
        u.shape[-2:] == (channels, samples),
        "u",
        f"shape [..., {channels}, {samples}] like the scanner",
        list(u.shape),
    )
    _checks.check_signal("u", u)


def default_width(scanner):
    """1/2.5 of the widest gap of the path, never less than half a pixel [m].

    Examples:
      >>> from mpi_jax import scanner
      >>> width = default_width(scanner.paper(16))  # half a pixel: the path is denser
      >>> round(1e3 * float(width), 3)  # [mm]
      0.4
    """
    drive = scanner.drive_field
    driven = [axis for axis, n in enumerate(drive.divider) if n]
    fast, slow = (f(driven, key=lambda a: drive.divider[a]) for f in (min, max))
    gradient = jnp.abs(jnp.asarray(scanner.selection_field.gradient))
    amplitude = jnp.asarray(drive.amplitude)
    if fast == slow:
        gap = 0.0  # one line
    elif drive.divider[slow] < 2 * drive.divider[fast]:
        # A Lissajous path with N_y / N_x near n / (n - 1) crosses an axis about 2 n times:
        # n lines a half period, widest apart at the centre, pi/2 times the mean distance.
        lines = drive.samples // drive.oversampling // drive.divider[slow]
        gap = jnp.pi * jnp.max(amplitude) / gradient[0, 0] / (2 * lines)
    else:
        # Line by line, up and down again; a sine is fastest at the centre.
        lines = drive.divider[slow] // drive.divider[fast]
        reach = amplitude[slow] / gradient[slow, slow]
        gap = (2 if drive.waveform[slow] == "triangle" else jnp.pi) * reach / lines
    return jnp.maximum(gap / 2.5, jnp.max(scanner.grid.pitch[:2]) / 2)


@jax.jit(static_argnames="model")
def _reconstruct(scanner, u, width, model):
    dtype = u.dtype
    x, y, _ = scanner.grid.axes()
    position = scanner.field_free_point()[0]
    # The Gaussian of a distance is the product of one in x and one in y: gridding is one
    # small matrix product an image, [ny, V] @ [V, nx], and no [V, P] weights are needed.
    wx = jnp.exp(-(((position[:, 0, None] - x[None]) / width) ** 2) / 2).astype(dtype)
    wy = jnp.exp(-(((position[:, 1, None] - y[None]) / width) ** 2) / 2).astype(dtype)
    rate = _rate(scanner)
    directed = jnp.asarray(scanner.receiver.sensitivity, dtype) @ rate.T
    work = jnp.sum(u * directed.reshape((1,) * (u.ndim - 2) + directed.shape), axis=-2)
    image = jnp.einsum("...n,ny,nx->...yx", work, wy, wx, optimize="optimal")
    power = jnp.sum(rate**2, axis=-1)
    weight = jnp.einsum("n,ny,nx->yx", power, wy, wx)
    # Pixels far from the path get no weight: they fall to 0 instead of to 0/0.
    floor = 1e-6 * jnp.max(weight)
    weight = (weight + floor) * gain(scanner, model).astype(dtype)
    return image / weight.reshape((1,) * (image.ndim - 2) + weight.shape)
