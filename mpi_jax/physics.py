"""From concentration to voltage: Langevin particles in a moving field-free point.

Symbols (SI; axes in brackets):

    B [T, P, 3]   field at sample n and pixel p           [T]
    xi = beta B   Langevin argument as a vector; x = |xi|, z = x^2
    L(x) = coth x - 1/x,  f = L / x,  q = (L' - f) / z = 2 df/dz
    c [..., P]    concentration, image value 1 = the tracer's reference
    u [..., C, V] voltage (receive channel, sample)       [V] or [A m^2/s], see Receiver
    u^ [..., C, K] its unnormalised rfft, K = V // 2 + 1, time factor e^(+i w t)

model="tensor" is the physics: the moment follows the direction of the field,

    d<m>/dt = m beta (f dB/dt + q xi (xi . dB/dt)),
whose terms are all smooth in z, so that values and derivatives stay finite where the
field vanishes. model="mpirf" is the scalar kernel of the MPIRF simulator (Shen et al.,
github.com/XiaoYaoNet/MPIRF), u = m beta dB/dt sum_p c_p L'(x_p): the part L/x of the
tensor is missing: no magnetisation in 2D has it. Published data was made with it.

What follows the particles, all off by default, in this order: relaxation, background
(`feed_through`), transfer function, noise (`measure`), band selection (system_matrix).
"""

from __future__ import annotations

import dataclasses
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Int

from mpi_jax._checks import check_finite, check_signal, expect
from mpi_jax._linalg import matmul, two_sided
from mpi_jax.scanner import MPIRFDriveField, Scanner, Tracer

MODELS = ("tensor", "mpirf")

# Largest [samples, pixels] block evaluated at once: bounds memory, fills the cache.
_BLOCK = 2**20


def _series(terms: int) -> np.ndarray:
    """c_k with L(x)/x = sum_k c_k x^(2k-2), for k = 1..terms."""
    n = np.arange(1, 2000)
    zeta = [np.pi**2 / 6, np.pi**4 / 90]
    zeta += [float(np.sum(n ** (-2.0 * k))) for k in range(3, terms + 1)]
    k = np.arange(1, terms + 1)
    return 2 * (-1.0) ** (k + 1) * np.array(zeta[:terms]) / np.pi ** (2 * k)


_SERIES = _series(16)


def _horner(coefficients: np.ndarray, z: Array) -> Array:
    value = jnp.full_like(z, coefficients[-1])
    for c in coefficients[-2::-1]:
        value = value * z + c
    return value


def langevin(z: Float[Array, "*n"]) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """f = L(x)/x and q = (L'(x) - L(x)/x)/x^2 at z = x^2 >= 0; L'(x) = f + z q.

    Power series below x = 1 (its radius is pi), exponentials above; no sinh or cosh,
    which overflow. Both branches get harmless arguments where the other one holds, so
    that gradients are finite everywhere, 0 included.

    Examples:
      >>> f, q = langevin(jnp.array([0.0, 4.0]))
      >>> print(f.round(4), q.round(4))
      [0.3333 0.2687] [-0.0444 -0.0237]
    """
    # Eight terms reach float32's rounding at x = 1, sixteen float64's.
    terms = 16 if z.dtype == jnp.float64 else 8
    c = _SERIES[:terms]
    small = z < 1
    zs = jnp.where(small, z, 0)
    f_small = _horner(c, zs)
    q_small = _horner(2 * np.arange(1, terms) * c[1:], zs)

    zl = jnp.where(small, 1, z)
    x = jnp.sqrt(zl)
    e = jnp.exp(-2 * x)
    gap = 1 - e  # x >= 1: no cancellation
    f = (1 + e) / (gap * x) - 1 / zl
    q = (1 / zl - 4 * e / (gap * gap) - f) / zl
    return jnp.where(small, f_small, f), jnp.where(small, q_small, q)


def default_float() -> np.dtype:
    """The real numbers that JAX computes with: float32, or float64 with x64."""
    return jnp.result_type(float)


