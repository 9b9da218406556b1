"""Noise of a receiver: white, coloured, thermal, by SNR, and what leaks through."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from mpi_jax import physics
from mpi_jax._checks import (
    TEMPERATURE,
    brief,
    check_count,
    check_flags,
    check_not_negative,
    check_positive,
    check_real,
    check_signal,
    concrete,
    expect,
)
from mpi_jax._linalg import two_sided
from mpi_jax.physics import default_float, receive, signal, spectrum
from mpi_jax.scanner import BOLTZMANN, Scanner


def band_noise(key, u, frequency_selection):
    """Noise of unit power like u, that only has the selected frequencies.

    Args:
      key: of jax.random.
      u: signal [C, V], whose shape and type the noise takes; its unit is not used.
      frequency_selection: boolean [C, K].

    Raises:
      ValueError: on complex u, or a selection of another shape or of nothing.

    Examples:
      >>> low = np.broadcast_to(np.arange(5) < 3, (2, 5))
      >>> noise = band_noise(jax.random.key(0), jnp.zeros((2, 8)), low)
      >>> bool(jnp.all(jnp.abs(spectrum(noise)[:, 3:]) < 1e-5))
      True
    """
    check_signal("u", u)
    samples, bins = u.shape[-1], (*u.shape[:-1], u.shape[-1] // 2 + 1)
    shape = np.shape(frequency_selection)
    expect(shape == bins, "frequency_selection", f"shape {bins}", f"shape {shape}")
    if (selected := concrete(frequency_selection)) is not None:
        expect(selected.any(), "frequency_selection", "a selected frequency", "none")
    white = jnp.fft.rfft(jax.random.normal(key, u.shape, u.dtype))
    frequencies = 1.0 + two_sided(samples)  # that a bin stands for
    share = jnp.sum(frequency_selection * frequencies[None]) / u.size
    return jnp.fft.irfft(jnp.where(frequency_selection, white, 0), samples) / jnp.sqrt(
        share
    )


def signals(
    nominal: Scanner, other: Scanner, images: Float[Array, "N ny nx"], model: str
) -> Float[Array, "N C V"]:
    """Noise-free voltages of `other` for images on its grid, in the nominal unit.

    The same iron per volume makes them: of larger cores there are fewer, and a pixel of
    a finer grid counts by its area ("moment" scaling knows of neither).

    Args:
      nominal: the scanner whose unit the signals get.
      other: the scanner that makes them; scaled alike.
      images: concentrations [N, *other.grid.shape].
      model: "tensor" or "mpirf".

    Returns:
      u [N, C, V].

    Raises:
      ValueError: on scanners of different scaling, and as physics.voltage.

    Examples:
      >>> from mpi_jax import scanner
      >>> s = scanner.paper(4)
      >>> signals(s, s, jnp.ones((1, 4, 4)), "tensor").shape
      (1, 2, 1632)
    """
    expect(
        other.receiver.scaling == nominal.receiver.scaling,
        "other",
        f"the scaling of the nominal scanner, {nominal.receiver.scaling!r}",
        repr(other.receiver.scaling),
    )
    u = physics.voltage(other, images, model)
    if nominal.receiver.scaling == "si":
        return u
    fewer = other.tracer.number_density / nominal.tracer.number_density
    return u * jnp.asarray(fewer * (nominal.grid.size / other.grid.size), u.dtype)


def pink(samples: int) -> Float[np.ndarray, " K"]:
    """Power density [any unit] of 1/f noise at the rfft bins of a period, none at DC.

    Examples:
      >>> print(pink(8))
      [0.         1.         0.5        0.33333333 0.25      ]
    """
    samples = check_count("samples", samples)
    bins = np.arange(samples // 2 + 1)
    return np.where(bins > 0, 1 / np.maximum(bins, 1), 0.0)


def narrow_band(scanner: Scanner) -> Float[np.ndarray, " K"]:
    """Power density of a disturbance in the eleven bins around the third harmonic of the
    slowest drive frequency: in the midst of the signal.

    Examples:
      >>> from mpi_jax import scanner
      >>> np.flatnonzero(narrow_band(scanner.paper(4))).tolist()
      [43, 44, 45, 46, 47, 48, 49, 50, 51, 52, 53]
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
    """u plus Gaussian noise of a power density over the rfft bins.

    Its expected power is that of white noise at snr_db (see `noise_level`); a constant
    density is white noise.

    Args:
      key: of jax.random.
      u: signals [..., C, V], real.
      snr_db: power SNR [dB].
      density: [K], any unit.

    Returns:
      [..., C, V], unit of u.

    Raises:
      ValueError: on a density of another length, negative or zero everywhere, and on u
        that is complex, NaN or infinite.

    Examples:
      >>> u = jnp.ones((2, 8))
      >>> coloured_noise(jax.random.key(0), u, 20.0, pink(8)).shape
      (2, 8)
    """
    check_signal("u", u)
    samples = u.shape[-1]
    density = np.asarray(density, float)
    bins = samples // 2 + 1
    expect(
        density.shape == (bins,)
        and np.isfinite(density).all()
        and density.min() >= 0
        and density.any(),
        "density",
        f"{bins} numbers >= 0, finite and not all 0, one for each rfft bin of "
        f"{samples} samples",
        f"shape {density.shape}, {brief(density)}",
    )
    frequencies = 1 + two_sided(samples)  # that a bin stands for
    power = np.sum(density * frequencies) / samples
    gain = jnp.asarray(np.sqrt(density / power), u.dtype)
    white = jnp.fft.rfft(jax.random.normal(key, u.shape, u.dtype))
    gain = gain.reshape((1,) * (u.ndim - 1) + gain.shape)
    noise = jnp.fft.irfft(white * gain, n=samples)
    return u + noise_level(u, snr_db) * noise


