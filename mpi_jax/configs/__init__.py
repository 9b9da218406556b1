"""Runs as typed, frozen settings: one module per run with a `CONFIG`, or per table of
runs with `ROWS` by name.

A run is a name of CONFIGS; every field can be overridden (`mpi-jax train --help`).
Plain numbers and strings only: a config is JSON beside the weights it made.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from typing import Any, Literal

# The learned methods of the paper's Table 1: rows of every table of runs.
LEARNED = {
    "dual": "dual-task TransGAN",
    "single": "single-task TransGAN",
    "matched": "single-task with the parameters and arithmetic of dual",
    "cnn": "CNN",
    "resnet": "ResNet",
    "dcgan": "DCGAN",
    "unet": "U-Net on Tikhonov images",
    "physics": "dual-task with physics features",
    "physics_single": "single-task with physics features",
    "physics_matched": "the same, matched to physics",
    "no_gan": "physics without adversary",
    "wgan": "physics with WGAN-GP",
    "light_mask": "physics with light mask terms",
}
TABLES = {
    "paper": "128 x 128, accelerator",
    "table64": "64 x 64, 40 dB, half a CPU hour each",
    "table32": "32 x 32, 40 dB, CPU minutes each",
}
_TABLE_OF = {  # paper itself is its dual-task row
    f"{table}_{row}": table
    for table in TABLES
    for row in LEARNED
    if (table, row) != ("paper", "dual")
}
# name -> one line for --help; the settings stand in the module of the same name, those
# of a row in the module of its table.
CONFIGS = {
    "test": "seconds: 16 images of 32 x 32 a step, a few steps; for tests and CI",
    "small": "CPU minutes: 32 x 32, dual-task, physics features, 40 dB; the demo",
    "small_single": "the same with the reconstruction task alone",
    "small32": "half a CPU hour: 32 x 32, dual-task, physics features, 35 to 50 dB",
    "small64": "CPU hours: 64 x 64, dual-task, physics features, 35 to 50 dB",
    "paper": "128 x 128, 3264 inputs, TG-128 dual-task as the paper describes it",
    "open_mpi": "32 x 32 on the system matrix of an MDF file (--calibration.path), dual-task",
    "open_mpi_single": "the same with the reconstruction task alone",
    "open_mpi64": "the same at 64 x 64, dual-task",
    "open_mpi64_single": "the same at 64 x 64 with the reconstruction task alone",
} | {
    name: f"{TABLES[table]}: {LEARNED[name.removeprefix(f'{table}_')]}"
    for name, table in _TABLE_OF.items()
}

# Configs that weights ship for (mpi_jax/weights), the default first -> SHA-256 of the file.
SHIPPED = {
    "small64": "48366a3593e217f7e6b45286b50303d28beef7e9d62660c04e34750919a2279e",
    "small32": "aa58c6a46c169b72c5e84656aa05e1774b47efdd6ecd09bbfd7786c8be3e6168",
}


@dataclasses.dataclass(frozen=True)
class ScannerConfig:
    """Which scanner makes the signals."""

    preset: str = "paper"
    """Name of a preset of mpi_jax.scanner: paper, open_mpi_2d. Or calibration: a measured
    system matrix, see CalibrationConfig."""
    pixels: int = 128
    """Image side [pixels]; the field of view is the preset's."""
    model: str = "tensor"
    """Particle model of the presets: tensor (physics) or mpirf (the paper's simulator)."""


