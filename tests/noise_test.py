"""Noise meets its ratio, its level and its spectrum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.complete_scanner import complete

from mpi_jax import physics, scanner
from mpi_jax.noise import add_noise, feed_through, measure, thermal_noise_level


def test_noise_meets_its_snr():
    u = physics.voltage(scanner.paper(16), np.random.default_rng(5).random((3, 16, 16)))
    snr = jnp.array([10.0, 30.0, 40.0])
    noisy = add_noise(jax.random.key(0), u, snr)
    power = np.mean(np.asarray(u) ** 2, axis=(1, 2))
    noise = np.mean((np.asarray(noisy) - np.asarray(u)) ** 2, axis=(1, 2))
    # 3264 samples: the realised SNR scatters by about 0.1 dB.
    np.testing.assert_allclose(10 * np.log10(power / noise), snr, atol=0.4)
    clean = add_noise(jax.random.key(0), u, np.inf)
    np.testing.assert_array_equal(clean, u)


def test_thermal_noise():
    # PHYSICS: 185 micro-ohm at 310 K over 1.25 MHz are 1.99 nV.
    sigma = thermal_noise_level(185e-6, 310.0, 1.25e6)
    np.testing.assert_allclose(sigma, 1.99e-9, rtol=1e-3)
    averaged = thermal_noise_level(185e-6, 310.0, 1.25e6, averages=100)
    np.testing.assert_allclose(averaged, sigma / 10)
    with pytest.raises(ValueError, match="averages: expected an integer >= 1"):
        thermal_noise_level(185e-6, 310.0, 1.25e6, averages=0)


def test_noise_per_channel():
    u = jnp.stack([jnp.ones(20_000), 100 * jnp.ones(20_000)])
    noisy = add_noise(jax.random.key(1), u, 20.0, per_channel=True)
    np.testing.assert_allclose(np.std(noisy - u, axis=1), [0.1, 10.0], rtol=0.02)


def test_feed_through():
    """Its spectrum has one line for each harmonic, of the amplitude and phase given."""
    rng = np.random.default_rng(9)
    amplitude, phase = rng.random((2, 3, 2)), rng.random((2, 3, 2))
    s = complete()  # 80 samples: x drives bin 5, y bin 16
    transfer = s.receiver.transfer_function
    expected = np.zeros((2, 41), complex)
    for axis, step in ((0, 5), (1, 16)):
        for h in (1, 2):
            line = amplitude[:, axis, h - 1] * np.exp(
                2j * np.pi * phase[:, axis, h - 1]
            )
            expected[:, h * step] += 40 * line * transfer[:, h * step]
    with jax.enable_x64(True):
        got = np.fft.rfft(feed_through(s, amplitude, phase))
    np.testing.assert_allclose(got, expected, atol=1e-10)
    with pytest.raises(ValueError, match="at most 2 on axis 1"):
        feed_through(s, np.ones((2, 3, 3)), np.ones((2, 3, 3)))
    with pytest.raises(ValueError, match="phase: expected shape"):
        feed_through(s, amplitude, phase[:1])


def test_measured_frames():
    """Interpolating the empty frames removes a linear drift exactly."""
    rng = np.random.default_rng(10)
    u = jnp.asarray(rng.random((5, 2, 400)), jnp.float32)
    background = jnp.asarray(rng.random((2, 2, 400)), jnp.float32)
    frames, empty = measure(jax.random.key(0), u, background, empty=2)
    frames = np.asarray(frames)
    np.testing.assert_array_equal(np.flatnonzero(empty), [0, 1, 7, 8])
    np.testing.assert_allclose(frames[0], background[0])
    np.testing.assert_allclose(frames[8], background[1], atol=1e-6)
    share = (np.arange(2, 7) / 8)[:, None, None]
    clean = frames[2:7] - ((1 - share) * frames[0] + share * frames[8])
    np.testing.assert_allclose(clean, u, atol=1e-6)
    level = jnp.array([[0.1], [2.0]])
    noisy, _ = measure(jax.random.key(1), u, background, level, empty=2)
    np.testing.assert_allclose(
        np.std(noisy - frames, axis=(0, 2)), [0.1, 2.0], rtol=0.05
    )
    with pytest.raises(ValueError, match="background: expected shape"):
        measure(jax.random.key(1), u, background[:1])
    with pytest.raises(ValueError, match="empty: expected an integer >= 1"):
        measure(jax.random.key(1), u, background, empty=0)
