"""The arithmetic of benchmarks/projection.py, and that its page shows what it prints."""

import importlib.util
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def projection():
    path = ROOT / "benchmarks" / "projection.py"
    spec = importlib.util.spec_from_file_location("projection", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_shows_what_it_prints(projection):
    page = (ROOT / "docs" / "scaling.md").read_text()
    assert projection.table() in page
    assert f"{projection.BYTES / 1e6:.1f} MB a step" in page


def test_one_device_sends_nothing(projection):
    assert projection.all_reduce_seconds(projection.MACHINES[0], 1, 1e9) == 0


def test_a_large_ring_sends_everything_twice(projection, monkeypatch):
    """In a group of 1024: twice the bytes over the link, but for one part in 1024."""
    monkeypatch.setattr(projection, "LATENCY", 0.0)
    machine = projection.Machine("ring", 1.0, group=1024, link=1e9, network=1.0)
    seconds = projection.all_reduce_seconds(machine, 1024, 1e9)
    assert seconds == pytest.approx(2 / projection.LINK_SHARE, rel=1 / 512)


def test_groups_share_what_goes_between_them(projection, monkeypatch):
    """Two groups of four: each device sends a fourth of the bytes to its twin."""
    monkeypatch.setattr(projection, "LATENCY", 0.0)
    machine = projection.Machine("two", 1.0, group=4, link=1e30, network=1e9)
    seconds = projection.all_reduce_seconds(machine, 8, 1e9)
    assert seconds == pytest.approx(0.25 / projection.LINK_SHARE)


def test_parameters_are_those_of_the_config(projection):
    import jax
    import jax.numpy as jnp

    from mpi_jax import configs, train

    config = configs.get("paper")
    model, pixels = train.make_networks(config), config.scanner.pixels
    key, signal = jax.random.key(0), jnp.zeros((1, 3264))
    image = jnp.zeros((1, pixels, pixels, 1))
    networks = (
        jax.eval_shape(model.generator.init, key, signal, None, None),
        jax.eval_shape(model.discriminator.init, key, image),
    )
    sizes = [leaf.size for leaf in jax.tree.leaves(networks)]
    assert sum(sizes) == projection.PARAMETERS