def check_model(model: str) -> None:
    """ValueError unless it is one of MODELS.

    Examples:
      >>> check_model("debye")
      Traceback (most recent call last):
      ValueError: model: expected one of ('tensor', 'mpirf'), got 'debye'
    """
    expect(model in MODELS, "model", f"one of {MODELS}", repr(model))


def check_simulation(scanner: Scanner, model: str) -> None:
    """ValueError unless it is one scanner and a model of MODELS.

    Warns where filters act on a signal that was not oversampled.

    Examples:
      >>> from mpi_jax import scanner
      >>> check_simulation(scanner.paper(8), "tensor")
    """
    check_model(model)
    scanner.check_single()
    receiver, tau = scanner.receiver, scanner.tracer.relaxation_time
    if receiver.oversample == 1 and filtered(scanner):
        filters = "a transfer function" if tau is None else "relaxation"
        warnings.warn(
            f"Receiver.oversample: expected 2 or more with {filters}, got 1: harmonics "
            "above half the sampling rate fold back and are then filtered as if they "
            "were the lower ones",
            stacklevel=3,
        )


def tracer_kernel(
    tracer: Tracer, z: Float[Array, "*n"]
) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """f and q of `langevin`, averaged over the tracer's sizes; z = (beta |B|)^2.

    Cores r = (d / median)^3 times the median's volume have moment and beta r times as
    large: <m beta D> = m beta (<r^2 f(r^2 z)> I + <r^4 q(r^2 z)> xi xi^T).

    Examples:
      >>> f, q = tracer_kernel(Tracer(15e-9, diameter_spread=0.1), jnp.array([0.0]))
      >>> print(f"{f[0]:.4f}")
      0.3991
    """
    if tracer.diameter_spread is None:
        return langevin(z)
    nodes, weights = np.polynomial.hermite.hermgauss(tracer.diameter_nodes)
    spread = jnp.asarray(tracer.diameter_spread, z.dtype)
    ratio = jnp.exp(6 * spread * jnp.asarray(np.sqrt(2) * nodes, z.dtype))  # r^2

    @jax.checkpoint
    def add(total, node):
        r, w = node
        f, q = langevin(r * z)
        return (total[0] + w * r * f, total[1] + w * r * (r * q)), None

    shares = jnp.asarray(weights / np.sqrt(np.pi), z.dtype)
    return jax.lax.scan(add, (jnp.zeros_like(z),) * 2, (ratio, shares))[0]


def _selection(scanner: Scanner, dtype) -> Float[Array, "P 3"]:
    """Static field at the pixels [T]."""
    field = scanner.selection_field
    gradient = jnp.asarray(field.gradient)
    return jnp.asarray(field.offset, dtype)[None] + (
        scanner.grid.positions() @ gradient.T
    ).astype(dtype)


def _induced(scanner: Scanner, drive, rate, selection, sensitivity, model: str):
    """Signal of unit concentration; the arguments are triples (x, y, z) of arrays.

    Their shapes broadcast to the result's: [C, T, P] or [P, C, T].
    """
    tracer = scanner.tracer
    dtype = drive[0].dtype
    beta = jnp.asarray(tracer.beta, dtype)
    # Axis by axis, so that no [T, P, 3] array comes into being.
    xi = [beta * (a + b) for a, b in zip(drive, selection, strict=True)]
    f, q = tracer_kernel(tracer, sum(a * a for a in xi))

    def project(vector):
        return sum(p * a for p, a in zip(sensitivity, vector, strict=True))

    scale = jnp.asarray(tracer.moment * tracer.beta, dtype)
    if scanner.receiver.scaling == "si":
        cell = jnp.prod(scanner.grid.pitch)
        scale = -scale * jnp.asarray(cell * tracer.number_density, dtype)
    # Broadcast, not stacked: XLA would work out the kernel once more for each channel.
    if model == "tensor":
        along = q * sum(a * b for a, b in zip(xi, rate, strict=True))
        static = beta * project(selection)
        projected = beta * project(drive) + static
        return f * (scale * project(rate)) + along * (scale * projected)
    return (f + sum(a * a for a in xi) * q) * (scale * project(rate))


