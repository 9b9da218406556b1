"""The training step against its formula, on one device and on eight."""

import dataclasses
import json
import shutil
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mpi_jax import configs, data, phantoms, runs, train
from mpi_jax.configs import LossConfig, OptimiserConfig
from mpi_jax.methods.networks import label, load_network
from mpi_jax.models import baselines, transgan
from mpi_jax.train import loop

BATCH = 16


def networks(**loss):
    generator = transgan.Generator(
        transgan.GeneratorConfig(
            input_size=24,
            image_size=16,
            channels=(8, 8),
            depths=(1, 0),
            heads=(2, 2),
            windows=(8, 8),
            stem_hidden=4,
            split_at=8,
        )
    )
    critic = transgan.Discriminator(
        transgan.DiscriminatorConfig(image_size=16, width=8, depths=(0, 0, 0), heads=2)
    )
    loss = LossConfig(**loss)
    return train.Networks(generator, critic if loss.adversarial else None, loss)


def convolutional(**loss):
    """A DCGAN with its critic: the networks that have batch statistics."""
    generator = baselines.generator(
        "dcgan128", input_size=24, image_size=16, channels=(6, 4)
    )
    critic = baselines.discriminator("dcgan128", image_size=16, channels=(4, 6))
    return train.Networks(generator, critic, LossConfig(**loss))


def batch(seed=0):
    rng = np.random.default_rng(seed)
    image = rng.random((BATCH, 16, 16), np.float32)
    inputs = data.Inputs(
        jnp.asarray(rng.normal(size=(BATCH, 24)), jnp.float32), None, None
    )
    return train.Batch(
        inputs, jnp.asarray(image), jnp.asarray(image > 0.5, jnp.float32)
    )


def start(model, settings=None):
    tx = train.make_optimisers(settings or OptimiserConfig(), 10)
    return train.init_state(jax.random.key(1), batch(), model=model, tx=tx), tx


def test_generator_loss_and_update_are_the_formula():
    """Weighted sum, Adam's first step (rate times sign) and the moving average."""
    model = networks(adversarial=0.0)
    state, tx = start(model, OptimiserConfig(learning_rate=1e-3, clip=1e9))
    made = batch()
    step = jax.jit(lambda s, b, k: train.train_step(s, b, k, model=model, tx=tx))
    new, values = step(state, made, jax.random.key(0))

    @jax.jit
    def loss(params):
        out = model.generator.apply({"params": params}, *made.inputs)
        p = 1 / (1 + jnp.exp(-out.segmentation))
        m = made.mask
        bce = -jnp.mean(m * jnp.log(p) + (1 - m) * jnp.log(1 - p))
        both, total = jnp.sum(p * m, (1, 2)), jnp.sum(p, (1, 2)) + jnp.sum(m, (1, 2))
        dice = jnp.mean(1 - (2 * both + 1) / (total + 1))
        mae = jnp.mean(jnp.abs(out.reconstruction - made.image))
        return 20 * mae + 5 * bce + 5 * dice

    expected, slope = jax.value_and_grad(loss)(state.generator)
    np.testing.assert_allclose(values["generator_loss"], expected, rtol=1e-5)
    for path, g in jax.tree_util.tree_leaves_with_path(slope):
        old, fresh, average = (
            dict(jax.tree_util.tree_leaves_with_path(t))[path]
            for t in (state.generator, new.generator, new.average)
        )
        clear = np.abs(g) > 1e-4  # far above Adam's epsilon
        moved = np.asarray(fresh - old)[clear]
        np.testing.assert_allclose(
            moved, -1e-3 * np.sign(g)[clear], rtol=2e-3, atol=1e-6
        )
        # Decay of the first step: min(ema, 1 / 10).
        np.testing.assert_allclose(average, 0.1 * old + 0.9 * fresh, atol=1e-6)
    assert new.step == 1 and values["finite"] == 1


