"""The scanner as data: tracer, fields, receiver, grid. SI units, checked when built.

Every field is a flux density B = mu0 H [T], gradients accordingly [T/m]. The frame
(x, y, z) is right-handed with its origin at the field centre; images have row 0 at the
largest y and column 0 at the smallest x; volumes are [z, row, column], z ascending.

All classes are frozen dataclasses and pytrees: numbers are leaves (so that jit, vmap and
grad reach every physical parameter), counts and names are static.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from mpi_jax._checks import (
    DIAMETER,
    FIELD,
    FREQUENCY,
    GRADIENT,
    IRON,
    MAGNETISATION,
    RELAXATION,
    SPREAD,
    TEMPERATURE,
    check_phase,
    check_real,
    concrete,
    expect,
    is_integer,
)
from mpi_jax.scanner._pytree import (
    BOLTZMANN,
    MAGNETITE_DENSITY,
    MAGNETITE_MOLAR_MASS,
    Matrix,
    Scalar,
    Vector,
    count,
    not_negative,
    numbers,
    pytree,
    static,
)
from mpi_jax.scanner.grid import Grid


@pytree
class Tracer:
    """Single-domain particles in thermal equilibrium (Langevin).

    core_diameter [m], saturation_magnetisation [A/m], temperature [K],
    iron_concentration: what image value 1 means, in mmol(Fe)/L = mol(Fe)/m^3 (used by
    the "si" scaling only).
    diameter_spread: standard deviation of log(diameter) in a log-normal distribution of
    the number of cores, whose median is core_diameter; None: one size. The mean over it
    takes `diameter_nodes` Gauss-Hermite nodes (16: 2e-7 at spread 0.2, 4e-4 at 0.4).
    relaxation_time [s]: Debye's, tau dM/dt = M_equilibrium - M; None: no relaxation.

    Numbers, one of each; jax.vmap makes several tracers of stacked ones. A number that
    only makes sense in another unit is refused with the number that was probably meant.

    Example:
      >>> tracer = Tracer(core_diameter=30e-9)
      >>> f"{tracer.beta:.1f} 1/T"
      '2794.3 1/T'
      >>> Tracer(core_diameter=30)
      Traceback (most recent call last):
      ValueError: Tracer.core_diameter: expected metres [m], between 1e-10 and 1e-06, got 30; did you mean 30e-9?
    """

    core_diameter: Scalar = 30e-9
    saturation_magnetisation: Scalar = 8e5
    temperature: Scalar = 293.15
    iron_concentration: Scalar = 50.0
    diameter_spread: Scalar | None = None
    relaxation_time: Scalar | None = None
    diameter_nodes: int = static(default=16)

    def __post_init__(self):
        for name, quantity in (
            ("core_diameter", DIAMETER),
            ("saturation_magnetisation", MAGNETISATION),
            ("temperature", TEMPERATURE),
            ("iron_concentration", IRON),
        ):
            numbers(self, name, (), quantity, positive=True)
        not_negative(self, "diameter_spread", SPREAD)
        not_negative(self, "relaxation_time", RELAXATION)
        count(self, "diameter_nodes")

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


_TRACER_SHAPES: dict[str, tuple[int, ...]] = dict.fromkeys(
    (
        "core_diameter",
        "saturation_magnetisation",
        "temperature",
        "iron_concentration",
        "diameter_spread",
        "relaxation_time",
    ),
    (),
)


@pytree
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

    Example:
      >>> drive = DriveField((12e-3, 12e-3, 0.0), (102, 96, 0))
      >>> drive.samples
      1632
    """

    amplitude: Vector
    divider: tuple[int, int, int] = static()
    phase: Vector = (0.0, 0.0, 0.0)
    base_frequency: Scalar = 2.5e6
    oversampling: int = static(default=1)
    waveform: tuple[str, str, str] = static(default=("sine",) * 3)

    def __post_init__(self):
        numbers(self, "amplitude", (3,), FIELD)
        phase = numbers(self, "phase", (3,))
        if phase is not None:
            check_phase("DriveField.phase", phase)
        numbers(self, "base_frequency", (), FREQUENCY, positive=True)
        divider = self.divider
        expect(
            len(divider) == 3
            and all(is_integer(n) and n >= 0 for n in divider)
            and any(divider),
            "DriveField.divider",
            "3 whole numbers >= 0, at least one of them > 0",
            divider,
        )
        object.__setattr__(self, "divider", tuple(int(n) for n in divider))
        count(self, "oversampling")
        expect(
            len(self.waveform) == 3 and set(self.waveform) <= {"sine", "triangle"},
            "DriveField.waveform",
            "3 of 'sine' and 'triangle'",
            self.waveform,
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

        Example:
          >>> print(DriveField((12e-3, 0.0, 0.0), (4, 0, 0)).turns()[:, 0])
          [0.   0.25 0.5  0.75]
        """
        n = np.arange(self.samples)[:, None]
        period = self.oversampling * np.array([d or 1 for d in self.divider])
        return (n % period) / period

    def field(self) -> tuple[Float[Array, "V 3"], Float[Array, "V 3"]]:
        """Drive field [V, 3] T and its time derivative [V, 3] T/s over one period.

        Example:
          >>> field, rate = DriveField((12e-3, 0.0, 0.0), (4, 0, 0)).field()
          >>> f"{1e3 * field[1, 0]:.1f} mT"
          '12.0 mT'
        """
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


@pytree
class SelectionField:
    """Static field offset + gradient @ r; the field-free point is where B vanishes.

    gradient [3, 3] T/m, symmetric and free of divergence (trace 0); offset [3] T.
    diag(-g, g, 0) has a field-free line along z. Offsets shift the scanned patch.

    Example:
      >>> field = SelectionField(np.diag([-1.0, -1.0, 2.0]))
      >>> print(field.offset)
      [0. 0. 0.]
    """

    gradient: Matrix
    offset: Vector = (0.0, 0.0, 0.0)

    def __post_init__(self):
        numbers(self, "offset", (3,), FIELD)
        gradient = numbers(self, "gradient", (3, 3), GRADIENT)
        if gradient is None:
            return
        scale = np.max(np.abs(gradient))
        skew = np.max(np.abs(gradient - np.swapaxes(gradient, -1, -2)))
        trace = np.max(np.abs(np.trace(gradient, axis1=-2, axis2=-1)))
        expect(
            scale > 0 and max(skew, trace) <= 1e-5 * scale,
            "SelectionField.gradient",
            "a symmetric matrix with trace 0 (Maxwell) and not all zero",
            gradient.tolist(),
        )


@pytree
class Receiver:
    """Receive coils and what follows them.

    sensitivity: field per ampere of each coil [T/A] (reciprocity), [C, 3] homogeneous or
    [C, 3, P] at each pixel of the scanner's grid. scaling: "si" gives volts, with the
    minus sign of induction; "moment" gives A m^2/s per unit image with a plus sign and
    takes sensitivity as plain direction (MPIRF's convention).
    transfer_function [C, K] complex: u^ is multiplied by it; None: 1.
    oversample: simulate at that multiple of the sampling rate and keep the frequencies
    up to half the sampling rate (an ideal low-pass); 1 samples the signal as it is, and
    harmonics beyond fold back. V stays DriveField.samples, whatever it is.

    Example:
      >>> coils = Receiver(np.eye(2, 3), oversample=2)  # x and y
      >>> coils.scaling
      'moment'
    """

    sensitivity: Float[Array | np.ndarray, "*batch_and_map"]
    scaling: str = static(default="moment")
    transfer_function: Complex[Array | np.ndarray, "*batch C K"] | None = None
    oversample: int = static(default=1)

    def __post_init__(self):
        known = self.scaling in ("moment", "si")
        expect(known, "Receiver.scaling", "'moment' or 'si'", repr(self.scaling))
        shape = self.sensitivity.shape
        expect(
            len(shape) >= 2 and (shape[-1] == 3 or (len(shape) > 2 and shape[-2] == 3)),
            "Receiver.sensitivity",
            "shape [C, 3] or [C, 3, P]",
            shape,
        )
        check_real("Receiver.sensitivity", self.sensitivity)
        numbers(self, "sensitivity")
        if self.transfer_function is not None:
            numbers(self, "transfer_function")
        count(self, "oversample")


@pytree
class Scanner:
    """Everything that turns a concentration on a grid into a voltage.

    Example:
      >>> s = Scanner(
      ...     Tracer(),
      ...     DriveField((12e-3, 12e-3, 0.0), (102, 96, 0)),
      ...     SelectionField(np.diag([-1.0, -1.0, 2.0])),
      ...     Receiver(np.eye(2, 3), oversample=2),
      ...     Grid((8, 8), (24e-3, 24e-3, 1e-3)),
      ... )
      >>> s.channels, s.samples
      (2, 1632)
    """

    tracer: Tracer
    drive_field: DriveField
    selection_field: SelectionField
    receiver: Receiver
    grid: Grid

    def __post_init__(self):
        shape, p = self.receiver.sensitivity.shape, self.grid.size
        expect(
            shape[-1] in (3, p),
            "Receiver.sensitivity",
            f"[C, 3] or [C, 3, {p}] like the grid",
            shape,
        )
        bins = (self.channels, self.samples // 2 + 1)
        transfer = self.receiver.transfer_function
        if transfer is not None:
            expect(
                transfer.shape[-2:] == bins,
                "Receiver.transfer_function",
                f"shape {bins} (channels, rfft bins of a period)",
                transfer.shape,
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

    def check_single(self) -> None:
        """ValueError unless this is one scanner, whose fields have no leading axes.

        Several go through jax.vmap, where each is one. Tracer parameters are numbers:
        maps over the voxels are not supported.

        Example:
          >>> several = Tracer(core_diameter=np.array([20e-9, 30e-9]))
          >>> s = Scanner(
          ...     several,
          ...     DriveField((12e-3, 12e-3, 0.0), (102, 96, 0)),
          ...     SelectionField(np.diag([-1.0, -1.0, 2.0])),
          ...     Receiver(np.eye(2, 3)),
          ...     Grid((8, 8), (24e-3, 24e-3, 1e-3)),
          ... )
          >>> s.check_single()
          Traceback (most recent call last):
          ValueError: Tracer.core_diameter: expected a number, of one scanner (jax.vmap takes several), got shape (2,)
        """
        drive, coils, grid = self.drive_field, self.receiver, self.grid
        for part, shapes in (
            (self.tracer, _TRACER_SHAPES),
            (drive, {"amplitude": (3,), "phase": (3,), "base_frequency": ()}),
            (self.selection_field, {"gradient": (3, 3), "offset": (3,)}),
            (grid, {"field_of_view": (3,), "centre": (3,)}),
        ):
            for name, expected in shapes.items():
                value = getattr(part, name)
                form = f"shape {expected}" if expected else "a number"
                expect(
                    value is None or np.shape(value) == expected,
                    f"{type(part).__name__}.{name}",
                    f"{form}, of one scanner (jax.vmap takes several)",
                    f"shape {np.shape(value)}",
                )
        shape, transfer = np.shape(coils.sensitivity), coils.transfer_function
        expect(
            len(shape) == 2 or (len(shape) == 3 and shape[-1] == grid.size),
            "Receiver.sensitivity",
            f"[C, 3] or [C, 3, {grid.size}] like the grid, of one scanner",
            f"shape {shape}",
        )
        if transfer is not None:
            two = np.ndim(transfer) == 2
            where, got = "Receiver.transfer_function", np.shape(transfer)
            expect(two, where, "shape [C, K], of one scanner", f"shape {got}")

    def check_field_free_point(self) -> None:
        """ValueError where a known selection field vanishes along a line."""
        gradient = concrete(self.selection_field.gradient)
        if gradient is None:
            return
        size = np.abs(np.linalg.eigvalsh(gradient.astype(np.float64)))
        expect(
            np.all(size.min(axis=-1) > 1e-6 * size.max(axis=-1)),
            "SelectionField.gradient",
            "an invertible matrix, of a field that vanishes in one point",
            f"one of a field-free line: {gradient.tolist()}",
        )

    def field_free_point(self) -> tuple[Float[Array, "V 3"], Float[Array, "V 3"]]:
        """Position [V, 3] m and velocity [V, 3] m/s of the field-free point.

        Raises ValueError where the selection field vanishes along a line; a gradient
        that is traced (jit, grad) can't be looked at, and then gives infinite numbers.

        Example:
          >>> from mpi_jax import scanner
          >>> position, velocity = scanner.paper(8).field_free_point()
          >>> f"{1e3 * position[:, 0].max():.1f} mm"
          '6.4 mm'
        """
        self.check_field_free_point()
        field, rate = self.drive_field.field()
        inverse = jnp.linalg.inv(jnp.asarray(self.selection_field.gradient))
        offset = jnp.asarray(self.selection_field.offset)[None]
        return -(field + offset) @ inverse.T, -rate @ inverse.T

    def frequencies(self) -> np.ndarray:
        """Frequency of each rfft bin [K] Hz, K = V // 2 + 1.

        Example:
          >>> from mpi_jax import scanner
          >>> f"{scanner.paper(8).frequencies()[-1] / 1e6:.2f} MHz"
          '1.25 MHz'
        """
        return np.fft.rfftfreq(self.samples, 1 / float(self.drive_field.sampling_rate))


@pytree
class CalibratedScanner:
    """What a calibration file tells of its scanner: how it sampled which grid.

    Stands for a Scanner where the signals come from a measured system matrix. Tracer,
    fields and coils are not known. sampling_rate [Hz].

    Example:
      >>> s = CalibratedScanner(Grid((8, 8), (24e-3, 24e-3, 1e-3)), 2, 1632, 2.5e6)
      >>> s.frequencies().shape
      (817,)
    """

    grid: Grid
    channels: int = static()
    samples: int = static()
    sampling_rate: float = static()

    def frequencies(self) -> np.ndarray:
        """Frequency of each rfft bin [K] Hz."""
        return np.fft.rfftfreq(self.samples, 1 / self.sampling_rate)
