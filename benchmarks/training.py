"""Where the time of one training step goes, and how fast PyTorch is: JSON lines.

    python benchmarks/training.py [--configs table64_dual table64_physics] [--repeat 9]
    python benchmarks/training.py --peer torch --configs table64_dual small64

Without a peer, each part is a jitted function of its own, timed on data that the part
before it made: drawing phantoms, their signals with noise, classical images (with
physics features), the generator forward, its loss forward and backward (with the
critic's score of its images where there is one), the critic's own loss forward and
backward, both optimisers with the moving average. Beside them the whole step as
train.run compiles it. Medians, compilation excluded, parts in turns; the sum of the
parts need not be the whole, which XLA compiles as one program.

With --peer torch, steps of both networks on one ready batch are timed in turns with the
same steps in PyTorch, which starts from the same weights: networks, losses, clipping,
Adam, moving average (torch_networks.py, torch_step.py). Numbers of parameters, outputs
and gradients are compared first, the losses behind the last step, too. Also in turns:
steps as train.run has them, with phantoms drawn and signals simulated (the loop), and a
large matrix product in each library, whose best rate is the peak that shares are of.
`times as fast` is the median of the ratios of each repetition; the ratio of processor
time (all threads, waiting ones too) is given beside it, for a machine with other work.
A step's GFLOP are those of its matrix products and convolutions, counted in the traced
program without what our CPU path computes twice to save memory (`as run` has that, too).

Memory and compilation are set as `mpi-jax` sets them, for the whole process.
"""

import argparse
import dataclasses
import json
import math
import os
import time
from functools import partial
from unittest import mock

# One device, as a run on a CPU has it.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "1")

from mpi_jax.cli.environment import keep_memory, quick_compilation  # noqa: E402

keep_memory()
quick_compilation()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from counting import multiply_adds  # noqa: E402

from mpi_jax import configs, data, phantoms, system_matrix, train  # noqa: E402
from mpi_jax.noise import add_noise  # noqa: E402

GEMM = 2048  # rows and columns of the product that shows the peak


@dataclasses.dataclass
class Setup:
    """What steps of a config are taken with: one batch, as examples and as inputs."""

    config: configs.Config
    model: train.Networks
    tx: train.Optimisers
    forward: data.ForwardModel
    made: data.Examples
    batch: train.Batch
    state: tuple  # train.init_state's

    @classmethod
    def of(cls, config: configs.Config) -> "Setup":
        model = train.make_networks(config)
        tx = train.make_optimisers(config.optimiser, config.steps)
        forward = data.build(config)
        size, key = config.data.batch_size, jax.random.key(0)
        made = data.draw(forward, "train", 0, size, config.data.snr_db, key)
        batch = jax.jit(train.make_batch)(forward, made, 0)
        init = jax.jit(lambda key, b: train.init_state(key, b, model=model, tx=tx))
        return cls(config, model, tx, forward, made, batch, init(key, batch))

    def step(self, state, batch, key):
        """One training step on a ready batch."""
        return train.train_step(state, batch, key, model=self.model, tx=self.tx)


