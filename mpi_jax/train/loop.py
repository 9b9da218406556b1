"""Training: a pure step for both networks, the one pmap, and the loop around them.

Loss of the generator: mae |x^ - x| + bce BCE(z, m) + dice Dice(z, m) + adversarial term,
weights in the config (the paper's are 20, 5, 5). Generator and discriminator are updated
in the same step from the same parameters, with one pass of the generator: where the
discriminator has several updates a step, all of them see the images of that pass.

A work folder holds config.json (settings, seed, versions, starts), metrics.jsonl,
checkpoints/, samples/ (the validation images 0 to 5, one of each family, as reconstructed
at every validation), tensorboard/ where asked for, and weights.safetensors, the averaged
generator of the best validation so far. With several processes (`cluster`) the lead
writes it and all look at it.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import json
import math
import platform
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from mpi_jax import cluster, configs, data, runs
from mpi_jax._checks import expect
from mpi_jax._progress import Stopped, Tell, silent
from mpi_jax.configs import Config
from mpi_jax.pretrained import load_weights
from mpi_jax.train import checkpoint
from mpi_jax.train.networks import Networks, check_signal, make_networks
from mpi_jax.train.step import (
    TrainState,
    data_parallel,
    init_state,
    make_batch,
    make_optimisers,
    replicate,
    train_step,
    with_weights,
    zeros,
)
from mpi_jax.train.validation import make_validation

Step = Callable[[TrainState, int], tuple[TrainState, dict[str, chex.Array]]]
PicturesOf = Callable[[int], data.Shards]  # of a step


def run(
    config: Config,
    workdir: Path,
    *,
    resume: bool = False,
    init: Path | None = None,
    tell: Tell = silent,
) -> dict[str, float]:
    """Train a config in a work folder; returns the last validation metrics.

    resume: go on from the newest checkpoint that is whole (or from the start where there
    is none yet) with the same result as a run that was never stopped. init: a weights
    file, whose generator training starts from. Inside `cluster.join(stops=True)` a signal
    ends training after the step that is under way, with a checkpoint.

    Raises ValueError for a folder that holds a run already (without resume), a run of
    another config (with it) or that another training is at work in, FloatingPointError
    naming the first step whose numbers aren't finite, Stopped after a signal.
    """
    workdir = Path(workdir)
    model, shards = _checked(config)
    settings = json.dumps(configs.to_dict(config), sort_keys=True)
    cluster.check_equal("config", hashlib.sha256(settings.encode()).hexdigest()[:12])
    with contextlib.ExitStack() as stack:

        def prepare() -> None:
            workdir.mkdir(parents=True, exist_ok=True)
            died = stack.enter_context(runs.locked(workdir))
            runs.prepare(workdir, config, resume, init)
            if died:
                words = f"{workdir}: takes over from {died}, which died"
                warnings.warn(words, stacklevel=2)
            runs.sweep(workdir)

        cluster.on_lead(prepare)
        cluster.check_shared(workdir)
        tell("build", 0, 1, {})
        return _Training(config, workdir, model, shards, tell).run()


def _checked(config: Config) -> tuple[Networks, PicturesOf]:
    """The networks of a config and its pictures by step; ValueError for settings that
    can't be trained, before any work.
    """
    make_optimisers(config.optimiser, config.steps)
    for name in ("steps", "checkpoint_every", "log_every"):
        value = getattr(config, name)
        expect(value >= 1, name, "a number >= 1", value)
    for name in ("validate_every", "checkpoint_minutes"):
        value = getattr(config, name)
        expect(value >= 0, name, "a number >= 0", value)
    scanner = data.make_scanner(config)
    process = jax.process_index(), jax.process_count()
    shards = data.training_pictures(config, scanner.grid, process)
    model = make_networks(config)
    check_signal(model.generator, scanner)
    if config.tensorboard:
        runs.tensorboard()
    return model, shards


class _Training:
    """A run from its newest checkpoint to its end."""

    def __init__(
        self,
        config: Config,
        workdir: Path,
        model: Networks,
        shards: PicturesOf,
        tell: Tell,
    ):
        self.config, self.workdir, self.tell = config, workdir, tell
        self.forward, self.model, self.shards = data.build(config), model, shards
        self.validate = make_validation(config, self.forward, model.generator)
        self.checkpoints = workdir / "checkpoints"
        self.log_file = workdir / runs.LOG
        self.pending: collections.deque = collections.deque()
        self.result: dict[str, float] = {}

    def run(self) -> dict[str, float]:
        step, fresh = _program(self.config, self.forward, self.model, self.shards)
        done, state = checkpoint.restore_newest(self.checkpoints, fresh) or (
            0,
            self._with_initial_weights(fresh),
        )
        if jax.process_count() > 1:
            checksum = str(sum(checkpoint.checksums(state)))
            cluster.check_equal("the state that training starts from", checksum)
        hosts = cluster.gather(platform.node())
        cluster.on_lead(lambda: self._start(done, hosts))
        self._export_again(state)
        self.best = runs.best_psnr(self.log_file)
        self.clock, self.since, self.saved = time.monotonic(), done, done
        self.saved_at = time.monotonic()
        state = replicate(state)
        with (
            checkpoint.manager(self.checkpoints) as self.store,
            self._log(done) as self.log,
        ):
            while done < self.config.steps:
                if cluster.stop_requested(done):
                    self._stop(done, state)
                state, values = step(state, done)
                done += 1
                self.pending.append((done, values))
                self._after(done, state)
            checkpoint.finish(self.store)
        return self.result

    def _with_initial_weights(self, fresh: TrainState) -> TrainState:
        path = self.workdir / runs.INIT
        if not path.exists():
            return fresh
        return with_weights(fresh, load_weights(path)[0], str(path))

    def _start(self, done: int, hosts: list[str]) -> None:
        runs.add_start(self.workdir, done, hosts)
        runs.keep_lines(self.log_file, done)

    def _export_again(self, template: TrainState) -> None:
        """The weights of the best checkpoint, where somebody has removed their file."""
        best = checkpoint.best_step(self.checkpoints)
        missing = best is not None and not runs.has_weights(self.workdir)
        if cluster.gather(str(missing))[0] != "True" or best is None:
            return
        state = checkpoint.restore(self.checkpoints, template, best)
        lines, _ = runs.LogLine.read_all(self.log_file)
        result = next(n for n in lines if n.is_validation and n.step == best)
        numbers = dataclasses.asdict(result).items()
        validation = {n: v for n, v in numbers if n.startswith("validation_")}
        if cluster.is_lead():
            runs.export(self.workdir, state.average, best, self.config, validation)

    def _log(self, done: int) -> contextlib.AbstractContextManager:
        if cluster.is_lead():
            return runs.Log(self.workdir, self.config, done)
        return contextlib.nullcontext()

    def _after(self, done: int, state: TrainState) -> None:
        """Lines, validation and checkpoints that are due after a step."""
        config = self.config
        last = done == config.steps
        validate = (
            last or done % (config.validate_every or config.checkpoint_every) == 0
        )
        save = validate or done % config.checkpoint_every == 0
        if not save and done % config.log_every:
            return
        self._write_line(done)
        minutes = (time.monotonic() - self.saved_at) / 60
        if config.checkpoint_minutes and not save:
            # Clocks differ; the lead's counts.
            save = cluster.gather(str(minutes > config.checkpoint_minutes))[0] == "True"
        psnr = self._validated(done, state) if validate else -math.inf
        if save:
            self._save(done, state, psnr)
        if save:
            self.clock = time.monotonic()

    def _write_line(self, done: int) -> None:
        line = _drain(self.pending, self.workdir)
        now = time.monotonic()
        images = (done - self.since) * self.config.data.batch_size
        line["images_per_second"] = images / (now - self.clock)
        if self.log is not None:
            self.log.write(done, line, now - self.clock)
        self.tell("train", done, self.config.steps, line)
        self.clock, self.since = now, done

    def _validated(self, done: int, state: TrainState) -> float:
        """PSNR [dB]; the weights, if they are the best, before their checkpoint: what
        comes after the newest checkpoint is done again.
        """
        self.result, samples = self.validate(state.average)
        if self.log is not None:
            self.log.write(done, self.result)
            runs.write_samples(self.workdir, done, samples)
        self.tell("validate", done, self.config.steps, self.result)
        psnr = self.result["validation_psnr"]
        if psnr > self.best:
            self.best = psnr
            if cluster.is_lead():
                runs.export(self.workdir, state.average, done, self.config, self.result)
        return psnr

    def _save(self, done: int, state: TrainState, psnr: float = -math.inf) -> None:
        settings = configs.to_dict(self.config)
        checkpoint.save(self.store, done, state, settings, psnr)
        self.saved, self.saved_at = done, time.monotonic()

    def _stop(self, done: int, state: TrainState) -> None:
        if self.pending:
            self._write_line(done)
        if done != self.saved:
            self._save(done, state)
        checkpoint.finish(self.store)
        raise Stopped(
            f"{self.workdir}: stopped after step {done} of {self.config.steps}, all of it "
            "saved; --resume goes on"
        )


def _program(
    config: Config, forward: data.ForwardModel, model: Networks, shards: PicturesOf
) -> tuple[Step, TrainState]:
    """The compiled step, (state, steps done) -> (state, metrics), and a fresh state."""
    tx = make_optimisers(config.optimiser, config.steps)
    noise, steps_key = data.training_keys(config.seed)
    snr = jnp.asarray(config.data.snr_db, jnp.float32)

    # snr is an argument, as all numbers that aren't shapes: one program for all of them.
    def batch_of(shard, snr, noise: PRNGKeyArray, forward: data.ForwardModel):
        start, pictures = shard
        examples = data.observe(forward, pictures, start, snr, noise)
        return make_batch(forward, examples, start)

    def step(state, shard, keys, snr, forward):
        key = jax.random.fold_in(keys[1], state.step)
        batch = batch_of(shard, snr, keys[0], forward)
        return train_step(state, batch, key, model=model, tx=tx, axis_name="data")

    # The default generator takes a minute to compile for some hundred parameters.
    fresh = jax.random.key(config.seed, impl="unsafe_rbg")
    each = config.data.batch_size // jax.device_count()
    shapes = jax.eval_shape(
        lambda: batch_of(
            (0, data.pictures(0, 0, each, forward.scanner.grid)), snr, noise, forward
        )
    )
    state = jax.jit(partial(init_state, model=model, tx=tx))(fresh, zeros(shapes))
    compiled, everywhere = data_parallel(step, replicated=2), replicate(forward)

    def of(state: TrainState, done: int):
        return compiled(state, shards(done), (noise, steps_key), snr, everywhere)

    return of, state


def _drain(pending: collections.deque, workdir: Path) -> dict[str, float]:
    """Mean metrics of the steps since the last line; the guard against NaN."""
    steps, values = zip(*pending, strict=True)
    pending.clear()
    values = jax.device_get(list(values))
    for number, line in zip(steps, values, strict=True):
        if not line["finite"]:
            broken = [k for k, v in line.items() if not np.isfinite(v)]
            raise FloatingPointError(
                f"step {number}: {', '.join(broken) or 'a metric'} not finite; the last "
                f"good checkpoint in {workdir / 'checkpoints'} is kept"
            )
    names = [name for name in values[0] if name != "finite"]
    return {name: float(np.mean([v[name] for v in values])) for name in names}
