"""Networks of a config: every row of the table, and what does not fit."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from mpi_jax import configs, data, train


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
    made = train.Batch(inputs, image, image, jnp.arange(2))

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
        (dict(part="data", accumulate=2), "data.accumulate: expected 1 for networks"),
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