def _sensitivity(scanner: Scanner, dtype) -> Float[Array, "C axes pixels"]:
    """[C, 3, P], or [C, 3, 1] for homogeneous coils."""
    value = jnp.asarray(scanner.receiver.sensitivity, dtype)
    return value[..., None] if value.ndim == 2 else value


def response(
    scanner: Scanner,
    drive_field: Float[Array, "T 3"],
    drive_rate: Float[Array, "T 3"],
    model: str = "tensor",
) -> Float[Array, "C T P"]:
    """Signal of unit concentration in each pixel, for given samples of the drive field.

    Particles in equilibrium and coils alone: without relaxation, low pass and transfer
    function.

    Args:
      scanner: one scanner.
      drive_field: samples of the drive field [T, 3] T.
      drive_rate: its derivative at the samples [T, 3] T/s.
      model: one of MODELS.

    Returns [C, T, P], unit as in the receiver's scaling. Raises ValueError on other shapes
    and models, on numbers that are complex or not finite, on several scanners in one.

    Examples:
      >>> from mpi_jax import scanner
      >>> s = scanner.paper(8)
      >>> field, rate = s.drive_field.field()
      >>> response(s, field[:5], rate[:5]).shape
      (2, 5, 64)
    """
    check_model(model)
    scanner.check_single()
    for name, value in (("drive_field", drive_field), ("drive_rate", drive_rate)):
        shape = list(value.shape)
        expect(shape[1:] == [3], name, "shape [T, 3]", shape)
        check_signal(name, value)
    shape, expected = list(drive_rate.shape), list(drive_field.shape)
    same = f"shape {expected} like drive_field"
    expect(shape == expected, "drive_rate", same, shape)
    return _response(scanner, drive_field, drive_rate, model)


def _response(scanner, drive_field, drive_rate, model):
    dtype = drive_field.dtype
    coil = _sensitivity(scanner, dtype)
    return _induced(
        scanner,
        [drive_field[None, :, k, None] for k in range(3)],
        [drive_rate[None, :, k, None] for k in range(3)],
        [a[None, None, :] for a in _selection(scanner, dtype).T],
        [coil[:, k, None, :] for k in range(3)],
        model,
    )


def inner(scanner: Scanner) -> Scanner:
    """The scanner as it is simulated: sampled finer, nothing behind the coils.

    Examples:
      >>> from mpi_jax import scanner
      >>> scanner.paper(8).samples, inner(scanner.paper(8)).samples
      (1632, 3264)
    """
    receiver, drive, tracer = scanner.receiver, scanner.drive_field, scanner.tracer
    if filtered(scanner):
        finer = receiver.oversample * drive.oversampling
        drive = dataclasses.replace(drive, oversampling=finer)
        receiver = dataclasses.replace(receiver, transfer_function=None, oversample=1)
        tracer = dataclasses.replace(tracer, relaxation_time=None)
    return dataclasses.replace(
        scanner, tracer=tracer, drive_field=drive, receiver=receiver
    )


def filtered(scanner: Scanner) -> bool:
    """Whether `receive` does anything: relaxation, transfer function or low-pass.

    Raises ValueError where it does, on a drive field with a repeated end point (MPIRF's).

    Examples:
      >>> from mpi_jax import scanner
      >>> filtered(scanner.paper(8)), filtered(scanner.mpirf())
      (True, False)
    """
    receiver = scanner.receiver
    some = (
        receiver.oversample > 1
        or receiver.transfer_function is not None
        or scanner.tracer.relaxation_time is not None
    )
    expect(
        not (some and isinstance(scanner.drive_field, MPIRFDriveField)),
        "scanner",
        "a drive field sampled over whole periods for relaxation, transfer function or "
        "oversample",
        "MPIRF's, which repeats its end point",
    )
    return some


