"""Measured voltages at the door, and what networks get of them."""

import dataclasses

import numpy as np
import pytest

from mpi_jax import configs, data, scanner
from mpi_jax.data import setup


@pytest.mark.parametrize("shape", [(2, 1632), (3264,), (5, 2, 1632), (5, 3264)])
def test_voltages_in_any_layout(shape):
    u = data.check_voltage(scanner.paper(8), np.ones(shape))
    assert u.shape[1:] == (2, 1632) and u.dtype == np.float32


@pytest.mark.parametrize(
    "voltage, words",
    [
        (np.ones((2, 1633)), r"expected \[N, 2, 1632\] or \[N, 3264\]"),
        (np.full((2, 1632), np.nan), "3264 NaN"),
        (np.ones((2, 1632), complex), "real numbers"),
        (np.ones((2, 1632), int), "real numbers"),
    ],
)
def test_bad_voltages(voltage, words):
    with pytest.raises(ValueError, match=words):
        data.check_voltage(scanner.paper(8), voltage)


def test_whitening_is_its_formula_whatever_the_eigensolver_finds():
    """Against components that are known, two of them of the same variance."""
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.normal(size=(7, 7)))[0]
    variance = np.array([100.0, 4.0, 1.0, 1.0, 0.1, 1e-6, 0.0])
    gain = np.sqrt(variance) / (variance + 0.01)
    found = setup.whitening(Q * variance @ Q.T, 0.01)
    np.testing.assert_allclose(found, Q * gain @ Q.T, atol=2e-5)
    strong = Q[:, :4]
    np.testing.assert_allclose(
        np.diag(strong.T @ found @ (Q * variance @ Q.T) @ found @ strong), 1, rtol=0.03
    )


def test_inputs_of_a_network_are_whitened(monkeypatch):
    """Their strongest components come out alike, and noise stays small in the others."""
    monkeypatch.setattr(setup, "_PCA_IMAGES", 512)
    config = configs.get("test")
    settings = dataclasses.replace(config.data, signal_norm="pca")
    config = dataclasses.replace(config, data=settings, physics=configs.PhysicsConfig())
    forward = data.build(config)
    clean, noisy = (
        np.concatenate(
            [
                data.inputs(forward, data.draw(forward, "train", i, 16, snr).voltage)[0]
                for i in range(0, 512, 16)
            ]
        )
        for snr in (np.inf, 40.0)
    )
    strength = np.linalg.svd(clean, compute_uv=False) ** 2 / len(clean)
    assert strength[0] < 4 * strength[50] and strength[0] < 10
    assert np.mean((noisy - clean) ** 2) < 0.3 * np.mean(clean**2)
    other = dataclasses.replace(
        config, data=dataclasses.replace(settings, signal_norm="x")
    )
    with pytest.raises(ValueError, match="data.signal_norm: expected channel or pca"):
        data.build(other)
