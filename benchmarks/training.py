"""Where the time of one training step goes: JSON lines with the share of each part.

    python benchmarks/training.py [--configs table64_dual table64_physics] [--repeat 9]

Each part is a jitted function of its own, timed on data that the part before it made:
drawing phantoms, their signals with noise, classical images (with physics features),
the generator forward, its loss forward and backward (with the critic's score of its
images where there is one), the critic's own loss forward and backward, both optimisers
with the moving average. Beside them the whole step as train.run compiles it. Medians,
compilation excluded, parts in turns; the sum of the parts need not be the whole, which
XLA compiles as one program.
"""

import argparse
import json
import os
import time

# One device, as a run on a CPU has it.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "1")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

from mpi_jax import configs, data, phantoms, system_matrix, train
from mpi_jax.noise import add_noise


def parts(config: configs.Config) -> dict:
    """Name -> (function, arguments) of every part of a step, and of the whole step."""
    model = train.make_networks(config)
    tx = train.make_optimisers(config.optimiser, config.steps)
    forward = data.build(config)
    size, key = config.data.batch_size, jax.random.key(0)
    snr = jnp.asarray(config.data.snr_db, jnp.float32)
    grid = forward.scanner.grid
    made = data.draw(forward, "train", 0, size, config.data.snr_db, key)
    batch = jax.jit(train.make_batch)(forward, made, 0)
    init = jax.jit(lambda key, b: train.init_state(key, b, model=model, tx=tx))
    state = init(key, batch)

    def signals(forward, image, key):
        u = system_matrix.forward(forward.matrix, image)
        keys = jax.random.split(key, size)
        return jax.vmap(add_noise, (0, 0, None))(keys, u, snr[0])

    def forward(params, inputs):
        return model.generator.apply({"params": params}, *inputs)

    def critic(params, images):
        return model.discriminator.apply({"params": params}, images[..., None])

    def generator_loss(params, critic_params, batch):
        out = forward(params, batch.inputs)
        total = train.losses.mae(out.reconstruction, batch.image)
        if out.segmentation is not None:
            total += train.losses.bce(out.segmentation, batch.mask)
            total += train.losses.dice(out.segmentation, batch.mask)
        if model.discriminator is not None:
            total += train.losses.generator_bce(
                critic(critic_params, out.reconstruction)
            )
        return total

    def critic_loss(params, image, made):
        both = critic(params, jnp.concatenate([image, made]))
        return train.losses.discriminator_bce(*jnp.split(both, 2))

    def optimise(state, slope, critic_slope):
        updates, one = tx.generator.update(slope, state.generator_optimiser)
        params = optax.apply_updates(state.generator, updates)
        updates, two = tx.discriminator.update(
            critic_slope, state.discriminator_optimiser
        )
        critic_params = optax.apply_updates(state.discriminator, updates)
        average = optax.incremental_update(params, state.average, 0.01)
        return params, critic_params, average, one, two

    def whole(state, made, forward, key):
        made = train.make_batch(forward, made, 0)
        return train.train_step(state, made, key, model=model, tx=tx)

    slope = (state.generator, state.discriminator)
    found = {
        "draw phantoms": (lambda: phantoms.batch(0, 0, size, grid), ()),
        "signals, noise": (signals, (forward, made.image, key)),
        "inputs": (data.inputs, (forward, made.voltage)),
        "generator forward": (forward, (state.generator, batch.inputs)),
        "generator loss and slope": (
            jax.grad(generator_loss),
            (state.generator, state.discriminator, batch),
        ),
    }
    if model.discriminator is not None:
        found["critic loss and slope"] = (
            jax.grad(critic_loss),
            (state.discriminator, batch.image, batch.image),
        )
    found["optimisers, average"] = (optimise, (state, *slope))
    found["step without data"] = (whole, (state, made, forward, key))
    return {name: (jax.jit(f), arguments) for name, (f, arguments) in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--configs", nargs="+", default=["table64_dual", "table64_physics"]
    )
    parser.add_argument("--repeat", type=int, default=9, help="timings of each part")
    options = parser.parse_args()
    for name in options.configs:
        config = configs.get(name)
        made = parts(config)
        seconds = {part: [] for part in made}
        for function, arguments in made.values():
            jax.block_until_ready(function(*arguments))
        for _ in range(options.repeat):
            for part, (function, arguments) in made.items():
                start = time.perf_counter()
                jax.block_until_ready(function(*arguments))
                seconds[part].append(time.perf_counter() - start)
        median = {part: float(np.median(times)) for part, times in seconds.items()}
        # A step: phantoms, their signals, then what the training loop compiles as one.
        step = sum(
            median[p] for p in ("draw phantoms", "signals, noise", "step without data")
        )
        line = {
            "config": name,
            "batch": config.data.batch_size,
            "seconds a step": round(step, 4),
            "images per second": round(config.data.batch_size / step, 1),
            "shares of the step": {p: round(t / step, 3) for p, t in median.items()},
            "device": f"{jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores",
            "jax": jax.__version__,
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
