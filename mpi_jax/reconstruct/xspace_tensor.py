"""x-space with the tensor of the signal, deconvolved with non-negativity."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft
import scipy.linalg
import scipy.spatial
from jaxtyping import Array, Float

from mpi_jax import _checks
from mpi_jax._checks import check_count, check_positive, expect
from mpi_jax._linalg import matmul
from mpi_jax.reconstruct.xspace import (
    check_length,
    check_model,
    check_scanner,
    check_signal,
)

# Weight of the splitting's copy of the trace, over that of the data, and over-relaxation.
_COPY, _RELAX = 0.1, 1.6


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TensorPlan:
    """What the signals of one scan share; built by `tensor_plan`, on the host in float64.

    samples [CV, CV]: u -> weights of the samples; directed [C, V], columns [V, nx], rows
    [ny, V]: from those to the trace. on_path [ny, nx]: 1 where the path went. kernel: real
    spectrum of the trace kernel over its largest value `peak`, on the padded grid. lost
    [P, q]: orthonormal traces of the missing frequencies, inner [q, q] their inverse.
    """

    samples: Float[Array | np.ndarray, "CV CV"]
    directed: Float[Array | np.ndarray, "C V"]
    columns: Float[Array | np.ndarray, "V nx"]
    rows: Float[Array | np.ndarray, "ny V"]
    on_path: Float[Array | np.ndarray, "ny nx"]
    kernel: Float[Array | np.ndarray, "rows half"]
    peak: Float[Array | np.ndarray, ""]
    lost: Float[Array | np.ndarray, "P q"]
    inner: Float[Array | np.ndarray, "q q"]
    rho: Float[Array | np.ndarray, ""]
    padded: tuple[int, int] = dataclasses.field(metadata={"static": True})


def trace_kernel(
    x: Float[np.ndarray, "*n"], across: float = 0.0, model: str = "tensor"
) -> Float[np.ndarray, "*n"]:
    """Trace of the plane's 2 x 2 kernel at an in-plane Langevin argument x, in float64.

    L' + L/x in the plane of the field-free point. In a slice beside it the field has a
    part `across` the plane, also as Langevin argument. 2 L' for the scalar model.

    Examples:
      >>> import numpy as np
      >>> print(trace_kernel(np.array([0.0, 5.0, 50.0])).round(3))  # 2/3 at the centre
      [0.667 0.2   0.02 ]
    """
    check_model(model)
    z = np.asarray(x, float) ** 2 + across**2
    small = z < 1e-4
    zl = np.where(small, 1.0, z)
    xl = np.sqrt(zl)
    e = np.exp(-2 * xl)
    f = (1 + e) / (1 - e) / xl - 1 / zl
    slope = 1 / zl - 4 * e / (1 - e) ** 2
    f = np.where(small, 1 / 3 - z / 45 + 2 * z**2 / 945, f)
    slope = np.where(small, 1 / 3 - z / 15 + 2 * z**2 / 189, slope)
    if model == "mpirf":
        return 2 * slope
    in_plane = x**2 / np.maximum(z, np.finfo(float).tiny)
    return 2 * f + (slope - f) * in_plane


def tensor_plan(
    scanner,
    *,
    width: float | None = None,
    lam: float = 1e-3,
    min_frequency: float = 0.0,
    rho: float = 3e-3,
    model: str = "tensor",
) -> TensorPlan:
    """Prepare `reconstruct_tensor` for a scanner that scans a plane; seconds, once.

    Step 1 minimises sum_n |u[n] - S A(r[n]) rate[n]|^2 + lam |A|^2, whose norm is that of
    the Gaussian covariance g(r, r') of standard deviation width: the posterior mean of a
    Gaussian process (Rasmussen and Williams 2006, ch. 2), linear in u. It is solved among
    the samples, C V numbers whatever the grid. The matrices' prior is the isotropic one,
    cov(A_ij, A_kl) = g (d_ik d_jl + d_il d_jk) / 2, so that

        cov(s . A v, s' . A v') = g ((s . s') (v . v') + (s . v') (s' . v)) / 2
        cov(tr A,    s . A v)   = g (s . v).

    min_frequency [Hz]: bins of u below it are taken for missing, whatever they hold. They
    are further unknowns, in step 1 and again in step 3, which finds those of their
    amplitudes that leave a non-negative image, 0 outside of the grid: DC recovery (Lu et
    al. 2013, IEEE TMI 32(9):1565) without cutting the signal into pieces.

    Args:
      scanner: 2D grid, no drive across its plane. Homogeneous fields and coils.
      width [m]: by default 1.75 times the largest distance from a pixel within the path's
        rectangle to the nearest sample, and no less than 0.9 of the width of L' at half
        maximum.
      lam: noise variance over the mean variance of the samples of u.
      rho: penalty of the splitting in `deconvolve`: small ones sharpen in fewer
        iterations, large ones tell the missing frequencies better; see `with_rho`.
      model: whose kernel is undone, "tensor" or "mpirf".

    The plan holds numbers of this scanner: derivatives are in u, not in the scanner.

    Raises ValueError on 3D grids or scans, on numbers that are not positive (below 0 for
    min_frequency), and where no frequency is left.

    Examples:
      >>> import dataclasses, jax
      >>> from mpi_jax import phantoms, physics, scanner
      >>> s = scanner.paper(12)
      >>> drive = dataclasses.replace(s.drive_field, divider=(12, 11, 0))  # 132 samples
      >>> s = dataclasses.replace(s, drive_field=drive)
      >>> plan = tensor_plan(s)
      >>> plan.on_path.shape  # [ny, nx]
      (12, 12)
    """
    check_scanner(scanner)
    check_model(model)
    leaves = jax.tree.leaves(scanner)
    known = not any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
    expect(known, "scanner", "known numbers (the plan is not differentiable)", "traced")
    if width is not None:
        check_positive("width", width)
        check_length("width", width, scanner)
    check_positive("lam", lam)
    check_positive("rho", rho)
    with jax.enable_x64(True):
        drive, field = scanner.drive_field, scanner.selection_field
        rate = np.asarray(drive.field()[1], float)
        position = np.asarray(scanner.field_free_point()[0], float)[:, :2]
        x, y, z = (np.asarray(axis, float) for axis in scanner.grid.axes())
        pitch = np.asarray(scanner.grid.pitch, float)
    gradient, offset = np.asarray(field.gradient), np.asarray(field.offset)
    expect(
        not rate[:, 2].any() and not gradient[2, :2].any(),
        "scanner",
        "a scan in a plane of constant z",
        f"drive amplitudes {np.asarray(drive.amplitude)} T, gradient "
        f"{gradient.tolist()} T/m",
    )
    frequency = scanner.frequencies()
    held = 0 <= min_frequency <= frequency[-1]
    expect(held, "min_frequency", f"0 to {frequency[-1]:g} Hz", min_frequency)

    tracer, receiver = scanner.tracer, scanner.receiver
    beta = float(tracer.beta)
    low, high = position.min(axis=0), position.max(axis=0)
    within_x, within_y = (
        (axis >= a - step / 2) & (axis <= b + step / 2)
        for axis, a, b, step in zip((x, y), low, high, pitch[:2], strict=True)
    )
    on_path = within_y[:, None] & within_x
    expect(on_path.any(), "scanner", "a grid that the scan's path meets", "none of it")
    if width is None:
        pixels = np.stack(np.meshgrid(x, y), axis=-1)[on_path]
        far = scipy.spatial.cKDTree(position).query(pixels)[0].max()
        steepest = np.abs(np.linalg.eigvalsh(gradient[:2, :2])).max()
        width = max(1.75 * far, 0.9 * 4.161 / (beta * steepest))

    # --- Step 1 and 2: the samples' covariance, inverted, and the way to the trace
    def near(a, b):
        return np.exp(-(((a[:, None] - b) / width) ** 2) / 2)

    sensitivity = np.asarray(receiver.sensitivity, float)[:, :2]
    rate = rate[:, :2]
    unit = np.sqrt(np.mean(rate**2) * np.mean(np.square(sensitivity)))
    directed = sensitivity @ rate.T / unit  # [C, V], s . v
    channels, samples = directed.shape
    g = near(position[:, 0], position[:, 0]) * near(position[:, 1], position[:, 1])
    # [C, V, C', V']
    covariance = np.einsum("cm,dn->cndm", directed, directed)
    covariance += np.einsum(
        "cd,nm->cndm", sensitivity @ sensitivity.T / unit**2, rate @ rate.T
    )
    covariance *= g[:, None] / 2
    covariance = covariance.reshape(channels * samples, -1)
    covariance += lam * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    factor = scipy.linalg.cholesky(covariance, lower=True, overwrite_a=True)
    lower, _ = scipy.linalg.lapack.dpotri(factor, lower=1)
    weights = np.tril(lower) + np.tril(lower, -1).T
    missing = _bins(samples, channels, frequency, min_frequency)
    if missing.shape[1] == len(weights):
        raise ValueError(f"min_frequency: no frequency is left at {min_frequency} Hz")

    columns, rows = near(position[:, 0], x), near(y, position[:, 1])
    # Traces that the missing frequencies leave undetermined, where the path went.
    response = weights @ missing
    work = np.einsum("cn,cnq->nq", directed, response.reshape(channels, samples, -1))
    lost = np.einsum("yn,nx,nq->yxq", rows, columns, work, optimize=True)
    lost = (lost * on_path[..., None]).reshape(on_path.size, -1)
    left, size, _ = np.linalg.svd(lost, full_matrices=False)
    lost = left[:, size > 1e-4 * size.max(initial=0)]
    # Noise without bound on the missing frequencies: what is left annihilates them.
    weights -= response @ np.linalg.solve(missing.T @ response, response.T)

    # --- Step 3: the kernel on a grid on which a product of spectra does not wrap around
    padded = tuple(scipy.fft.next_fast_len(2 * len(a) - 1, real=True) for a in (y, x))
    dy, dx = (np.fft.fftfreq(n, 1 / n) for n in padded)
    apart = np.stack(np.meshgrid(dx * pitch[0], -dy * pitch[1]), axis=-1)
    xi = beta * np.linalg.norm(apart @ gradient[:2, :2], axis=-1)
    across = beta * (gradient[2, 2] * z[0] + offset[2])
    kernel = scipy.fft.rfft2(trace_kernel(xi, across, model)).real
    peak = np.asarray(np.abs(kernel).max())

    # A trace of 1 is u = scale rate, and directed is without its unit.
    scale = float(tracer.moment) * beta
    if receiver.scaling == "si":
        scale *= -float(tracer.number_density) * np.prod(pitch)
    plan = TensorPlan(
        weights,
        directed / (unit * scale),
        columns,
        rows,
        on_path.astype(float),
        kernel / peak,
        peak,
        lost,
        _inner(kernel / peak, lost, on_path.shape, padded, rho),
        np.asarray(rho),
        padded,
    )
    return _on_device(plan)


def _inner(kernel, lost, shape, padded, rho):
    """Inverse of lost^T (1 - K (K^2 + rho)^-1 K) lost, for Woodbury's identity."""
    images = lost.T.reshape(-1, *shape)
    spectra = scipy.fft.rfft2(images, padded) * (rho / (kernel**2 + rho))
    back = scipy.fft.irfft2(spectra, padded)[:, : shape[0], : shape[1]]
    return np.linalg.inv(back.reshape(lost.T.shape) @ lost)


def _on_device(plan):
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.result_type(float)), plan)