@pytest.mark.parametrize("kind", ["bce", "wgangp"])
def test_both_networks_learn(kind):
    model = networks(adversarial=0.1, kind=kind)
    state, tx = start(
        model, OptimiserConfig(learning_rate=3e-3, discriminator_rate=3e-3)
    )
    step = jax.jit(lambda s, b, k: train.train_step(s, b, k, model=model, tx=tx))
    seen, before = [], jax.tree.leaves(state.discriminator)
    for n in range(30):
        state, values = step(state, batch(), jax.random.key(n))
        seen.append(values)
    assert seen[-1]["mae"] < 0.8 * seen[0]["mae"]
    assert all(v["finite"] == 1 for v in seen)
    after = jax.tree.leaves(state.discriminator)
    assert any(not np.allclose(a, b) for a, b in zip(before, after, strict=True))


def test_critic_steps_are_updates_on_the_images_of_the_step():
    """Three steps of gradient descent by hand, each with mixtures of its own."""
    model = networks(adversarial=0.1, kind="wgangp", critic_steps=3)
    sgd = optax.sgd(0.1)
    tx, made, key = train.Optimisers(sgd, sgd, 0.9), batch(), jax.random.key(7)
    state, _ = start(model)
    state = state._replace(
        generator_optimiser=sgd.init(state.generator),
        discriminator_optimiser=sgd.init(state.discriminator),
    )
    step = jax.jit(partial(train.train_step, model=model, tx=tx))
    found, values = step(state, made, key)
    image = model.generator.apply({"params": state.generator}, *made.inputs)[0]

    @jax.jit
    def loss(params, alpha):
        def score(images):
            return model.discriminator.apply({"params": params}, images[..., None])

        return train.losses.discriminator_wgangp(score, made.image, image, alpha)

    expected = state.discriminator
    for own in jax.random.split(key, 3):
        value, slope = jax.value_and_grad(loss)(
            expected, jax.random.uniform(own, (BATCH,))
        )
        expected = jax.tree.map(lambda p, g: p - 0.1 * g, expected, slope)
    np.testing.assert_allclose(values["discriminator_loss"], value, rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-6),
        found.discriminator,
        expected,
    )


@pytest.mark.parametrize("make", [networks, convolutional])
def test_eight_devices_equal_one(make):
    """One pmapped step on 8 devices against the single-device step on the whole batch.

    Batch statistics and their part in the gradients are of the whole batch, too.
    """
    assert jax.local_device_count() == 8
    # Plain SGD: Adam's first step is a sign, which rounding can turn around.
    model = make(adversarial=0.5, critic_steps=2)
    state, _ = start(model)
    sgd = optax.sgd(0.1)
    tx = train.Optimisers(sgd, sgd, 0.9)
    state = state._replace(
        generator_optimiser=sgd.init(state.generator),
        discriminator_optimiser=sgd.init(state.discriminator),
    )
    made, key = batch(), jax.random.key(0)
    one = jax.jit(lambda s, b, k: train.train_step(s, b, k, model=model, tx=tx))
    expected = jax.device_get(one(state, made, key))

    def step(state, part, key):
        return train.train_step(state, part, key, model=model, tx=tx, axis_name="data")

    parts = jax.tree.map(lambda a: a.reshape(8, -1, *a.shape[1:]), made)
    found = train.data_parallel(step)(train.replicate(state), parts, key)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6),
        jax.device_get(found),
        expected,
    )


def test_batch_statistics_are_averaged_like_the_parameters():
    """Two steps against NumPy: those of each batch, weighted as the moving average."""
    model = convolutional(adversarial=0.1)
    state, tx = start(model, OptimiserConfig(ema=0.5))
    step = jax.jit(lambda s, b, k: train.train_step(s, b, k, model=model, tx=tx))
    expected = {"mean": np.zeros(6), "var": np.ones(6)}
    # min(ema, (1 + t) / (10 + t)) for t = 0, 1
    for n, decay in enumerate((1 / 10, 2 / 11)):
        stem, made = state.generator["stem"], batch(n)
        x = np.asarray(made.inputs.signal, np.float64) @ np.asarray(stem["kernel"])
        x = (x + np.asarray(stem["bias"])).reshape(-1, 6)
        for name, value in (("mean", x.mean(0)), ("var", x.var(0))):
            expected[name] = decay * expected[name] + (1 - decay) * value
        state, values = step(state, made, jax.random.key(0))
        assert values["finite"] == 1
    for name, value in expected.items():
        found = state.average["batch_stats"]["norm_4"][name]
        np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("row", configs.LEARNED)