def parts(config: configs.Config) -> dict:
    """Name -> (function, arguments) of every part of a step, and of the whole step."""
    setup = Setup.of(config)
    model, tx, state, batch = setup.model, setup.tx, setup.state, setup.batch
    forward, made = setup.forward, setup.made
    size, key = config.data.batch_size, jax.random.key(0)
    snr = jnp.asarray(config.data.snr_db, jnp.float32)
    grid = forward.scanner.grid

    def signals(forward, image, key):
        u = system_matrix.forward(forward.matrix, image)
        keys = jax.random.split(key, size)
        return jax.vmap(add_noise, (0, 0, None))(keys, u, snr[0])

    def generate(params, inputs):
        return model.generator.apply({"params": params}, *inputs)

    def critic(params, images):
        return model.discriminator.apply({"params": params}, images[..., None])

    def generator_loss(params, critic_params, batch):
        out = generate(params, batch.inputs)
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
        return setup.step(state, train.make_batch(forward, made, 0), key)

    slope = (state.generator, state.discriminator)
    found = {
        "draw phantoms": (lambda: phantoms.batch(0, 0, size, grid), ()),
        "signals, noise": (signals, (forward, made.image, key)),
        "inputs": (data.inputs, (forward, made.voltage)),
        "generator forward": (generate, (state.generator, batch.inputs)),
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


def shares(config: configs.Config, repeat: int) -> dict:
    """The line of a config without a peer."""
    made = parts(config)
    seconds = {part: [] for part in made}
    for function, arguments in made.values():
        jax.block_until_ready(function(*arguments))
    for _ in range(repeat):
        for part, (function, arguments) in made.items():
            start = time.perf_counter()
            jax.block_until_ready(function(*arguments))
            seconds[part].append(time.perf_counter() - start)
    median = {part: float(np.median(times)) for part, times in seconds.items()}
    # A step: phantoms, their signals, then what the training loop compiles as one.
    step = sum(
        median[p] for p in ("draw phantoms", "signals, noise", "step without data")
    )
    return {
        "config": config.name,
        "batch": config.data.batch_size,
        "seconds a step": round(step, 4),
        "images per second": round(config.data.batch_size / step, 1),
        "shares of the step": {p: round(t / step, 3) for p, t in median.items()},
    }


def gflop(setup: Setup) -> tuple[float, float]:
    """Of a step's products and convolutions: needed, and as this backend runs them.

    The layers ask JAX for its backend and take their plain form where it's no CPU.
    """
    counted = []
    for backend in ("none", jax.default_backend()):
        with mock.patch.object(jax, "default_backend", lambda backend=backend: backend):
            # A function of its own each time: JAX keeps what it traced.
            step = partial(setup.step)
            program = jax.make_jaxpr(step)(setup.state, setup.batch, jax.random.key(0))
        counted.append(2e-9 * multiply_adds(program.jaxpr))
    return counted[0], counted[1]


class Ours:
    """Steps on a ready batch, one call each."""

    def __init__(self, setup: Setup):
        self.compiled = jax.jit(setup.step, donate_argnums=0)
        self.state = jax.tree.map(jnp.copy, setup.state)
        self.rest = setup.batch, jax.random.key(0)
        self.values = {}

    def __call__(self) -> None:
        self.state, self.values = self.compiled(self.state, *self.rest)

    def wait(self) -> None:
        jax.block_until_ready(self.state)


class Loop:
    """Steps as train.run takes them: each on pictures that are drawn for it."""

    def __init__(self, setup: Setup):
        config, self.done = setup.config, 0
        self.pictures = data.training_pictures(config, setup.forward.scanner.grid)
        snr = jnp.asarray(config.data.snr_db, jnp.float32)

        def step(state, shard, key, snr, forward):
            start, pictures = shard
            made = data.observe(forward, pictures, start, snr, key)
            batch = train.make_batch(forward, made, start)
            key = jax.random.fold_in(key, state.step)
            return train.train_step(
                state, batch, key, model=setup.model, tx=setup.tx, axis_name="data"
            )

        self.compiled = train.data_parallel(step, replicated=2)
        self.rest = jax.random.key(0), snr, train.replicate(setup.forward)
        self.state = train.replicate(jax.tree.map(jnp.copy, setup.state))

    def __call__(self) -> None:
        self.state, _ = self.compiled(self.state, self.pictures(self.done), *self.rest)
        self.done += 1

    def wait(self) -> None:
        jax.block_until_ready(self.state)


def timed(function, wait, times: int) -> np.ndarray:
    """Seconds of a call, wall and processor."""
    start = time.perf_counter(), time.process_time()
    for _ in range(times):
        function()
    wait()
    return (np.array([time.perf_counter(), time.process_time()]) - start) / times


def compare(config: configs.Config, repeat: int, peer) -> dict:
    """The line of a config beside its peer, the module torch_step."""
    setup = Setup.of(config)
    # Heads that start at zero would hide the layers before them.
    leaves, tree = jax.tree.flatten((setup.state.generator, setup.state.discriminator))
    rng = np.random.default_rng(0)
    rough = [leaf + 0.02 * rng.normal(size=leaf.shape) for leaf in leaves]
    rough = [jnp.asarray(leaf, jnp.float32) for leaf in rough]
    generator, critic = jax.tree.unflatten(tree, rough)
    setup.state = setup.state._replace(
        generator=generator, discriminator=critic, average=generator
    )
    differences = peer.check(config, setup.model, setup.batch, setup.state)
    training = peer.Training(config, setup.model, setup.state)
    batch, theirs = peer.tensors(setup.batch), {}

    def torch_step():
        theirs.update(training(batch))

    ours, loop = Ours(setup), Loop(setup)
    a = rng.normal(size=(GEMM, GEMM)).astype(np.float32)
    product, operand = jax.jit(jnp.matmul), jnp.asarray(a)
    steps = {
        "ours": (ours, ours.wait),
        "torch": (torch_step, lambda: None),
        "ours with data, the loop": (loop, loop.wait),
    }
    products = {
        "ours": (lambda: product(operand, operand).block_until_ready(), lambda: None),
        "torch": (peer.product(a), lambda: None),
    }
    for function, wait in (*steps.values(), *products.values()):
        timed(function, wait, 2)
    # Turns of about a second, and of more than one step: the loop draws ahead.
    turn = max(2, math.ceil(1 / timed(*steps["ours"], 1)[0]))
    taken = 3 + repeat * turn
    timed(*steps["torch"], 1)
    seconds = {name: np.zeros((repeat, 2)) for name in steps}
    best = dict.fromkeys(products, np.inf)
    for row in range(repeat):
        for name, (function, wait) in steps.items():
            seconds[name][row] = timed(function, wait, turn)
        for name, (function, wait) in products.items():
            best[name] = min(best[name], timed(function, wait, 1)[0])
    losses = {
        name: [float(ours.values[name]), theirs[name]]
        for name in ("generator_loss", "discriminator_loss")
        if name in theirs
    }
    for name, (mine, other) in losses.items():
        if not abs(mine - other) <= 0.02 * abs(other):
            raise SystemExit(
                f"{config.name}: {name} after {taken} steps: {mine} and {other}"
            )
    needed, as_run = gflop(setup)
    median = {name: float(np.median(s[:, 0])) for name, s in seconds.items()}
    faster = np.median(seconds["torch"] / seconds["ours"], axis=0)
    rates = {name: needed / median[name] for name in ("ours", "torch")}
    peaks = {name: 2e-9 * GEMM**3 / best[name] for name in products}
    peak = max(peaks.values())
    size = config.data.batch_size
    return {
        "config": config.name,
        "batch": size,
        "peer": "torch",
        "times as fast": _short(faster[0]),
        "times as fast in processor time": _short(faster[1]),
        "images per second": {n: _short(size / s) for n, s in median.items()},
        "GFLOP a step": _short(needed),
        "GFLOP a step as run": _short(as_run),
        "GFLOP per second": {n: _short(rate) for n, rate in rates.items()},
        "GFLOP per second of a matrix product": {
            n: _short(p) for n, p in peaks.items()
        },
        "share of the peak": {n: _short(rate / peak) for n, rate in rates.items()},
        "differences": {n: float(f"{d:.1e}") for n, d in differences.items()},
        f"losses after {taken} steps": losses,
        "repetitions": repeat,
        "steps a turn": turn,
        "threads of torch": peer.THREADS,
        "torch": peer.torch.__version__,
    }


def _short(number: float) -> float:
    return float(f"{number:.3g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--configs", nargs="+", default=["table64_dual", "table64_physics"]
    )
    parser.add_argument("--repeat", type=int, default=9, help="timings of each part")
    parser.add_argument("--batch", type=int, help="images a step (the config's)")
    parser.add_argument("--peer", choices=["torch"], help="compare steps with its")
    options = parser.parse_args()
    if options.peer:
        try:
            import torch_step
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            parser.error("--peer torch needs PyTorch, on CPUs: pip install torch")
    for name in options.configs:
        config = configs.get(name)
        if options.batch:
            size = dataclasses.replace(config.data, batch_size=options.batch)
            config = dataclasses.replace(config, data=size)
        if options.peer:
            try:
                torch_step.expect_peer(config, train.make_networks(config))
            except ValueError as error:
                parser.error(str(error))
            line = compare(config, options.repeat, torch_step)
        else:
            line = shares(config, options.repeat)
        line["device"] = f"{jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores"
        line["jax"] = jax.__version__
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