@dataclasses.dataclass(frozen=True)
class CalibrationConfig:
    """What scanner.preset calibration takes from which file: signals are S c + n with the
    selected rows of one plane of it, interpolated to the image's grid. Defaults: the
    plane z = 0 of Open MPI Data's 2D calibration on 37 x 37 x 37 voxels, and the rows of
    that project's own example.
    """

    path: str = ""
    """MDF file of a 3D calibration, with its background frames."""
    plane: int = 18
    """z plane, counted from 0."""
    slab: int = 0
    """Planes on either side of it that hold the same tracer as the plane itself."""
    field_of_view: float = 28e-3
    """Side of the image [m] about the calibration's centre. Open MPI's field-free point
    covers 24 mm of its 37 mm; 2 mm around these are seen dimly, the rest hardly."""
    channels: tuple[int, ...] = (0, 1)
    """Receive channels, counted from 0; the networks take two."""
    min_frequency: float = 80e3
    """Lowest frequency in use [Hz]."""
    snr_threshold: float = 1.5
    """Lowest signal-to-noise ratio of a row in use."""
    background: str = "interpolated"
    """What the rows lose: none, the mean of the background frames, or these
    interpolated in time."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What the network is shown."""

    batch_size: int = 64
    """Images a step, over all devices."""
    snr_db: tuple[float, float] = (20.0, 60.0)
    """Power SNR of the training signals [dB], uniform between the two."""
    test_snr_db: float = 40.0
    """Power SNR of validation and test signals [dB]; inf: no noise."""
    families: tuple[str, ...] = (
        "bars",
        "rectangles",
        "triangles",
        "ellipses",
        "numbers",
        "vessels",
    )
    """Families of phantoms to train and validate on, in turn; test images are of all."""
    source: str = "stream"
    """Training images: stream (drawn while training) or tfds (read from `folder`). The
    same images in the same order."""
    folder: str = ""
    """Built data set to read, as `datasets/build.py mpi_phantoms` names it."""
    images: int = 0
    """Training images in use; each family starts again behind its last. 0: all of a
    data set, or a stream without end."""


@dataclasses.dataclass(frozen=True)
class PhysicsConfig:
    """Classical images of the signal that the network gets as features."""

    rank: int = 0
    """Singular vectors of the system matrix in use; 0: no classical images at all."""
    lams: tuple[float, ...] = (1e-2, 1e-3, 1e-4, 1e-5)
    """Tikhonov parameters, relative to the largest singular value squared."""
    rho: float = 3e-4
    """Penalty of the non-negative image's splitting, relative likewise."""
    iterations: int = 20
    """Steps of the non-negative least squares image, which is also the base image.
    0: no such image, Tikhonov images alone."""
    refine: int = 0
    """Steps of the same solver after training, from the network's image: they repair
    what contradicts the measurement. 0: the network's image as it is."""


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights of the loss terms; the paper's are 20, 5, 5."""

    mae: float = 20.0
    bce: float = 5.0
    dice: float = 5.0
    adversarial: float = 1.0
    """0 leaves the discriminator out."""
    kind: str = "bce"
    """Adversarial loss: bce or wgangp."""
    critic_steps: int = 1
    """Updates of the discriminator a step, all on the step's images."""


@dataclasses.dataclass(frozen=True)
class OptimiserConfig:
    """Adam for both networks."""

    learning_rate: float = 1e-4
    """Peak rate of the generator."""
    discriminator_rate: float = 1e-4
    schedule: str = "constant"
    """constant, or cosine (to 0 at the last step); both after the warm-up."""
    warmup: int = 0
    """Steps of linear warm-up."""
    b1: float = 0.0
    b2: float = 0.99
    clip: float = 5.0
    """Largest global gradient norm."""
    ema: float = 0.999
    """Decay of the averaged generator, min(ema, (1 + t) / (10 + t)); used for tests."""


