"""The networks to compare with: sizes of every row, wiring, batch statistics, fits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.programs import load

from mpi_jax.models import baselines
from mpi_jax.models.baselines import DISCRIMINATORS, GENERATORS

multiply_adds = load("counting").multiply_adds

# Without norms: what is left out, by the end of the path, is counted in the test.
COUNTS = {
    "cnn128": 12_644_513,
    "resnet128": 13_513_953,
    "dcgan128": 29_533_153,
    "unet128": 1_946_881,
}
GMACS = {"cnn128": 1.14, "resnet128": 2.08, "dcgan128": 0.16, "unet128": 2.66}
SMALL = {
    "cnn128": dict(channels=(8, 4), stem_hidden=6, groups=2),
    "resnet128": dict(channels=(8, 4), stem_hidden=6, groups=2),
    "dcgan128": dict(channels=(8, 6)),
    "unet128": dict(channels=(8, 12), groups=4),
}


def inputs(config, batch=2):
    rng = np.random.default_rng(1)
    side = (config.image_size, config.image_size)
    signal = rng.normal(size=(batch, config.input_size))
    features = rng.normal(size=(batch, *side, config.features))
    return (
        jnp.asarray(signal, jnp.float32),
        jnp.asarray(features, jnp.float32) if config.features else None,
        None,
    )


def small(row):
    return baselines.generator(row, input_size=6, image_size=16, **SMALL[row])


def sizes(tree):
    """Path -> size of every parameter."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        tuple(part.key for part in path): int(np.prod(leaf.shape))
        for path, leaf in leaves
    }


@pytest.mark.parametrize("row", GENERATORS)
def test_generator_sizes(row):
    module = baselines.generator(row)
    arguments = inputs(module.config, batch=1)
    images, variables = jax.eval_shape(
        module.init_with_output, jax.random.key(0), *arguments
    )
    size = int(row.lstrip("abcdefghijklmnopqrstuvwxyz"))
    assert images.reconstruction.shape == (1, size, size)
    assert images.segmentation is None and module.config.tasks == ("recon",)
    assert ("batch_stats" in variables) == row.startswith("dcgan")
    if size != 128:
        return
    found = sizes(variables["params"])
    # Left out: scale and shift of GroupNorm. A convolution of the DCGAN has no bias: the
    # shift of the norm behind it is one, so that only the first norm, behind the Dense
    # with its own, is left out whole.
    dcgan = row == "dcgan128"
    left_out = [
        path
        for path in found
        if path[-2].startswith("norm") and (path[-1] == "scale" or not dcgan)
    ]
    left_out += [("norm_4", "bias")] if dcgan else []
    assert len(left_out) == {"cnn128": 20, "resnet128": 40, "dcgan128": 6}.get(row, 28)
    total = sum(found.values()) - sum(found[path] for path in left_out)
    assert total == COUNTS[row]


@pytest.mark.parametrize("row", DISCRIMINATORS)
def test_critic_sizes(row):
    module = baselines.discriminator(row)
    size = module.config.image_size
    images = jnp.zeros((2, size, size, 1))
    scores, variables = jax.eval_shape(
        module.init_with_output, jax.random.key(0), images
    )
    assert scores.shape == (2,)
    if row == "dcgan128":
        found = sizes(variables["params"])
        left_out = [path for path in found if path[-1] == "scale"]
        assert len(left_out) == 4
        total = sum(found.values()) - sum(found[path] for path in left_out)
        assert total == 6_957_505


@pytest.mark.parametrize("row", COUNTS)
def test_multiply_adds(row):
    module = baselines.generator(row)
    arguments = inputs(module.config, batch=1)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *arguments)
    program = jax.make_jaxpr(module.apply)(shapes, *arguments)
    # Products with maps are bilinear up-sampling, which the tables leave out.
    found = multiply_adds(program.jaxpr, matrices_alone=True)
    assert abs(found / 1e9 - GMACS[row]) < 0.006