def _bins(samples, channels, frequency, min_frequency):
    """Orthonormal waves [C V, q] of the bins below a frequency."""
    low = np.flatnonzero(frequency < min_frequency)
    turns = np.outer(np.arange(samples), low) % samples / samples
    waves = np.concatenate(
        [np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns[:, low > 0])], axis=1
    )
    length = np.linalg.norm(waves, axis=0)
    waves = waves[:, length > 1e-6] / length[length > 1e-6]  # no sine at Nyquist
    return np.kron(np.eye(channels), waves)


def with_rho(plan: TensorPlan, rho: float) -> TensorPlan:
    """The plan with another penalty for `deconvolve`; ValueError unless rho > 0.

    Examples:
      >>> import dataclasses, jax
      >>> from mpi_jax import phantoms, physics, scanner
      >>> s = scanner.paper(12)
      >>> drive = dataclasses.replace(s.drive_field, divider=(12, 11, 0))  # 132 samples
      >>> s = dataclasses.replace(s, drive_field=drive)
      >>> plan = tensor_plan(s)
      >>> plan = with_rho(plan, 1e-2)
    """
    check_positive("rho", rho)
    kernel, lost = np.asarray(plan.kernel, float), np.asarray(plan.lost, float)
    inner = _inner(kernel, lost, plan.on_path.shape, plan.padded, rho)
    return _on_device(dataclasses.replace(plan, inner=inner, rho=np.asarray(rho)))


