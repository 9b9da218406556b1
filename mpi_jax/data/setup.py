"""From a config to its scanner and its forward model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Protocol

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

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
_PCA_IMAGES = 4096  # training images whose principal components are taken
_LEAST_NOISE = 1e-9  # of the strongest component, where signals have none


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
    if config.data.signal_norm not in ("channel", "pca"):
        raise ValueError(
            "data.signal_norm: expected channel or pca, got "
            f"{config.data.signal_norm!r}"
        )
    forward = simulator(config)
    if config.physics.rank:
        flat = forward.matrix.reshape(-1, forward.scanner.grid.size)
        basis = spectral.spectral_basis(flat, config.physics.rank, config.physics.rho)
        forward = dataclasses.replace(forward, basis=basis)
    u = jnp.concatenate(list(_training_signals(config, forward, _SCALE_IMAGES)))
    scale = jnp.sqrt(jnp.mean(jnp.square(u), axis=(0, 2)))[:, None]
    forward = dataclasses.replace(forward, scale=scale)
    if config.data.signal_norm == "channel":
        return forward
    size = forward.scanner.channels * forward.scanner.samples
    squares, count = np.zeros((size, size)), 0
    for u in _training_signals(config, forward, _PCA_IMAGES):
        x = np.asarray(u / scale[None], np.float64).reshape(len(u), -1)
        squares, count = squares + x.T @ x, count + len(u)
    gains = whitening(squares / count, 10.0 ** (-min(config.data.snr_db) / 10))
    return dataclasses.replace(forward, whitening=jnp.asarray(gains, jnp.float32))


def _training_signals(
    config: Config, forward: ForwardModel, count: int
) -> Iterator[Float[Array, "B C V"]]:
    """The first signals of training without noise, in batches of the config's size."""
    size, families = config.data.batch_size, config.data.families
    for start in range(0, max(count, size), size):
        yield draw(forward, "train", start, size, np.inf, families=families).voltage


def whitening(
    covariance: Float[np.ndarray, "M M"], noise: float
) -> Float[np.ndarray, "M M"]:
    """The symmetric matrix that gives all principal components one strength.

    One of variance v is multiplied by v^(1/2) / (v + noise): those well above the noise
    come out with variance 1 (Bell and Sejnowski 1997, "ZCA"), those that drown in it fade
    instead of being all noise. Symmetric, it doesn't depend on the signs and the
    order in which an eigensolver finds the components.

    Args:
      covariance: of noise-free signals, in the square of their unit; float64, for the
        strongest components hide what is 1e-7 of them in float32.
      noise: variance of the noise of a sample, likewise.

    Examples:
      >>> whitening(np.diag([100.0, 1.0, 0.0]), 1.0).round(3).diagonal()
      array([0.099, 0.5  , 0.   ])
    """
    variance, components = np.linalg.eigh(covariance)
    variance = np.maximum(variance, 0)
    gain = np.sqrt(variance) / (variance + max(noise, _LEAST_NOISE * variance[-1]))
    return (components * gain) @ components.T


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
