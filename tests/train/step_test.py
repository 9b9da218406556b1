"""The training step against its formula, on one device and on eight."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mpi_jax import data, scanner, train
from mpi_jax.configs import LossConfig, OptimiserConfig
from mpi_jax.models import baselines, transgan

BATCH = 16


def networks(dtype="float32", remat=False, **loss):
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
            dtype=dtype,
            remat=remat,
        )
    )
    critic = transgan.Discriminator(
        transgan.DiscriminatorConfig(
            image_size=16,
            width=8,
            depths=(0, 0, 0),
            heads=2,
            dtype=dtype,
            remat=remat,
        )
    )
    loss = LossConfig(**loss)
    return train.Networks(generator, critic if loss.adversarial else None, loss)


def convolutional(dtype="float32", **loss):
    """A DCGAN with its critic: the networks that have batch statistics."""
    generator = baselines.generator(
        "dcgan128", input_size=24, image_size=16, channels=(6, 4), dtype=dtype
    )
    critic = baselines.discriminator(
        "dcgan128", image_size=16, channels=(4, 6), dtype=dtype
    )
    return train.Networks(generator, critic, LossConfig(**loss))


def unet(dtype="float32"):
    sizes = {"image_size": 16, "features": 1, "channels": (4, 8), "groups": 4}
    generator = baselines.generator("unet128", input_size=24, dtype=dtype, **sizes)
    return train.Networks(generator, None, LossConfig(adversarial=0.0))


def batch(seed=0, features=None):
    rng = np.random.default_rng(seed)
    image = rng.random((BATCH, 16, 16), np.float32)
    signal = jnp.asarray(rng.normal(size=(BATCH, 24)), jnp.float32)
    inputs = data.Inputs(signal, features, None)
    return train.Batch(
        inputs,
        jnp.asarray(image),
        jnp.asarray(image > 0.5, jnp.float32),
        jnp.arange(BATCH),
    )


def start(model, settings=None):
    """A fresh state, from one compiled program instead of hundreds of small ones."""
    tx = train.make_optimisers(settings or OptimiserConfig(), 10)
    init = jax.jit(partial(train.init_state, model=model, tx=tx))
    return init(jax.random.key(1), batch()), tx


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
    draw = jax.jit(model.generator.apply)
    image = draw({"params": state.generator}, *made.inputs)[0]

    @jax.jit
    def loss(params, alpha):
        def score(images):
            return model.discriminator.apply({"params": params}, images[..., None])

        return train.losses.discriminator_wgangp(score, made.image, image, alpha)

    expected = state.discriminator
    for own in jax.random.split(key, 3):
        # A mixture of each image, which hangs on its position alone.
        mixtures = [
            jax.random.uniform(jax.random.fold_in(own, n)) for n in range(BATCH)
        ]
        value, slope = jax.value_and_grad(loss)(expected, jnp.stack(mixtures))
        expected = jax.tree.map(lambda p, g: p - 0.1 * g, expected, slope)
    np.testing.assert_allclose(values["discriminator_loss"], value, rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-6),
        found.discriminator,
        expected,
    )


@pytest.mark.parametrize("make", [networks, convolutional])
def test_eight_devices_equal_one(make):
    """One pmapped step on 8 devices against the single-device step on the whole batch, and
    the twin of pmap bit by bit.

    Batch statistics and their part in the gradients are of the whole batch, too, and the
    mixtures of WGAN-GP hang on the image, not on its device.
    """
    assert jax.local_device_count() == 8
    # Plain SGD: Adam's first step is a sign, which rounding can turn around.
    kind = "wgangp" if make is networks else "bce"
    model = make(adversarial=0.5, critic_steps=2, kind=kind)
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
    state = jax.device_get(state)  # what lies on a device is given away
    after, twin = (
        jax.device_get(
            train.data_parallel(step, by=by)(train.replicate(state, by=by), parts, key)
        )
        for by in ("pmap", "shard_map")
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6),
        after,
        expected,
    )
    jax.tree.map(np.testing.assert_array_equal, after, twin)


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


def test_steps_and_predictions_are_compiled_once():
    """A step's state is of the kind that it took, weights from a file of those it has."""
    model = networks()
    state, tx = start(model)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(state, batch, key):
        return train.train_step(state, batch, key, model=model, tx=tx)

    predict = chex.assert_max_traces(train.predict.__wrapped__, n=1)
    predict = jax.jit(predict, static_argnames=("generator", "largest"))
    forward = data.ForwardModel(
        scanner=scanner.paper(16),
        matrix=jnp.zeros((2, 12, 256)),
        scale=jnp.ones((2, 1)),
        basis=None,
        lams=jnp.ones(1),
        iterations=0,
        refine=0,
    )
    voltage = jnp.ones((3, 2, 12))
    before = predict(model.generator, state.average, forward, voltage).reconstruction
    for seed in range(3):
        state, _ = step(state, batch(seed), jax.random.key(seed))
    assert int(state.step) == 3
    from_file = jax.tree.map(np.asarray, state.average)
    after = predict(model.generator, from_file, forward, voltage).reconstruction
    assert not np.allclose(before, after)
    chex.assert_shape([before, after], (3, 16, 16))


