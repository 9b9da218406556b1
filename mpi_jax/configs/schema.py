"""What a run is described by: settings of scanner, data, physics, losses and training."""

from __future__ import annotations

import dataclasses
from typing import Any

from mpi_jax.configs.preprocessing import MatrixBackground


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
    oversample: int = 2
    """Signals of a preset are simulated at this multiple of the sampling rate [1] and
    low-passed; 1 lets harmonics above half the rate fold back. Of the tensor model only:
    mpirf always takes 1, as its simulator does."""


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
    background: MatrixBackground = "interpolated"
    """What the rows lose: none, the mean of the background frames, or these
    interpolated in time."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What the network is shown."""

    batch_size: int = 64
    """Images a step, over all devices."""
    accumulate: int = 1
    """Parts that each device takes its images of a step in, one after another: memory for
    time, the same update. 1: all at once. Not for networks with batch statistics."""
    snr_db: tuple[float, float] = (20.0, 60.0)
    """Power SNR of the training signals [dB], uniform between the two."""
    test_snr_db: float = 40.0
    """Power SNR of validation and test signals [dB]; inf: no noise."""
    signal_norm: str = "channel"
    """What a network's signals are scaled by: channel (one number a channel), or pca
    (each of their principal components, too, as far as it is above the noise)."""
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
    """Of the mean absolute error of the image [1]."""
    bce: float = 5.0
    """Of the binary cross-entropy of the mask [1]."""
    dice: float = 5.0
    """Of the Dice loss of the mask [1]."""
    adversarial: float = 1.0
    """Of the adversarial term [1]; 0 leaves the discriminator out."""
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
    """Peak rate of the discriminator."""
    schedule: str = "constant"
    """constant, or cosine (to 0 at the last step); both after the warm-up."""
    warmup: int = 0
    """Steps of linear warm-up."""
    b1: float = 0.0
    """Decay of Adam's first moment."""
    b2: float = 0.99
    """Decay of Adam's second moment."""
    clip: float = 5.0
    """Largest global gradient norm."""
    ema: float = 0.999
    """Decay of the averaged generator, min(ema, (1 + t) / (10 + t)); used for tests."""


@dataclasses.dataclass(frozen=True)
class Config:
    """One run."""

    name: str
    """Name of the run in tables and beside its weights."""
    generator: str
    """Row of GENERATORS of mpi_jax.models.transgan or .baselines."""
    discriminator: str
    """Row of DISCRIMINATORS, likewise."""
    steps: int
    """Steps of training."""
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
    """Steps between checkpoints."""
    checkpoint_minutes: float = 0.0
    """Minutes after which there is a checkpoint in any case, looked at every `log_every`
    steps; 0: none besides the others."""
    validate_every: int = 0
    """Steps between validations, each with a checkpoint; 0: one at every checkpoint."""
    validation_images: int = 120
    """Images that checkpoints are validated on, and classical methods tuned."""
    tensorboard: bool = False
    """Write the numbers of metrics.jsonl as TensorBoard scalars, too (tensorboardX)."""


def to_dict(config: Config) -> dict[str, Any]:
    """Nested dict that JSON can hold (tuples become lists there)."""
    return dataclasses.asdict(config)


def from_dict(values: dict[str, Any]) -> Config:
    """The inverse of to_dict, also after JSON. ValueError on missing or unknown fields.

    Settings stored before there was scanner.oversample are read with 1, the sampling that
    their runs were made with.
    """
    scanner = values.get("scanner", {}) if isinstance(values, dict) else None
    if isinstance(scanner, dict):
        values = {**values, "scanner": {"oversample": 1, **scanner}}
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
    settings = {}
    for name, value in values.items():
        default = fields[name].default
        if dataclasses.is_dataclass(default):
            value = _build(type(default), value, f"{where}.{name}")
        elif isinstance(value, list):
            value = tuple(value)
        settings[name] = value
    return cls(**settings)