def receive(
    scanner: Scanner, spectra: Complex[Array, "*batch C K_inner"]
) -> Complex[Array, "*batch C K"]:
    """Spectra of the scanner from those of `inner(scanner)`.

    Low-pass: the lowest K bins over the oversampling. Debye relaxation: 1 / (1 + i w
    tau). Then the transfer function. Bins without an own phase (DC and, for an even V,
    the last) are real.

    spectra: unnormalised rfft [..., C, K_inner] of the finely sampled signal. Returns
    [..., C, K], of scanner.samples samples, in the same unit. Raises ValueError on another
    number of bins, or numbers that are not finite.

    Examples:
      >>> from mpi_jax import scanner
      >>> s = scanner.paper(8)
      >>> receive(s, jnp.ones((2, inner(s).samples // 2 + 1), complex)).shape
      (2, 817)
    """
    samples = scanner.samples
    count = samples // 2 + 1
    finest = scanner.receiver.oversample * samples // 2 + 1
    expect(
        spectra.shape[-1] == finest,
        "spectra",
        f"shape [..., {finest}], of all bins of the scanner as it is simulated",
        list(spectra.shape),
    )
    check_finite("spectra", spectra)
    spectra = spectra[..., :count] / scanner.receiver.oversample
    real = spectra.real.dtype

    def gain(values):
        return values.reshape((1,) * (spectra.ndim - values.ndim) + values.shape)

    tau = scanner.tracer.relaxation_time
    if tau is not None:
        step = 2 * np.pi * scanner.drive_field.sampling_rate / samples
        phase = jnp.asarray(step * jnp.asarray(tau), real) * np.arange(count)
        spectra = spectra / gain(jax.lax.complex(jnp.ones_like(phase), phase))
    if scanner.receiver.transfer_function is not None:
        transfer = jnp.asarray(scanner.receiver.transfer_function, spectra.dtype)
        spectra = spectra * gain(transfer)
    has_phase = gain(jnp.asarray(two_sided(samples), real))
    return jax.lax.complex(spectra.real, spectra.imag * has_phase)


def pixel_spectra(
    scanner: Scanner, pixels: Int[Array, " N"], model: str = "tensor"
) -> Complex[Array, "N C K"]:
    """Spectrum of unit concentration in each of some pixels, as the receiver has it.

    pixels: flat numbers [N] of pixels or voxels, in C order of the grid. Returns the
    unnormalised rfft [N, C, K], unit as in the receiver's scaling. Raises ValueError on
    another model, and on several scanners in one.

    Examples:
      >>> from mpi_jax import scanner
      >>> pixel_spectra(scanner.paper(8), jnp.array([0, 63])).shape
      (2, 2, 817)
    """
    check_model(model)
    scanner.check_single()
    simulated = inner(scanner)
    drive, rate = (a.astype(default_float()) for a in simulated.drive_field.field())
    coil = _sensitivity(scanner, drive.dtype)
    if coil.shape[-1] > 1:
        coil = coil[..., pixels]
    # Time last: its transform runs along contiguous memory.
    signal = _induced(
        simulated,
        [drive[None, None, :, k] for k in range(3)],
        [rate[None, None, :, k] for k in range(3)],
        [a[pixels, None, None] for a in _selection(simulated, drive.dtype).T],
        [coil[:, k].T[..., None] for k in range(3)],
        model,
    )
    signal = spectrum(signal)
    return receive(scanner, signal) if filtered(scanner) else signal