def trace(
    plan: TensorPlan, u: Float[Array | np.ndarray, "*batch C V"]
) -> Float[Array, "*batch ny nx"]:
    """Trace of the matrices over m beta, c * (L' + L/x): blurred images [..., ny, nx].

    In units of the image times the kernel's, which is 2/3 at 0; of the trace that goes
    with the missing frequencies as much as smoothness tells.

    Examples:
      >>> import dataclasses, jax
      >>> from mpi_jax import phantoms, physics, scanner
      >>> s = scanner.paper(12)
      >>> drive = dataclasses.replace(s.drive_field, divider=(12, 11, 0))  # 132 samples
      >>> s = dataclasses.replace(s, drive_field=drive)
      >>> plan = tensor_plan(s)
      >>> c = phantoms.sample(jax.random.key(0), s.grid, "ellipses")
      >>> u = physics.voltage(s, c)
      >>> trace(plan, u).shape
      (12, 12)
    """
    check_signal(u, *plan.directed.shape)
    return _trace(plan, u)


@jax.jit
def _trace(plan, u):
    u = jnp.asarray(u, plan.samples.dtype)
    signals = u.reshape(-1, plan.samples.shape[0])
    weights = matmul(signals, plan.samples).reshape(-1, *plan.directed.shape)
    work = jnp.sum(weights * plan.directed[None], axis=1)
    # Gridding is one small matrix product an image, [ny, V] @ [V, nx].
    image = matmul(plan.rows[None] * work[:, None], plan.columns)
    return image.reshape(*u.shape[:-2], *plan.on_path.shape)


