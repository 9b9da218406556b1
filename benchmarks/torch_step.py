"""The training step of mpi_jax.train.train_step in PyTorch, with BCE adversaries.

Both networks are updated from the same parameters, with one pass of the generator: Adam
with warm-up and gradient clipping for each, then the moving average of the generator.
"""

import copy
import math
import os
from functools import partial

import jax
import numpy as np
import optax
import torch
import torch.nn.functional as F
from torch import nn
from torch_networks import Discriminator, Generator, count, load, named

from mpi_jax import train
from mpi_jax.configs import Config, OptimiserConfig
from mpi_jax.models import transgan

THREADS = len(os.sched_getaffinity(0))  # as XLA has
torch.set_num_threads(THREADS)
# Largest relative differences that `check` lets pass: of images and losses, of a network's
# gradient, and of a single parameter's, which one ReLU that rounding turns on or off
# changes by a hundredth where few pixels have a slope.
LIMITS = {
    "output": 1e-4,
    "loss": 1e-4,
    "gradient": 1e-3,
    "gradient of a parameter": 0.05,
}


def tensors(batch: train.Batch) -> train.Batch:
    """A batch of arrays as one of PyTorch's tensors."""

    def tensor(value):
        if value is None:
            return None
        if isinstance(value, tuple):
            return tuple(map(tensor, value))
        return torch.from_numpy(np.array(value))

    inputs = type(batch.inputs)(*map(tensor, batch.inputs))
    return train.Batch(inputs, *map(tensor, batch[1:]))


def dice(logit, mask, epsilon: float = 1.0):
    """Soft Dice loss of each image, averaged."""
    probability = logit.sigmoid()
    both = (probability * mask).sum((1, 2))
    total = probability.sum((1, 2)) + mask.sum((1, 2))
    return (1 - (2 * both + epsilon) / (total + epsilon)).mean()


def rate(config: OptimiserConfig, steps: int, step: int) -> float:
    """Share of the peak learning rate at a step: warm-up, then constant or cosine."""
    if step < config.warmup:
        return step / config.warmup
    if config.schedule == "constant":
        return 1.0
    done = (step - config.warmup) / (steps - config.warmup)
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


class Optimiser:
    """Adam of one network, with clipping and the schedule of a config."""

    def __init__(self, network: nn.Module, peak: float, config: Config):
        settings = config.optimiser
        self.parameters, self.clip = list(network.parameters()), settings.clip
        self.adam = torch.optim.Adam(
            self.parameters, peak, (settings.b1, settings.b2), fused=True
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.adam, lambda step: rate(settings, config.steps, step)
        )

    def update(self) -> torch.Tensor:
        """One step along the gradients, which are then cleared; returns their norm."""
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.adam.step()
        self.schedule.step()
        self.adam.zero_grad()
        return norm


def expect_peer(config: Config, model: train.Networks) -> None:
    """ValueError for a config whose steps have no peer here."""
    generator, critic = model.generator, model.discriminator
    ours = isinstance(generator, transgan.Generator)
    ours &= isinstance(critic, transgan.Discriminator | None)
    if not ours or config.loss.kind != "bce" or config.data.accumulate != 1:
        raise ValueError(
            f"{config.name}: expected networks of models.transgan, loss.kind bce and "
            "data.accumulate 1, for which there is a peer in PyTorch"
        )
    if config.dtype != "float32" or config.remat:
        raise ValueError(f"{config.name}: expected dtype float32 and no remat")