def block_starts(scanner: Scanner) -> tuple[np.ndarray, int]:
    """Starts and length of the time blocks that cover a period.

    The last block is moved back to end with the period: it repeats some samples instead
    of needing a padded copy.

    Examples:
      >>> from mpi_jax import scanner
      >>> block_starts(scanner.paper(8))
      (array([0]), 1632)
    """
    samples = scanner.samples
    length = min(samples, max(1, _BLOCK // scanner.grid.size))
    starts = np.minimum(np.arange(0, samples, length), samples - length)
    return starts, length


def voltage(
    scanner: Scanner,
    concentration: Float[Array | np.ndarray, "*batch_and_grid"],
    model: str = "tensor",
) -> Float[Array, "*batch C V"]:
    """Voltage of one period for concentrations, without a matrix.

    For many calls on one scanner build the matrix once (system_matrix.simulate) and use
    system_matrix.forward. Differentiable in everything; the backward pass recomputes
    the kernel block by block.

    Args:
      scanner: one scanner; jax.vmap takes several. A tracer parameter is one number: a
        map of it over the pixels is refused.
      concentration: [..., *grid.shape], 1 = the tracer's reference concentration.
      model: "tensor" or "mpirf".

    Returns:
      u [..., C, V], unit as in the receiver's scaling.

    Raises:
      ValueError: on a shape that isn't the grid's, on a concentration that is complex,
        NaN or infinite (where it is concrete), on another model, and on several scanners
        in one.

    Examples:
      >>> from mpi_jax import scanner
      >>> voltage(scanner.paper(8), np.eye(8)).shape  # 8 x 8 pixels of 1.6 mm
      (2, 1632)
    """
    check_simulation(scanner, model)
    shape = scanner.grid.shape
    expect(
        concentration.shape[-len(shape) :] == shape,
        "concentration",
        f"shape [..., {', '.join(map(str, shape))}] like the grid",
        list(concentration.shape),
    )
    check_signal("concentration", concentration)
    return _voltage(scanner, jnp.asarray(concentration, default_float()), model)


@partial(jax.jit, static_argnames="model")
def _voltage(scanner, concentration, model):
    if filtered(scanner):
        u = _voltage(inner(scanner), concentration, model)
        return signal(scanner, receive(scanner, spectrum(u)))
    batch = concentration.shape[: -len(scanner.grid.shape)]
    images = concentration.reshape(-1, scanner.grid.size).T
    field, rate = (a.astype(default_float()) for a in scanner.drive_field.field())
    starts, length = block_starts(scanner)

    @jax.checkpoint
    def block(start):
        rows = [jax.lax.dynamic_slice_in_dim(a, start, length) for a in (field, rate)]
        kernel = _response(scanner, rows[0], rows[1], model)
        flat = kernel.reshape(-1, scanner.grid.size)
        product = matmul(flat, images)
        return product.reshape(*kernel.shape[:2], -1)

    blocks = jax.lax.map(block, jnp.asarray(starts))  # [blocks, C, T, B]
    index = starts[:, None] + np.arange(length)
    # Where blocks overlap both hold the same value; keep the first.
    _, first = np.unique(index.reshape(-1), return_index=True)
    blocks = blocks.transpose(3, 1, 0, 2)
    u = blocks.reshape(*blocks.shape[:2], -1)[..., first]
    return u.reshape(*batch, *u.shape[1:])


def spectrum(u: Float[Array, "*batch V"]) -> Array:
    """Unnormalised rfft over one period.

    u [..., V] real gives [..., K = V//2 + 1] complex, unit of u. Raises ValueError on
    complex numbers, and on NaN or infinity where u is concrete.

    Examples:
      >>> print(spectrum(jnp.array([1.0, 0.0, -1.0, 0.0])))
      [0.+0.j 2.+0.j 0.+0.j]
    """
    check_signal("u", u)
    return jnp.fft.rfft(u, axis=-1)


def signal(
    scanner: Scanner, spectra: Complex[Array, "*batch K"]
) -> Float[Array, "*batch V"]:
    """Inverse of `spectrum` over one period of the scanner.

    spectra [..., K] gives [..., V = scanner.samples] real, in the same unit. Raises
    ValueError on another number of bins, and on NaN or infinity where concrete.

    Examples:
      >>> from mpi_jax import scanner
      >>> signal(scanner.paper(8), jnp.ones((2, 817), complex)).shape
      (2, 1632)
    """
    bins = scanner.samples // 2 + 1
    held = spectra.ndim > 0 and spectra.shape[-1] == bins
    expect(held, "spectra", f"shape [..., {bins}]", list(spectra.shape))
    check_finite("spectra", spectra)
    return jnp.fft.irfft(spectra, n=scanner.samples, axis=-1)