def blur(
    plan: TensorPlan, image: Float[Array | np.ndarray, "*batch ny nx"]
) -> Float[Array, "*batch ny nx"]:
    """The trace that an image has: its convolution with the trace kernel, 0 outside.

    Examples:
      >>> import dataclasses, jax
      >>> from mpi_jax import phantoms, physics, scanner
      >>> s = scanner.paper(12)
      >>> drive = dataclasses.replace(s.drive_field, divider=(12, 11, 0))  # 132 samples
      >>> s = dataclasses.replace(s, drive_field=drive)
      >>> plan = tensor_plan(s)
      >>> c = phantoms.sample(jax.random.key(0), s.grid, "ellipses")
      >>> u = physics.voltage(s, c)
      >>> bool(blur(plan, c).max() > c.max())  # the kernel adds up over pixels
      True
    """
    _check_image(plan, image, "image")
    return _blur(plan, image)


@jax.jit
def _blur(plan, image):
    ny, nx = plan.on_path.shape
    spectrum = jnp.fft.rfft2(jnp.asarray(image, plan.kernel.dtype), plan.padded)
    kernel = plan.kernel.reshape((1,) * (image.ndim - 2) + plan.kernel.shape)
    blurred = jnp.fft.irfft2(spectrum * kernel, plan.padded)
    return blurred[..., :ny, :nx] * plan.peak


def deconvolve(
    plan: TensorPlan,
    blurred: Float[Array | np.ndarray, "*batch ny nx"],
    *,
    iterations: int = 100,
) -> Float[Array, "*batch ny nx"]:
    """Non-negative images [..., ny, nx] whose trace is `blurred` where the path went.

    Towards min over c >= 0 on the grid and b of |blurred - K c - lost b|^2, by ADMM with
    copies of c and of K c - lost b, so that the linear step is diagonal under an FFT but
    for `lost` and the boundary needs no guess (Almeida and Figueiredo 2013, IEEE TIP
    22(8):3074). Few iterations regularise. Raises ValueError on wrong shapes.

    Examples:
      >>> import dataclasses, jax
      >>> from mpi_jax import phantoms, physics, scanner
      >>> s = scanner.paper(12)
      >>> drive = dataclasses.replace(s.drive_field, divider=(12, 11, 0))  # 132 samples
      >>> s = dataclasses.replace(s, drive_field=drive)
      >>> plan = tensor_plan(s)
      >>> c = phantoms.sample(jax.random.key(0), s.grid, "ellipses")
      >>> u = physics.voltage(s, c)
      >>> image = deconvolve(plan, blur(plan, c), iterations=200)
      >>> bool(abs(image - c).mean() < 0.1)
      True
    """
    _check_image(plan, blurred, "blurred")
    return _deconvolve(plan, blurred, check_count("iterations", iterations))


