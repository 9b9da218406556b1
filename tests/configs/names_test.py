"""Configs: every name opens, survives JSON, and fits its own networks."""

import dataclasses
import json

import pytest

from mpi_jax import configs, data, train


@pytest.mark.parametrize("name", configs.CONFIGS)
def test_round_trip_and_fit(name):
    config = configs.get(name)
    assert config.name == name
    again = configs.from_dict(json.loads(json.dumps(configs.to_dict(config))))
    assert again == config
    model = train.make_networks(config)
    assert model.generator.config.image_size == config.scanner.pixels
    if config.scanner.preset != data.calibrated.PRESET:  # these need a file
        scanner = data.make_scanner(config)
        assert scanner.grid.shape[0] == config.scanner.pixels
        train.check_signal(model.generator, scanner)
    train.make_optimisers(config.optimiser, config.steps)


@pytest.mark.parametrize("table", configs.TABLES)
def test_rows_of_a_table_differ_in_the_network_and_its_loss_alone(table):
    """Equal steps, batches, data, optimiser and seed; every row once."""
    names = [name for name in configs.CONFIGS if name.startswith(f"{table}_")]
    rows = [configs.get(name) for name in names]
    assert len(names) == len(configs.LEARNED) - (table == "paper")
    free = ("name", "generator", "discriminator", "physics", "loss", "remat")
    shared = [
        {k: v for k, v in configs.to_dict(row).items() if k not in free} for row in rows
    ]
    assert all(values == shared[0] for values in shared)
    networks = [(row.generator, row.loss) for row in rows]
    assert len(set(networks)) == len(rows)


def test_unknown_names():
    with pytest.raises(ValueError, match="config: expected one of test, small"):
        configs.get("medium")
    good = configs.to_dict(configs.get("test"))
    with pytest.raises(ValueError, match=r"config: .*unknown: \['colour'\]"):
        configs.from_dict({**good, "colour": 1})
    with pytest.raises(ValueError, match="missing: \\['steps'\\]"):
        configs.from_dict({k: v for k, v in good.items() if k != "steps"})
    with pytest.raises(ValueError, match="config.loss"):
        configs.from_dict({**good, "loss": 3})


def test_settings_without_oversample_keep_their_sampling():
    """Of weights and work folders from before there was one; new runs are oversampled."""
    config = configs.get("table64_dual")
    assert data.make_scanner(config).receiver.oversample == 2
    stored = json.loads(json.dumps(configs.to_dict(config)))
    del stored["scanner"]["oversample"]
    before = configs.from_dict(stored)
    assert before.scanner.oversample == 1
    assert data.make_scanner(before).receiver.oversample == 1
    assert "oversample" not in stored["scanner"]  # the caller's own
    scalar = dataclasses.replace(config.scanner, model="mpirf")
    scalar = dataclasses.replace(config, scanner=scalar)
    assert data.make_scanner(scalar).receiver.oversample == 1


@pytest.mark.parametrize(
    "part, change, words",
    [
        ("scanner", {"preset": "mri"}, "scanner.preset: expected one of paper"),
        ("scanner", {"model": "debye"}, "model: expected one of"),
        ("scanner", {"pixels": 64}, "scanner.pixels is 64"),
        ("scanner", {"oversample": 0}, "oversample: expected an integer >= 1"),
        ("loss", {"kind": "hinge"}, "loss.kind: expected bce or wgangp"),
        ("loss", {"mae": -1.0}, "loss.mae: expected a number >= 0"),
        ("physics", {"rank": 0}, "classical images"),
        ("optimiser", {"schedule": "steps"}, "optimiser.schedule"),
        ("optimiser", {"warmup": 6}, "optimiser.warmup: expected 0 to 5"),
    ],
)
def test_settings_that_do_not_fit(part, change, words):
    config = configs.get("test")
    changed = dataclasses.replace(getattr(config, part), **change)
    config = dataclasses.replace(config, **{part: changed})
    with pytest.raises(ValueError, match=words):
        data.make_scanner(config)
        train.make_networks(config)
        train.make_optimisers(config.optimiser, config.steps)


def test_a_misspelt_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="config: .*got 'smal'; did you mean small"):
        configs.get("smal")
