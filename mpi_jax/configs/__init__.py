"""Runs as typed, frozen settings: one module per run, each with a `CONFIG`.

A run is a name of CONFIGS; every field can be overridden (`mpi-jax train --help`).
Plain numbers and strings only: a config is JSON beside the weights it made.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

# name -> one line for --help; the settings stand in the module of the same name.
CONFIGS = {
    "test": "seconds: 16 images of 32 x 32 a step, a few steps; for tests and CI",
    "small": "CPU minutes: 32 x 32, dual-task, physics features, 40 dB; the demo",
    "small_single": "the same with the reconstruction task alone",
    "small64": "CPU hours: 64 x 64, dual-task, physics features, 40 dB",
    "paper": "128 x 128, 3264 inputs, TG-128 dual-task as the paper describes it",
    "paper_physics": "the same with physics features, at 40 dB",
}


@dataclasses.dataclass(frozen=True)
class ScannerConfig:
    """Which scanner makes the signals."""

    preset: str = "paper"
    """Name of a preset of mpi_jax.scanner: paper, open_mpi_2d."""
    pixels: int = 128
    """Image side [pixels]; the field of view is the preset's."""
    model: str = "tensor"
    """Particle model: tensor (physics) or mpirf (the paper's simulator)."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What the network is shown."""

    batch_size: int = 64
    """Images a step, over all devices."""
    snr_db: tuple[float, float] = (20.0, 60.0)
    """Power SNR of the training signals [dB], uniform between the two."""
    test_snr_db: float = 40.0
    """Power SNR of validation and test signals [dB]; inf: no noise."""


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
    """Steps of the non-negative least squares image, which is also the base image."""
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
    """Row of mpi_jax.models.transgan.GENERATORS."""
    discriminator: str
    """Row of mpi_jax.models.transgan.DISCRIMINATORS."""
    steps: int
    scanner: ScannerConfig = ScannerConfig()
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


def get(name: str) -> Config:
    """The config of a name of CONFIGS; ValueError for any other."""
    if name not in CONFIGS:
        raise ValueError(f"config: expected one of {', '.join(CONFIGS)}; got {name!r}")
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
