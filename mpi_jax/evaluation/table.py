"""Every method on the same test signals: tuned on validation images, measured, written.

Classical methods have settings, chosen by mean PSNR on validation images and then left
alone. Masks are the network's, or the image above a fraction of its maximum, a fraction
chosen by Dice on validation images.

    work folder -> evaluation/metrics.jsonl  a line per (SNR, method, family)
                   evaluation/values.npz     every number of every image
                   evaluation/summary.json   the main lines, small enough to commit
                   evaluation/arrays.npz     one example of each family, every method
                   evaluation/info.json      what was measured, and how
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mpi_jax import (
    _progress,
    bootstrap,
    data,
    methods,
    metrics,
    phantoms,
    results,
    system_matrix,
)
from mpi_jax.configs import Config
from mpi_jax.methods.networks import Network, check_same, of_runs
from mpi_jax.runs import has_weights, read_config, read_info

# What is evaluated unless methods are named: the others take their time, or are controls.
USUAL = ("xspace", "kaczmarz", "tikhonov", "nonnegative", "tv")
CHUNK = 120  # test images at once, rounded up to whole batches

Numbers = dict[str, np.ndarray]  # metric -> [N]


@dataclasses.dataclass(frozen=True)
class Measured:
    """A method at one SNR: every number of every test image, seconds for one image."""

    ready: methods.Ready
    numbers: Numbers
    seconds: float


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
    the first. Images are clipped to [0, 1] for every method.

    Raises ValueError for unknown methods, where weights are asked for that aren't there,
    and for runs of another scanner or other test signals.
    """
    workdir, began = Path(workdir), time.monotonic()
    config = read_config(workdir)
    check_num(num)
    levels = _levels(config, snr)
    networks = _networks(workdir, config, runs)
    chosen = choose(workdir, config, networks, names)
    tell("build", 0, 1, {})
    forward = data.build(config)
    problem = _problem(config, forward, networks)
    main = config.data.test_snr_db if config.data.test_snr_db in levels else levels[0]

    family = np.asarray(phantoms.indices(np.arange(num))) % len(phantoms.FAMILIES)
    measured: dict[float, list[Measured]] = {}
    for number, level in enumerate(levels):

        def told(stage: str, done: int, total: int, more: dict, before=number) -> None:
            tell(stage, before * total + done, len(levels) * total, more)

        one = _Level(config, forward, level)
        prepared = one.prepare(problem, chosen, told)
        measured[level] = one.measure(prepared, num, told)
        if level == main:
            shown = one.shown(prepared)
    rows = measured[main]
    lines = _lines(measured, family, networks)
    _write(workdir, config, lines, measured, main, family, began)
    _write_examples(workdir, forward, rows, *shown)
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
    own = [workdir] if has_weights(workdir) else []
    return of_runs([*own, *runs])


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
    own = next((n for n, net in networks.items() if net.folder == workdir), None)
    if names is None:
        names = [n for n in usual if n != "xspace" or not config.calibration.path]
        names = [*names, *learned]
    elif not names and not learned:
        raise ValueError("methods: expected one or more, got none")
    if own is None and config.name in names and config.name not in learned:
        raise ValueError(
            f"{workdir}: has no weights yet; finish its training with --resume, or leave "
            f"{config.name} out of --methods"
        )
    asked = {name: methods.get(name, learned) for name in names}
    asked |= {name: method for name, method in learned.items() if name != own}
    order = [*methods.METHODS, *learned]
    return sorted(asked.values(), key=lambda method: order.index(method.name))


def _problem(
    config: Config, forward: data.ForwardModel, networks: dict[str, Network]
) -> methods.Problem:
    """Controls get as many training examples as the networks saw."""
    seen = [n.about["images_seen"] for n in networks.values()]
    count = max((s for s in seen if s), default=config.steps * config.data.batch_size)
    training = methods.Training(config, forward, count)
    return methods.from_forward(config, forward, training)