def check_snr(snr_db: Any) -> None:
    """ValueError for an SNR that is complex, NaN or -inf [dB]; inf: no noise.

    Examples:
      >>> check_snr(float("nan"))
      Traceback (most recent call last):
      ValueError: snr_db: expected numbers [dB], inf for no noise, got nan
    """
    check_real("snr_db", snr_db)
    if (values := concrete(snr_db)) is not None:
        holds = not np.isnan(values).any() and np.all(values > -np.inf)
        expect(holds, "snr_db", "numbers [dB], inf for no noise", brief(values))


def noise_level(
    u: Float[Array, "*batch C V"],
    snr_db: Float[Array, "*batch"] | float,
    per_channel: bool = False,
) -> Float[Array, "*batch levels 1"]:
    """Standard deviation of white noise at a power SNR for each signal.

    SNR = 10 log10(mean u^2 / sigma^2), the mean over all channels and samples of that
    signal, or with per_channel over its samples, one sigma for each channel. It holds
    for all frequencies together, before any band is selected. An infinite SNR gives 0.

    Args:
      u: signals [..., C, V], real.
      snr_db: power SNR [dB], a number or one for each signal [...].
      per_channel: one level for each channel.

    Returns:
      [..., 1, 1], or [..., C, 1] per channel, unit of u.

    Raises:
      ValueError: on u that is complex, NaN or infinite, on an SNR that is NaN.

    Examples:
      >>> print(noise_level(jnp.full((2, 8), 3.0), 20.0))
      [[0.3]]
    """
    check_signal("u", u)
    check_snr(snr_db)
    check_flags(per_channel=per_channel)
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
    """u plus white Gaussian noise at a power SNR, see `noise_level`.

    Args:
      key: of jax.random.
      u: signals [..., C, V], real.
      snr_db: power SNR [dB], a number or one for each signal [...].
      per_channel: the SNR holds in each channel.

    Returns:
      [..., C, V], unit of u.

    Raises:
      ValueError: as `noise_level`.

    Examples:
      >>> u = jnp.ones((2, 8))
      >>> add_noise(jax.random.key(0), u, 40.0).shape
      (2, 8)
    """
    check_signal("u", u)
    noise = jax.random.normal(key, u.shape, u.dtype)
    return u + noise_level(u, snr_db, per_channel) * noise


def thermal_noise_level(
    resistance: float,
    temperature: float,
    bandwidth: float,
    averages: int = 1,
) -> float:
    """Standard deviation [V] of a coil's Johnson noise, sqrt(4 k T R bandwidth / n).

    Goes with "si" scaling and sensitivities in T/A.

    Args:
      resistance: [ohm].
      temperature: [K].
      bandwidth: [Hz], half the sampling rate for white noise in every sample.
      averages: n of equal periods.

    Raises:
      ValueError: where one of them isn't positive, or the temperature looks like Celsius.

    Examples:
      >>> f"{thermal_noise_level(185e-6, 310.0, 1.25e6):.3g} V"
      '1.99e-09 V'
    """
    check_positive("resistance", resistance)
    check_positive("temperature", temperature)
    TEMPERATURE.check("temperature", temperature)
    check_positive("bandwidth", bandwidth)
    averages = check_count("averages", averages)
    return (4 * BOLTZMANN * temperature * resistance * bandwidth / averages) ** 0.5


