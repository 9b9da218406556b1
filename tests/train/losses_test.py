"""Every loss against its formula, written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpi_jax import train


@pytest.fixture
def batch():
    """Output, truth, logit [4, 6, 5], boolean mask of which one image is empty."""
    rng = np.random.default_rng(0)
    image, truth, logit = rng.normal(size=(3, 4, 6, 5)).astype(np.float32)
    mask = truth > 0.3
    mask[2] = False
    return image, truth, 3 * logit, mask


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def softplus(z):
    return np.log(1 + np.exp(z))


def test_mae(batch):
    image, truth, *_ = batch
    np.testing.assert_allclose(
        train.losses.mae(image, truth), np.abs(image - truth).mean(), rtol=1e-6
    )


def test_bce(batch):
    *_, logit, mask = batch
    p = sigmoid(logit.astype(float))
    expected = -np.mean(np.where(mask, np.log(p), np.log(1 - p)))
    np.testing.assert_allclose(train.losses.bce(logit, mask), expected, rtol=1e-5)
    # Far logits must neither overflow nor lose their gradient.
    far = jnp.full((1, 2, 2), 200.0)
    value, slope = jax.value_and_grad(train.losses.bce)(far, jnp.zeros_like(far))
    np.testing.assert_allclose(value, 200, rtol=1e-6)
    np.testing.assert_allclose(slope, 0.25, rtol=1e-6)


@pytest.mark.parametrize("epsilon", [1.0, 0.1])
def test_dice(batch, epsilon):
    *_, logit, mask = batch
    each = []
    for z, m in zip(logit, mask, strict=True):
        p = sigmoid(z)
        each.append(1 - (2 * p[m].sum() + epsilon) / (p.sum() + m.sum() + epsilon))
    value = train.losses.dice(logit, mask, epsilon)
    np.testing.assert_allclose(value, np.mean(each), rtol=1e-5)
    as_number = train.losses.dice(logit, mask.astype(np.float32), epsilon)
    np.testing.assert_allclose(value, as_number, rtol=1e-6)


def test_dice_limits():
    mask = np.zeros((2, 8, 8), bool)
    mask[0, 2:5, 2:5] = True  # the second image is empty
    sure = np.where(mask, 50.0, -50.0).astype(np.float32)
    np.testing.assert_allclose(train.losses.dice(sure, mask), 0, atol=1e-6)
    # All wrong: 9 true and 55 guessed pixels in the first, 64 guessed in the second.
    expected = np.mean([1 - 1 / (9 + 55 + 1), 1 - 1 / (64 + 1)])
    np.testing.assert_allclose(train.losses.dice(-sure, mask), expected, rtol=1e-6)


def test_adversarial_bce():
    real, fake = np.random.default_rng(1).normal(size=(2, 7)).astype(np.float32)
    expected = softplus(-real).mean() + softplus(fake).mean()
    np.testing.assert_allclose(
        train.losses.discriminator_bce(real, fake), expected, rtol=1e-5
    )
    np.testing.assert_allclose(
        train.losses.generator_bce(fake), softplus(-fake).mean(), rtol=1e-5
    )
    undecided = train.losses.discriminator_bce(jnp.zeros(3), jnp.zeros(3))
    np.testing.assert_allclose(undecided, 2 * np.log(2), rtol=1e-6)


def test_generator_wgan():
    score = np.array([1.0, 2.0, 6.0], np.float32)
    np.testing.assert_allclose(train.losses.generator_wgan(score), -3.0)


def test_wgangp_of_a_linear_critic(batch):
    """D(x) = sum w x + b has the gradient w everywhere, whatever the mixture."""
    real, fake, weight, _ = batch
    weight, offset = weight[0], 0.7
    alpha = np.linspace(0, 1, 4, dtype=np.float32)

    def critic(images):
        return jnp.sum(images * weight[None], axis=(1, 2)) + offset

    score = [(images * weight).sum((1, 2)).mean() + offset for images in (real, fake)]
    for drift, penalty in ((1e-3, 10.0), (0.5, 2.0)):
        expected = (
            score[1]
            - score[0]
            + penalty * (np.linalg.norm(weight) - 1) ** 2
            + drift * score[0] ** 2
        )
        value = train.losses.discriminator_wgangp(
            critic, real, fake, alpha, drift, penalty
        )
        np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_wgangp_takes_the_slope_at_the_mixture(batch):
    """D(x) = sum x^2 / 2 has the gradient x, so the penalty sees x~ itself."""
    real, fake, *_ = batch
    alpha = np.array([0.0, 0.2, 0.7, 1.0], np.float32)

    def critic(images):
        return jnp.sum(jnp.square(images), axis=(1, 2)) / 2

    mixed = alpha[:, None, None] * real + (1 - alpha)[:, None, None] * fake
    norm = np.sqrt((mixed**2).sum((1, 2)))
    score = [(images**2).sum((1, 2)).mean() / 2 for images in (real, fake)]
    expected = score[1] - score[0] + 10 * ((norm - 1) ** 2).mean()
    value = train.losses.discriminator_wgangp(critic, real, fake, alpha, drift=0.0)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_gradient_through_the_penalty(batch, scale):
    """In the critic's parameters, finite even where the critic is flat (scale 0)."""
    real, fake, weight, _ = batch
    weight = scale * weight[0]

    def loss(weight):
        def critic(images):
            return jnp.sum(images * weight[None], axis=(1, 2))

        return train.losses.discriminator_wgangp(
            critic, real, fake, jnp.full(4, 0.5), drift=0.0
        )

    slope = jax.jit(jax.grad(loss))(jnp.asarray(weight))
    norm = np.linalg.norm(weight)
    pull = 20 * (norm - 1) * weight / norm if norm > 0 else 0
    expected = fake.mean(0) - real.mean(0) + pull
    np.testing.assert_allclose(slope, expected, rtol=1e-4, atol=1e-5)


def test_wrong_shapes_are_named(batch):
    image, truth, logit, mask = batch
    with pytest.raises(
        ValueError, match=r"image, truth: .*\(4, 6, 5\) and \(1, 6, 5\)"
    ):
        train.losses.mae(image, truth[:1])
    for loss in (train.losses.bce, train.losses.dice):
        with pytest.raises(ValueError, match="logit, mask"):
            loss(logit, mask[:, :1])
    with pytest.raises(ValueError, match="real, fake"):
        train.losses.discriminator_wgangp(
            jnp.sum, image, truth[:1], np.zeros(4, np.float32)
        )
    with pytest.raises(ValueError, match="alpha"):
        train.losses.discriminator_wgangp(
            jnp.sum, image, truth, np.zeros(1, np.float32)
        )
