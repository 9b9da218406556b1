"""Noise of a receiver: white, coloured, thermal, by SNR, and what leaks through."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from mpi_jax import physics
from mpi_jax.physics import _dtype, receive, signal, spectrum
from mpi_jax.scanner import BOLTZMANN, Scanner


def band_noise(key, u, frequency_selection):
    """Noise of unit power like u [C, V] that only has the frequencies frequency_selection [C, K]."""
    samples = u.shape[-1]
    white = jnp.fft.rfft(jax.random.normal(key, u.shape, u.dtype))
    # A bin stands for two frequencies, but those without an opposite one.
    twice = np.full(frequency_selection.shape[-1], 2.0)
    twice[0] = 1
    twice[samples // 2 :] = 1 if samples % 2 == 0 else 2
    share = jnp.sum(frequency_selection * twice[None]) / u.size
    return jnp.fft.irfft(jnp.where(frequency_selection, white, 0), samples) / jnp.sqrt(
        share
    )


def signals(
    nominal: Scanner, other: Scanner, images: Float[Array, "N ny nx"], model: str
) -> Float[Array, "N C V"]:
    """Noise-free voltages of `other` for images on its grid, in the nominal unit.

    The same iron per volume makes them: of larger cores there are fewer, and a pixel of
    a finer grid counts by its area ("moment" scaling knows of neither).
    """
    u = physics.voltage(other, images, model)
    if nominal.receiver.scaling == "si":
        return u
    fewer = other.tracer.number_density / nominal.tracer.number_density
    return u * jnp.asarray(fewer * (nominal.grid.size / other.grid.size), u.dtype)


def pink(samples: int) -> Float[np.ndarray, " K"]:
    """Power density of 1/f noise at the rfft bins of a period, none at DC."""
    bins = np.arange(samples // 2 + 1)
    return np.where(bins > 0, 1 / np.maximum(bins, 1), 0.0)


def narrow_band(scanner: Scanner) -> Float[np.ndarray, " K"]:
    """Power density of a disturbance in the eleven bins around the third harmonic of the
    slowest drive frequency: in the midst of the signal.
    """
    bins = np.arange(scanner.samples // 2 + 1)
    slowest = min(f for f in np.asarray(scanner.drive_field.frequencies) if f > 0)
    third = np.argmin(np.abs(scanner.frequencies() - 3 * slowest))
    return (np.abs(bins - third) <= 5).astype(float)


def coloured_noise(
    key: PRNGKeyArray,
    u: Float[Array, "*batch C V"],
    snr_db: float,
    density: Float[np.ndarray, " K"],
) -> Float[Array, "*batch C V"]:
    """u plus Gaussian noise of a power density [K] over the rfft bins, any unit.

    Its expected power is that of white noise at snr_db [dB] (physics.noise_level); a
    constant density is white noise. Raises ValueError on a density of another length,
    negative or zero everywhere.
    """
    samples = u.shape[-1]
    density = np.asarray(density, float)
    if density.shape != (samples // 2 + 1,) or density.min() < 0 or not density.any():
        raise ValueError(
            f"density: expected {samples // 2 + 1} numbers >= 0, not all 0, one for "
            f"each rfft bin of {samples} samples, got shape {density.shape}"
        )
    # Bins without a mirror image count once, the others twice.
    own = np.arange(samples // 2 + 1) % (samples / 2) != 0
    power = np.sum(density * (1 + own)) / samples
    gain = jnp.asarray(np.sqrt(density / power), u.dtype)
    white = jnp.fft.rfft(jax.random.normal(key, u.shape, u.dtype))
    gain = gain.reshape((1,) * (u.ndim - 1) + gain.shape)
    noise = jnp.fft.irfft(white * gain, n=samples)
    return u + noise_level(u, snr_db) * noise


def noise_level(
    u: Float[Array, "*batch C V"],
    snr_db: Float[Array, "*batch"] | float,
    per_channel: bool = False,
) -> Float[Array, "*batch levels 1"]:
    """Standard deviation of white noise at a power SNR of snr_db [dB] for each signal.

    SNR = 10 log10(mean u^2 / sigma^2), the mean over all channels and samples of that
    signal, or with per_channel over its samples, one sigma for each channel. It holds
    for all frequencies together, before any band is selected. An infinite SNR gives 0.
    """
    axes = -1 if per_channel else (-2, -1)
    power = jnp.mean(u**2, axis=axes, keepdims=True)
    ratio = jnp.broadcast_to(jnp.asarray(snr_db, u.dtype), u.shape[:-2])
    return jnp.sqrt(power) * 10 ** (-ratio[..., None, None] / 20)


def add_noise(
    key: PRNGKeyArray,
    u: Float[Array, "*batch C V"],
    snr_db: Float[Array, "*batch"] | float,
    per_channel: bool = False,
) -> Float[Array, "*batch C V"]:
    """u plus white Gaussian noise at a power SNR of snr_db [dB], see `noise_level`."""
    noise = jax.random.normal(key, u.shape, u.dtype)
    return u + noise_level(u, snr_db, per_channel) * noise


def thermal_noise_level(
    resistance: float,
    temperature: float,
    bandwidth: float,
    averages: int = 1,
) -> float:
    """Standard deviation [V] of a coil's Johnson noise, sqrt(4 k T R bandwidth / n).

    resistance [ohm], temperature [K], bandwidth [Hz] (half the sampling rate for white
    noise in every sample), averages n of equal periods. Goes with "si" scaling and
    sensitivities in T/A. Raises ValueError where one of them isn't positive.
    """
    for name, value in (
        ("resistance", resistance),
        ("temperature", temperature),
        ("bandwidth", bandwidth),
        ("averages", averages),
    ):
        if not value > 0:
            raise ValueError(f"{name}: expected a positive number, got {value}")
    return (4 * BOLTZMANN * temperature * resistance * bandwidth / averages) ** 0.5


def feed_through(
    scanner: Scanner,
    amplitude: Float[Array | np.ndarray, "*C_3_H"],
    phase: Float[Array | np.ndarray, "*same"],
) -> Float[Array, "C V"]:
    """What the drive fields induce without any tracer, in each receive channel.

    The sum of a cos(2 pi (h f_d t + phase)) over drive axes d and harmonics h = 1 ... H,
    amplitude a [C, 3, H] in the unit of u before the transfer function, which is applied;
    phase [C, 3, H] in turns. Raises ValueError for other shapes and for harmonics that cannot be sampled.
    """
    drive = scanner.drive_field
    count = amplitude.shape[-1]
    wanted = (scanner.channels, 3, count)
    for name, value in (("amplitude", amplitude), ("phase", phase)):
        if value.shape != wanted:
            raise ValueError(
                f"{name}: expected shape {wanted} (channels, drive axes, harmonics), got "
                f"{value.shape}"
            )
    harmonics = np.arange(1, count + 1)
    for axis, n in enumerate(drive.divider):
        if n and 2 * count > drive.oversampling * n:
            raise ValueError(
                f"amplitude: expected harmonics below half the sampling rate, at most "
                f"{drive.oversampling * n // 2} on axis {axis}, got {count}"
            )
    # h n / N modulo 1 in float64 on the host, so that late samples keep their phase.
    turns = (drive.turns()[..., None] * harmonics) % 1
    driven = np.array([n > 0 for n in drive.divider])[:, None]
    tables = np.cos(2 * np.pi * turns) * driven, np.sin(2 * np.pi * turns) * driven
    start = 2 * np.pi * jnp.asarray(phase, _dtype())
    a = jnp.asarray(amplitude, _dtype())
    parts = a * jnp.cos(start), -a * jnp.sin(start)
    cosine, sine = (
        jnp.einsum("cdh,vdh->cv", part, table, precision="highest")
        for part, table in zip(parts, tables, strict=True)
    )
    u = cosine + sine
    if scanner.receiver.transfer_function is None:
        return u
    still = dataclasses.replace(scanner.tracer, relaxation_time=None)
    plain = dataclasses.replace(scanner.receiver, oversample=1)
    behind = dataclasses.replace(scanner, tracer=still, receiver=plain)
    return signal(scanner, receive(behind, spectrum(u)))


def measure(
    key: PRNGKeyArray,
    u: Float[Array, "N C V"],
    background: Float[Array, "ends C V"],
    noise_level: Float[Array, "*level"] | float = 0.0,
    empty: int = 1,
) -> tuple[Float[Array, "frames C V"], Bool[np.ndarray, " frames"]]:
    """Frames of a measurement between empty frames, and which of them are empty.

    `empty` frames without tracer, the frames u, and as many empty ones again: N + 2
    empty in all. The background drifts linearly from background[0] in the first frame
    to background[1] in the last; white noise of standard deviation noise_level [unit of
    u; a number or something that broadcasts to C, V] is added to all of them.
    """
    if empty < 1:
        raise ValueError(f"empty: expected at least 1 empty frame, got {empty}")
    if background.shape != (2, *u.shape[1:]):
        raise ValueError(
            f"background: expected shape {(2, *u.shape[1:])} like the frames, got "
            f"{background.shape}"
        )
    frames = jnp.pad(u, ((empty, empty), (0, 0), (0, 0)))
    count = len(frames)
    time = jnp.linspace(0, 1, count, dtype=u.dtype)[:, None, None]
    drifting = background[:1] + time * (background[1:] - background[:1])
    noise = jax.random.normal(key, frames.shape, u.dtype)
    level = jnp.broadcast_to(jnp.asarray(noise_level, u.dtype), u.shape[1:])
    index = np.arange(count)
    is_empty = (index < empty) | (index >= count - empty)
    return frames + drifting + level[None] * noise, is_empty