def test_batches_of_other_shapes_are_refused():
    model = networks()
    state, tx = start(model)
    one = batch()
    step = partial(train.train_step, model=model, tx=tx)
    for wrong in (
        one._replace(mask=one.mask[:, :8]),
        one._replace(image=one.image[:8]),
    ):
        with pytest.raises(AssertionError, match="shape"):
            jax.eval_shape(step, state, wrong, jax.random.key(0))


def after_20_steps(model, made):
    """Mean absolute error of every step, and the averaged weights."""
    tx = train.make_optimisers(OptimiserConfig(learning_rate=1e-3, warmup=2), 20)

    @jax.jit
    def run():
        def step(state, key):
            return train.train_step(state, made, key, model=model, tx=tx)

        state = train.init_state(jax.random.key(1), made, model=model, tx=tx)
        keys = jax.random.split(jax.random.key(2), 20)
        return jax.lax.scan(step, state, keys)

    state, values = run()
    assert np.all(values["finite"] == 1)
    return np.asarray(values["mae"]), jax.tree.leaves(state.average)


def test_parts_of_a_batch_give_its_update():
    """Four parts against all at once; each takes the singular basis and its mixtures."""
    made = batch(features=jnp.zeros((BATCH, 16, 16, 1)))
    rng = np.random.default_rng(1)
    base, V = made.image + 0.1, np.linalg.qr(rng.normal(size=(256, BATCH)))[0]
    measured = jnp.asarray(rng.normal(size=(BATCH, BATCH)), jnp.float32)
    measured = measured, jnp.ones(BATCH), jnp.asarray(V, jnp.float32)
    made = made._replace(inputs=made.inputs._replace(base=base, measured=measured))
    model = networks(adversarial=0.5, kind="wgangp")
    sizes = {"features": 1, "base": True, "local_channels": 4, "local_blocks": 1}
    generator = dataclasses.replace(model.generator.config, local_rounds=2, **sizes)
    model = model._replace(generator=transgan.Generator(generator))
    sgd = optax.sgd(0.1)
    tx = train.Optimisers(sgd, sgd, 0.9)
    init = jax.jit(partial(train.init_state, model=model, tx=tx))
    state = init(jax.random.key(1), made)
    whole, parts = (
        jax.jit(partial(train.train_step, model=one, tx=tx))(
            state, made, jax.random.key(0)
        )
        for one in (model, model._replace(accumulate=4))
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6),
        parts,
        whole,
    )


@pytest.mark.parametrize("make", [networks, convolutional, unet])
def test_bfloat16_trains_as_float32_does(make):
    """To 2 % of the error in every step: the arithmetic has three digits, the parameters
    and Adam's sums have all of theirs.
    """
    features = jnp.asarray(batch(3).image)[..., None]
    made = batch(features=features if make is unet else None)
    expected, weights = after_20_steps(make(), made)
    found, half = after_20_steps(make(dtype="bfloat16"), made)
    assert expected[-1] < 0.97 * expected[0]  # it learns
    np.testing.assert_allclose(found, expected, rtol=0.02)
    assert np.abs(found - expected).max() > 0  # it isn't float32 in disguise
    assert all(leaf.dtype == np.float32 for leaf in (*weights, *half))


def test_recomputing_blocks_changes_rounding_alone():
    """The networks that have blocks to recompute."""
    expected, weights = after_20_steps(networks(), batch())
    found, again = after_20_steps(networks(remat=True), batch())
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    for a, b in zip(weights, again, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-4)


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


def test_training_starts_from_the_weights_of_another(tmp_path):
    state, _ = start(model := networks())
    other = jax.tree.map(lambda a: np.asarray(a) + 1, state.average)
    begun = train.with_weights(state, other, "theirs")
    for tree in (begun.generator, begun.average):
        jax.tree.map(np.testing.assert_array_equal, tree, other)
    assert begun.discriminator is state.discriminator and model.discriminator
    wider = jax.tree.map(lambda a: np.zeros((2, *a.shape)), other)
    with pytest.raises(ValueError, match="theirs: expected the weights of this gener"):
        train.with_weights(state, wider, "theirs")
    with pytest.raises(ValueError, match="got none; start from weights of a config"):
        train.with_weights(state, {}, "theirs")