@partial(jax.jit, static_argnames="iterations")
def _deconvolve(plan, blurred, iterations):
    shape, (ny, nx) = blurred.shape, plan.on_path.shape
    k, lost, rho = plan.kernel[None], plan.lost, plan.rho
    data = jnp.asarray(blurred, k.dtype).reshape(-1, ny, nx) / plan.peak
    on_path = plan.on_path[None]

    def pad(a):
        return jnp.pad(a, ((0, 0), (0, plan.padded[0] - ny), (0, plan.padded[1] - nx)))

    def crop(a):
        return a[:, :ny, :nx]

    def amplitudes(a):
        return matmul(crop(a).reshape(-1, ny * nx), lost)

    def traces(b):
        return pad(matmul(b, lost.T).reshape(-1, ny, nx))

    def forth(a):
        return jnp.fft.rfft2(a)

    def back(a):
        return jnp.fft.irfft2(a, plan.padded)

    def linear(v, z):
        """argmin over c, b of |K c - lost b - v|^2 + rho |c - z|^2: c, K c - lost b."""
        free = v - traces(amplitudes(v)) if lost.shape[1] else v
        spectrum = (k * forth(free) + rho * forth(z)) / (k**2 + rho)
        if lost.shape[1]:
            b = matmul(amplitudes(back(k * spectrum)), plan.inner)
            spectrum = spectrum + k * forth(traces(b)) / (k**2 + rho)
        c, kc = back(spectrum), back(k * spectrum)
        if lost.shape[1]:
            kc = kc - traces(amplitudes(kc - v))
        return c, kc

    def step(state, _):
        v, z, dv, dz = state
        c, kc = linear(v - dv, z - dz)
        c = _RELAX * c + (1 - _RELAX) * z + dz
        kc = _RELAX * kc + (1 - _RELAX) * v + dv
        fitted = (data + _COPY * crop(kc)) / (1 + _COPY)
        v = kc + pad(on_path * (fitted - crop(kc)))
        z = pad(jnp.maximum(crop(c), 0))
        return (v, z, kc - v, c - z), None

    start = pad(on_path * data)
    zero = jnp.zeros_like(start)
    state, _ = jax.lax.scan(step, (start, zero, zero, zero), length=iterations)
    return crop(state[1]).reshape(shape)


def reconstruct_tensor(
    plan: TensorPlan,
    u: Float[Array | np.ndarray, "*batch C V"],
    *,
    iterations: int = 100,
) -> Float[Array, "*batch ny nx"]:
    """Non-negative images [..., ny, nx] of signals [..., C, V], in units of the image.

    plan: `tensor_plan(scanner)`; u in its receiver's scaling, one period. Pixels where
    the path did not go are only told by the blur that reaches it. Differentiable in u.
    Raises ValueError on signals of another shape.

    Examples:
      >>> import dataclasses, jax
      >>> from mpi_jax import phantoms, physics, scanner
      >>> s = scanner.paper(12)
      >>> drive = dataclasses.replace(s.drive_field, divider=(12, 11, 0))  # 132 samples
      >>> s = dataclasses.replace(s, drive_field=drive)
      >>> plan = tensor_plan(s)
      >>> c = phantoms.sample(jax.random.key(0), s.grid, "ellipses")
      >>> u = physics.voltage(s, c)
      >>> image = reconstruct_tensor(plan, u, iterations=50)
      >>> image.shape, bool(image.min() >= 0)
      ((12, 12), True)
    """
    return deconvolve(plan, trace(plan, u), iterations=iterations)


def _check_image(plan, image, name):
    ny, nx = plan.on_path.shape
    like = f"shape [..., {ny}, {nx}] like the plan's grid"
    expect(image.shape[-2:] == (ny, nx), name, like, list(image.shape))
    _checks.check_signal(name, image)