@dataclasses.dataclass(frozen=True)
class Config:
    """One run."""

    name: str
    generator: str
    """Row of GENERATORS of mpi_jax.models.transgan or .baselines."""
    discriminator: str
    """Row of DISCRIMINATORS, likewise."""
    steps: int
    scanner: ScannerConfig = ScannerConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    data: DataConfig = DataConfig()
    physics: PhysicsConfig = PhysicsConfig()
    loss: LossConfig = LossConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    seed: int = 0
    """Initial weights and training noise; the images are the same for every seed."""
    dtype: str = "float32"
    """Activations of the networks: float32 or bfloat16; parameters stay float32."""
    remat: bool = False
    """Recompute Transformer blocks in the backward pass (memory for time)."""
    log_every: int = 20
    """Steps between lines of metrics.jsonl."""
    checkpoint_every: int = 500
    """Steps between validation and checkpoint."""
    validation_images: int = 120
    tensorboard: bool = False
    """Write the numbers of metrics.jsonl as TensorBoard scalars, too (tensorboardX)."""


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What is done to a calibration and a measurement before they meet a solver."""

    min_frequency: float = 0.0
    """Lowest frequency in use [Hz]; above the drive frequencies to leave these out."""
    max_frequency: float = math.inf
    """Highest frequency in use [Hz]."""
    stop_bands: tuple[tuple[float, float], ...] = ()
    """Bands that are left out, (from, to) [Hz]."""
    channels: tuple[int, ...] = ()
    """Receive channels in use, counted from 0; none named: all."""
    snr_threshold: float = 0.0
    """Lowest signal-to-noise ratio of a row of the calibration, as stored in the file or
    computed from its background frames; 0: off."""
    num_rows: int = 0
    """Only that many rows, those of the highest ratio; 0: off. Not with snr_threshold."""
    max_mixing_order: int = 0
    """Only frequencies that mix the drive frequencies with sum |m| up to this; 0: off."""
    matrix_background: Literal["none", "mean", "interpolated"] = "none"
    """What the system matrix loses: nothing, the mean of its background frames, or these
    interpolated in time."""
    plane: int | None = None
    """Reconstruct one z plane of a 3D calibration (from 0) as an image. A model error
    where there is tracer outside of it."""
    slab: int = 0
    """Planes on either side of `plane` that are taken to hold its tracer too: their
    columns are added to its own."""
    shape: tuple[int, ...] = ()
    """(nz, ny, nx) or (ny, nx) voxels to interpolate the matrix to; none: the file's."""
    field_of_view: tuple[float, float, float] | None = None
    """Of that grid, (x, y, z) [m] about the file's centre; larger ones extrapolate."""
    sparse_reduction: float = 0.0
    """Share of each row's coefficients in a discrete cosine transform over the grid that
    is left, the largest ones; 0: off."""
    sparse_threshold: float = 0.0
    """Or those from that share of each row's largest on; 0: off. The images are those of
    a solver that works with the sparse rows; memory and time aren't saved."""
    frames: tuple[int, ...] = ()
    """Frames of the measurement, counted from 0 among its foreground; none named: all."""
    frame_average: int = 1
    """Frames averaged to one."""
    periods: tuple[int, int] | None = None
    """Periods of each frame in use, (first, behind the last); None: all."""
    period_average: int = 0
    """Successive periods averaged to one; 0: all periods of a patch, that is of one
    offset field. Means of different offset fields are patches of one image, others are
    frames."""
    period_grouping: int = 1
    """Successive periods of one offset field joined to one long period, which is what the
    calibration has; period_average then counts long periods."""
    sidebands: int | None = None
    """With period_grouping g, only the frequency indices that are at most that far from a
    multiple of g, the harmonics of the short period; None: all."""
    allow_short: bool = False
    """Let the last average have fewer frames or periods."""
    background: Literal["none", "mean", "interpolated", "external"] = "none"
    """What the measurement loses: nothing, the mean of its background frames, these
    interpolated in time, or the mean of all frames of another file."""
    joint_background: int = 0
    """Reconstruct a background together with the image, out of that many singular
    vectors of the background frames; 0: off. Not with another background."""
    background_penalty: float = 0.0
    """Penalty of that background, relative to its strongest vector; 0: it is free."""
    spectral_leakage: bool = False
    """Window neighbouring frames (or periods of a frame) before the Fourier transform."""
    transfer_function: bool | None = None
    """Divide by it, or leave it in. Has to be chosen where a file has one."""
    row_norm: bool = False
    """Weight rows by the inverse of their norm."""
    whitening: bool = False
    """Weight rows by the inverse of their noise in the background frames, or in the
    periods of the one such frame."""
    channel_weights: tuple[float, ...] = ()
    """A weight for each receive channel; none named: 1."""
    tolerate: tuple[str, ...] = ()
    """Differences of the two files that are accepted, by their names in the complaint."""

    def __post_init__(self):
        def expect(fine, name, expected):
            if not fine:
                raise ValueError(
                    f"{name}: expected {expected}, got {getattr(self, name)!r}"
                )

        low, high = self.min_frequency, self.max_frequency
        expect(0 <= low <= high, "min_frequency", f"0 to max_frequency {high:g} Hz")
        for band in self.stop_bands:
            fine = len(band) == 2 and band[0] <= band[1]
            expect(fine, "stop_bands", "(from, to) Hz")
        for name in ("snr_threshold", "background_penalty"):
            fine = 0 <= getattr(self, name) < math.inf
            expect(fine, name, "a finite number >= 0")
        for name in (
            "num_rows",
            "max_mixing_order",
            "period_average",
            "joint_background",
        ):
            expect(getattr(self, name) >= 0, name, "a number >= 0")
        for name in ("sparse_reduction", "sparse_threshold"):
            expect(0 <= getattr(self, name) <= 1, name, "0 to 1")
        both = self.sparse_reduction and self.sparse_threshold
        expect(not both, "sparse_threshold", "0 where sparse_reduction is in use")
        expect(self.period_grouping >= 1, "period_grouping", "a number >= 1")
        long = self.period_grouping > 1
        fine = self.sidebands is None or (long and self.sidebands >= 0)
        expect(fine, "sidebands", "None, or with period_grouping a number >= 0")
        fine = not (long and self.spectral_leakage)
        expect(fine, "spectral_leakage", "False with period_grouping")
        both = self.num_rows and self.snr_threshold
        expect(not both, "num_rows", "0 where snr_threshold is in use")
        for name in ("matrix_background", "background"):
            expect(getattr(self, name) in _BACKGROUNDS[name], name, _BACKGROUNDS[name])
        fine = not self.joint_background or self.background == "none"
        expect(fine, "joint_background", "0 where another background is in use")
        fine = not self.background_penalty or self.joint_background
        expect(fine, "background_penalty", "0 without joint_background")
        expect(self.frame_average >= 1, "frame_average", "a number >= 1")
        expect(self.plane is None or self.plane >= 0, "plane", "None or a number >= 0")
        fine = self.slab == 0 or (self.slab > 0 and self.plane is not None)
        expect(fine, "slab", "0, or with a plane a number >= 0")
        expect(all(n >= 0 for n in self.channels), "channels", "numbers >= 0")
        expect(all(n >= 0 for n in self.frames), "frames", "numbers >= 0")
        fine = self.periods is None or 0 <= self.periods[0] < self.periods[1]
        expect(fine, "periods", "(first, behind the last)")
        fine = all(n >= 1 for n in self.shape) and len(self.shape) in (0, 2, 3)
        expect(fine, "shape", "(nz, ny, nx) or (ny, nx)")
        fine = self.field_of_view is None or bool(self.shape)
        expect(fine, "field_of_view", "None where no shape is given")
        fine = self.field_of_view is None or (
            len(self.field_of_view) == 3
            and all(0 < length < math.inf for length in self.field_of_view)
        )
        expect(fine, "field_of_view", "(x, y, z), lengths > 0 m")
        fine = all(math.isfinite(w) and w >= 0 for w in self.channel_weights)
        expect(fine, "channel_weights", "numbers >= 0")