class _Level:
    """Signals of one SNR: validation and test examples in the batches that training has
    compiled already.
    """

    def __init__(self, config: Config, forward: data.ForwardModel, snr_db: float):
        self.config, self.forward, self.snr_db = config, forward, snr_db
        size = config.data.batch_size
        self.chunk = -(-CHUNK // size) * size

    def examples(self, split: str, start: int, count: int) -> data.Examples:
        """At least `count` of them."""
        size = self.config.data.batch_size
        parts = [
            data.draw(self.forward, split, i, size, self.snr_db)
            for i in range(start, start + count, size)
        ]
        return jax.tree.map(lambda *a: jnp.concatenate(a), *parts)

    def prepare(
        self,
        problem: methods.Problem,
        chosen: list[methods.Method],
        tell: _progress.Tell,
    ) -> list[methods.Ready]:
        """Methods with the settings that serve the validation images best."""
        validation = self.examples("validation", 0, self.config.validation_images)
        prepared = []
        for n, method in enumerate(chosen):
            tell("tune", n, len(chosen), {})
            prepared.append(methods.ready(problem, method, validation))
        tell("tune", len(chosen), len(chosen), {})
        return prepared

    def measure(
        self, prepared: list[methods.Ready], num: int, tell: _progress.Tell
    ) -> list[Measured]:
        """All methods on the same chunks of test images."""
        numbers: list[list[Numbers]] = [[] for _ in prepared]
        seconds: list[list[float]] = [[] for _ in prepared]
        for start in range(0, num, self.chunk):
            test = self.examples("test", start, min(self.chunk, num - start))
            for n, ready in enumerate(prepared):
                if num <= self.chunk:
                    _reconstruct(ready, test.voltage)  # compiles
                clock = time.perf_counter()
                made = _reconstruct(ready, test.voltage)
                taken = time.perf_counter() - clock
                if start or num <= self.chunk:  # the first of many chunks compiles
                    seconds[n].append(taken / len(test.voltage))
                scores = _scores(self.forward, test, self.snr_db, made, ready)
                numbers[n].append(jax.device_get(scores))
            tell("test", min(start + self.chunk, num), num, {})
        return [
            Measured(
                ready,
                {k: np.concatenate([p[k] for p in parts])[:num] for k in parts[0]},
                float(np.median(times)),
            )
            for ready, parts, times in zip(prepared, numbers, seconds, strict=True)
        ]

    def shown(
        self, prepared: list[methods.Ready]
    ) -> tuple[data.Examples, dict[str, tuple[np.ndarray, np.ndarray]]]:
        """The first image of each family, and what every method makes of it."""
        test = self.examples("test", 0, self.chunk)
        family = np.asarray(test.family)
        first = np.array(
            [np.argmax(family == f) for f in range(len(phantoms.FAMILIES))]
        )
        images = {}
        for ready in prepared:
            made = _reconstruct(ready, test.voltage)
            mask = np.asarray(ready.mask(made), np.uint8)
            images[ready.method.name] = np.asarray(made.image)[first], mask[first]
        return jax.tree.map(lambda a: np.asarray(a)[first], test), images


def _reconstruct(ready: methods.Ready, u: Array) -> methods.Reconstruction:
    made = ready.solve(u)
    image = jnp.clip(made.image, 0, 1)
    return jax.block_until_ready(made._replace(image=image, choice=None))


def _scores(
    forward: data.ForwardModel,
    test: data.Examples,
    snr_db: float,
    made: methods.Reconstruction,
    ready: methods.Ready,
) -> dict[str, Array]:
    """Every metric of each image, [B]. residual: |S x - u| / |n|, 1 where all that is
    left is noise; NaN without noise.
    """
    image, mask = made.image, ready.mask(made)
    above = ready.mask(made._replace(mask_logit=None))
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

    def left(c):
        difference = system_matrix.forward(forward.matrix, c) - test.voltage
        return jnp.linalg.norm((difference / unit).reshape(len(c), -1), axis=-1)

    noise = left(test.image) if math.isfinite(snr_db) else jnp.nan
    scores["residual"] = left(image) / noise
    return scores


# --- Lines and files


def _lines(
    measured: dict[float, list[Measured]],
    family: np.ndarray,
    networks: dict[str, Network],
) -> list[results.Line]:
    """A line of numbers for each level, method and family, with 95 % intervals."""
    lines = []
    for level, rows in measured.items():
        for name in ("all", *phantoms.FAMILIES):
            shown = family >= 0
            if name != "all":
                shown = family == phantoms.FAMILIES.index(name)
            about = {"snr_db": level, "family": name, "num": int(shown.sum())}
            lines += _lines_of(rows, shown, about, networks)
    levels = list(measured)
    order = {row.ready.method.name: n for n, row in enumerate(measured[levels[0]])}
    lines.sort(key=lambda n: order[n.method])
    return sorted(results.in_groups(lines), key=lambda n: levels.index(n.snr_db))


def _lines_of(
    rows: list[Measured],
    shown: np.ndarray,
    about: dict[str, Any],
    networks: dict[str, Network],
) -> list[results.Line]:
    """Lines of the images that are shown, whose resampling is the same for all methods."""
    values = {
        (n, k): v[shown] for n, row in enumerate(rows) for k, v in row.numbers.items()
    }
    drawn = bootstrap.means(*values.values())
    ends = {k: bootstrap.ends(d) for k, d in zip(values, drawn, strict=True)}
    return [
        _line(
            row,
            {metric: v for (m, metric), v in values.items() if m == n},
            {metric: v for (m, metric), v in ends.items() if m == n},
            about,
            networks.get(row.ready.method.name),
        )
        for n, row in enumerate(rows)
    ]


def _line(
    row: Measured,
    values: Numbers,
    ends: dict[str, tuple[float, float]],
    about: dict[str, Any],
    network: Network | None,
) -> results.Line:
    """A line of values and the ends of their intervals. about: snr_db, family, num."""

    def told(metric: str) -> results.Statistics:
        low, high = ends[metric]
        return results.Statistics(**metrics.summary(values[metric]), low=low, high=high)

    amounts = metrics.amounts(values["amount"], values["true_amount"])
    return results.Line(
        **dataclasses.asdict(method_info(row.ready.method)),
        **about,
        settings=row.ready.told,
        at_edge=row.ready.at_edge,
        segmentation=_segmentation(network),
        network=_network_of(network),
        mse=told("mse"),
        rmse=told("rmse"),
        nrmse=told("nrmse"),
        psnr=told("psnr"),
        ssim=told("ssim"),
        foreground_ssim=told("foreground_ssim"),
        dice=told("dice"),
        iou=told("iou"),
        dice_thresholded=told("dice_thresholded"),
        iou_thresholded=told("iou_thresholded"),
        residual=told("residual"),
        amount=results.Amounts(**amounts),
        pooled_psnr=metrics.pooled_psnr(values["mse"], 1.0),
        seconds_per_image=row.seconds,
    )


def method_info(method: methods.Method) -> results.MethodInfo:
    """The method, as results name it."""
    return results.MethodInfo(
        method=method.name,
        label=method.label,
        kind=method.kind,
        physics=method.physics,
    )


def _segmentation(network: Network | None) -> Literal["predicted", "thresholded"]:
    dual = network is not None and network.about["kind"] == "dual"
    return "predicted" if dual else "thresholded"


def _network_of(network: Network | None) -> results.Network | None:
    if network is None:
        return None
    names = {"kind": "variant", "physics": "rank"}
    about = {names.get(n, n): v for n, v in network.about.items() if v is not None}
    return results.Network(**about)


def _write_examples(
    workdir: Path,
    forward: data.ForwardModel,
    rows: list[Measured],
    truth: data.Examples,
    shown: dict[str, tuple[np.ndarray, np.ndarray]],
) -> None:
    x, y = np.asarray(forward.scanner.grid.pitch)[:2]
    results.Examples(
        truth=np.asarray(truth.image),
        mask=np.asarray(truth.mask, np.uint8),
        family=phantoms.FAMILIES,
        pixel_size=(float(x), float(y)),
        labels={row.ready.method.name: row.ready.method.label for row in rows},
        images={method: image for method, (image, _) in shown.items()},
        masks={method: mask for method, (_, mask) in shown.items()},
    ).write(workdir / "evaluation" / "arrays.npz")


def _write(
    workdir: Path,
    config: Config,
    lines: list[results.Line],
    measured: dict[float, list[Measured]],
    main: float,
    family: np.ndarray,
    began: float,
) -> None:
    folder = workdir / "evaluation"
    folder.mkdir(exist_ok=True)
    about = read_info(workdir)
    info = _info(config, len(family), main, began)
    results.Values(
        main_snr_db=main,
        family=np.array(phantoms.FAMILIES)[family],
        numbers={
            (level, row.ready.method.name, metric): values
            for level, rows in measured.items()
            for row in rows
            for metric, values in row.numbers.items()
        },
    ).write(folder / "values.npz")
    results.write_lines(folder / "metrics.jsonl", lines)
    info.write(folder / "info.json")
    learned = {row.ready.method.name for rows in measured.values() for row in rows}
    results.Summary(
        **dataclasses.asdict(info),
        config=config.name,
        run=config.name if config.name in learned else "",
        commit=about.commit,
        version=about.version,
        trained_on=about.device,
        rows=tuple(n for n in lines if n.family == "all" and n.snr_db == main),
    ).write(folder / "summary.json")


def _info(config: Config, num: int, main: float, began: float) -> results.Info:
    device = jax.local_devices()[0]
    ny, nx = data.make_scanner(config).grid.shape
    return results.Info(
        num=num,
        snr_db=main,
        noise="white, power SNR of each signal; data and reconstruction share one "
        "system matrix (an inverse crime: every row is better than on a real scanner)",
        model=config.calibration.path or config.scanner.model,
        seed=config.seed,
        seconds=round(time.monotonic() - began, 1),
        device=f"{device.device_kind}, {os.cpu_count()} CPU cores",
        ssim="Gaussian 11x11, sigma 1.5, range 1",
        intervals=f"95 %, percentile bootstrap over images, {bootstrap.DRAWS} draws, "
        f"NumPy seed {bootstrap.SEED}",
        grid=(ny, nx),
    )
