"""From a config to its scanner and its forward model."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import jax.numpy as jnp
import numpy as np

from mpi_jax import physics, scanner, system_matrix
from mpi_jax.configs import Config
from mpi_jax.data import calibrated
from mpi_jax.data.examples import draw
from mpi_jax.data.forward_model import ForwardModel
from mpi_jax.reconstruct import spectral


class Preset(Protocol):
    """A scanner by the pixels of its side and how finely it is sampled inside."""

    def __call__(self, pixels: int, /, *, oversample: int) -> scanner.Scanner: ...


PRESETS: dict[str, Preset] = {
    "paper": scanner.paper,
    "open_mpi_2d": scanner.open_mpi_2d,
}
_SCALE_IMAGES = 120  # training images that set the scale of the signals


def make_scanner(config: Config) -> scanner.Scanner | scanner.CalibratedScanner:
    """The scanner of a config. ValueError for unknown presets or sizes."""
    settings = config.scanner
    if settings.preset == calibrated.PRESET:
        return calibrated.scanner_of(config)
    if settings.preset not in PRESETS:
        raise ValueError(
            f"scanner.preset: expected one of {', '.join((*PRESETS, calibrated.PRESET))}; "
            f"got {settings.preset!r}"
        )
    if config.calibration.path:
        raise ValueError(
            f"calibration.path: expected none with scanner.preset {settings.preset}, "
            f"got {config.calibration.path!r}"
        )
    physics.check_model(settings.model)
    # The paper's simulator samples the signal as it is.
    oversample = settings.oversample if settings.model == "tensor" else 1
    return PRESETS[settings.preset](settings.pixels, oversample=oversample)


def simulator(config: Config) -> ForwardModel:
    """What examples need: the calibration of a config's scanner. Scale 1, no basis."""
    device, frequency_selection = make_scanner(config), None
    if isinstance(device, scanner.CalibratedScanner):
        matrix, frequency_selection = map(jnp.asarray, calibrated.matrix(config))
    else:
        matrix = system_matrix.simulate(device, config.scanner.model)
    return ForwardModel(
        scanner=device,
        matrix=matrix,
        scale=jnp.ones((device.channels, 1)),
        basis=None,
        lams=jnp.asarray(config.physics.lams, jnp.float32),
        iterations=config.physics.iterations,
        refine=config.physics.refine,
        frequency_selection=frequency_selection,
    )


def build(config: Config) -> ForwardModel:
    """What training needs: the simulator, its matrix decomposed, its signals scaled."""
    forward = simulator(config)
    if config.physics.rank:
        flat = forward.matrix.reshape(-1, forward.scanner.grid.size)
        basis = spectral.spectral_basis(flat, config.physics.rank, config.physics.rho)
        forward = dataclasses.replace(forward, basis=basis)
    size = config.data.batch_size
    starts = range(0, max(_SCALE_IMAGES, size), size)
    families = config.data.families
    u = [
        draw(forward, "train", i, size, np.inf, families=families).voltage
        for i in starts
    ]
    scale = jnp.sqrt(jnp.mean(jnp.square(jnp.concatenate(u)), axis=(0, 2)))[:, None]
    return dataclasses.replace(forward, scale=scale)


def check_voltage(
    scanner: scanner.Scanner | scanner.CalibratedScanner, voltage: np.ndarray
) -> np.ndarray:
    """A measured voltage as [N, C, V] float32; ValueError where it can't be one.

    Takes [C, V], [N, C, V] or flat [C * V], [N, C * V].
    """
    channels, samples = scanner.channels, scanner.samples
    u = np.asarray(voltage)
    if u.ndim and u.shape[-1] == channels * samples:
        u = u.reshape(*u.shape[:-1], channels, samples)
    if u.ndim not in (2, 3) or u.shape[-2:] != (channels, samples):
        raise ValueError(
            f"voltage: expected [N, {channels}, {samples}] or [N, {channels * samples}] "
            f"(channels x samples of one period), got shape {list(np.shape(voltage))}"
        )
    if not np.issubdtype(u.dtype, np.floating):
        raise ValueError(f"voltage: expected real numbers, got {u.dtype}")
    if not np.isfinite(u).all():
        bad = int(np.size(u) - np.isfinite(u).sum())
        raise ValueError(f"voltage: expected finite numbers, got {bad} NaN or infinite")
    return u.reshape(-1, channels, samples).astype(np.float32)
