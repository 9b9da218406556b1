"""Validation of a generator in training, its images shared out over all devices."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mpi_jax import data, metrics, phantoms
from mpi_jax.configs import Config
from mpi_jax.train.networks import Weights, predict
from mpi_jax.train.step import replicate

Means = dict[str, float]
Samples = dict[str, np.ndarray]
_SAMPLES = 6  # neighbouring phantoms are of different families


def make_validation(
    config: Config, forward: data.ForwardModel, generator: nn.Module
) -> Callable[[Weights], tuple[Means, Samples]]:
    """weights -> mean PSNR, SSIM and Dice (of the predicted mask) on validation images,
    and samples; weights as `replicate` puts them on the devices.

    Samples: truth, true_mask, image, mask [N, ny, nx] and family [N], its name, of the
    first six images (fewer where a batch is smaller), one of each family.
    """
    process = jax.process_index(), jax.process_count()
    shards = data.validation_pictures(config, forward.scanner.grid, process)
    snr = jnp.full(2, config.data.test_snr_db, jnp.float32)
    key, everywhere = data.fixed_noise(), replicate(forward)

    def measure(weights, shard, key, snr, forward):
        start, pictures = shard
        drawn = data.observe(forward, pictures, start, snr, key)
        out = predict(generator, weights, forward, drawn.voltage)
        image, mask = out.reconstruction, out.reconstruction > 0.5
        if out.segmentation is not None:
            mask = out.segmentation > 0
        scores = metrics.scores(image, drawn.image, mask, drawn.mask, 1.0)
        arrays = drawn.image, drawn.mask, image, mask, jnp.asarray(drawn.family)
        # Of all devices, in the order of the images.
        return jax.lax.all_gather((scores, arrays), "data", tiled=True)

    # Every process gets all of it.
    compiled = jax.pmap(
        measure, axis_name="data", in_axes=(None, 0, None, None, None), out_axes=None
    )

    def validate(weights: Weights) -> tuple[Means, Samples]:
        scores = []
        samples: Samples = {}
        for batch in range(-(-config.validation_images // config.data.batch_size)):
            batch_scores, arrays = compiled(
                weights, shards(batch), key, snr, everywhere
            )
            scores.append(jax.device_get(batch_scores))
            if not samples:
                first = jax.tree.map(lambda a: a[:_SAMPLES], jax.device_get(arrays))
                samples = _samples(*first)
        means = {
            f"validation_{name}": float(np.mean([np.mean(s[name]) for s in scores]))
            for name in ("psnr", "ssim", "dice")
        }
        return means, samples

    return validate


def _samples(truth, true_mask, image, mask, family) -> Samples:
    return {
        "truth": truth,
        "true_mask": true_mask.astype(np.uint8),
        "image": image,
        "mask": mask.astype(np.uint8),
        "family": np.array(phantoms.FAMILIES)[family],
    }
