"""Training: a pure step for both networks, the one pmap, and the loop around them.

Loss of the generator: mae |x^ - x| + bce BCE(z, m) + dice Dice(z, m) + adversarial term,
weights in the config (the paper's are 20, 5, 5). Generator and discriminator are updated
in the same step from the same parameters, with one pass of the generator: where the
discriminator has several updates a step, all of them see the images of that pass.

A work folder holds config.json (settings, seed, versions), metrics.jsonl, checkpoints/,
samples/ (the validation images 0 to 5, one of each family, as reconstructed at every
validation), tensorboard/ where asked for, and weights.safetensors, the averaged generator
of the best checkpoint so far.
"""

from __future__ import annotations

import collections
import time
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mpi_jax import configs, data, metrics
from mpi_jax._progress import Tell, silent
from mpi_jax.configs import Config
from mpi_jax.runs import (
    Log,
    best_psnr,
    export,
    keep_lines,
    prepare,
    tensorboard,
    write_samples,
)
from mpi_jax.train import checkpoint
from mpi_jax.train.networks import Weights, check_signal, make_networks, predict
from mpi_jax.train.step import (
    Batch,
    data_parallel,
    init_state,
    make_batch,
    make_optimisers,
    replicate,
    train_step,
)


def validate(
    config: Config, forward: data.ForwardModel, generator: nn.Module, weights: Weights
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Mean PSNR, SSIM and Dice (of the predicted mask) on validation images; samples.

    Samples: truth, true_mask, image, mask [N, ny, nx] and family [N], its name, of the first six
    validation images (fewer where a batch is smaller), one of each family.
    """
    size, scores = config.data.batch_size, []
    samples: dict[str, np.ndarray] = {}
    for start in range(0, config.validation_images, size):  # a size compiled already
        drawn = data.draw(
            forward,
            "validation",
            start,
            size,
            config.data.test_snr_db,
            families=config.data.families,
        )
        out = predict(generator, weights, forward, drawn.voltage)
        mask = out.reconstruction > 0.5
        if out.segmentation is not None:
            mask = out.segmentation > 0
        scores.append(
            metrics.scores(out.reconstruction, drawn.image, mask, drawn.mask, 1.0)
        )
        if not samples:
            shown = jax.device_get((drawn, out.reconstruction, mask))
            truth, image, mask = jax.tree.map(lambda a: a[:_SAMPLES], shown)
            samples = {
                "truth": truth.image,
                "true_mask": truth.mask.astype(np.uint8),
                "image": image,
                "mask": mask.astype(np.uint8),
                "family": truth.family_names,
            }
    means = {
        f"validation_{name}": float(np.mean([np.mean(score[name]) for score in scores]))
        for name in ("psnr", "ssim", "dice")
    }
    return means, samples


_SAMPLES = 6  # neighbouring phantoms are of different families


def run(
    config: Config, workdir: Path, *, resume: bool = False, tell: Tell = silent
) -> dict[str, float]:
    """Train a config in a work folder; returns the last validation metrics.

    resume: go on from the newest checkpoint (or from the start where there is none yet)
    with the same result as a run that was never stopped. Raises ValueError for a folder
    that holds a run already (without resume) or a run of another config (with it),
    FloatingPointError naming the first step whose numbers aren't finite.
    """
    workdir = Path(workdir)
    model = make_networks(config)
    tx = make_optimisers(config.optimiser, config.steps)
    if config.steps < 1:
        raise ValueError(f"steps: expected a number >= 1, got {config.steps}")
    pictures = data.training_pictures(
        config,
        data.make_scanner(config).grid,
        (jax.process_index(), jax.process_count()),
    )
    check_signal(model.generator, data.make_scanner(config))
    if config.tensorboard:
        tensorboard()  # to fail before any work where it is missing
    prepare(workdir, config, resume)
    tell("build", 0, 1, {})
    forward = data.build(config)
    each = config.data.batch_size // jax.device_count()
    key = jax.random.key(config.seed)
    noise, _, steps_key = jax.random.split(key, 3)
    # The default generator takes a minute to compile for some hundred parameters.
    fresh = jax.random.key(config.seed, impl="unsafe_rbg")
    snr = jnp.asarray(config.data.snr_db, jnp.float32)

    def shapes_of(shard):
        return make_batch(forward, data.observe(forward, shard, 0, snr, noise))

    grid = forward.scanner.grid
    shapes = jax.eval_shape(lambda: shapes_of(data.pictures(0, 0, each, grid)))
    state = jax.jit(partial(init_state, model=model, tx=tx))(fresh, _zeros(shapes))

    def step(state, shard, keys, forward):
        start, shown = shard
        key = jax.random.fold_in(keys[1], state.step)
        batch = make_batch(forward, data.observe(forward, shown, start, snr, keys[0]))
        return train_step(state, batch, key, model=model, tx=tx, axis_name="data")

    compiled = data_parallel(step, replicated=1)
    settings = configs.to_dict(config)
    with checkpoint.manager(workdir / "checkpoints") as store:
        done = 0
        if resume and store.latest_step() is not None:
            done, state = checkpoint.restore(store, state)
        keep_lines(workdir / "metrics.jsonl", done)
        state, everywhere = replicate(state), replicate(forward)
        pending: collections.deque = collections.deque()
        result: dict[str, float] = {}
        clock, since = time.monotonic(), done
        best = best_psnr(workdir / "metrics.jsonl")
        with Log(workdir, config, done) as log:
            while done < config.steps:
                state, values = compiled(
                    state, pictures(done), (noise, steps_key), everywhere
                )
                done += 1
                pending.append((done, values))
                last = done == config.steps
                save = last or done % config.checkpoint_every == 0
                if save or done % config.log_every == 0:
                    line = _drain(pending, workdir)
                    now = time.monotonic()
                    images = (done - since) * config.data.batch_size
                    line["images_per_second"] = images / (now - clock)
                    log.write(done, line, now - clock)
                    tell("train", done, config.steps, line)
                    clock, since = now, done
                if save:
                    averaged = state.average
                    result, samples = validate(
                        config, forward, model.generator, averaged
                    )
                    log.write(done, result)
                    write_samples(workdir, done, samples)
                    tell("validate", done, config.steps, result)
                    psnr = result["validation_psnr"]
                    checkpoint.save(store, done, state, settings, psnr)
                    if psnr > best:
                        best = psnr
                        export(workdir, averaged, done, config, result)
                    clock = time.monotonic()
        checkpoint.finish(store)
    return result


def _zeros(shapes: Batch) -> Batch:
    """Zeros of the given shapes and dtypes."""
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)


def _drain(pending, workdir) -> dict[str, float]:
    """Mean metrics of the steps since the last line; the guard against NaN."""
    steps, values = zip(*pending, strict=True)
    pending.clear()
    values = jax.device_get(list(values))
    for number, line in zip(steps, values, strict=True):
        if not line["finite"]:
            bad = [k for k, v in line.items() if not np.isfinite(v)]
            raise FloatingPointError(
                f"step {number}: {', '.join(bad) or 'a metric'} not finite; the last "
                f"good checkpoint in {workdir / 'checkpoints'} is kept"
            )
    names = [name for name in values[0] if name != "finite"]
    return {name: float(np.mean([v[name] for v in values])) for name in names}
