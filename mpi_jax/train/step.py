"""The pure training step, and its one pmap."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PRNGKeyArray

from mpi_jax import data
from mpi_jax.configs import OptimiserConfig
from mpi_jax.train import losses
from mpi_jax.train.networks import Networks, Weights, has_statistics


class Batch(NamedTuple):
    """One training batch: what the generator sees, what is true, and each image's
    position in the stream, on which its randomness hangs.
    """

    inputs: data.Inputs
    image: Float[Array, "B ny nx"]
    mask: Float[Array, "B ny nx"]
    position: Int[Array, " B"]


class TrainState(NamedTuple):
    """Everything a step changes.

    average: moving average of the generator, and under "batch_stats" of its batch
    statistics, where it has any. It is what `predict` takes and weights.safetensors holds.
    """

    step: chex.Array  # number of steps done
    generator: chex.ArrayTree
    discriminator: chex.ArrayTree
    average: chex.ArrayTree
    generator_optimiser: optax.OptState
    discriminator_optimiser: optax.OptState


class Optimisers(NamedTuple):
    """optax transformations of both networks and the decay of the average."""

    generator: optax.GradientTransformation
    discriminator: optax.GradientTransformation
    ema: float


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


def with_weights(state: TrainState, weights: Weights, where: str) -> TrainState:
    """A fresh state whose generator is another's. where: their file, for complaints.

    Raises ValueError for the weights of another network.
    """
    expected, got = (
        {"/".join(k): jnp.shape(v) for k, v in flatten_dict(tree).items()}
        for tree in (state.average, dict(weights))
    )
    for name in sorted(expected.keys() | got.keys()):
        if expected.get(name) != got.get(name):
            raise ValueError(
                f"{where}: expected the weights of this generator, with {name} of shape "
                f"{expected.get(name, 'none')}, got {got.get(name, 'none')}; start from "
                "weights of a config with the same generator and size"
            )
    average = jax.tree.map(
        lambda mine, given: jnp.asarray(given, mine.dtype), state.average, dict(weights)
    )
    generator = {n: jax.tree.map(jnp.copy, average[n]) for n in state.generator}
    return state._replace(generator=generator, average=average)


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
    _check_batch(batch)
    # Whose scores depend on the batch gets true and made images apart.
    separate = model.discriminator is not None and has_statistics(model.discriminator)

    def apply(network, params, *arguments):
        # Mutable: in training the statistics are those of the batch, and come back.
        if axis_name is not None and has_statistics(network):
            network = network.clone(axis_name=axis_name)
        return network.apply({"params": params}, *arguments, mutable=["batch_stats"])

    def critic(params, images):
        return apply(model.discriminator, params, images[..., None])[0]

    def generator_loss(params, batch):
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
        return total, (terms, (out.reconstruction, statistics))

    def critic_loss(params, batch, reconstruction, key):
        if loss.kind == "wgangp":
            keys = jax.vmap(partial(jax.random.fold_in, key))(batch.position)
            alpha = jax.vmap(jax.random.uniform)(keys)
            value = losses.discriminator_wgangp(
                partial(critic, params), batch.image, reconstruction, alpha
            )
        elif separate:  # as the DCGAN has them
            value = losses.discriminator_bce(
                critic(params, batch.image), critic(params, reconstruction)
            )
        else:
            scores = critic(params, jnp.concatenate([batch.image, reconstruction]))
            value = losses.discriminator_bce(*jnp.split(scores, 2))
        return value, ((), ())

    def mean_of_devices(tree):
        if axis_name is None:
            return tree
        # As one array: processes on CPUs pay for each array, hardly for its size.
        flat, tree_of = ravel_pytree(tree)
        return tree_of(jax.lax.pmean(flat, axis_name))

    slope_of = partial(_slope, parts=model.accumulate)
    total, terms, slope, (reconstruction, statistics) = slope_of(
        generator_loss, state.generator, batch
    )
    values, slope = mean_of_devices(({"generator_loss": total, **terms}, slope))
    norm = optax.tree.norm(slope)
    updates, generator_optimiser = tx.generator.update(
        slope, state.generator_optimiser, state.generator
    )
    generator = optax.apply_updates(state.generator, updates)

    def update_critic(carry, key):
        params, optimiser = carry
        fake = jax.lax.stop_gradient(reconstruction)
        value, _, slope, _ = slope_of(critic_loss, params, batch, fake, key=key)
        value, slope = mean_of_devices((value, slope))
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
    after = TrainState(
        state.step + 1,
        generator,
        discriminator[0],
        average,
        generator_optimiser,
        discriminator[1],
    )
    # Another dtype or structure would compile the next step anew.
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
    return after, values


def _slope(
    loss: Callable, params: chex.ArrayTree, batch: Batch, *images, parts, **others
):
    """Value, terms and slope of a loss, means over a batch, and what it gives of each image.

    loss(params, batch, *images, **others) -> value, (terms, of each image). The batch is
    taken in so many parts, one after another: activations of one are kept at a time.
    """
    graded = jax.value_and_grad(loss, has_aux=True)

    def of(batch, *images):
        (value, (terms, each)), slope = graded(params, batch, *images, **others)
        return (value, terms, slope), each

    if parts == 1:
        means, each = of(batch, *images)
        return *means, each

    def cut(tree):
        return jax.tree.map(lambda a: a.reshape(parts, -1, *a.shape[1:]), tree)

    # Of what is measured, the singular basis belongs to no image.
    coefficients, *basis = batch.inputs.measured or (None,)
    alone = batch._replace(inputs=batch.inputs._replace(measured=None))

    def add(total, part):
        batch, coefficients, *images = part
        if basis:
            inputs = batch.inputs._replace(measured=(coefficients, *basis))
            batch = batch._replace(inputs=inputs)
        means, each = of(batch, *images)
        return jax.tree.map(lambda t, m: t + m / parts, total, means), each

    shapes, _ = jax.eval_shape(of, batch, *images)
    means, each = jax.lax.scan(add, zeros(shapes), cut((alone, coefficients, *images)))
    each = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), each)
    return *means, each


Tree = TypeVar("Tree")


def zeros(shapes: Tree) -> Tree:
    """Zeros of the shapes and dtypes that jax.eval_shape gives."""
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)


def _check_batch(batch: Batch) -> None:
    """An image, a mask and a signal each; looked at while tracing, costs no run time."""
    chex.assert_equal_shape([batch.image, batch.mask])
    examples = batch.inputs.signal, batch.inputs.features, batch.inputs.base
    each = batch.image, batch.position, examples
    chex.assert_tree_shape_prefix(each, (len(batch.image),))


# What runs a step on all devices: "pmap", or its twin "shard_map", which gives the same
# bits and is what JAX wants new programs to use.
PARALLEL = "pmap"


def data_parallel(
    step: Callable, replicated: int = 0, *, by: str = PARALLEL
) -> Callable:
    """`step(state, batch, key, *replicated)` over all devices, state donated.

    The step must average over the axis "data". Every leaf of batch has a leading axis of
    one entry for each device of this process; state, key and the `replicated` further
    arguments are the same on all devices and carry no such axis, nor does the result. Put
    the state on the devices with `replicate` first: a donated argument can't be moved.
    """
    if by == "pmap":
        return jax.pmap(
            step,
            axis_name="data",
            in_axes=(None, 0, None) + (None,) * replicated,
            out_axes=None,
            donate_argnums=0,
        )
    mesh, everywhere, split = _mesh(by), jax.P(), jax.P("data")

    def of_device(state, batch, key, *others):
        return step(state, jax.tree.map(lambda a: a[0], batch), key, *others)

    compiled = jax.jit(
        jax.shard_map(
            of_device,
            mesh=mesh,
            in_specs=(everywhere, split, everywhere) + (everywhere,) * replicated,
            out_specs=everywhere,
            check_vma=False,
        ),
        donate_argnums=0,
    )
    sharding = jax.NamedSharding(mesh, split)

    def run(state, batch, key, *others):
        shares = jax.tree.map(
            lambda a: jax.make_array_from_process_local_data(sharding, np.asarray(a)),
            batch,
        )
        return compiled(state, shares, key, *others)

    return run


def replicate(tree: Tree, *, by: str = PARALLEL) -> Tree:
    """The tree on every device that `data_parallel` wants it on."""
    return jax.device_put(tree, jax.NamedSharding(_mesh(by), jax.P()))


def _mesh(by: str) -> jax.sharding.Mesh:
    """pmap takes what lies on this process's devices, shard_map what lies on all."""
    if by not in ("pmap", "shard_map"):
        raise ValueError(f"by: expected pmap or shard_map, got {by!r}")
    devices = jax.local_devices() if by == "pmap" else jax.devices()
    return jax.sharding.Mesh(np.array(devices), ("data",))


def make_batch(
    forward: data.ForwardModel, examples: data.Examples, start: Int[Array, ""] | int
) -> Batch:
    """Examples from position `start` of the stream, as the networks take them."""
    inputs = data.inputs(forward, examples.voltage)
    position = start + jnp.arange(len(examples.image))
    return Batch(inputs, examples.image, examples.mask, position)