def feed_through(
    scanner: Scanner,
    amplitude: Float[Array | np.ndarray, "*C_3_H"],
    phase: Float[Array | np.ndarray, "*same"],
) -> Float[Array, "C V"]:
    """What the drive fields induce without any tracer, in each receive channel.

    The sum of a cos(2 pi (h f_d t + phase)) over drive axes d and harmonics h = 1 ... H.

    Args:
      scanner: one scanner.
      amplitude: a [C, 3, H], in the unit of u before the transfer function, which is
        applied.
      phase: [C, 3, H] turns.

    Returns:
      [C, V], unit of amplitude.

    Raises:
      ValueError: for other shapes, for numbers that are complex or not finite, and for
        harmonics that cannot be sampled.

    Examples:
      >>> from mpi_jax import scanner
      >>> s = scanner.paper(4)
      >>> feed_through(s, 1e-9 * np.ones((2, 3, 1)), np.zeros((2, 3, 1))).shape
      (2, 1632)
    """
    drive = scanner.drive_field
    count = amplitude.shape[-1]
    shape = (scanner.channels, 3, count)
    for name, value in (("amplitude", amplitude), ("phase", phase)):
        words = f"shape {shape} (channels, drive axes, harmonics)"
        expect(value.shape == shape, name, words, value.shape)
        check_signal(name, value)
    harmonics = np.arange(1, count + 1)
    for axis, n in enumerate(drive.divider):
        most = drive.oversampling * n // 2
        expect(
            not n or count <= most,
            "amplitude",
            f"harmonics below half the sampling rate, at most {most} on axis {axis}",
            count,
        )
    # h n / N modulo 1 in float64 on the host, so that late samples keep their phase.
    turns = (drive.turns()[..., None] * harmonics) % 1
    driven = np.array([n > 0 for n in drive.divider])[:, None]
    tables = np.cos(2 * np.pi * turns) * driven, np.sin(2 * np.pi * turns) * driven
    start = 2 * np.pi * jnp.asarray(phase, default_float())
    a = jnp.asarray(amplitude, default_float())
    parts = a * jnp.cos(start), -a * jnp.sin(start)
    cosines, sines = (
        jnp.einsum("cdh,vdh->cv", part, table, precision="highest")
        for part, table in zip(parts, tables, strict=True)
    )
    u = cosines + sines
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
    empty in all.

    Args:
      key: of jax.random.
      u: noise-free signals [N, C, V].
      background: [2, C, V], unit of u; it drifts linearly from the first in the first
        frame to the second in the last.
      noise_level: standard deviation of the white noise in all frames, unit of u; a
        number or what broadcasts to [C, V].
      empty: frames at either end.

    Returns:
      Frames [N + 2 empty, C, V], and a boolean for each: whether it is empty.

    Raises:
      ValueError: on other shapes, and on values that are complex or not finite.

    Examples:
      >>> frames, empty = measure(jax.random.key(0), jnp.ones((1, 2, 4)), jnp.zeros((2, 2, 4)))
      >>> frames.shape, empty.tolist()
      ((3, 2, 4), [True, False, True])
    """
    empty = check_count("empty", empty)
    check_signal("u", u)
    shape = (2, *u.shape[1:])
    same = background.shape == shape
    expect(same, "background", f"shape {shape} like the frames", background.shape)
    check_signal("background", background)
    check_not_negative("noise_level", noise_level)
    frames = jnp.pad(u, ((empty, empty), (0, 0), (0, 0)))
    count = len(frames)
    time = jnp.linspace(0, 1, count, dtype=u.dtype)[:, None, None]
    drifting = background[:1] + time * (background[1:] - background[:1])
    noise = jax.random.normal(key, frames.shape, u.dtype)
    level = jnp.broadcast_to(jnp.asarray(noise_level, u.dtype), u.shape[1:])
    index = np.arange(count)
    is_empty = (index < empty) | (index >= count - empty)
    return frames + drifting + level[None] * noise, is_empty
