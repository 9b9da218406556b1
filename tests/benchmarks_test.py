"""The benchmarks in short form: the arithmetic of the projection and that its page shows
what it prints, what is counted, and the networks and steps of the peer.
"""

import dataclasses
import json
import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.networks import inputs, normal
from support.programs import ROOT, load, script

from mpi_jax import configs, train
from mpi_jax.data.features import Inputs
from mpi_jax.models import variants


@pytest.fixture(scope="module")
def projection():
    return load("projection")


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


def test_counted_are_all_turns_of_a_scan_and_no_zeros_between_pixels():
    """Two by three by four; that five times; a transposed convolution as its adjoint."""
    multiply_adds = load("counting").multiply_adds

    def count(function, *shapes, **settings):
        program = jax.make_jaxpr(function)(*map(jnp.ones, shapes))
        return multiply_adds(program.jaxpr, **settings)

    def five_times(a, b):
        return jax.lax.scan(lambda c, _: (c, a @ b), 0.0, length=5)[1]

    def strided(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (2, 2), "VALID")

    def slope(x, kernel, y):
        return jax.vjp(lambda x: strided(x, kernel), x)[1](y)

    assert count(jnp.matmul, (2, 3), (3, 4)) == 24
    assert count(five_times, (2, 3), (3, 4)) == 5 * 24
    assert count(jnp.matmul, (7, 2, 3), (7, 3, 4)) == 7 * 24
    assert count(jnp.matmul, (7, 2, 3), (7, 3, 4), matrices_alone=True) == 0
    shapes = (1, 3, 8, 8), (5, 3, 2, 2)
    assert count(strided, *shapes) == 4 * 4 * 5 * 3 * 2 * 2
    forward_and_slope = count(slope, *shapes, (1, 5, 4, 4))
    assert forward_and_slope <= 3 * count(strided, *shapes)


@pytest.fixture
def torch_step(monkeypatch):
    pytest.importorskip("torch", reason="the peer of benchmarks/training.py is PyTorch")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return load("torch_step")


SMALL = {
    "image_size": 16,
    "input_size": 12,
    "channels": (16, 8),
    "depths": (1, 1),
    "heads": (2, 1),
    "windows": (4, 8),
    "split_at": 8,
}


def small(row, **changes):
    """A config with small networks of a row, their random state, and a batch."""
    config = configs.get("table32_dual")
    settings = dataclasses.replace(config.optimiser, warmup=1, clip=0.5)
    config = dataclasses.replace(config, optimiser=settings, steps=9)
    model = train.Networks(
        variants.generator(row, **SMALL | changes),
        variants.discriminator("df48_32", image_size=16, width=16, heads=2),
        config.loss,
    )
    image = jax.nn.sigmoid(normal(6, 2, 16, 16))
    given = Inputs(*inputs(model.generator.config))
    batch = train.Batch(given, image, (image > 0.5).astype(jnp.float32), jnp.arange(2))
    tx = train.make_optimisers(config.optimiser, config.steps)
    init = partial(train.init_state, model=model, tx=tx)
    shapes = jax.eval_shape(init, jax.random.key(0), batch)
    state = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    rng = np.random.default_rng(0)
    generator, critic = jax.tree.map(
        lambda a: jnp.asarray(0.1 * rng.normal(size=a.shape), a.dtype),
        (state.generator, state.discriminator),
    )
    state = state._replace(generator=generator, discriminator=critic, average=generator)
    return config, model, tx, state, batch


@pytest.mark.parametrize(
    ("row", "changes"),
    [
        ("tiny32_dual", {"shuffle_from": 16}),
        ("tiny32_single", {"stem_hidden": None, "norm": "layer", "split_at": 16}),
        ("unrolled32_dual", {"local_channels": 8, "local_blocks": 1}),
    ],
)
def test_steps_of_the_peer_are_ours(torch_step, row, changes):
    """Outputs and gradients, then three steps: losses, both networks, the average."""
    config, model, tx, state, batch = small(row, **changes)
    torch_step.check(config, model, batch, state)
    step = jax.jit(partial(train.train_step, model=model, tx=tx))
    training, tensors = (
        torch_step.Training(config, model, state),
        torch_step.tensors(batch),
    )
    after = state
    for _ in range(3):
        after, values = step(after, batch, jax.random.key(0))
        theirs = training(tensors)
        for name, value in theirs.items():
            np.testing.assert_allclose(value, values[name], rtol=1e-3)
    for network, before, moved in (
        (training.generator, state.generator, after.generator),
        (training.critic, state.discriminator, after.discriminator),
        (training.average, state.average, after.average),
    ):
        before, moved = (torch_step.named(network, t) for t in (before, moved))
        gaps = [p.numpy(force=True) - moved[n] for n, p in network.named_parameters()]
        # Adam divides by the gradient: where that is all rounding, so is the step.
        assert norm(gaps) < 0.02 * norm(moved[name] - before[name] for name in moved)


def norm(arrays):
    return np.sqrt(sum(float(np.sum(np.square(a))) for a in arrays))


def test_the_peer_has_the_parameters_of_ours(torch_step):
    config, model, _, state, _ = small("tiny32_dual")
    training = torch_step.Training(config, model, state)
    less = dict(state.generator)
    del less["recon_head"]
    with pytest.raises(ValueError, match="recon_head.weight"):
        torch_step.load(training.generator, less)
    larger = {**less, "shared_8": {"position": np.zeros((9, 8, 16))}}
    with pytest.raises(ValueError, match="shared_8.position.*got .9,"):
        torch_step.load(training.generator, larger)
    wasserstein = dataclasses.replace(config.loss, kind="wgangp")
    config = dataclasses.replace(config, loss=wasserstein)
    with pytest.raises(ValueError, match="loss.kind bce"):
        torch_step.Training(config, model, state)


def training(*words, code=0, before="pass"):
    """benchmarks/training.py as a program, on one device."""
    environment = dict(os.environ, JAX_NUM_CPU_DEVICES="1")
    folder = str(script("training").parent)
    start = (
        f"import runpy, sys; sys.path.insert(0, {folder!r}); {before}; "
        f"sys.argv = ['training.py', *sys.argv[1:]]; "
        f"runpy.run_path({str(script('training'))!r}, run_name='__main__')"
    )
    command = [sys.executable, "-c", start, *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done


def test_a_missing_peer_is_told():
    done = training("--peer", "torch", code=2, before="sys.modules['torch'] = None")
    assert "needs PyTorch" in done.stderr and not done.stdout


def test_training_beside_the_peer():
    pytest.importorskip("torch", reason="the peer of benchmarks/training.py is PyTorch")
    words = "--peer torch --configs test --repeat 1 --batch 4".split()
    line = json.loads(training(*words).stdout)
    assert line["config"] == "test" and line["batch"] == 4
    assert line["GFLOP a step"] <= line["GFLOP a step as run"]
    rate = line["images per second"]
    assert line["times as fast"] == pytest.approx(
        rate["ours"] / rate["torch"], rel=0.01
    )
    assert 0 < line["share of the peak"]["ours"] < 1
