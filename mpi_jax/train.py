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
import contextlib
import dataclasses
import io
import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

import mpi_jax
from mpi_jax import checkpoint, configs, data, losses, metrics
from mpi_jax.configs import Config, LossConfig, OptimiserConfig
from mpi_jax.models import baselines, layers, transgan

# tell(stage, done, total, numbers): how long work makes itself heard.
Tell = Callable[[str, int, int, dict], None]


def silent(stage: str, done: int, total: int, numbers: dict) -> None:
    """A Tell that says nothing."""


class Networks(NamedTuple):
    """What is trained, and against what. discriminator is None without adversary.

    Generators take data.Inputs and return layers.Images, whichever module they are. One
    with a field axis_name has batch statistics, over the devices of that axis.
    """

    generator: nn.Module
    discriminator: nn.Module | None
    loss: LossConfig


class Batch(NamedTuple):
    """One training batch: what the generator sees, what is true."""

    inputs: data.Inputs
    image: Float[Array, "B ny nx"]
    mask: Float[Array, "B ny nx"]


@flax.struct.dataclass
class TrainState:
    """Everything a step changes.

    average: moving average of the generator, and under "batch_stats" of its batch
    statistics, where it has any. It is what `predict` takes and weights.safetensors holds.
    """

    step: Any  # number of steps done
    generator: Any
    discriminator: Any
    average: Any
    generator_optimiser: Any
    discriminator_optimiser: Any


class Optimisers(NamedTuple):
    """optax transformations of both networks and the decay of the average."""

    generator: optax.GradientTransformation
    discriminator: optax.GradientTransformation
    ema: float


def make_networks(config: Config, operator: data.Operator | None = None) -> Networks:
    """The networks of a config, their sizes checked against the scanner.

    Raises ValueError for unknown rows, losses or sizes that don't fit.
    """
    loss = config.loss
    if loss.kind not in ("bce", "wgangp"):
        raise ValueError(f"loss.kind: expected bce or wgangp, got {loss.kind!r}")
    weights = dataclasses.asdict(loss)
    for name in ("mae", "bce", "dice", "adversarial"):
        if not weights[name] >= 0:
            raise ValueError(
                f"loss.{name}: expected a number >= 0, got {weights[name]}"
            )
    if loss.critic_steps < 1:
        raise ValueError(
            f"loss.critic_steps: expected a number >= 1, got {loss.critic_steps}"
        )
    physics = config.physics
    generator = _network("generator", config)
    wanted = generator.config
    have, base = 0, bool(physics.rank and physics.iterations)
    if physics.rank:
        have = len(physics.lams) + base
    if (wanted.features, wanted.base) != (have, base):
        raise ValueError(
            f"generator: {config.generator} takes {wanted.features} classical images, "
            f"{'one' if wanted.base else 'none'} of them non-negative, but the physics "
            f"settings make {have} (physics.rank {physics.rank}, {len(physics.lams)} "
            f"lams, {physics.iterations} iterations)"
        )
    if wanted.image_size != config.scanner.pixels:
        raise ValueError(
            f"generator: {config.generator} makes images of {wanted.image_size} pixels, "
            f"but scanner.pixels is {config.scanner.pixels}"
        )
    if not loss.adversarial:
        return Networks(generator, None, loss)
    critic = _network("discriminator", config)
    if critic.config.image_size != config.scanner.pixels:
        raise ValueError(
            f"discriminator: {config.discriminator} takes images of "
            f"{critic.config.image_size} pixels, but scanner.pixels is "
            f"{config.scanner.pixels}"
        )
    if loss.kind == "wgangp" and _has_statistics(critic):
        raise ValueError(
            f"loss.kind: expected bce for {config.discriminator}, whose scores depend on "
            "the whole batch, got wgangp (its penalty is on the slope of each score)"
        )
    return Networks(generator, critic, loss)


