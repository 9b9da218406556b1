"""The training step against its formula, on one device and on eight."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mpi_jax import configs, data, train
from mpi_jax.configs import LossConfig, OptimiserConfig
from mpi_jax.models import transgan

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


def test_eight_devices_equal_one():
    """One pmapped step on 8 devices against the single-device step on the whole batch."""
    assert jax.local_device_count() == 8
    # Plain SGD: Adam's first step is a sign, which rounding can turn around.
    model = networks(adversarial=0.5)
    state, _ = start(model)
    sgd = optax.sgd(0.1)
    tx = train.Optimisers(sgd, sgd, 0.9)
    state = state.replace(
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


def test_not_a_number_is_named(tmp_path):
    values = [
        {"finite": np.float32(n != 7), "mae": np.float32(1 if n != 7 else np.nan)}
        for n in range(5, 9)
    ]
    import collections

    pending = collections.deque(zip(range(5, 9), values, strict=True))
    with pytest.raises(FloatingPointError, match="step 7: mae not finite"):
        train._drain(pending, tmp_path)


def test_metrics_lines_follow_the_checkpoint(tmp_path):
    """Lines after the checkpoint, and a line cut by a kill, go; the rest stays."""
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": n, "mae": 1.0}) for n in (10, 20, 30)]
    path.write_text("\n".join(lines) + '\n{"step": 4')
    train._keep_lines(path, 20)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [
        10,
        20,
    ]


def test_work_folders_are_checked(tmp_path):
    config = configs.get("test")
    train._prepare(tmp_path / "run", config, resume=False)
    about = json.loads((tmp_path / "run" / "config.json").read_text())
    assert about["name"] == "test" and about["version"] and about["jax"]
    assert train.read_config(tmp_path / "run") == config
    with pytest.raises(ValueError, match="pass --resume"):
        train._prepare(tmp_path / "run", config, resume=False)
    train._prepare(tmp_path / "run", config, resume=True)
    other = configs.get("small")
    with pytest.raises(ValueError, match="another config: .* there and .* here"):
        train._prepare(tmp_path / "run", other, resume=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="other files"):
        train._prepare(tmp_path / "mine", config, resume=False)
    with pytest.raises(ValueError, match="no config.json"):
        train.read_config(tmp_path / "mine")


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
