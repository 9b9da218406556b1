"""The Open MPI phantoms as they were drawn, on any grid, and files of their scanner.

Frame of the scanner [mm]: the robot's mount on +x, the flat side of a phantom on +z.

    shape          frustum about the x axis, wide end at -x                50 mmol/L
    resolution     five tubes of 1 mm from one point, two of them tilted in z
                                                                           50 mmol/L
    concentration  eight cubes of 2 mm at (+-6, +-6, +-3)          5.85 .. 100 mmol/L
Geometry from the CAD drawings of OpenMPIData.jl (commit 98df913, CC BY 4.0); Knopp et al.
2020, Data in Brief 28:104971. It is nominal: nobody measured the filled phantoms.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from mpi_jax import mdf, physics, system_matrix
from mpi_jax.noise import feed_through
from mpi_jax.phantoms.open_mpi import FILLING, PHANTOMS, phantom
from mpi_jax.scanner import (
    DriveField,
    Grid,
    Receiver,
    Scanner,
    SelectionField,
    open_mpi_3d,
)


@dataclasses.dataclass(frozen=True)
class Sequence:
    """A drive-field sequence: its dividers of 2.5 MHz, and where its patches are.

    patches [n, 3] m: centres, in the order of acquisition. periods: of each patch;
    frames: of the measurement, foreground and background each.
    """

    divider: tuple[int, int, int]
    patches: np.ndarray
    periods: int
    frames: int


_STEPS = 1e-3 * np.arange(-9.0, 10.0)  # [m]
SEQUENCES = {
    # The robot moved the phantom in y and z; z is the faster one.
    "open_mpi_1d": Sequence(
        (102, 0, 0),
        np.array([(0.0, y, z) for y, z in itertools.product(_STEPS, _STEPS)]),
        1000,
        1,
    ),
    "open_mpi_2d": Sequence(
        (102, 96, 0), np.array([(0.0, 0.0, z) for z in _STEPS]), 1000, 1
    ),
    "open_mpi_3d": Sequence((102, 96, 99), np.zeros((1, 3)), 1, 1000),
}
# Extent [m] of the calibrations by their number of voxels along an axis.
_EXTENTS = {19: (38e-3, 38e-3, 19e-3), 37: (37e-3, 37e-3, 18.5e-3)}

DELTA_SAMPLE = (2e-3, 2e-3, 1e-3)  # [m]
DELTA_CONCENTRATION = 100.0  # [mmol(Fe)/L]
_AVERAGES = 1000  # of the calibration
# Nothing is documented of the coils: 1 mT/A each, the drive field ten times the signal
# and a little of its second and third harmonic; the background grows by 2 % meanwhile.
_SENSITIVITY = 1e-3  # [T/A]
_FEED_THROUGH = (10.0, 0.05, 0.1)
_DRIFT = 0.02


def sequence_scanner(name: str, voxels: int = 19) -> Scanner:
    """The scanner of a sequence on the grid of a calibration, voltages in V.

    Image value 1 is the delta sample's 100 mmol/L in all of a voxel. Raises ValueError
    for names not in SEQUENCES and for other voxels than 19 and 37.
    """
    if name not in SEQUENCES:
        raise ValueError(f"name: expected one of {', '.join(SEQUENCES)}; got {name!r}")
    if voxels not in _EXTENTS:
        raise ValueError(f"voxels: expected 19 or 37 along each axis, got {voxels}")
    full = open_mpi_3d(voxels, field_of_view=_EXTENTS[voxels])
    divider = SEQUENCES[name].divider
    driven = np.array(divider) > 0
    return dataclasses.replace(
        full,
        tracer=dataclasses.replace(full.tracer, iron_concentration=DELTA_CONCENTRATION),
        drive_field=DriveField(
            np.where(driven, 12e-3, 0.0), divider, np.where(driven, 0.25, 0.0)
        ),
        receiver=Receiver(_SENSITIVITY * np.eye(3), scaling="si"),
    )


def _patch(scanner: Scanner, centre: np.ndarray) -> Scanner:
    """The scanner with its field-free point around a centre [3] m."""
    gradient = np.asarray(scanner.selection_field.gradient)
    return dataclasses.replace(
        scanner, selection_field=SelectionField(gradient, -gradient @ centre)
    )


def patch_voltages(name: str, sequence: str) -> Float[np.ndarray, "patches C V"]:
    """Noise-free voltages [V] of a phantom in each patch of a sequence.

    The phantom is drawn on voxels of half a millimetre and less, finer than the
    calibrations.
    """
    scanner = sequence_scanner(sequence, 37)
    grid = Grid((74, 74, 74), _EXTENTS[37])
    concentration = phantom(name, grid) / DELTA_CONCENTRATION
    # Only the box that holds tracer.
    filled = np.nonzero(concentration)
    low, high = np.min(filled, axis=1), np.max(filled, axis=1) + 1
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    pitch = np.array(_EXTENTS[37]) / 74
    middle = ((low + high) / 2 - 37)[::-1] * pitch * (1, -1, 1)  # rows run down
    shape = tuple(int(n) for n in high - low)
    scanner = dataclasses.replace(
        scanner, grid=Grid(shape, np.array(shape[::-1]) * pitch, middle)
    )
    return np.stack(
        [
            np.asarray(physics.voltage(_patch(scanner, centre), concentration[box]))
            for centre in SEQUENCES[sequence].patches
        ]
    )


def _background(scanner: Scanner, level: float) -> Float[np.ndarray, "C V"]:
    """What the drive field induces without tracer [V]; level: rms of the signal."""
    driven = np.array(scanner.drive_field.divider) > 0
    amplitude = np.sqrt(2) * level * np.array(_FEED_THROUGH)
    # Each coil hears its own axis, and a little of the others.
    coupling = (0.98 * np.eye(3) + 0.02) * driven
    phase = np.arange(9.0).reshape(3, 3, 1) / 9 * np.ones(3)
    return np.asarray(
        feed_through(scanner, coupling[..., None] * amplitude, phase), float
    )


def write_measurement(
    path: str | os.PathLike,
    sequence: str,
    name: str,
    *,
    seed: int = 0,
    snr_db: float = 20.0,
    periods: int | None = None,
    frames: int | None = None,
) -> None:
    """Simulated measurement of a phantom as an MDF file in Open MPI Data's layout.

    int16 [N, J, C, V] with conversion factors: foreground frames and then as many
    background frames, of patches x periods each. snr_db: power SNR of one period [dB]
    in the patch with most signal, quantisation apart. periods, frames: fewer of them for
    smaller files. Raises ValueError for unknown names.
    """
    if name not in PHANTOMS:
        raise ValueError(f"name: expected one of {', '.join(PHANTOMS)}; got {name!r}")
    scanner = sequence_scanner(sequence)
    plan = SEQUENCES[sequence]
    periods, frames = periods or plan.periods, frames or plan.frames
    u = patch_voltages(name, sequence)
    power = float(np.sqrt(np.mean(u**2, axis=(1, 2))).max())
    noise = power * 10 ** (-snr_db / 20)
    background = _background(scanner, power)
    peak = np.abs(background).max(-1) * (1 + _DRIFT) + np.abs(u).max((0, 2)) + 6 * noise
    factor = np.stack([peak / 32767, np.zeros(len(peak))], axis=1)
    count = len(plan.patches) * periods
    gradient = np.asarray(scanner.selection_field.gradient, float)
    offsets = np.repeat(-plan.patches @ gradient.T, periods, axis=0)
    header = mdf.header(scanner, frames=2 * frames)
    a = mdf.need_acquisition(header)
    drive = a.drive_field
    header = dataclasses.replace(
        header,
        study=mdf.StudyInfo(name="Open MPI Data layout", description="simulated"),
        experiment=mdf.ExperimentInfo(
            name=f"{name} phantom", subject=f"{name} phantom", is_simulation=True
        ),
        tracer=_tracer("phantom", FILLING),
        acquisition=dataclasses.replace(
            a,
            periods=count,
            gradient=np.broadcast_to(gradient, (count, 1, 3, 3)),
            offset_field=offsets[:, None],
            drive_field=dataclasses.replace(
                drive,
                strength=np.repeat(drive.strength, count, axis=0),
                phase=np.repeat(drive.phase, count, axis=0),
            ),
            receiver=dataclasses.replace(a.receiver, data_conversion_factor=factor),
        ),
        measurement=dataclasses.replace(
            mdf.need_measurement(header),
            is_background_frame=np.arange(2 * frames) >= frames,
        ),
    )
    random = np.random.default_rng(seed)

    def stored() -> Iterator[np.ndarray]:
        for frame in range(2 * frames):
            signal = u if frame < frames else np.zeros_like(u)
            # Slow against a frame: the empty frames see it as it was.
            drift = 1 + _DRIFT * (frame % frames) / max(frames - 1, 1)
            clean = np.repeat(signal + drift * background, periods, axis=0)
            counts = random.standard_normal(clean.shape, np.float32)
            counts *= noise / factor[:, 0, None]
            counts += clean / factor[:, 0, None]
            yield np.rint(counts).astype(np.int16)[None]

    mdf.write_measurement(path, header, stored(), raw=True)


def write_calibration(
    path: str | os.PathLike,
    sequence: str,
    *,
    voxels: int = 19,
    seed: int = 0,
    snr_db: float = 20.0,
    supersampling: int = 2,
) -> None:
    """Simulated calibration of a sequence as an MDF file in Open MPI Data's layout.

    complex64 [J, C, K, N]: a frame for each position of the delta sample (x fastest),
    then the background frames, one before each line along x and one at the end; the
    frame permutation says so. The sample is averaged over supersampling^3 points of its
    volume. snr_db: power SNR [dB] of the strongest position's signal before the averaging
    of 1000 periods. The signal-to-noise ratio of each row is stored for files up to
    1.5 GB. Raises ValueError for unknown sequences.
    """
    scanner = sequence_scanner(sequence, voxels)
    grid = scanner.grid
    nx, ny, nz = grid.counts
    channels, samples = scanner.channels, scanner.samples
    length, lines = samples // 2 + 1, ny * nz
    frames = grid.size + lines + 1
    frequency_selection = np.ones((channels, length), bool)
    planes = []
    for z in np.asarray(grid.axes()[2]):
        # The plane's own delta samples: as many, each as large as the sample is.
        total = functools.reduce(
            np.add,
            (
                np.asarray(system_matrix.simulate_rows(moved, frequency_selection))
                for moved in _sub_samples(scanner, float(z), supersampling)
            ),
        )
        planes.append(total.reshape(-1, ny, nx)[:, ::-1] / supersampling**3)
    rows = np.stack(planes, axis=1).reshape(channels * length, -1)
    # From tracer in a voxel to tracer in the delta sample.
    pitch = np.asarray(grid.field_of_view, float) / np.array(grid.counts)
    rows *= np.float32(np.prod(DELTA_SAMPLE) / np.prod(pitch))
    # Parseval: rms over the samples and channels of the strongest position.
    energy = np.max(np.sum(np.abs(rows) ** 2, axis=0, dtype=float))
    level = float(np.sqrt(2 * energy / channels)) / samples
    noise = level * 10 ** (-snr_db / 20) / np.sqrt(_AVERAGES)
    background = np.fft.rfft(_background(scanner, level)).reshape(-1)

    voxel = np.arange(grid.size)
    acquired = np.concatenate(
        [voxel + voxel // nx + 1, np.arange(lines + 1) * (nx + 1)]
    )
    drift = 1 + _DRIFT * acquired / (frames - 1)
    random = np.random.default_rng(seed)

    def stored() -> Iterator[np.ndarray]:
        step = max(1, 2**22 // frames)
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            piece = np.zeros((len(part), frames), np.complex64)
            piece[:, : grid.size] = part
            piece += background[start : start + step, None] * drift
            shape = (2, *piece.shape)
            parts = random.standard_normal(shape, np.float32)
            piece += noise * np.sqrt(samples / 2) * (parts[0] + 1j * parts[1])
            yield piece

    header = mdf.header(dataclasses.replace(scanner, grid=grid), calibration=True)
    header = dataclasses.replace(
        header,
        study=mdf.StudyInfo(name="Open MPI Data layout", description="simulated"),
        experiment=mdf.ExperimentInfo(name="calibration", is_simulation=True),
        tracer=_tracer("delta sample", DELTA_CONCENTRATION),
        acquisition=dataclasses.replace(
            mdf.need_acquisition(header), frames=frames, averages=_AVERAGES
        ),
        measurement=dataclasses.replace(
            mdf.need_measurement(header),
            is_background_frame=np.arange(frames) >= grid.size,
            frame_permutation=acquired,
        ),
        calibration=dataclasses.replace(
            mdf.need_calibration(header),
            method="robot",
            delta_sample_size=np.array(DELTA_SAMPLE),
        ),
    )
    mdf.write_calibration(path, header, stored())
    if rows.nbytes <= 1.5e9:
        ratio = mdf.snr(mdf.read(path))
        random = np.random.default_rng(seed)
        calibration = dataclasses.replace(mdf.need_calibration(header), snr=ratio)
        header = dataclasses.replace(header, calibration=calibration)
        mdf.write_calibration(path, header, stored())


def _sub_samples(scanner: Scanner, z: float, count: int) -> Iterator[Scanner]:
    """The scanner on a plane of its grid, moved to each sub-sample of the delta sample."""
    extent = np.asarray(scanner.grid.field_of_view, float)
    thickness = extent[2] / scanner.grid.counts[2]
    shape = (1, *scanner.grid.shape[1:])
    inside = [(np.arange(count) + 0.5) / count - 0.5] * 3
    for shift in itertools.product(*inside):
        centre = np.array([0.0, 0.0, z]) + np.array(shift) * DELTA_SAMPLE
        grid = Grid(shape, np.array([*extent[:2], thickness]), centre)
        yield dataclasses.replace(scanner, grid=grid)


def _tracer(batch: str, concentration: float) -> mdf.TracerInfo:
    """Perimag; concentration [mmol/L]."""
    return mdf.TracerInfo(
        name=("Perimag",),
        batch=(batch,),
        vendor=("micromod",),
        solute=("Fe",),
        concentration=np.array([concentration / 1e3]),
        volume=np.array([np.prod(DELTA_SAMPLE) * 1e3]),
    )


def unit(calibration: mdf.MDF) -> float:
    """Concentration [mmol/L] in a voxel that the value 1 of a reconstruction means.

    The tracer of the delta sample spread over a voxel of the calibration's grid. Raises
    ValueError where the file doesn't say what the delta sample was.
    """
    tracer, grid = calibration.tracer, calibration.calibration
    if tracer is None or grid is None or grid.delta_sample_size is None:
        raise ValueError(
            f"{calibration.path}: expected a tracer concentration and deltaSampleSize"
        )
    if grid.field_of_view is None or grid.size is None:
        raise ValueError(f"{calibration.path}: expected a regular grid, found none")
    pitch = grid.field_of_view / grid.size
    ratio = np.prod(grid.delta_sample_size) / np.prod(pitch)
    return 1e3 * float(tracer.concentration[0]) * float(ratio)