_BACKGROUNDS = {
    "matrix_background": ("none", "mean", "interpolated"),
    "background": ("none", "mean", "interpolated", "external"),
}


def get(name: str) -> Config:
    """The config of a name of CONFIGS; ValueError for any other."""
    if name not in CONFIGS:
        raise ValueError(f"config: expected one of {', '.join(CONFIGS)}; got {name!r}")
    if name in _TABLE_OF:
        return importlib.import_module(f"{__name__}.{_TABLE_OF[name]}").ROWS[name]
    return importlib.import_module(f"{__name__}.{name}").CONFIG


def to_dict(config: Config) -> dict[str, Any]:
    """Nested dict that JSON can hold (tuples become lists there)."""
    return dataclasses.asdict(config)


def from_dict(values: dict[str, Any]) -> Config:
    """The inverse of to_dict, also after JSON. ValueError on missing or unknown fields."""
    return _build(Config, values, "config")


def _build(cls, values, where):
    if not isinstance(values, dict):
        raise ValueError(f"{where}: expected settings by name, got {values!r}")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    unknown = set(values) - set(fields)
    missing = [
        n
        for n, f in fields.items()
        if f.default is dataclasses.MISSING and n not in values
    ]
    if unknown or missing:
        raise ValueError(
            f"{where}: expected the fields {', '.join(fields)}; "
            f"unknown: {sorted(unknown) or 'none'}, missing: {missing or 'none'}"
        )
    made = {}
    for name, value in values.items():
        default = fields[name].default
        if dataclasses.is_dataclass(default):
            value = _build(type(default), value, f"{where}.{name}")
        elif isinstance(value, list):
            value = tuple(value)
        made[name] = value
    return cls(**made)