class Training:
    """Both networks of a config with the weights of a state of ours, and their updates.

    Raises ValueError as `expect_peer` does.
    """

    def __init__(self, config: Config, model: train.Networks, state):
        expect_peer(config, model)
        self.loss, self.ema, self.step = config.loss, config.optimiser.ema, 0
        settings = config.optimiser
        self.generator = Generator(model.generator.config)
        load(self.generator, state.generator)
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        self.optimiser = Optimiser(self.generator, settings.learning_rate, config)
        self.critic = None
        if model.discriminator is not None:
            self.critic = Discriminator(model.discriminator.config)
            load(self.critic, state.discriminator)
            self.critic_optimiser = Optimiser(
                self.critic, settings.discriminator_rate, config
            )

    def generator_loss(self, batch: train.Batch):
        """The weighted sum, its terms and the images, which the critic gets next."""
        image, segmentation = self.generator(*batch.inputs)
        terms = {"mae": F.l1_loss(image, batch.image)}
        if segmentation is not None:
            mask = batch.mask
            terms["bce"] = F.binary_cross_entropy_with_logits(segmentation, mask)
            terms["dice"] = dice(segmentation, mask)
        if self.critic is not None:
            # Slopes of the images alone are asked of it here.
            self.critic.requires_grad_(False)
            terms["adversarial"] = F.softplus(-self.critic(image[..., None])).mean()
            self.critic.requires_grad_(True)
        total = sum(getattr(self.loss, name) * term for name, term in terms.items())
        return total, terms, image.detach()

    def critic_loss(self, batch: train.Batch, made):
        both = self.critic(torch.cat([batch.image, made])[..., None])
        true, false = both.chunk(2)
        return F.softplus(-true).mean() + F.softplus(false).mean()

    def __call__(self, batch: train.Batch) -> dict[str, float]:
        """One step; the metrics of train_step."""
        total, terms, made = self.generator_loss(batch)
        total.backward()
        norm = self.optimiser.update()
        values = {"generator_loss": total, **terms}
        if self.critic is not None:
            for _ in range(self.loss.critic_steps):
                value = self.critic_loss(batch, made)
                value.backward()
                critic_norm = self.critic_optimiser.update()
            values["discriminator_loss"] = value
            norm = torch.hypot(norm, critic_norm)
        decay = min(self.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.parameters()),
                list(self.generator.parameters()),
                1 - decay,
            )
        self.step += 1
        return {name: v.item() for name, v in {**values, "gradient_norm": norm}.items()}


def check(
    config: Config, model: train.Networks, batch: train.Batch, state
) -> dict[str, float]:
    """Compare with train_step, from one state; the largest relative differences.

    Of images in their largest value, of gradients in their norm. Ends the program where
    they are above LIMITS, or where numbers of parameters differ.
    """
    training, tensors_ = Training(config, model, state), tensors(batch)
    networks = [(training.generator, state.generator)]
    if training.critic is not None:
        networks.append((training.critic, state.discriminator))
    for network, params in networks:
        ours = sum(leaf.size for leaf in jax.tree.leaves(params))
        if count(network) != ours:
            raise SystemExit(f"{ours} parameters, in PyTorch {count(network)}")
    images = jax.jit(model.generator.apply)({"params": state.generator}, *batch.inputs)
    # An optimiser that keeps the gradient as it comes: train_step's own losses.
    keep = optax.trace(0.0)
    state = state._replace(
        generator_optimiser=keep.init(state.generator),
        discriminator_optimiser=keep.init(state.discriminator),
    )
    tx = train.Optimisers(keep, keep, config.optimiser.ema)
    step = jax.jit(partial(train.train_step, model=model, tx=tx))
    after, values = step(state, batch, jax.random.key(0))

    with torch.no_grad():
        theirs = training.generator(*tensors_.inputs)
    total, _, made = training.generator_loss(tensors_)
    total.backward()
    found = dict.fromkeys(LIMITS, 0.0)

    def note(name, difference):
        found[name] = max(found[name], float(difference))

    note("loss", _off(total, values["generator_loss"]))
    for mine, other in zip(images, theirs, strict=True):
        if mine is not None:
            gap = np.abs(np.asarray(mine) - other.numpy()).max()
            note("output", gap / np.abs(mine).max())
    kept = [after.generator_optimiser.trace]
    if training.critic is not None:
        value = training.critic_loss(tensors_, made)
        value.backward()
        note("loss", _off(value, values["discriminator_loss"]))
        kept.append(after.discriminator_optimiser.trace)
    for (network, _), slopes in zip(networks, kept, strict=True):
        slopes = named(network, slopes)
        gaps = {n: p.grad.numpy() - slopes[n] for n, p in network.named_parameters()}
        whole = _norm(slopes.values())
        note("gradient", _norm(gaps.values()) / whole)
        for name, gap in gaps.items():
            size = max(_norm([slopes[name]]), 1e-7 * whole)  # below: zero, rounded
            note("gradient of a parameter", _norm([gap]) / size)
    if not all(found[name] <= limit for name, limit in LIMITS.items()):
        raise SystemExit(f"{config.name}: PyTorch and JAX disagree: {found}")
    return found


def _norm(arrays) -> float:
    return math.sqrt(sum(float(np.sum(np.square(a))) for a in arrays))


def _off(theirs: torch.Tensor, ours: jax.Array) -> float:
    return abs(theirs.item() / float(ours) - 1)


def product(a: np.ndarray):
    """A function without arguments that multiplies a square matrix with itself."""
    tensor = torch.from_numpy(a)
    return lambda: tensor @ tensor
