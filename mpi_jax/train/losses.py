"""What training minimises: terms for the image, the mask and the adversary.

Symbols: x truth, x^ output image, m true mask, z logit of the output mask,
p = sigmoid(z), D score of the discriminator, x~ = a x + (1 - a) x^ with a ~ U[0, 1].

| term                 | formula                                                   |
|----------------------|-----------------------------------------------------------|
| mae                  | mean |x^ - x|                                             |
| bce                  | mean [max(z, 0) - z m + log(1 + exp(-|z|))]               |
| dice                 | mean over images, 1 - (2 sum p m + e) / (sum p + sum m + e) |
| discriminator_bce    | mean softplus(-D(x)) + mean softplus(D(x^))               |
| generator_bce        | mean softplus(-D(x^))                                     |
| discriminator_wgangp | mean D(x^) - mean D(x) + drift (mean D(x))^2              |
|                      | + penalty mean (norm(grad D(x~)) - 1)^2                   |
| generator_wgan       | - mean D(x^)                                              |

All are pure, unweighted scalars; the weights (the paper's: 20 mae + 5 bce + 5 dice)
belong to the training step. The dual-task TransGAN paper names the image terms and
leaves the kind of adversary open: BCE is the non-saturating loss of Goodfellow et al.
2014, WGAN-GP that of Gulrajani et al. 2017 with the drift term of Karras et al. 2018.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Num

# An underscore leaves a size to `_check_same`, whose message users see.
Images = Float[Array | np.ndarray, "batch ny nx"]
Others = Num[Array | np.ndarray, "_batch _ny _nx"]
Masks = Bool[Array | np.ndarray, "_batch _ny _nx"] | Others
Scores = Float[Array | np.ndarray, " batch"]
Scalar = Float[Array, ""]


def mae(image: Images, truth: Others) -> Scalar:
    """Mean absolute error over images and pixels. ValueError if the shapes differ."""
    _check_same(image, truth, "image", "truth")
    return jnp.mean(jnp.abs(jnp.asarray(image) - jnp.asarray(truth)))


def bce(logit: Images, mask: Masks) -> Scalar:
    """Binary cross-entropy over images and pixels; mask is boolean or in [0, 1].

    Raises ValueError if the shapes differ.
    """
    _check_same(logit, mask, "logit", "mask")
    mask = jnp.asarray(mask, logit.dtype)
    return jnp.mean(optax.sigmoid_binary_cross_entropy(jnp.asarray(logit), mask))


def dice(logit: Images, mask: Masks, epsilon: float = 1.0) -> Scalar:
    """Soft Dice loss of each image, averaged; mask is boolean or in [0, 1].

    epsilon, in pixels, defines the loss of an empty mask: 0 for an empty output.
    Raises ValueError if the shapes differ.
    """
    _check_same(logit, mask, "logit", "mask")
    mask = jnp.asarray(mask, logit.dtype)
    probability = jax.nn.sigmoid(logit)
    both = jnp.sum(probability * mask, axis=(1, 2))
    total = jnp.sum(probability, axis=(1, 2)) + jnp.sum(mask, axis=(1, 2))
    return jnp.mean(1 - (2 * both + epsilon) / (total + epsilon))


def discriminator_bce(real_logit: Scores, fake_logit: Scores) -> Scalar:
    """Cross-entropy of a discriminator that says 1 for true and 0 for made images."""
    real, fake = jax.nn.softplus(-real_logit), jax.nn.softplus(fake_logit)
    return jnp.mean(real) + jnp.mean(fake)


def generator_bce(fake_logit: Scores) -> Scalar:
    """Non-saturating generator loss: made images should be taken for true ones."""
    return jnp.mean(jax.nn.softplus(-fake_logit))


def discriminator_wgangp(
    critic: Callable[[Images], Scores],
    real: Images,
    fake: Others,
    alpha: Float[Array | np.ndarray, " _batch"],
    drift: float = 1e-3,
    penalty: float = 10.0,
) -> Scalar:
    """Critic loss of the Wasserstein GAN with gradient penalty.

    critic: [B, ny, nx] -> [B]; it must score each image by itself (no batch
    statistics), for the penalty is on the gradient of each score in its own image.
    real, fake: [B, ny, nx]; alpha [B]: share of the true image in each mixture, drawn
    uniformly from [0, 1] by the caller.
    drift: weight of the squared mean true score, which keeps the free constant of the
    critic near zero. penalty: weight of the squared gap of the gradient norm to 1.
    Raises ValueError if the shapes differ.
    """
    _check_same(real, fake, "real", "fake")
    if alpha.shape != real.shape[:1]:
        raise ValueError(f"alpha: expected shape {real.shape[:1]}, got {alpha.shape}")
    share = jnp.asarray(alpha)[:, None, None]
    mixed = share * real + (1 - share) * fake
    slope = jax.grad(lambda images: jnp.sum(critic(images)))(mixed)
    # safe_norm: the norm itself has no gradient where the critic is flat
    norm = optax.safe_norm(slope.reshape(len(slope), -1), min_norm=0.0, axis=1)
    real_mean, fake_mean = jnp.mean(critic(real)), jnp.mean(critic(fake))
    return (
        fake_mean
        - real_mean
        + penalty * jnp.mean(jnp.square(norm - 1))
        + drift * jnp.square(real_mean)
    )


def generator_wgan(fake_score: Scores) -> Scalar:
    """Wasserstein generator loss: made images should score high."""
    return -jnp.mean(fake_score)


def _check_same(a, b, first: str, second: str) -> None:
    if a.ndim != 3 or a.shape != b.shape:
        raise ValueError(
            f"{first}, {second}: expected one shape [B, ny, nx], "
            f"got {a.shape} and {b.shape}"
        )
