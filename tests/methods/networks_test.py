"""Networks as methods: what of a problem serves them."""

import dataclasses

import pytest

from mpi_jax import configs, data
from mpi_jax.methods import networks
from mpi_jax.methods.problem import from_forward


def changed(config, part, **changes):
    part_changed = dataclasses.replace(getattr(config, part), **changes)
    return dataclasses.replace(config, **{part: part_changed})


@pytest.fixture(scope="module")
def forward():
    return data.simulator(changed(configs.get("small"), "scanner", pixels=2))


@pytest.mark.parametrize(
    ("before", "now", "same"),
    [
        ({}, {}, True),
        ({}, {"snr_db": (20.0, 60.0)}, True),
        ({}, {"signal_norm": "pca"}, False),
        ({"signal_norm": "pca"}, {"signal_norm": "pca"}, True),
        ({"signal_norm": "pca"}, {"signal_norm": "pca", "snr_db": (20.0, 60.0)}, False),
        ({}, {"batch_size": 24}, False),
    ],
)
def test_a_network_gets_signals_as_in_its_training(
    forward, monkeypatch, before, now, same
):
    """The problem's own forward model serves only where it scales signals alike."""
    built = dataclasses.replace(forward)
    monkeypatch.setattr(data, "build", lambda config: built)
    config = changed(configs.get("small"), "physics", rank=0)
    problem = from_forward(changed(config, "data", **before), forward)
    used = networks.forward_model(problem, changed(config, "data", **now))
    assert used is (forward if same else built)