def check_signal(generator: nn.Module, scanner: Any) -> None:
    """ValueError where a generator doesn't take the signals of a scanner."""
    size = generator.config.input_size
    if scanner.channels * scanner.samples != size:
        raise ValueError(
            f"generator: expected {scanner.channels} x {scanner.samples} inputs like the "
            f"scanner's signals (channels x samples of a period), got {size}"
        )


def _network(kind: str, config: Config) -> nn.Module:
    """The module of config.generator or config.discriminator; kind names which."""
    name = getattr(config, kind)
    tables = {
        module: getattr(module, f"{kind.upper()}S") for module in (transgan, baselines)
    }
    for module, table in tables.items():
        if name not in table:
            continue
        options = {"dtype": config.dtype}
        if module is transgan:
            options["remat"] = config.remat
        elif config.remat:
            raise ValueError(
                f"remat: expected False for {name}, which has no Transformer blocks"
            )
        return getattr(module, kind)(name, **options)
    known = ", ".join(sorted(row for table in tables.values() for row in table))
    raise ValueError(f"{kind}: expected one of {known}; got {name!r}")


def _has_statistics(network: nn.Module) -> bool:
    return hasattr(network, "axis_name")


def make_optimisers(config: OptimiserConfig, steps: int) -> Optimisers:
    """Adam with warm-up, constant or cosine rate, and gradient clipping.

    Raises ValueError for an unknown schedule or a warm-up that fills all the steps.
    """
    if not 0 <= config.warmup < steps:
        raise ValueError(
            f"optimiser.warmup: expected 0 to {steps - 1}, fewer than steps, "
            f"got {config.warmup}"
        )

    def transformation(rate):
        if config.schedule == "cosine":
            schedule = optax.warmup_cosine_decay_schedule(
                0.0 if config.warmup else rate, rate, config.warmup, steps
            )
        elif config.schedule == "constant":
            schedule = optax.join_schedules(
                [
                    optax.linear_schedule(0.0, rate, config.warmup),
                    optax.constant_schedule(rate),
                ],
                [config.warmup],
            )
        else:
            raise ValueError(
                "optimiser.schedule: expected constant or cosine, "
                f"got {config.schedule!r}"
            )
        return optax.chain(
            optax.clip_by_global_norm(config.clip),
            optax.adam(schedule, b1=config.b1, b2=config.b2),
        )

    return Optimisers(
        transformation(config.learning_rate),
        transformation(config.discriminator_rate),
        config.ema,
    )


def init_state(
    key: PRNGKeyArray, batch: Batch, *, model: Networks, tx: Optimisers
) -> TrainState:
    """Fresh parameters and optimisers; batch is looked at for its shapes only."""
    for_generator, for_critic = jax.random.split(key)
    average = model.generator.init(for_generator, *batch.inputs)
    generator = average.pop("params")
    critic = {}
    if model.discriminator is not None:
        critic = model.discriminator.init(for_critic, batch.image[..., None])["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        generator=generator,
        discriminator=critic,
        # A copy: donated buffers must not be shared.
        average=average | jax.tree.map(jnp.copy, generator),
        generator_optimiser=tx.generator.init(generator),
        discriminator_optimiser=tx.discriminator.init(critic),
    )


