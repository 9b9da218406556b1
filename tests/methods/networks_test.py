"""Networks as methods: what of a problem serves them."""

import dataclasses

import pytest

from mpi_jax import configs, data
from mpi_jax.methods import networks


def changed(config, part, **changes):
    part_changed = dataclasses.replace(getattr(config, part), **changes)
    return dataclasses.replace(config, **{part: part_changed})


@dataclasses.dataclass(frozen=True)
class KnownProblem:
    config: configs.Config
    forward: object


@pytest.mark.parametrize(
    ("before", "now", "same"),
    [
        ({}, {}, True),
        ({}, {"snr_db": (20.0, 60.0)}, True),
        ({}, {"signal_norm": "pca"}, False),
        ({"signal_norm": "pca"}, {"signal_norm": "pca"}, True),
        ({"signal_norm": "pca"}, {"signal_norm": "pca", "snr_db": (20.0, 60.0)}, False),
        ({}, {"batch_size": 12}, False),
    ],
)
def test_a_network_gets_signals_as_in_its_training(monkeypatch, before, now, same):
    """The problem's own forward model serves only where it scales signals alike."""
    config = changed(configs.get("small"), "physics", rank=0)
    monkeypatch.setattr(data, "build", lambda config: "built")
    problem = KnownProblem(changed(config, "data", **before), "the problem's")
    forward = networks.forward_model(problem, changed(config, "data", **now))
    assert forward == ("the problem's" if same else "built")
