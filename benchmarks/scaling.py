"""How training grows with processes and devices: JSON lines.

    python benchmarks/scaling.py [--config test] [--batch 16] [--repeat 20]

Each of 1 and 2 processes, with 1 and 2 devices each, takes training steps on phantoms that
were drawn before: with --batch images a device (weak scaling), then with --batch images
in all (strong). The peer of every ratio is the one process with one device of the same kind of
scaling. Processes are started by launch/local.sh, as those of a pod see each other, and
each has a processor core of its own where there are enough: `ideal ratio` is the number of
cores, because simulated devices of one process share theirs. Beside the step the all-reduce
of it is timed alone: the mean over devices of arrays as large as all gradients, and of
one array of that size, which shows what is paid by the byte and what by the array.

Medians of --repeat, compilation excluded. `python benchmarks/projection.py` takes it from
there to accelerators, on paper.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
LAYOUTS = [(1, 1), (1, 2), (2, 1), (2, 2)]  # processes, devices of each


def measure(name: str, scaling: str, batch: int, repeat: int) -> dict | None:
    """One line of one layout, by every process of it; the lead's alone comes back."""
    cores = sorted(os.sched_getaffinity(0))
    number = int(os.environ["MPI_JAX_PROCESS_ID"])
    count = int(os.environ["MPI_JAX_NUM_PROCESSES"])
    if len(cores) >= count:
        os.sched_setaffinity(0, {cores[number]})

    import jax
    import jax.numpy as jnp
    import numpy as np

    from mpi_jax import cluster, configs, data, train

    with cluster.join():
        devices = jax.device_count()
        each = batch if scaling == "weak" else batch // devices
        config = configs.get(name)
        size = dataclasses.replace(config.data, batch_size=each * devices)
        config = dataclasses.replace(config, data=size)
        model = train.make_networks(config)
        tx = train.make_optimisers(config.optimiser, config.steps)
        forward = data.build(config)
        place = jax.process_index(), jax.process_count()
        shard = data.training_pictures(config, forward.scanner.grid, place)(0)
        key, snr = jax.random.key(0), np.asarray(config.data.snr_db, np.float32)

        def batch_of(shard, key, forward):
            start, pictures = shard
            examples = data.observe(forward, pictures, start, snr, key)
            return train.make_batch(forward, examples, start)

        def step(state, shard, key, forward):
            train_batch = batch_of(shard, key, forward)
            return train.train_step(
                state, train_batch, key, model=model, tx=tx, axis_name="data"
            )

        def reduce(trees, _, key, forward):
            return jax.lax.pmean(trees, "data"), {}

        @jax.jit
        def init(key, shard):
            train_batch = batch_of(jax.tree.map(lambda a: a[0], shard), key, forward)
            return train.init_state(key, train_batch, model=model, tx=tx)

        state = init(jax.random.key(0, impl="unsafe_rbg"), shard)
        gradients = jax.tree.map(jnp.zeros_like, (state.generator, state.discriminator))
        bytes_ = sum(leaf.nbytes for leaf in jax.tree.leaves(gradients))
        rest = shard, key, train.replicate(forward)
        # Together from here on: the first all-reduce doesn't wait long for a process that
        # is still compiling.
        jax.block_until_ready(state)
        cluster.barrier()
        seconds = timed(step, state, rest, repeat)
        reduction = timed(reduce, gradients, rest, repeat)
        one_array = jnp.zeros(sum(leaf.size for leaf in jax.tree.leaves(gradients)))
        at_once = timed(reduce, one_array, rest, repeat)
        if not cluster.is_lead():
            return None
        return {
            "config": name,
            "scaling": scaling,
            "processes": jax.process_count(),
            "devices": devices,
            "cores": min(count, len(cores)),
            "batch": each * devices,
            "seconds a step": round(seconds, 5),
            "images per second": round(each * devices / seconds, 1),
            "all-reduce: bytes": bytes_,
            "all-reduce: arrays": len(jax.tree.leaves(gradients)),
            "all-reduce: seconds a step": round(reduction, 6),
            "all-reduce: seconds as one array": round(at_once, 6),
            "all-reduce: nanoseconds a byte": round(1e9 * reduction / bytes_, 3),
            "all-reduce: share of the step": round(reduction / seconds, 3),
            "device": f"{jax.devices()[0].device_kind}, {len(cores)} CPU cores",
            "jax": jax.__version__,
        }


def timed(function, state, rest, repeat: int) -> float:
    """Median seconds of a call on all devices, each waited for."""
    import jax
    import numpy as np

    from mpi_jax import train

    compiled, times = train.data_parallel(function, replicated=1), []
    state = train.replicate(state)
    for _ in range(repeat + 2):  # the first compiles, the second fills caches
        start = time.perf_counter()
        state, values = jax.block_until_ready(compiled(state, *rest))
        times.append(time.perf_counter() - start)
    return float(np.median(times[2:]))


def start(processes: int, devices: int, words: list[str]) -> dict:
    """The line of a layout. Ends this program where its processes fail."""
    environment = dict(
        os.environ,
        JAX_PLATFORMS="cpu",
        JAX_NUM_CPU_DEVICES=str(devices),
        # With fewer threads collectives of simulated devices can deadlock.
        NPROC=str(4 * devices),
    )
    command = [sys.executable, __file__, "--measure", *words]
    local = [str(ROOT / "launch" / "local.sh"), str(processes), "--", *command]
    completed = subprocess.run(
        local, env=environment, stdout=subprocess.PIPE, text=True
    )
    if completed.returncode:
        sys.exit(completed.returncode)
    return json.loads(completed.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="test")
    parser.add_argument("--batch", type=int, default=16, help="a multiple of 4")
    parser.add_argument("--repeat", type=int, default=20, help="steps that are timed")
    # What a process of a layout is started with.
    parser.add_argument("--measure", choices=("weak", "strong"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        line = measure(options.config, options.measure, options.batch, options.repeat)
        if line is not None:
            print(json.dumps(line), flush=True)
        return
    if options.batch < 4 or options.batch % 4:
        parser.error(f"--batch: expected a multiple of 4, got {options.batch}")
    rest = ["--config", options.config, "--batch", str(options.batch)]
    rest += ["--repeat", str(options.repeat)]
    for scaling in ("weak", "strong"):
        peer = None
        for processes, devices in LAYOUTS:
            line = start(processes, devices, [scaling, *rest])
            peer = peer or line["images per second"]
            line["ratio"] = round(line["images per second"] / peer, 3)
            line["ideal ratio"] = line["cores"]
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