def test_every_row_of_the_table_can_be_trained(row):
    """Shapes of one step and of a prediction; numbers are in the tests of the parts."""
    config = configs.get(f"table32_{row}")
    model = train.make_networks(config)
    tx = train.make_optimisers(config.optimiser, config.steps)
    signal, image = jnp.zeros((2, 3264)), jnp.zeros((2, 32, 32))
    wanted = model.generator.config
    features = jnp.zeros((2, 32, 32, wanted.features)) if wanted.features else None
    inputs = data.Inputs(signal, features, image if wanted.base else None)
    made = train.Batch(inputs, image, image)

    def step(key):
        state = train.init_state(key, made, model=model, tx=tx)
        return train.train_step(state, made, key, model=model, tx=tx)

    state, values = jax.eval_shape(step, jax.random.key(0))
    assert {"generator_loss", "mae", "gradient_norm", "finite"} <= values.keys()
    assert ("discriminator_loss" in values) == bool(config.loss.adversarial)
    assert ("bce" in values) == (wanted.tasks == ("recon", "seg"))
    assert ("batch_stats" in state.average) == (row == "dcgan")


def test_networks_that_do_not_fit_are_named():
    def changed(name, part=None, **changes):
        config = configs.get(name)
        if part:
            changes = {part: dataclasses.replace(getattr(config, part), **changes)}
        return train.make_networks(dataclasses.replace(config, **changes))

    for change, words in (
        (dict(generator="huge"), "generator: expected one of .*cnn128.*tg128_dual"),
        (
            dict(discriminator="huge"),
            "discriminator: expected one of .*dcgan128.*df192",
        ),
        (dict(remat=True), "remat: expected False for dcgan32"),
        (dict(part="loss", kind="wgangp"), "expected bce for dcgan32"),
        (
            dict(part="loss", critic_steps=0),
            "loss.critic_steps: expected a number >= 1",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            changed("table32_dcgan", **change)
    with pytest.raises(ValueError, match="unet32 takes 3 .* make 4 "):
        changed("table32_unet", "physics", iterations=5)
    with pytest.raises(ValueError, match="demo32_dual takes 5 .* make 4 "):
        changed("table32_physics", "physics", iterations=0)


def test_tensorboard_has_the_numbers_of_the_log(tmp_path):
    tensorboard = pytest.importorskip("tensorboardX")
    config = dataclasses.replace(configs.get("test"), tensorboard=True)
    with runs.Log(tmp_path, config, 0) as log:
        log.write(3, {"mae": 0.25}, 1.0)
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line == {"step": 3, "images": 48, "seconds": 1.0, "mae": 0.25}
    (events,) = (tmp_path / "tensorboard").iterdir()
    event = tensorboard.proto.event_pb2.Event()
    content, found = events.read_bytes(), {}
    while content:  # length, its checksum, event, its checksum
        size = int.from_bytes(content[:8], "little")
        event.ParseFromString(content[12 : 12 + size])
        content = content[16 + size :]
        found |= {(v.tag, event.step): v.simple_value for v in event.summary.value}
    assert found == {("mae", 3): 0.25}


def test_missing_tensorboard_is_said_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    config = dataclasses.replace(configs.get("test"), tensorboard=True)
    with pytest.raises(ValueError, match=r"pip install 'mpi_jax\[tensorboard\]'"):
        train.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_batch_statistics_survive(command, tmp_path):
    """A DCGAN by the programs: resumed bit-equal, samples written, reported, evaluated."""
    folder = tmp_path / "run"
    words = ["train", "--config", "table32_dcgan", "--workdir", folder]
    words += ["--steps", "4", "--checkpoint-every", "2", "--log-every", "2"]
    words += ["--optimiser.warmup", "1", "--data.batch-size", "12"]
    words += ["--validation-images", "12"]
    done = command(*words)
    assert done.returncode == 0, done.stderr
    whole = (folder / "weights.safetensors").read_bytes()
    for step, name in ((2, "00000002"), (4, "00000004")):
        with np.load(folder / "samples" / f"{name}.npz") as samples:
            assert samples["step"] == step
            assert sorted(samples["family"]) == sorted(phantoms.FAMILIES)
            assert samples["image"].shape == samples["truth"].shape == (6, 32, 32)
    shutil.rmtree(folder / "checkpoints" / "4")
    (folder / "samples" / "00000004.npz").unlink()
    done = command(*words, "--resume")
    assert done.returncode == 0, done.stderr
    assert (folder / "weights.safetensors").read_bytes() == whole
    assert (folder / "samples" / "00000004.npz").exists()
    config, generator, weights = load_network(folder)
    assert config.name == "table32_dcgan"
    assert label(config, generator) == "DCGAN"
    assert set(weights["batch_stats"]) == {"norm_4", "norm_8", "norm_16"}


def test_not_a_number_is_named(tmp_path):
    values = [
        {"finite": np.float32(n != 7), "mae": np.float32(1 if n != 7 else np.nan)}
        for n in range(5, 9)
    ]
    import collections

    pending = collections.deque(zip(range(5, 9), values, strict=True))
    with pytest.raises(FloatingPointError, match="step 7: mae not finite"):
        loop._drain(pending, tmp_path)


def test_metrics_lines_follow_the_checkpoint(tmp_path):
    """Lines after the checkpoint, and a line cut by a kill, go; the rest stays."""
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": n, "mae": 1.0}) for n in (10, 20, 30)]
    path.write_text("\n".join(lines) + '\n{"step": 4')
    runs.keep_lines(path, 20)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [
        10,
        20,
    ]


def test_work_folders_are_checked(tmp_path):
    config = configs.get("test")
    runs.prepare(tmp_path / "run", config, resume=False)
    about = json.loads((tmp_path / "run" / "config.json").read_text())
    assert about["name"] == "test" and about["version"] and about["jax"]
    assert runs.read_config(tmp_path / "run") == config
    with pytest.raises(ValueError, match="pass --resume"):
        runs.prepare(tmp_path / "run", config, resume=False)
    runs.prepare(tmp_path / "run", config, resume=True)
    other = configs.get("small")
    with pytest.raises(ValueError, match="another config: .* there and .* here"):
        runs.prepare(tmp_path / "run", other, resume=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="other files"):
        runs.prepare(tmp_path / "mine", config, resume=False)
    with pytest.raises(ValueError, match="no config.json"):
        runs.read_config(tmp_path / "mine")


@pytest.mark.parametrize("schedule, end", [("cosine", 0.0), ("constant", 1e-3)])
def test_rates(schedule, end):
    """Warm-up from 0, then the schedule: read off Adam's first steps on a fixed slope."""
    settings = OptimiserConfig(
        learning_rate=1e-3, schedule=schedule, warmup=4, b1=0.0, b2=0.0, clip=1e9
    )
    tx = train.make_optimisers(settings, 12).generator
    params = jnp.zeros(3)
    state, rates = tx.init(params), []
    for _ in range(13):
        updates, state = tx.update(jnp.ones(3), state, params)
        rates.append(-float(updates[0]))
    np.testing.assert_allclose(
        rates[:5], [0, 2.5e-4, 5e-4, 7.5e-4, 1e-3], rtol=1e-4, atol=1e-9
    )
    np.testing.assert_allclose(rates[-1], end, atol=1e-8)