def train_step(
    state: TrainState,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    model: Networks,
    tx: Optimisers,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """One update of the generator on a batch and `critic_steps` of the discriminator; pure.

    key: randomness of this step (the mixtures of WGAN-GP, new ones in each update).
    axis_name: gradients and metrics are averaged over that axis, batch statistics taken
    over it; None: no collectives. Metrics: each loss term unweighted, the weighted sums,
    gradient norm (the discriminator's of its last update), and `finite` (1 or 0).
    """
    loss = model.loss

    def apply(network, params, *arguments):
        # Mutable: in training the statistics are those of the batch, and come back.
        if axis_name is not None and _has_statistics(network):
            network = network.clone(axis_name=axis_name)
        return network.apply({"params": params}, *arguments, mutable=["batch_stats"])

    def critic(params, images):
        return apply(model.discriminator, params, images[..., None])[0]

    def generator_loss(params):
        out, statistics = apply(model.generator, params, *batch.inputs)
        terms = {"mae": losses.mae(out.reconstruction, batch.image)}
        total = loss.mae * terms["mae"]
        if out.segmentation is not None:
            terms["bce"] = losses.bce(out.segmentation, batch.mask)
            terms["dice"] = losses.dice(out.segmentation, batch.mask)
            total += loss.bce * terms["bce"] + loss.dice * terms["dice"]
        if model.discriminator is not None:
            score = critic(state.discriminator, out.reconstruction)
            wasserstein = loss.kind == "wgangp"
            adversary = losses.generator_wgan if wasserstein else losses.generator_bce
            terms["adversarial"] = adversary(score)
            total += loss.adversarial * terms["adversarial"]
        return total, (out.reconstruction, statistics, terms)

    def critic_loss(params, made, own):
        if loss.kind == "wgangp":
            if axis_name is not None:
                own = jax.random.fold_in(own, jax.lax.axis_index(axis_name))
            alpha = jax.random.uniform(own, (len(made),))
            return losses.discriminator_wgangp(
                partial(critic, params), batch.image, made, alpha
            )
        if _has_statistics(model.discriminator):
            # True and made images in batches of their own, as the DCGAN has them.
            return losses.discriminator_bce(
                critic(params, batch.image), critic(params, made)
            )
        both = critic(params, jnp.concatenate([batch.image, made]))
        return losses.discriminator_bce(*jnp.split(both, 2))

    def mean_of_devices(tree):
        return tree if axis_name is None else jax.lax.pmean(tree, axis_name)

    (total, (made, statistics, terms)), slope = jax.value_and_grad(
        generator_loss, has_aux=True
    )(state.generator)
    values, slope = mean_of_devices(({"generator_loss": total, **terms}, slope))
    norm = optax.tree.norm(slope)
    updates, generator_optimiser = tx.generator.update(
        slope, state.generator_optimiser, state.generator
    )
    generator = optax.apply_updates(state.generator, updates)

    def update_critic(carry, own):
        params, optimiser = carry
        found = jax.value_and_grad(critic_loss)(
            params, jax.lax.stop_gradient(made), own
        )
        value, slope = mean_of_devices(found)
        updates, optimiser = tx.discriminator.update(slope, optimiser, params)
        params = optax.apply_updates(params, updates)
        return (params, optimiser), (value, optax.tree.norm(slope))

    discriminator = state.discriminator, state.discriminator_optimiser
    if model.discriminator is not None:
        discriminator, (value, critic_norm) = jax.lax.scan(
            update_critic, discriminator, jax.random.split(key, loss.critic_steps)
        )
        values["discriminator_loss"] = value[-1]
        norm = jnp.hypot(norm, critic_norm[-1])

    # Early steps count more than a fixed decay would let them.
    decay = jnp.minimum(tx.ema, (1 + state.step) / (10 + state.step))
    fresh = {**generator, **statistics}
    average = optax.incremental_update(fresh, state.average, 1 - decay)
    values["gradient_norm"] = norm
    total = sum(jnp.sum(v) for v in values.values())
    values["finite"] = jnp.isfinite(total).astype(jnp.float32)
    state = TrainState(
        state.step + 1,
        generator,
        discriminator[0],
        average,
        generator_optimiser,
        discriminator[1],
    )
    return state, values


def data_parallel(step: Callable, replicated: int = 0) -> Callable:
    """`step(state, batch, key, *replicated)` over all local devices, state donated.

    The step must average over the axis "data". Every leaf of batch has a leading axis of
    one entry a device; state, key and the `replicated` further arguments are the same on
    all devices and carry no such axis, nor does the result. Put the state on the devices
    with `replicate` first: a donated argument can't be moved.
    """
    return jax.pmap(
        step,
        axis_name="data",
        in_axes=(None, 0, None) + (None,) * replicated,
        out_axes=None,
        donate_argnums=0,
    )


def replicate(tree: Any) -> Any:
    """The tree on every local device."""
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()), ("data",))
    return jax.device_put(tree, jax.NamedSharding(mesh, jax.P()))


