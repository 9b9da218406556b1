"""Every method on the same test signals: tuned on validation images, measured, written.

Classical methods have settings, chosen by mean PSNR on validation images and then left
alone. Masks are the network's, or the image above a fraction of its maximum, a fraction
chosen by Dice on validation images.

    work folder -> evaluation/metrics.jsonl  a line per (SNR, method, family)
                   evaluation/values.npz     every number of every image
                   evaluation/summary.json   the main lines, small enough to commit
                   evaluation/arrays.npz     one example of each family, every method
                   evaluation/info.json      what was measured, and how
                   evaluation.parts/         what is measured so far, until all is

Several processes share the work (`parts`), and a call that was cut off is gone on with.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mpi_jax import (
    _progress,
    cluster,
    configs,
    data,
    methods,
    metrics,
    phantoms,
    results,
    system_matrix,
)
from mpi_jax.configs import Config
from mpi_jax.evaluation import parts
from mpi_jax.evaluation.lines import Measured, lines_of, write
from mpi_jax.methods.networks import Network, check_same, of_workdir, weights_file
from mpi_jax.runs import read_config

# What is evaluated unless methods are named: the others take their time, or are controls.
USUAL = ("xspace", "kaczmarz", "tikhonov", "nonnegative", "tv")
CHUNK = 120  # test images at once, rounded up to whole batches


def run(
    workdir: Path,
    *,
    names: Sequence[str] | None = None,
    runs: Sequence[Path] = (),
    num: int = 600,
    snr: Sequence[float] | None = None,
    tell: _progress.Tell = _progress.silent,
) -> list[results.Line]:
    """Evaluate methods on the first `num` test images; returns the rows of the table.

    names: methods of METHODS, and the name of the run's own network; by default USUAL and
    the network, where the run has weights. runs: further work folders, whose networks are
    evaluated beside. snr [dB]: levels of the test signals, each with methods tuned for
    it; by default the config's, which is also the main one where it is among them, else
    the first. Images are clipped to [0, 1] for every method. Of several processes, the
    lead alone has rows to return.

    Raises ValueError for unknown methods, where weights are asked for that aren't there,
    and for runs of another scanner or other test signals.
    """
    workdir, began = Path(workdir), time.monotonic()
    cluster.check_shared(workdir)
    config = read_config(workdir)
    check_num(num)
    levels = _levels(config, snr)
    networks = _networks(workdir, config, runs)
    chosen = choose(workdir, config, networks, names)
    main = config.data.test_snr_db if config.data.test_snr_db in levels else levels[0]
    plan = _Plan.of(levels, chosen, num, config.data.batch_size)
    kept = parts.Parts(workdir / "evaluation.parts", _key(config, plan, networks))
    every = [*plan.tunings, *plan.chunks]
    kept.tell_kept(every, tell)
    if kept.left(every):
        work = _Work(config, networks, plan, kept, tell)
        work.tune()
        cluster.barrier()
        work.measure()
        cluster.barrier()
    lines: list[results.Line] = []

    def write_files() -> None:
        measured = {level: _joined(kept, plan, level) for level in levels}
        family = np.asarray(phantoms.indices(np.arange(num))) % len(phantoms.FAMILIES)
        lines.extend(lines_of(measured, family, networks))
        examples = _example_images(kept, plan, main, config)
        with parts.replaced(workdir / "evaluation") as folder:
            write(folder, workdir, lines, measured, main, family, examples, began)
        kept.remove()

    cluster.on_lead(write_files)
    return [line for line in lines if line.snr_db == main]


def check_num(num: int) -> None:
    """ValueError for fewer images than families."""
    if num < len(phantoms.FAMILIES):
        raise ValueError(
            f"num: expected at least {len(phantoms.FAMILIES)}, one image of each "
            f"family, got {num}"
        )


def _levels(config: Config, snr: Sequence[float] | None) -> list[float]:
    levels = [float(s) for s in dict.fromkeys(snr or [config.data.test_snr_db])]
    if any(math.isnan(s) or s == -math.inf for s in levels):
        raise ValueError(f"snr: expected numbers of dB or inf, got {levels}")
    return levels


def _networks(
    workdir: Path, config: Config, runs: Sequence[Path]
) -> dict[str, Network]:
    """The network of the work folder, where it has weights, and those of further runs."""
    for folder in runs:
        check_same(workdir, config, folder, read_config(folder))
    return of_workdir(workdir, runs)


def choose(
    workdir: Path,
    config: Config,
    networks: dict[str, Network],
    names: Sequence[str] | None,
    usual: Sequence[str] = USUAL,
) -> list[methods.Method]:
    """Methods by their names, in the order of the table; those of further runs always.

    names None: the usual ones and all networks. Raises ValueError for unknown names.
    """
    learned = {name: network.method for name, network in networks.items()}
    this_network = next(
        (n for n, net in networks.items() if net.folder == workdir), None
    )
    if names is None:
        names = [n for n in usual if n != "xspace" or not config.calibration.path]
        names = [*names, *learned]
    elif not names and not learned:
        raise ValueError("methods: expected one or more, got none")
    if this_network is None and config.name in names and config.name not in learned:
        raise ValueError(
            f"{workdir}: has no weights yet; finish its training with --resume, or leave "
            f"{config.name} out of --methods"
        )
    selected = {name: methods.get(name, learned) for name in names}
    selected |= {
        name: method for name, method in learned.items() if name != this_network
    }
    order = [*methods.METHODS, *learned]
    return sorted(selected.values(), key=lambda method: order.index(method.name))


def _problem(
    config: Config, forward: data.ForwardModel, networks: dict[str, Network]
) -> methods.Problem:
    """Controls get as many training examples as the networks saw."""
    images_seen = [n.about["images_seen"] for n in networks.values()]
    count = max(
        (s for s in images_seen if s), default=config.steps * config.data.batch_size
    )
    training = methods.Training(config, forward, count)
    return methods.from_forward(config, forward, training)


# --- Parts: settings of a method, numbers of a chunk of test images


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What there is to do, by the names of its parts and in the order of doing it.

    tunings: level [dB] and method; chunks: level, first test image and how many.
    """

    tunings: dict[str, tuple[float, methods.Method]]
    chunks: dict[str, tuple[float, int, int]]

    @classmethod
    def of(
        cls,
        levels: list[float],
        chosen: list[methods.Method],
        num: int,
        batch_size: int,
    ) -> _Plan:
        size = -(-CHUNK // batch_size) * batch_size
        return cls(
            {
                f"tuned-{k}-{n}": (level, method)
                for k, level in enumerate(levels)
                for n, method in enumerate(chosen)
            },
            {
                f"measured-{k}-{start}": (level, start, min(size, num - start))
                for k, level in enumerate(levels)
                for start in range(0, num, size)
            },
        )

    def tunings_at(self, level: float) -> dict[str, methods.Method]:
        """The methods of one level."""
        return {
            name: m for name, (snr_db, m) in self.tunings.items() if snr_db == level
        }

    def chunks_at(self, level: float) -> dict[str, tuple[int, int]]:
        """First image and number of images of the chunks of one level."""
        return {
            name: (start, count)
            for name, (snr_db, start, count) in self.chunks.items()
            if snr_db == level
        }


def _key(
    config: Config,
    plan: _Plan,
    networks: dict[str, Network],
) -> str:
    """What all parts depend on."""
    names = {method.name for _, method in plan.tunings.values()}
    about = [
        configs.to_dict(config),
        [(level, method.name) for level, method in plan.tunings.values()],
        list(plan.chunks.values()),
        [network.about["images_seen"] for network in networks.values()],
        # Of a calibration, which may be too large to be read for this alone.
        [Path(p).stat().st_size for p in [config.calibration.path] if p],
    ]
    used = [network for name, network in networks.items() if name in names]
    return parts.key(about, [weights_file(network.folder) for network in used])


class _Work:
    """What this process does of it: examples in the batches that training has compiled."""

    def __init__(
        self,
        config: Config,
        networks: dict[str, Network],
        plan: _Plan,
        kept: parts.Parts,
        tell: _progress.Tell,
    ):
        tell("build", 0, 1, {})
        self.config, self.plan, self.kept, self.tell = config, plan, kept, tell
        self.forward = data.build(config)
        self.problem = _problem(config, self.forward, networks)

    def _examples(
        self, split: str, count: int, level: float, start: int = 0
    ) -> data.Examples:
        size = self.config.data.batch_size
        return data.draw_batches(self.forward, split, count, size, level, start)

    def tune(self) -> None:
        """Settings that serve the validation images best."""
        count = self.config.validation_images

        @functools.lru_cache(1)
        def drawn(level: float) -> data.Examples:
            return self._examples("validation", count, level)

        def tuned(name: str) -> methods.Ready:
            level, method = self.plan.tunings[name]
            return methods.ready(self.problem, method, drawn(level))

        parts.tune(self.kept, self.plan.tunings, tuned, self.tell)

    def measure(self) -> None:
        """All methods on the same chunks of test images."""
        share = self.kept.share(self.plan.chunks)
        done, total = 0, sum(self.plan.chunks[name][-1] for name in share)
        for level in dict.fromkeys(self.plan.chunks[name][0] for name in share):
            chunks = self.plan.chunks_at(level)
            mine = [name for name in chunks if name in share]
            prepared = [
                parts.as_chosen(
                    self.problem, method, parts.read_chosen(self.kept, name)
                )
                for name, method in self.plan.tunings_at(level).items()
            ]
            # A chunk of a size that compiles says nothing of the time, so that the first
            # runs once more where this process has no other of its size.
            first, sizes = self.kept.left(chunks)[0], [chunks[name][1] for name in mine]
            compiled: set[int] = set()
            for name in mine:
                start, count = chunks[name]
                test = self._examples("test", count, level, start)
                twice = name == first and sizes.count(count) == 1
                timed = twice or count in compiled
                compiled.add(count)
                arrays: dict[str, np.ndarray] = {}
                for ready in prepared:
                    if twice:
                        _reconstruct(ready, test.voltage)
                    arrays |= self._measured(ready, test, level, timed, start == 0)
                if start == 0:
                    places = _first_of_families(test)
                    arrays["truth"] = np.asarray(test.image)[places]
                    arrays["mask"] = np.asarray(test.mask, np.uint8)[places]
                self.kept.write(name, arrays)
                done += count
                self.tell("test", done, total, {})

    def _measured(
        self,
        ready: methods.Ready,
        test: data.Examples,
        level: float,
        timed: bool,
        with_examples: bool,
    ) -> dict[str, np.ndarray]:
        """Numbers of a method; with_examples: and the first image of each family."""
        clock = time.perf_counter()
        reconstruction = _reconstruct(ready, test.voltage)
        seconds = (time.perf_counter() - clock) / len(test.voltage)
        scores = jax.device_get(
            _scores(self.forward, test, level, reconstruction, ready)
        )
        name = ready.method.name
        arrays = {f"number/{name}/{metric}": v for metric, v in scores.items()}
        arrays[f"seconds/{name}"] = np.array(seconds if timed else np.nan)
        if with_examples:
            first = _first_of_families(test)
            mask = np.asarray(ready.mask(reconstruction), np.uint8)
            arrays[f"image/{name}"] = np.asarray(reconstruction.image)[first]
            arrays[f"mask/{name}"] = mask[first]
        return arrays


def _first_of_families(test: data.Examples) -> np.ndarray:
    """The places of the first image of each family, [F]."""
    family = np.asarray(test.family)
    return np.array([np.argmax(family == f) for f in range(len(phantoms.FAMILIES))])


def _reconstruct(ready: methods.Ready, u: Array) -> methods.Reconstruction:
    reconstruction = ready.solve(u)
    image = jnp.clip(reconstruction.image, 0, 1)
    return jax.block_until_ready(reconstruction._replace(image=image, choice=None))


def _scores(
    forward: data.ForwardModel,
    test: data.Examples,
    snr_db: float,
    reconstruction: methods.Reconstruction,
    ready: methods.Ready,
) -> dict[str, Array]:
    """Every metric of each image, [B]. residual: |S x - u| / |n|, 1 where all that is
    left is noise; NaN without noise.
    """
    image, mask = reconstruction.image, ready.mask(reconstruction)
    above = ready.mask(reconstruction._replace(mask_logit=None))
    scores = metrics.scores(image, test.image, mask, test.mask, 1.0)
    scores["foreground_ssim"] = metrics.foreground_ssim(
        image, test.image, test.mask, 1.0
    )
    scores["dice_thresholded"] = metrics.dice(above, test.mask)
    scores["iou_thresholded"] = metrics.iou(above, test.mask)
    scores["amount"] = jnp.sum(image, axis=(-2, -1))
    scores["true_amount"] = jnp.sum(test.image, axis=(-2, -1))
    # In one unit for all channels, in which squares don't leave float32.
    unit = jnp.mean(forward.scale)

    def misfit(c):
        difference = system_matrix.forward(forward.matrix, c) - test.voltage
        return jnp.linalg.norm((difference / unit).reshape(len(c), -1), axis=-1)

    noise = misfit(test.image) if math.isfinite(snr_db) else jnp.nan
    scores["residual"] = misfit(image) / noise
    return scores


# --- Parts joined


def _joined(kept: parts.Parts, plan: _Plan, level: float) -> list[Measured]:
    """All methods at one level, from the parts of all processes."""
    chunks = plan.chunks_at(level)
    each = [kept.read(name) for name in chunks]
    num = sum(count for _, count in chunks.values())
    rows = []
    for name, method in plan.tunings_at(level).items():
        prefix = f"number/{method.name}/"
        numbers = {
            array.removeprefix(prefix): np.concatenate([part[array] for part in each])
            for array in each[0]
            if array.startswith(prefix)
        }
        seconds = np.nanmedian([part[f"seconds/{method.name}"] for part in each])
        rows.append(
            Measured(
                method,
                parts.read_chosen(kept, name),
                {metric: v[:num] for metric, v in numbers.items()},
                float(seconds),
            )
        )
    return rows


def _example_images(
    kept: parts.Parts, plan: _Plan, level: float, config: Config
) -> results.Examples:
    """The first image of each family, and what every method makes of it."""
    first = kept.read(next(iter(plan.chunks_at(level))))
    x, y = np.asarray(data.make_scanner(config).grid.pitch)[:2]
    tuned_methods = list(plan.tunings_at(level).values())
    return results.Examples(
        truth=first["truth"],
        mask=first["mask"],
        family=phantoms.FAMILIES,
        pixel_size=(float(x), float(y)),
        labels={method.name: method.label for method in tuned_methods},
        images={method.name: first[f"image/{method.name}"] for method in tuned_methods},
        masks={method.name: first[f"mask/{method.name}"] for method in tuned_methods},
    )