def loss(module, variables, arguments, image):
    out, state = module.apply(variables, *arguments, mutable=["batch_stats"])
    return jnp.mean(jnp.square(out.reconstruction - image)), state


@pytest.mark.parametrize("row", COUNTS)
def test_gradients_and_overfitting(row):
    """Every parameter gets a gradient, and a hundred steps fit one batch."""
    module = small(row)
    arguments = inputs(module.config, batch=4)
    corners = np.random.default_rng(0).random((4, 2, 2))
    image = jnp.asarray(np.kron(corners, np.ones((8, 8))), jnp.float32)
    variables = jax.jit(module.init)(jax.random.key(0), *arguments)
    params = variables["params"]
    adam = optax.adam(1e-2)

    @jax.jit
    def step(params, state):
        run = functools.partial(loss, module, arguments=arguments, image=image)
        value, slope = jax.value_and_grad(lambda p: run({**variables, "params": p})[0])(
            params
        )
        updates, state = adam.update(slope, state, params)
        return optax.apply_updates(params, updates), state, value, slope

    state = adam.init(params)
    for n in range(100):
        params, state, value, slope = step(params, state)
        if n == 0:
            for path, leaf in jax.tree_util.tree_leaves_with_path(slope):
                assert np.abs(leaf).max() > 1e-7, path
    assert value < 0.25 * np.var(image)


def test_batch_statistics():
    """Of the batch where they may change, and then returned; else those given."""
    module = small("dcgan128")
    arguments = inputs(module.config, batch=4)
    variables = jax.jit(module.init)(jax.random.key(0), *arguments)
    run = jax.jit(functools.partial(module.apply, mutable=["batch_stats"]))
    image, state = run(variables, *arguments)
    stem = variables["params"]["stem"]
    first = arguments[0] @ stem["kernel"] + stem["bias"][None]
    flat = np.asarray(first, np.float64).reshape(-1, 8)
    found = state["batch_stats"]["norm_4"]
    np.testing.assert_allclose(found["mean"], flat.mean(0), atol=1e-5)
    np.testing.assert_allclose(found["var"], flat.var(0), rtol=1e-4)
    fixed = jax.jit(module.apply)(variables | state, *arguments)
    np.testing.assert_allclose(fixed.reconstruction, image.reconstruction, atol=1e-5)
    one = jax.tree.map(lambda a: a[:1], arguments)
    alone = jax.jit(module.apply)(variables | state, *one)
    np.testing.assert_allclose(
        alone.reconstruction, fixed.reconstruction[:1], atol=1e-5
    )


def test_inputs_that_do_not_fit_are_named():
    module = small("unet128")
    signal, features, _ = inputs(module.config)
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"signal: expected \(2, 6\), got \(2, 5\)"):
        module.init(key, signal[:, :5], features)
    with pytest.raises(ValueError, match=r"features: expected .*3\), got None"):
        module.init(key, signal)
    with pytest.raises(ValueError, match=r"base: expected None, got \(2, 16, 16\)"):
        module.init(key, signal, features, features[..., 0])
    with pytest.raises(ValueError, match="features: expected None"):
        small("cnn128").init(key, signal, features)
    critic = baselines.discriminator("dcgan32")
    with pytest.raises(ValueError, match=r"32, 32, 1\), got \(2, 16, 16, 1\)"):
        critic.init(key, features[..., :1])


@pytest.mark.parametrize(
    ("row", "overrides", "message"),
    [
        ("huge", {}, "cnn128.*got 'huge'"),
        ("cnn128", {"image_size": 64}, "channels: expected .* 64 x 64"),
        ("dcgan128", {"channels": (8,)}, "channels: expected .* 128 x 128"),
        ("resnet64", {"groups": 7}, "groups: expected a divisor"),
        ("unet64", {"image_size": 36}, "halved 3 times, got 36"),
        ("unet64", {"features": 0}, "features: expected 1 or more, got 0"),
    ],
)
def test_sizes_that_do_not_fit_are_named(row, overrides, message):
    with pytest.raises(ValueError, match=message):
        baselines.generator(row, **overrides)
