"""The scanner as data: tracer, fields, receiver, grid. SI units, checked when built.

Every field is a flux density B = mu0 H [T], gradients accordingly [T/m]. The frame
(x, y, z) is right-handed with its origin at the field centre; images have row 0 at the
largest y and column 0 at the smallest x; volumes are [z, row, column], z ascending.

All classes are frozen dataclasses and pytrees: numbers are leaves (so that jit, vmap and
grad reach every physical parameter), counts and names are static.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

BOLTZMANN = 1.380649e-23  # [J/K]
VACUUM_PERMEABILITY = 4e-7 * math.pi  # [T m/A]
# Magnetite Fe3O4: three iron atoms per formula unit.
MAGNETITE_MOLAR_MASS = 0.231533  # [kg/mol]
MAGNETITE_DENSITY = 5170.0  # [kg/m^3]

# Leaves: numbers or arrays when built; vmap may stack them along leading axes.
Scalar = Float[Array | np.ndarray, "*batch"] | float | int
Vector = Float[Array | np.ndarray, "*batch 3"] | Sequence[Scalar]
Matrix = Float[Array | np.ndarray, "*batch 3 3"]


def _static(**kwargs):
    return dataclasses.field(metadata={"static": True}, **kwargs)


def _pytree(cls):
    """A frozen dataclass as a pytree that is checked when built, not when rebuilt.

    JAX rebuilds pytrees around tracers, shapes and axis numbers, so that must not run
    __post_init__, as jax.tree_util.register_dataclass would.
    """
    cls = dataclasses.dataclass(frozen=True)(cls)
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
    return cls


def _array(values):
    """A list of numbers in float64, or of tracers as a traced array."""
    traced = any(isinstance(v, jax.core.Tracer) for v in values)
    return jnp.stack(values) if traced else np.asarray(values, np.float64)


def _numbers(obj, name: str, last_axes: tuple[int, ...] = ()) -> np.ndarray | None:
    """Check a leaf's last axes and values; return it as a NumPy array.

    None where a scanner is built inside jit or grad and the leaf has no value.
    """
    value = getattr(obj, name)
    if isinstance(value, (list, tuple)):
        value = _array(value)
        object.__setattr__(obj, name, value)
    if isinstance(value, jax.core.Tracer):
        return None
    value = np.asarray(value)
    where = f"{type(obj).__name__}.{name}"
    n = len(last_axes)
    if value.ndim < n or value.shape[value.ndim - n :] != last_axes:
        raise ValueError(
            f"{where}: expected shape ending in {last_axes}, got {value.shape}"
        )
    if np.issubdtype(value.dtype, np.inexact) and not np.all(np.isfinite(value)):
        raise ValueError(f"{where}: expected finite numbers, got {value}")
    return value


def _positive(obj, name: str, last_axes: tuple[int, ...] = ()) -> None:
    value = _numbers(obj, name, last_axes)
    if value is not None and np.any(value <= 0):
        raise ValueError(
            f"{type(obj).__name__}.{name}: expected positive numbers, got {value}"
        )


def _not_negative(obj, name: str) -> None:
    if getattr(obj, name) is None:
        return
    value = _numbers(obj, name)
    if value is not None and np.any(value < 0):
        raise ValueError(
            f"{type(obj).__name__}.{name}: expected a number >= 0 or None, got {value}"
        )


@_pytree
class Tracer:
    """Single-domain particles in thermal equilibrium (Langevin).

    core_diameter [m], saturation_magnetisation [A/m], temperature [K],
    iron_concentration: what image value 1 means, in mmol(Fe)/L = mol(Fe)/m^3 (used by
    the "si" scaling only).
    diameter_spread: standard deviation of log(diameter) in a log-normal distribution of
    the number of cores, whose median is core_diameter; None: one size. The mean over it
    takes `diameter_nodes` Gauss-Hermite nodes (16: 2e-7 at spread 0.2, 4e-4 at 0.4).
    relaxation_time [s]: Debye's, tau dM/dt = M_equilibrium - M; None: no relaxation.
    """

    core_diameter: Scalar = 30e-9
    saturation_magnetisation: Scalar = 8e5
    temperature: Scalar = 293.15
    iron_concentration: Scalar = 50.0
    diameter_spread: Scalar | None = None
    relaxation_time: Scalar | None = None
    diameter_nodes: int = _static(default=16)

    def __post_init__(self):
        for name in (
            "core_diameter",
            "saturation_magnetisation",
            "temperature",
            "iron_concentration",
        ):
            _positive(self, name)
        for name in ("diameter_spread", "relaxation_time"):
            _not_negative(self, name)
        if not isinstance(self.diameter_nodes, int) or self.diameter_nodes < 1:
            raise ValueError(
                "Tracer.diameter_nodes: expected a whole number >= 1, got "
                f"{self.diameter_nodes}"
            )

    @property
    def volume(self):
        """Core volume [m^3], of the median diameter."""
        return math.pi / 6 * self.core_diameter**3

    @property
    def moment(self):
        """Magnetic moment m of one particle of median size [A m^2]."""
        return self.saturation_magnetisation * self.volume

    @property
    def beta(self):
        """Inverse field scale m / (k T) [1/T]: the Langevin argument is beta |B|."""
        # (k T)^2 underflows in float32 and would spoil the derivative in T.
        return self.moment / BOLTZMANN / self.temperature

    @property
    def number_density(self):
        """Particles per volume [1/m^3] at image value 1."""
        per_mole = MAGNETITE_MOLAR_MASS / (3 * MAGNETITE_DENSITY)
        iron = self.iron_concentration * (per_mole * 6 / math.pi)
        if self.diameter_spread is not None:
            # The mean volume of the log-normal distribution over that of its median.
            iron = iron / jnp.exp(4.5 * jnp.asarray(self.diameter_spread) ** 2)
        # One diameter at a time: volume^2, in the derivative, underflows in float32.
        d = self.core_diameter
        return iron / d / d / d


@_pytree
class DriveField:
    """Homogeneous periodic fields along x, y, z, locked to one base frequency.

    amplitude [3] T, phase [3] turns (0: sine, 1/4: cosine), base_frequency [Hz].
    Axis d swings at base_frequency / divider[d]; divider 0 means not driven. Sampling
    runs at oversampling * base_frequency over one common period, so that V grows with
    it; Receiver.oversample simulates finer and keeps V.
    waveform [3]: "sine" or "triangle" (rises through 0 at phase 0, constant speed).

    Neighbouring dividers make a Lissajous path; (102, 102 * n, 0) with waveform
    ("sine", "triangle", "sine") a Cartesian one: n fast lines a slow period, evenly
    spaced, up and down again.
    """

    amplitude: Vector
    divider: tuple[int, int, int] = _static()
    phase: Vector = (0.0, 0.0, 0.0)
    base_frequency: Scalar = 2.5e6
    oversampling: int = _static(default=1)
    waveform: tuple[str, str, str] = _static(default=("sine",) * 3)

    def __post_init__(self):
        _numbers(self, "amplitude", (3,))
        _numbers(self, "phase", (3,))
        _positive(self, "base_frequency")
        divider = self.divider
        if (
            len(divider) != 3
            or any(not isinstance(n, int) or n < 0 for n in divider)
            or not any(divider)
        ):
            raise ValueError(
                "DriveField.divider: expected 3 whole numbers >= 0, at least one of "
                f"them > 0, got {divider}"
            )
        if not isinstance(self.oversampling, int) or self.oversampling < 1:
            raise ValueError(
                "DriveField.oversampling: expected a whole number >= 1, got "
                f"{self.oversampling}"
            )
        if len(self.waveform) != 3 or not set(self.waveform) <= {"sine", "triangle"}:
            raise ValueError(
                "DriveField.waveform: expected 3 of 'sine' and 'triangle', got "
                f"{self.waveform}"
            )

    @property
    def samples(self) -> int:
        """V, samples per period."""
        return self.oversampling * math.lcm(*(n for n in self.divider if n))

    @property
    def sampling_rate(self):
        """[Hz]"""
        return self.oversampling * self.base_frequency

    @property
    def frequencies(self):
        """Drive frequency of each axis [3] Hz, 0 where not driven."""
        inverse = np.array([1 / n if n else 0.0 for n in self.divider])
        return self.base_frequency * inverse

    def turns(self) -> np.ndarray:
        """Phase of sample n on each axis without the start phase, [V, 3] turns.

        From integers: 2 pi f t with a float32 time is wrong by 1e-5 and more.
        """
        n = np.arange(self.samples)[:, None]
        period = self.oversampling * np.array([d or 1 for d in self.divider])
        return (n % period) / period

    def field(self) -> tuple[Float[Array, "V 3"], Float[Array, "V 3"]]:
        """Drive field [V, 3] T and its time derivative [V, 3] T/s over one period."""
        angle = 2 * np.pi * self.turns()
        driven = np.array([n > 0 for n in self.divider])
        sine, cosine = jnp.asarray(np.sin(angle)), jnp.asarray(np.cos(angle))
        start = 2 * np.pi * jnp.asarray(self.phase)[None]
        amplitude = jnp.where(driven, jnp.asarray(self.amplitude), 0.0)[None]
        rate = 2 * np.pi * jnp.asarray(self.frequencies)[None]
        s = sine * jnp.cos(start) + cosine * jnp.sin(start)
        ds = rate * (cosine * jnp.cos(start) - sine * jnp.sin(start))
        if "triangle" in self.waveform:
            triangle = np.array([w == "triangle" for w in self.waveform])[None]
            # Turns since the upper corner; quarter turns meet the corners exactly, where
            # the derivative is the mean of both sides.
            turns = (
                jnp.asarray((self.turns() - 0.25) % 1) + jnp.asarray(self.phase)[None]
            )
            turns = turns % 1
            slope = jnp.where(turns > 0.5, 4.0, -4.0)
            slope = jnp.where((turns == 0) | (turns == 0.5), 0.0, slope)
            s = jnp.where(triangle, 4 * jnp.abs(turns - 0.5) - 1, s)
            ds = jnp.where(triangle, jnp.asarray(self.frequencies)[None] * slope, ds)
        return amplitude * s, amplitude * ds


# MPIRF's rounded constants.
_MPIRF_PI = 3.1416
_MPIRF_BOLTZMANN = 1.3806488e-23
_MPIRF_VACUUM_PERMEABILITY = 4 * _MPIRF_PI * 1e-7
_MPIRF_STEP = 1e-4  # [m]


@_pytree
class MPIRFDriveField(DriveField):
    """MPIRF's sampling: the period plus its repeated end point, phases with pi = 3.1416.

    Only for comparison with files of that simulator.
    """

    @property
    def samples(self) -> int:
        return super().samples + 1

    @property
    def frequencies(self):
        return super().frequencies * (_MPIRF_PI / math.pi)

    def turns(self) -> np.ndarray:
        period = self.oversampling * np.array([d or 1 for d in self.divider])
        turns = np.arange(self.samples)[:, None] / period * (_MPIRF_PI / math.pi)
        # -cos(w t + pi / 2) is a sine only for the true pi.
        return turns + (_MPIRF_PI / math.pi - 1) / 4


@_pytree
class SelectionField:
    """Static field offset + gradient @ r; the field-free point is where B vanishes.

    gradient [3, 3] T/m, symmetric and free of divergence (trace 0); offset [3] T.
    diag(-g, g, 0) has a field-free line along z. Offsets shift the scanned patch.
    """

    gradient: Matrix
    offset: Vector = (0.0, 0.0, 0.0)

    def __post_init__(self):
        _numbers(self, "offset", (3,))
        gradient = _numbers(self, "gradient", (3, 3))
        if gradient is None:
            return
        scale = np.max(np.abs(gradient))
        skew = np.max(np.abs(gradient - np.swapaxes(gradient, -1, -2)))
        trace = np.max(np.abs(np.trace(gradient, axis1=-2, axis2=-1)))
        if scale == 0 or max(skew, trace) > 1e-5 * scale:
            raise ValueError(
                "SelectionField.gradient: expected a symmetric matrix with trace 0 "
                f"(Maxwell) and not all zero, got {gradient.tolist()}"
            )


@_pytree
class Receiver:
    """Receive coils and what follows them.

    sensitivity: field per ampere of each coil [T/A] (reciprocity), [C, 3] homogeneous or
    [C, 3, P] at each pixel of the scanner's grid. scaling: "si" gives volts, with the
    minus sign of induction; "moment" gives A m^2/s per unit image with a plus sign and
    takes sensitivity as plain direction (MPIRF's convention).
    transfer_function [C, K] complex: u^ is multiplied by it; None: 1.
    oversample: simulate at that multiple of the sampling rate and keep the frequencies
    up to half the sampling rate (an ideal low-pass); 1 samples the signal as it is, and
    harmonics beyond fold back.
    """

    sensitivity: Float[Array | np.ndarray, "*batch_and_map"]
    scaling: str = _static(default="moment")
    transfer_function: Complex[Array | np.ndarray, "*batch C K"] | None = None
    oversample: int = _static(default=1)

    def __post_init__(self):
        if self.scaling not in ("moment", "si"):
            raise ValueError(
                f"Receiver.scaling: expected 'moment' or 'si', got {self.scaling!r}"
            )
        shape = self.sensitivity.shape
        if len(shape) < 2 or (shape[-1] != 3 and (len(shape) < 3 or shape[-2] != 3)):
            raise ValueError(
                f"Receiver.sensitivity: expected shape [C, 3] or [C, 3, P], got {shape}"
            )
        _numbers(self, "sensitivity")
        if self.transfer_function is not None:
            _numbers(self, "transfer_function")
        if not isinstance(self.oversample, int) or self.oversample < 1:
            raise ValueError(
                f"Receiver.oversample: expected a whole number >= 1, got "
                f"{self.oversample}"
            )


@_pytree
class Grid:
    """Pixels (ny, nx) or voxels (nz, ny, nx) of a field of view.

    field_of_view [3] (x, y, z) m, edge to edge (z: slice thickness of an image),
    centre [3] m. Pixel centres lie at (i + 1/2) * pitch from the edge.
    """

    shape: tuple[int, ...] = _static()
    field_of_view: Vector
    centre: Vector = (0.0, 0.0, 0.0)

    def __post_init__(self):
        if len(self.shape) not in (2, 3) or any(
            not isinstance(n, int) or n < 1 for n in self.shape
        ):
            raise ValueError(
                "Grid.shape: expected (ny, nx) or (nz, ny, nx), whole numbers >= 1, "
                f"got {self.shape}"
            )
        _positive(self, "field_of_view", (3,))
        _numbers(self, "centre", (3,))

    @property
    def size(self) -> int:
        """P, number of pixels or voxels."""
        return math.prod(self.shape)

    @property
    def counts(self) -> tuple[int, int, int]:
        """(nx, ny, nz)"""
        ny, nx = self.shape[-2:]
        return nx, ny, self.shape[0] if len(self.shape) == 3 else 1

    @property
    def pitch(self) -> Float[Array, " 3"]:
        """Pixel size (x, y, z) [m]."""
        return jnp.asarray(self.field_of_view) / np.array(self.counts)

    def axes(self) -> tuple[Array, Array, Array]:
        """x of each column, y of each row, z of each slice [m]; y falls with the row."""
        x, y, z = (
            centre + (np.arange(n) + 0.5 - n / 2) * pitch
            for n, pitch, centre in zip(
                self.counts, self.pitch, jnp.asarray(self.centre), strict=True
            )
        )
        return x, y[::-1], z

    def positions(self) -> Float[Array, "P 3"]:
        """Pixel centres [m], flat in the order of `image.reshape(-1)`."""
        x, y, z = self.axes()
        zz, yy, xx = jnp.meshgrid(z, y, x, indexing="ij")
        return jnp.stack([xx, yy, zz], axis=-1).reshape(-1, 3)

    def refined(self, factor: int) -> Grid:
        """The same field of view with `factor` pixels in place of one, on each axis.

        For phantoms: a signal from a finer grid than the reconstruction's is no inverse
        crime. In "moment" scaling each pixel counts by its value, whatever its size, so
        signals of a refined grid are factor^(number of axes) larger; "si" is per volume.
        """
        if not isinstance(factor, int) or factor < 1:
            raise ValueError(f"factor: expected a whole number >= 1, got {factor}")
        shape = tuple(factor * n for n in self.shape)
        return dataclasses.replace(self, shape=shape)

    def average(
        self, fine: Float[Array | np.ndarray, "*batch_and_fine_grid"]
    ) -> Float[Array, "*batch_and_grid"]:
        """Mean of each pixel of images [..., *shape] on a refined grid of this one."""
        n = len(self.shape)
        batch, axes = fine.shape[: fine.ndim - n], fine.shape[fine.ndim - n :]
        if len(axes) != n or any(
            a % b or a < b for a, b in zip(axes, self.shape, strict=True)
        ):
            raise ValueError(
                f"fine: expected trailing axes that are multiples of {self.shape}, got "
                f"shape {list(fine.shape)}"
            )
        split = [k for a, b in zip(axes, self.shape, strict=True) for k in (b, a // b)]
        within = tuple(range(len(batch) + 1, len(batch) + 2 * n, 2))
        return jnp.mean(jnp.asarray(fine).reshape(*batch, *split), axis=within)


@_pytree
class Scanner:
    """Everything that turns a concentration on a grid into a voltage."""

    tracer: Tracer
    drive_field: DriveField
    selection_field: SelectionField
    receiver: Receiver
    grid: Grid

    def __post_init__(self):
        shape, p = self.receiver.sensitivity.shape, self.grid.size
        if shape[-1] != 3 and shape[-1] != p:
            raise ValueError(
                f"Receiver.sensitivity: expected [C, 3] or [C, 3, {p}] like the grid, "
                f"got {shape}"
            )
        wanted = (self.channels, self.samples // 2 + 1)
        transfer = self.receiver.transfer_function
        if transfer is not None and transfer.shape[-2:] != wanted:
            raise ValueError(
                f"Receiver.transfer_function: expected shape {wanted} (channels, rfft "
                f"bins of a period), got {transfer.shape}"
            )

    @property
    def samples(self) -> int:
        """V, samples per period and channel."""
        return self.drive_field.samples

    @property
    def channels(self) -> int:
        """C, receive channels."""
        shape = self.receiver.sensitivity.shape
        return shape[-2] if len(shape) == 2 else shape[-3]

    def field_free_point(self) -> tuple[Float[Array, "V 3"], Float[Array, "V 3"]]:
        """Position [V, 3] m and velocity [V, 3] m/s of the field-free point.

        Raises ValueError where the selection field vanishes along a line.
        """
        gradient = self.selection_field.gradient
        if not isinstance(gradient, jax.core.Tracer):
            size = np.abs(np.linalg.eigvalsh(np.asarray(gradient, np.float64)))
            if np.any(size.min(axis=-1) <= 1e-6 * size.max(axis=-1)):
                raise ValueError(
                    "SelectionField.gradient: expected an invertible matrix, of a field "
                    "that vanishes in one point; this one has a field-free line: "
                    f"{np.asarray(gradient).tolist()}"
                )
        field, rate = self.drive_field.field()
        inverse = jnp.linalg.inv(jnp.asarray(self.selection_field.gradient))
        offset = jnp.asarray(self.selection_field.offset)[None]
        return -(field + offset) @ inverse.T, -rate @ inverse.T

    def frequencies(self) -> np.ndarray:
        """Frequency of each rfft bin [K] Hz."""
        return np.fft.rfftfreq(self.samples, 1 / float(self.drive_field.sampling_rate))


@_pytree
class Recorded:
    """What a calibration file tells of its scanner: how it sampled which grid.

    Stands for a Scanner where the signals come from a measured system matrix. Tracer,
    fields and coils are not known. sampling_rate [Hz].
    """

    grid: Grid
    channels: int = _static()
    samples: int = _static()
    sampling_rate: float = _static()

    def frequencies(self) -> np.ndarray:
        """Frequency of each rfft bin [K] Hz."""
        return np.fft.rfftfreq(self.samples, 1 / self.sampling_rate)


def _shape(shape, axes: int) -> tuple[int, ...]:
    return (shape,) * axes if isinstance(shape, int) else tuple(shape)


def paper(
    shape: int | tuple[int, int] = 128,
    *,
    amplitude: Scalar = 12.8e-3,
    gradient: Scalar = 2.0,
    field_of_view: Scalar = 12.8e-3,
    phase: Scalar = 0.0,
    tracer: Tracer | None = None,
) -> Scanner:
    """The dual-task TransGAN paper's scan: 12.8 x 12.8 mm, 2 x 1632 samples.

    The paper fixes the field of view, the Lissajous path and the signal length; only
    the ratio amplitude / gradient = 6.4 mm follows from it. amplitude [T], gradient
    [T/m] along x and y and field_of_view [m] default to the values nearest to those of
    the paper's simulator MPIRF, the tracer to MPIRF's (30 nm, 8e5 A/m, 20 C). A Bruker
    scanner reaches amplitude=8e-3, gradient=1.25 and amplitude=6.4e-3, gradient=1.0.
    """
    return Scanner(
        tracer=tracer or Tracer(),
        drive_field=DriveField(
            amplitude=(amplitude, amplitude, 0.0),
            divider=(102, 96, 0),
            phase=(phase, phase, 0.0),
        ),
        selection_field=SelectionField(
            _array([-gradient, -gradient, 2 * gradient])[:, None] * np.eye(3)
        ),
        receiver=Receiver(np.eye(2, 3)),
        grid=Grid(_shape(shape, 2), (field_of_view, field_of_view, 1e-3)),
    )


def mpirf(
    *,
    amplitude: tuple[float, float] = (12e-3, 12e-3),
    gradient: tuple[float, float] = (2.0, 2.0),
    core_diameter: Scalar = 30e-9,
    saturation_magnetisation: float = 8e5,
    temperature: float = 293.15,
) -> Scanner:
    """The MPIRF simulator's scanner with its own grid, samples and rounded constants.

    amplitude [T] (x, y) is given as to MPIRF, which swaps the two axes; gradient [T/m]
    is not swapped. Pixels are 0.1 mm, centred on nodes from edge to edge, 1633 samples.
    Use with model="mpirf" to compare with files of that simulator; for anything else
    take `paper`. Source: XiaoYaoNet/MPIRF, ScannerBase.py, commit ab79bf5 (MIT).
    """
    ax, ay = amplitude[::-1]
    u0 = _MPIRF_VACUUM_PERMEABILITY
    half = [(a / u0) / (g / u0) for a, g in zip((ax, ay), gradient, strict=True)]
    # The float rounding of arange decides the number of nodes.
    nx, ny = (len(np.arange(-h, h + _MPIRF_STEP, _MPIRF_STEP)) for h in half)
    return Scanner(
        # Rounded pi and Boltzmann constant, as equal changes of these two.
        tracer=Tracer(
            core_diameter,
            saturation_magnetisation * (_MPIRF_PI / math.pi),
            temperature * (_MPIRF_BOLTZMANN / BOLTZMANN),
        ),
        drive_field=MPIRFDriveField((ax, ay, 0.0), (102, 96, 0)),
        selection_field=SelectionField(
            np.diag([-gradient[0], -gradient[1], gradient[0] + gradient[1]])
        ),
        receiver=Receiver(np.eye(2, 3)),
        grid=Grid(
            (ny, nx),
            (nx * _MPIRF_STEP, ny * _MPIRF_STEP, _MPIRF_STEP),
            (
                (nx - 1) / 2 * _MPIRF_STEP - half[0],
                half[1] - (ny - 1) / 2 * _MPIRF_STEP,
                0.0,
            ),
        ),
    )


def circular_coil(
    grid: Grid,
    *,
    radius: float,
    centre: Vector,
    axis: Vector,
    segments: int = 256,
) -> np.ndarray:
    """Sensitivity [3, P] T/A of one circular turn at the grid's pixels (Biot-Savart).

    radius and centre [3] in m, axis [3]: direction of the coil's normal. Sums straight
    pieces of wire on the host in float64; stack the maps of C coils for a Receiver. On
    its axis a turn makes mu0 R^2 / (2 (R^2 + z^2)^(3/2)).
    """
    if not radius > 0 or segments < 3 or not np.any(axis):
        raise ValueError(
            "circular_coil: expected radius > 0, segments >= 3 and an axis that isn't "
            f"zero, got {radius}, {segments}, {list(axis)}"
        )
    normal = np.asarray(axis, np.float64) / np.linalg.norm(axis)
    across = np.cross(normal, np.eye(3)[np.argmin(np.abs(normal))])
    across /= np.linalg.norm(across)
    angle = 2 * np.pi * np.arange(segments)[:, None] / segments
    spoke = np.cos(angle) * across + np.sin(angle) * np.cross(normal, across)
    step = radius * 2 * np.pi / segments * np.cross(normal, spoke)
    points = np.asarray(grid.positions(), np.float64) - np.asarray(centre, np.float64)
    field = np.zeros_like(points)
    for wire, piece in zip(radius * spoke, step, strict=True):
        to = points - wire
        field += np.cross(piece, to) / np.linalg.norm(to, axis=1, keepdims=True) ** 3
    return VACUUM_PERMEABILITY / (4 * np.pi) * field.T


# Perimag's core size is not documented; 0.6 T/mu0 is bulk magnetite.
_PERIMAG = Tracer(30e-9, 0.6 / VACUUM_PERMEABILITY, 293.15)


def open_mpi_2d(
    shape: int | tuple[int, int] = 37,
    *,
    field_of_view: tuple[float, float, float] = (37e-3, 37e-3, 0.5e-3),
    tracer: Tracer = _PERIMAG,
) -> Scanner:
    """Open MPI Data's preclinical Bruker scanner, 2D sequence, receive channels x and y.

    12 mT, (-1, -1, 2) T/m, 2.5 MHz / (102, 96), cosine phase (Knopp et al. 2020, Data in
    Brief 28:104971). The grid defaults to one slice of calibration 5 (37 x 37 of 1 mm).
    """
    return Scanner(
        tracer=tracer,
        drive_field=DriveField((12e-3, 12e-3, 0.0), (102, 96, 0), (0.25, 0.25, 0.0)),
        selection_field=SelectionField(np.diag([-1.0, -1.0, 2.0])),
        receiver=Receiver(np.eye(2, 3)),
        grid=Grid(_shape(shape, 2), field_of_view),
    )


def open_mpi_3d(
    shape: int | tuple[int, int, int] = 19,
    *,
    field_of_view: tuple[float, float, float] = (38e-3, 38e-3, 19e-3),
    tracer: Tracer = _PERIMAG,
) -> Scanner:
    """Open MPI Data's 3D sequence: third axis at 2.5 MHz / 99, three channels."""
    return Scanner(
        tracer=tracer,
        drive_field=DriveField((12e-3, 12e-3, 12e-3), (102, 96, 99), (0.25,) * 3),
        selection_field=SelectionField(np.diag([-1.0, -1.0, 2.0])),
        receiver=Receiver(np.eye(3)),
        grid=Grid(_shape(shape, 3), field_of_view),
    )