def make_batch(operator: data.Operator, made: data.Examples) -> Batch:
    """Examples as the networks take them."""
    return Batch(data.inputs(operator, made.voltage), made.image, made.mask)


@partial(jax.jit, static_argnames=("generator", "largest"))
def predict(
    generator: nn.Module,
    weights: Any,
    operator: data.Operator,
    voltage: Float[Array, "B C V"],
    largest: float = 1.0,
) -> layers.Images:
    """Reconstruction, refined and clipped to [0, largest], and segmentation logit (or
    None).

    weights: TrainState.average, or what a weights file holds.
    """
    params = dict(weights)
    variables = {"batch_stats": params.pop("batch_stats", {}), "params": params}
    out = generator.apply(variables, *data.inputs(operator, voltage))
    image = data.refine(operator, voltage, out.reconstruction)
    return out._replace(reconstruction=jnp.clip(image, 0, largest))


def validate(
    config: Config, operator: data.Operator, generator: nn.Module, weights: Any
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Mean PSNR, SSIM and Dice (of the predicted mask) on validation images; samples.

    Samples: truth, true_mask, image, mask [N, ny, nx] and family [N], its name, of the first six
    validation images (fewer where a batch is smaller), one of each family.
    """
    size, found, samples = config.data.batch_size, [], {}
    for start in range(0, config.validation_images, size):  # a size compiled already
        made = data.draw(
            operator,
            "validation",
            start,
            size,
            config.data.test_snr_db,
            families=config.data.families,
        )
        out = predict(generator, weights, operator, made.voltage)
        mask = out.reconstruction > 0.5
        if out.segmentation is not None:
            mask = out.segmentation > 0
        found.append(
            metrics.measure(out.reconstruction, made.image, mask, made.mask, 1.0)
        )
        if not samples:
            shown = jax.device_get((made, out.reconstruction, mask))
            made, image, mask = jax.tree.map(lambda a: a[:_SAMPLES], shown)
            samples = {
                "truth": made.image,
                "true_mask": made.mask.astype(np.uint8),
                "image": image,
                "mask": mask.astype(np.uint8),
                "family": np.array([data.phantoms.FAMILIES[i] for i in made.family]),
            }
    means = {
        f"validation_{name}": float(np.mean([np.mean(f[name]) for f in found]))
        for name in ("psnr", "ssim", "dice")
    }
    return means, samples


_SAMPLES = 6  # neighbouring phantoms are of different families


def run(
    config: Config, workdir: Path, *, resume: bool = False, tell: Tell = silent
) -> dict:
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
        _tensorboard()  # to fail before any work where it is missing
    _prepare(workdir, config, resume)
    tell("build", 0, 1, {})
    operator = data.build(config)
    each = config.data.batch_size // jax.device_count()
    key = jax.random.key(config.seed)
    noise, _, steps_key = jax.random.split(key, 3)
    # The default generator takes a minute to compile for some hundred parameters.
    fresh = jax.random.key(config.seed, impl="unsafe_rbg")
    snr = jnp.asarray(config.data.snr_db, jnp.float32)

    def shapes_of(shard):
        return make_batch(operator, data.observe(operator, shard, 0, snr, noise))

    grid = operator.scanner.grid
    shapes = jax.eval_shape(lambda: shapes_of(data.pictures(0, 0, each, grid)))
    state = jax.jit(partial(init_state, model=model, tx=tx))(fresh, _zeros(shapes))

    def step(state, shard, keys, operator):
        start, shown = shard
        own = jax.random.fold_in(keys[1], state.step)
        batch = make_batch(operator, data.observe(operator, shown, start, snr, keys[0]))
        return train_step(state, batch, own, model=model, tx=tx, axis_name="data")

    compiled = data_parallel(step, replicated=1)
    settings = configs.to_dict(config)
    with checkpoint.manager(workdir / "checkpoints") as store:
        done = 0
        if resume and store.latest_step() is not None:
            done, state = checkpoint.restore(store, state)
        _keep_lines(workdir / "metrics.jsonl", done)
        state, everywhere = replicate(state), replicate(operator)
        pending: collections.deque = collections.deque()
        result, clock, since = {}, time.monotonic(), done
        best = _best_psnr(workdir / "metrics.jsonl")
        with _Log(workdir, config, done) as log:
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
                        config, operator, model.generator, averaged
                    )
                    log.write(done, result)
                    _write_samples(workdir, done, samples)
                    tell("validate", done, config.steps, result)
                    psnr = result["validation_psnr"]
                    checkpoint.save(store, done, state, settings, psnr)
                    if psnr > best:
                        best = psnr
                        _export(workdir, averaged, done, config, result)
                    clock = time.monotonic()
        checkpoint.finish(store)
    return result


def _export(workdir, weights, step, config, result) -> None:
    about = json.loads((workdir / "config.json").read_text())
    about |= {"step": step, "images": step * config.data.batch_size, **result}
    checkpoint.export_weights(workdir / "weights.safetensors", weights, about)


def _best_psnr(path: Path) -> float:
    lines = (json.loads(line) for line in path.read_text().splitlines())
    return max(
        (n["validation_psnr"] for n in lines if "validation_psnr" in n),
        default=-math.inf,
    )


def _zeros(shapes: Any) -> Any:
    """Zeros of the given shapes and dtypes."""
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)


def _drain(pending, workdir) -> dict[str, float]:
    """Mean metrics of the steps since the last line; the guard against NaN."""
    steps, values = zip(*pending, strict=True)
    pending.clear()
    values = jax.device_get(list(values))
    for number, found in zip(steps, values, strict=True):
        if not found["finite"]:
            bad = [k for k, v in found.items() if not np.isfinite(v)]
            raise FloatingPointError(
                f"step {number}: {', '.join(bad) or 'a metric'} not finite; the last "
                f"good checkpoint in {workdir / 'checkpoints'} is kept"
            )
    names = [name for name in values[0] if name != "finite"]
    return {name: float(np.mean([v[name] for v in values])) for name in names}


class _Log(contextlib.AbstractContextManager):
    """Lines of metrics.jsonl, and the same numbers as TensorBoard scalars if wanted."""

    def __init__(self, workdir: Path, config: Config, done: int):
        self.batch_size = config.data.batch_size
        self.file = open(workdir / "metrics.jsonl", "a")
        self.board = None
        if config.tensorboard:
            # Events of steps that a resumed run repeats are dropped on display.
            folder = str(workdir / "tensorboard")
            self.board = _tensorboard().SummaryWriter(folder, purge_step=done + 1)

    def write(self, step: int, numbers: dict, seconds: float = 0.0) -> None:
        line = {"step": step, "images": step * self.batch_size}
        if seconds:
            line["seconds"] = round(seconds, 3)
        self.file.write(json.dumps({**line, **numbers}) + "\n")
        self.file.flush()
        if self.board is not None:
            for name, value in numbers.items():
                self.board.add_scalar(name, value, step)
            self.board.flush()

    def __exit__(self, *_):
        self.file.close()
        if self.board is not None:
            self.board.close()


def _tensorboard():
    try:
        import tensorboardX
    except ImportError:
        raise ValueError(
            "tensorboard: expected tensorboardX to be installed; "
            "pip install 'mpi_jax[tensorboard]', or leave the option out"
        ) from None
    return tensorboardX


def _write_samples(workdir: Path, step: int, samples: dict) -> None:
    """samples/STEP.npz, whole or not at all."""
    (workdir / "samples").mkdir(exist_ok=True)
    content = io.BytesIO()
    np.savez_compressed(content, step=step, **samples)
    write_atomically(workdir / "samples" / f"{step:08d}.npz", content.getvalue())


def _keep_lines(path: Path, step: int) -> None:
    """Drop metrics after the checkpoint that training resumes from, and broken lines."""
    kept = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    write_atomically(path, "".join(f"{line}\n" for line in kept))


def write_atomically(path: Path, content: str | bytes) -> None:
    """The whole file or none of it."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


# Settings that may change between a run and its resumption.
_FREE = (
    *("log_every", "checkpoint_every", "validation_images", "tensorboard"),
    "data.folder",
)


def _prepare(workdir: Path, config: Config, resume: bool) -> None:
    path = workdir / "config.json"
    wanted = json.loads(json.dumps(configs.to_dict(config)))
    if path.exists():
        if not resume:
            raise ValueError(
                f"{workdir}: expected a new folder, but it holds a run; "
                "pass --resume to go on with it"
            )
        have = read_config(workdir)
        have = json.loads(json.dumps(configs.to_dict(have)))
        differing = [
            f"{name} is {have_value!r} there and {wanted_value!r} here"
            for name, have_value, wanted_value in _differences(have, wanted)
            if name not in _FREE
        ]
        if differing:
            raise ValueError(
                f"{workdir}: holds a run of another config: {differing[0]}"
            )
        return
    if workdir.exists() and any(workdir.iterdir()):
        raise ValueError(
            f"{workdir}: expected a new or empty folder, but it holds other files"
        )
    workdir.mkdir(parents=True, exist_ok=True)
    device = jax.local_devices()[0]
    text = {
        "name": config.name,
        "seed": config.seed,
        "version": mpi_jax.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "platform": device.platform,
        "device": f"{jax.local_device_count()} x {device.device_kind}, "
        f"{os.cpu_count()} CPU cores",
        "config": wanted,
    }
    write_atomically(path, json.dumps(text, indent=1))


def _differences(a: dict, b: dict, prefix: str = ""):
    for name in a:
        if isinstance(a[name], dict):
            yield from _differences(a[name], b[name], f"{prefix}{name}.")
        elif a[name] != b[name] and not (_is_nan(a[name]) and _is_nan(b[name])):
            yield prefix + name, a[name], b[name]


def _is_nan(value) -> bool:
    return isinstance(value, float) and math.isnan(value)


def unpack(path: Path, workdir: Path) -> None:
    """Make a work folder out of a weights file: to evaluate and use, not to resume.

    Does nothing where the folder has them already. Raises ValueError where it holds
    something else.
    """
    path, workdir = Path(path), Path(workdir)
    content, about = path.read_bytes(), checkpoint.load_weights(path)[1]
    own = workdir / "weights.safetensors"
    if own.exists() and own.read_bytes() == content:
        return
    if workdir.exists() and any(workdir.iterdir()):
        raise ValueError(
            f"{workdir}: expected a new or empty folder, or one with {path.name} alone"
        )
    workdir.mkdir(parents=True, exist_ok=True)
    write_atomically(workdir / "config.json", json.dumps(about, indent=1))
    write_atomically(own, content)


def read_config(workdir: Path) -> Config:
    """The config of a work folder; ValueError where there is none to read."""
    path = Path(workdir) / "config.json"
    try:
        return configs.from_dict(json.loads(path.read_text())["config"])
    except FileNotFoundError:
        raise ValueError(
            f"{workdir}: expected a work folder of a run, but it has no config.json"
        ) from None
    except (json.JSONDecodeError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: can't be read as a config ({error})") from None


def _commit() -> str | None:
    """Commit of the checkout that the package runs from, None outside of one."""
    here = Path(__file__).resolve().parent
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    tracked = (here.parent / ".git").exists()
    return found.stdout.strip() or None if tracked and found.returncode == 0 else None
