"""Every method on the same test signals: tuned on validation images, measured, written.

A method turns voltages [B, C, V] into images [B, ny, nx]. Classical ones have settings,
chosen by mean PSNR on validation images and then left alone. Masks are the network's, or
the image above a fraction of its maximum, a fraction chosen by Dice on validation images.

    work folder -> evaluation/metrics.jsonl  a line per (SNR, method, family)
                   evaluation/values.npz     every number of every image
                   evaluation/summary.json   the main lines, small enough to commit
                   evaluation/arrays.npz     one example of each family, every method
                   evaluation/info.json      what was measured, and how
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import json
import math
import os
import re
import time
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mpi_jax import (
    bootstrap,
    checkpoint,
    configs,
    controls,
    data,
    metrics,
    phantoms,
    physics,
    system_matrix,
    train,
)
from mpi_jax.configs import Config
from mpi_jax.reconstruct import kaczmarz, variational, xspace
from mpi_jax.scanner import Scanner

LABELS = {
    "xspace": "x-space",
    "xspace_tensor": "x-space (tensor, deconvolved)",
    "kaczmarz": "System matrix (Kaczmarz)",
    "tikhonov": "System matrix (Tikhonov)",
    "nonnegative": "System matrix (non-negative)",
    "tv": "System matrix (non-negative, TV)",
    "transgan": "Dual-task TransGAN",
}
METHODS = tuple(LABELS)
LABELS |= {
    "zero": "All-zero image",
    "mean": "Mean training image",
    "nearest": "Nearest training signal",
    "ridge": "Linear ridge",
    "xspace_max": "x-space, over its maximum",
    "kaczmarz_max": "System matrix (Kaczmarz), over its maximum",
}
# Of the lines of a table: controls first, each beside what it controls.
_ORDER = (
    *("zero", "mean", "nearest", "ridge", "xspace_max", "xspace", "xspace_tensor"),
    *("kaczmarz_max", "kaczmarz", "tikhonov", "nonnegative", "tv", "transgan"),
)
# What is evaluated unless methods are named: the others take their time.
USUAL = tuple(m for m in METHODS if m not in ("xspace_tensor", "tv"))

# Grids that the settings are chosen from.
KACZMARZ_LAMS = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
KACZMARZ_SWEEPS = (1, 2, 5, 10, 20, 50, 100, 200)
TIKHONOV_LAMS = tuple(10.0 ** (-k / 2) for k in range(2, 13))
RHOS = (1e-4, 3e-4, 1e-3, 3e-3)
STEPS = (10, 20, 50, 100)
FACTORS = (1.5, 3.0, 6.0, 12.0)
TV_STEPS = (100, 200)
WIDTHS = (0.5, 1.0, 2.0)  # of the default gridding width
PLAN_WIDTHS = (None, 0.9e-3, 1.2e-3)  # [m]; None: as the path's gaps ask for
PLAN_RHOS = (1e-3, 3e-3, 1e-2)
PLAN_STEPS = (20, 50, 100)
THRESHOLDS = tuple(np.arange(1, 16) / 20)
CHUNK = 120  # test images at once, rounded up to whole batches
RANK = 1024  # of the basis where a config has none

Images = Float[Array, "B ny nx"]


@dataclasses.dataclass(frozen=True)
class Problem:
    """What classical methods work with. Rows are scaled to unit signals: the moments of
    particles square to numbers near the end of float32.
    """

    config: Config
    operator: data.Operator
    basis: variational.SpectralBasis
    rows: Array  # [M, P] complex, all frequencies of all channels but DC
    keep: np.ndarray  # [C, K]
    plans: dict = dataclasses.field(default_factory=dict)  # width [m] -> TensorPlan


def problem(config: Config, operator: data.Operator) -> Problem:
    """The frequency rows and the spectral basis of a run's system matrix."""
    matrix = operator.matrix
    basis = operator.basis
    if operator.keep is None:
        keep = system_matrix.frequency_selection(operator.scanner)
    else:
        keep = np.asarray(operator.keep)
    if basis is None:
        rank = min(RANK, operator.scanner.grid.size, 2 * int(keep.sum()))
        basis = variational.spectral_basis(matrix.reshape(-1, matrix.shape[-1]), rank)
    scaled = matrix / operator.scale[..., None]
    rows = system_matrix.select_rows(system_matrix.to_frequency(scaled), keep, axis=1)
    return Problem(config, operator, basis, rows, keep)


# --- The methods: prepared with their settings, then voltages [B, C, V] -> images

Solver = Callable[[Float[Array, "B C V"]], Images]


def _images(p: Problem, c) -> Images:
    return jnp.maximum(c, 0).reshape(-1, *p.operator.scanner.grid.shape)


def xspace_solver(p: Problem, width: float | None = None, gain: float = 1.0) -> Solver:
    """x-space image times a gain, negative values set to 0."""
    scanner, model = p.operator.scanner, p.config.scanner.model
    if not isinstance(scanner, Scanner):
        raise ValueError(
            "method xspace: expected a simulated scanner, got a calibration file, which "
            "doesn't tell how the field-free point moves"
        )

    def solve(u):
        image = xspace.reconstruct(scanner, u, width=width, model=model)
        return jnp.maximum(gain * image, 0)

    return solve


def xspace_tensor_solver(
    p: Problem, width: float | None = None, rho: float = 3e-3, iterations: int = 50
) -> Solver:
    """x-space with the tensor of the signal and non-negative deconvolution."""
    plan = xspace.with_rho(_plan(p, width), rho)
    return lambda u: _images(
        p, xspace.reconstruct_tensor(plan, u, iterations=iterations)
    )


def _plan(p: Problem, width: float | None) -> xspace.TensorPlan:
    """The plan for a width, which takes seconds: prepared once for a problem."""
    if width not in p.plans:
        p.plans[width] = xspace.tensor_plan(
            p.operator.scanner, width=width, model=p.config.scanner.model
        )
    return p.plans[width]


def _spectra(p: Problem, u) -> Array:
    """Scaled voltages as the rows' right-hand sides, [B, M] complex."""
    scaled = u / p.operator.scale[None]
    return system_matrix.select_rows(physics.spectrum(scaled), p.keep)


def kaczmarz_solver(p: Problem, lam: float = 1e-2, iterations: int = 10) -> Solver:
    """Regularised Kaczmarz on frequency rows, real and non-negative."""
    options = {"lam": lam, "iterations": iterations}
    return lambda u: _images(p, kaczmarz.solve(p.rows, _spectra(p, u), **options))


def tikhonov_solver(p: Problem, lam: float = 1e-4) -> Solver:
    """Tikhonov images, negative values set to 0."""

    def solve(u):
        return _images(p, variational.tikhonov(p.basis, u.reshape(len(u), -1), lam))

    return solve


def nonnegative_solver(p: Problem, rho: float = 3e-4, iterations: int = 20) -> Solver:
    """Non-negative least squares, stopped early."""
    basis = variational.with_rho(p.basis, rho)

    def solve(u):
        flat = u.reshape(len(u), -1)
        return _images(p, _nonnegative(basis, flat, iterations=iterations))

    return solve


_nonnegative = jax.jit(variational.nonnegative, static_argnames="iterations")


def tv_solver(
    p: Problem, factor: float = 3.0, rho: float = 3e-4, iterations: int = 100
) -> Solver:
    """Total variation and non-negativity; weight: `factor` times the noise variance seen
    in each signal, over the largest singular value squared.
    """
    basis = variational.with_rho(p.basis, rho)
    grid = p.operator.scanner.grid.shape

    def solve(u):
        flat = u.reshape(len(u), -1)
        ratio = variational.noise_level(basis, flat) / basis.scale
        options = {"lam_tv": factor * ratio**2, "iterations": iterations}
        return _images(p, _total_variation(basis, flat, grid, **options))

    return solve


_total_variation = jax.jit(
    variational.total_variation, static_argnames=("grid", "iterations")
)

CLASSICAL: dict[str, Callable[..., Solver]] = {
    "xspace": xspace_solver,
    "xspace_tensor": xspace_tensor_solver,
    "kaczmarz": kaczmarz_solver,
    "tikhonov": tikhonov_solver,
    "nonnegative": nonnegative_solver,
    "tv": tv_solver,
}


# --- Choosing settings on validation images


def tune(p: Problem, method: str, made: data.Examples) -> tuple[dict[str, Any], Images]:
    """Settings of a classical method with the best mean PSNR on these examples, and the
    images that they make of them.
    """
    u, truth = made.voltage, made.image
    if method == "kaczmarz":
        return _best(_kaczmarz_candidates(p, u, truth), truth)
    if method == "xspace":
        return _best(_xspace_candidates(p, u, truth), truth)
    if method == "xspace_tensor":
        return _best(_xspace_tensor_candidates(p, u, truth), truth)
    if method == "tikhonov":
        grid = [{"lam": lam} for lam in TIKHONOV_LAMS]
    elif method == "tv":
        grid = [
            {"factor": factor, "rho": rho, "iterations": n}
            for factor, rho, n in itertools.product(FACTORS, RHOS[:2], TV_STEPS)
        ]
    else:
        grid = [{"rho": rho, "iterations": n} for rho in RHOS for n in STEPS]
    run = CLASSICAL[method]
    return _best(((settings, run(p, **settings)(u)) for settings in grid), truth)


def _xspace_candidates(p, u, truth):
    xspace_solver(p)  # complains where the scanner isn't known
    default = float(xspace.default_width(p.operator.scanner))
    for factor in WIDTHS:
        image = xspace_solver(p, width=factor * default)(u)
        fitted = float(jnp.sum(image * truth) / jnp.sum(image**2))
        # The gain of least squares, and smaller ones: blurred images do better dim.
        for gain in (1.0, fitted, 0.75 * fitted, 0.5 * fitted):
            yield {"width": factor * default, "gain": gain}, gain * image


def _xspace_tensor_candidates(p, u, truth):
    """Every width with the middle settings, then all settings with the best width."""
    traces = {width: xspace.trace(_plan(p, width), u) for width in PLAN_WIDTHS}

    def run(width, rho, n):
        plan = xspace.with_rho(_plan(p, width), rho)
        image = xspace.deconvolve(plan, traces[width], iterations=n)
        return {"width": width, "rho": rho, "iterations": n}, image

    first = [run(width, PLAN_RHOS[1], PLAN_STEPS[1]) for width in PLAN_WIDTHS]
    yield from first
    width = _best(first, truth)[0]["width"]
    for rho, n in itertools.product(PLAN_RHOS, PLAN_STEPS):
        yield run(width, rho, n)


def _kaczmarz_candidates(p, u, truth):
    """Every lam for a few sweeps, then the best and the one below for all of them.

    More sweeps need less regularisation, so that the best lam moves down, not up.
    """
    right = _spectra(p, u)

    def run(lam, most):
        iterates = kaczmarz.sweeps(p.rows, right, lam=lam, iterations=most)
        for n in KACZMARZ_SWEEPS:
            if n <= most:
                yield {"lam": lam, "iterations": n}, _images(p, iterates[n - 1])

    short = [c for lam in KACZMARZ_LAMS for c in run(lam, 20)]
    yield from short
    best = KACZMARZ_LAMS.index(_best(short, truth)[0]["lam"])
    for lam in KACZMARZ_LAMS[max(best - 1, 0) : best + 1]:
        yield from run(lam, max(KACZMARZ_SWEEPS))


def _best(candidates, truth) -> tuple[dict[str, Any], Images]:
    best, found = -math.inf, None
    for settings, image in candidates:
        image = jnp.clip(image, 0, 1)
        psnr = float(jnp.mean(metrics.psnr(image, truth, 1.0)))
        if psnr > best:
            best, found = psnr, (settings, image)
    return found


def threshold(image: Images, fraction: float) -> Array:
    """Mask of the pixels above a fraction of each image's maximum."""
    return image > fraction * jnp.max(image, axis=(-2, -1), keepdims=True)


def tune_threshold(image: Images, made: data.Examples) -> float:
    """Fraction of the maximum whose mask has the best mean Dice on these examples."""
    scores = [
        (float(jnp.mean(metrics.dice(threshold(image, t), made.mask))), t)
        for t in THRESHOLDS
    ]
    return float(max(scores)[1])


# --- Controls: tuned and run like the others, from training examples

TRAINING_IMAGES = 20_000  # at most, for the mean image and the linear map
NEAREST_IMAGES = 5_000  # at most, to look for the nearest signal among
RIDGE_LAMS = tuple(10.0 ** (-k) for k in range(1, 8))


class Training:
    """Training examples, as many as the networks saw up to a cap; moments once asked."""

    def __init__(self, config: Config, operator: data.Operator, count: int):
        size = config.data.batch_size
        self.count = min(-(-count // size) * size, TRAINING_IMAGES // size * size)
        self.config, self.operator = config, operator

    def _batches(self, count):
        # The noise of the run's own training.
        noise, _, _ = jax.random.split(jax.random.key(self.config.seed), 3)
        size, snr = self.config.data.batch_size, self.config.data.snr_db
        for start in range(0, count, size):
            made = data.draw(self.operator, "train", start, size, snr, noise)
            yield np.asarray(_signals(self.operator, made.voltage)), made.image

    @cached_property
    def known(self) -> tuple[np.ndarray, np.ndarray]:
        """Signals and images to look among."""
        parts = list(self._batches(min(self.count, NEAREST_IMAGES)))
        return tuple(np.concatenate(a) for a in zip(*parts, strict=True))

    @cached_property
    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Y^T Y and Y^T X over all of them, in sums of some thousand examples."""
        total, held = None, []
        for signals, image in itertools.chain(
            self._batches(self.count), [(None, None)]
        ):
            if signals is not None:
                held.append((signals, np.asarray(image).reshape(len(image), -1)))
            if held and (signals is None or len(held) * len(held[0][0]) >= 2000):
                y, x = (np.concatenate(a) for a in zip(*held, strict=True))
                found = controls.moments(y, x)
                if total is not None:
                    found = tuple(a + b for a, b in zip(total, found, strict=True))
                total, held = found, []
        return total

    @cached_property
    def mean(self) -> np.ndarray:
        """The mean image."""
        parts = [np.mean(image, axis=0) for _, image in self._batches(self.count)]
        return np.mean(parts, axis=0)


def _signals(operator, u):
    """Voltages as the networks get them, [B, M]."""
    return (u / operator.scale[None]).reshape(len(u), -1)


def _zero(p, training, made):
    return (lambda u: jnp.zeros((len(u), *p.operator.scanner.grid.shape))), {}


def _mean(p, training, made):
    mean = jnp.asarray(training.mean)
    about = {"training_images": training.count}
    return (lambda u: jnp.broadcast_to(mean, (len(u), *mean.shape))), about


def _nearest(p, training, made):
    known, images = (jnp.asarray(a) for a in training.known)

    def solve(u):
        return controls.nearest(known, images, _signals(p.operator, u))

    about = {"training_images": len(known), "distance": "Euclidean, amplitudes kept"}
    return solve, about


def _ridge(p, training, made):
    signals = _signals(p.operator, made.voltage)

    def linear(lam):
        return jnp.asarray(controls.ridge(*training.moments, lam), jnp.float32)

    candidates = (
        ({"lam": lam}, _images(p, signals @ linear(lam))) for lam in RIDGE_LAMS
    )
    chosen, _ = _best(candidates, made.image)
    best = linear(**chosen)
    about = {**chosen, "training_images": training.count}
    return (lambda u: _images(p, _signals(p.operator, u) @ best)), about


def _xspace_max(p, training, made):
    default = float(xspace.default_width(p.operator.scanner))

    def solver(width):
        return lambda u: controls.max_normalised(xspace_solver(p, width)(u))

    widths = [factor * default for factor in WIDTHS]
    candidates = (({"width": w}, solver(w)(made.voltage)) for w in widths)
    chosen, _ = _best(candidates, made.image)
    return solver(**chosen), chosen


def _kaczmarz_max(p, training, made):
    candidates = (
        (settings, controls.max_normalised(image))
        for settings, image in _kaczmarz_candidates(p, made.voltage, made.image)
    )
    chosen, _ = _best(candidates, made.image)
    solver = kaczmarz_solver(p, **chosen)
    return (lambda u: controls.max_normalised(solver(u))), chosen


CONTROLS = {
    "zero": _zero,
    "mean": _mean,
    "nearest": _nearest,
    "ridge": _ridge,
    "xspace_max": _xspace_max,
    "kaczmarz_max": _kaczmarz_max,
}


# --- Networks


def load_network(place: Path) -> tuple[Config, nn.Module, Any]:
    """Config, generator and what train.predict needs, of a work folder or weights file."""
    place = Path(place)
    path = place / "weights.safetensors" if place.is_dir() else place
    weights, metadata = checkpoint.load_weights(path)
    config = configs.from_dict(metadata["config"])
    generator = train.make_networks(config).generator
    return config, generator, jax.tree.map(jnp.asarray, weights)


def label(config: Config, generator: Any) -> str:
    """Name of a network in tables, from its row: its kind, and where physics went in."""
    own = getattr(generator.config, "label", None)
    if own is not None:  # the baselines say it themselves
        return own
    single = generator.config.tasks == ("recon",)
    name = "Single-task TransGAN" if single else "Dual-task TransGAN"
    matched = ", matched" if config.generator.endswith("_matched") else ""
    return f"{name}{matched}{' + physics' if config.physics.rank else ''}"


def kind(config: Config, generator: Any) -> str:
    """dual, single, matched, or the baseline's name: cnn, resnet, dcgan, unet."""
    if hasattr(generator.config, "label"):
        return re.match("[a-z]+", config.generator)[0]
    if generator.config.tasks != ("recon",):
        return "dual"
    return "matched" if config.generator.endswith("_matched") else "single"


def _about(folder: Path, config: Config, generator: Any) -> dict[str, Any]:
    """What tells one run from another."""
    weights = folder / "weights.safetensors"
    metadata = checkpoint.load_weights(weights)[1]
    settings = json.dumps(
        {**configs.to_dict(config), "seed": None, "name": None}, sort_keys=True
    )
    return {
        "kind": kind(config, generator),
        "config": config.name,
        "generator": config.generator,
        "adversarial": config.loss.adversarial,
        "bce": config.loss.bce,
        "dice": config.loss.dice,
        "physics": config.physics.rank,
        "seed": config.seed,
        "images_seen": metadata.get("images"),
        "commit": metadata.get("commit"),
        "trained_on": metadata.get("device"),
        # The same for runs that differ by their seed only.
        "group": hashlib.sha256(settings.encode()).hexdigest()[:12],
    }


def _check_same(workdir, config, folder, other) -> None:
    """Runs of one table have the same scanner and test signals."""
    pairs = [
        (
            f"scanner.{f.name}",
            getattr(config.scanner, f.name),
            getattr(other.scanner, f.name),
        )
        for f in dataclasses.fields(config.scanner)
    ]
    pairs.append(("data.test_snr_db", config.data.test_snr_db, other.data.test_snr_db))
    found = [
        f"{n} is {b!r} there and {a!r} in {workdir}" for n, a, b in pairs if a != b
    ]
    if found:
        raise ValueError(
            f"{folder}: expected a run of the same scanner and test settings; "
            + "; ".join(found)
        )


def _distinct(labels: list[str], abouts: list[dict]) -> list[str]:
    """Labels that say what their runs differ in: adversarial weight, seed, number."""
    for words in (
        "adversarial weight {adversarial:g}",
        "mask terms {bce:g} BCE + {dice:g} Dice",
        "config {config}",
        "seed {seed}",
        "run {number}",
    ):
        for name in {n for n in labels if labels.count(n) > 1}:
            same = [i for i, n in enumerate(labels) if n == name]
            said = [words.format(**abouts[i], number=k + 1) for k, i in enumerate(same)]
            if len(set(said)) > 1:
                for i, text in zip(same, said, strict=True):
                    labels[i] = f"{name}, {text}"
    return labels


# --- The whole table


class Row(NamedTuple):
    """A line of the table. prepare: validation examples -> what reconstructs, its
    settings. Voltages become images in [0, 1] and segmentation logits, or None.
    """

    method: str
    label: str
    about: dict
    prepare: Callable[[data.Examples], tuple[Callable, dict]]


def run(
    workdir: Path,
    *,
    methods: list[str] | None = None,
    runs: list[Path] | None = None,
    num: int = 600,
    snr: list[float] | None = None,
    tell: train.Tell = train.silent,
) -> list[dict]:
    """Evaluate methods on the first `num` test images; returns the rows of the table.

    methods: names of METHODS or CONTROLS; by default USUAL, transgan where the run has
    weights. runs: further work folders, whose networks are evaluated beside. snr [dB]:
    levels of the test signals, each with methods tuned for it; by default the config's,
    which is also the main one where it is among them, else the first.
    Images are clipped to [0, 1] for every method. Raises ValueError for unknown methods,
    where weights are asked for that aren't there, and for runs of another scanner or
    other test signals.
    """
    workdir, folders = Path(workdir), [Path(r) for r in runs or ()]
    config = train.read_config(workdir)
    trained = (workdir / "weights.safetensors").exists()
    if methods is None:
        methods = [m for m in USUAL if m != "transgan" or trained]
        if config.calibration.path:  # tells nothing of fields
            methods.remove("xspace")
    unknown = [m for m in methods if m not in (*METHODS, *CONTROLS)]
    if unknown or not (methods or folders):
        raise ValueError(
            f"methods: expected some of {', '.join((*METHODS, *CONTROLS))}; got "
            f"{unknown or 'none'}"
        )
    methods = list(dict.fromkeys(methods))
    if num < len(phantoms.FAMILIES):
        raise ValueError(
            f"num: expected at least {len(phantoms.FAMILIES)}, one image of each "
            f"family, got {num}"
        )
    if "transgan" in methods and not trained:
        raise ValueError(
            f"{workdir}: has no weights yet; finish its training with --resume, or "
            "leave transgan out of --methods"
        )
    levels = [float(s) for s in dict.fromkeys(snr or [config.data.test_snr_db])]
    if any(math.isnan(s) or s == -math.inf for s in levels):
        raise ValueError(f"snr: expected numbers of dB or inf, got {levels}")
    main = config.data.test_snr_db
    main = main if main in levels else levels[0]
    networks = {}
    for name, folder in [("transgan", workdir)] * ("transgan" in methods) + [
        (f"run{n}", folder) for n, folder in enumerate(folders, start=1)
    ]:
        other = train.read_config(folder)
        _check_same(workdir, config, folder, other)
        if not (folder / "weights.safetensors").exists():
            raise ValueError(f"{folder}: has no weights yet; finish its training")
        networks[name] = (folder, *load_network(folder))
    began = time.monotonic()
    tell("build", 0, 1, {})
    operator = data.build(config)
    rows = _rows(config, operator, methods, networks)

    results, shown, first, family = {}, {}, None, None
    steps, done = len(levels) * len(rows), 0
    chunk = -(-CHUNK // config.data.batch_size) * config.data.batch_size
    for level in levels:
        examples = partial(_examples, operator, config, level)
        validation = examples("validation", 0, config.validation_images)
        ready = {}
        for row in rows:
            tell("tune", done, steps, {})
            ready[row.method] = row.prepare(validation)
            done += 1
        tell("tune", done, steps, {})
        values = {row.method: [] for row in rows}
        seconds = {row.method: [] for row in rows}
        families = []
        for start in range(0, num, chunk):
            made = examples("test", start, min(chunk, num - start))
            families.append(np.asarray(made.family))
            for method, (solver, settings) in ready.items():
                if num <= chunk:
                    jax.block_until_ready(solver(made.voltage))  # compiles
                clock = time.perf_counter()
                image, logit = jax.block_until_ready(solver(made.voltage))
                taken = time.perf_counter() - clock
                if start or num <= chunk:  # the first of many chunks compiles
                    seconds[method].append(taken / len(made.voltage))
                mask = threshold(image, settings["threshold"])
                found = _measure(operator, made, level, image, logit, mask)
                values[method].append(jax.device_get(found))
                if level == main and start == 0:
                    mask = mask if logit is None else logit > 0
                    shown[method] = np.asarray(image), np.asarray(mask, np.uint8)
            if level == main:
                first = first or jax.device_get(made)
            tell("test", min(start + chunk, num), num, {})
        family = np.concatenate(families)[:num]
        for row in rows:
            parts = values[row.method]
            found = {k: np.concatenate([v[k] for v in parts])[:num] for k in parts[0]}
            took = float(np.median(seconds[row.method]))
            results[level, row.method] = found, took, ready[row.method][1]
    lines = _lines(rows, results, family, levels)
    _write(workdir, config, rows, lines, results, first, shown, main, family,
           time.monotonic() - began)  # fmt: skip
    return [line for line in lines if line["snr_db"] == main]


def _rows(config, operator, methods, networks) -> list[Row]:
    """The lines of the table, in its order: controls, classical, learned."""
    p = problem(config, operator)
    seen = [checkpoint.load_weights(n[0] / "weights.safetensors")[1].get("images")
            for n in networks.values()]  # fmt: skip
    seen = max([s for s in seen if s], default=config.steps * config.data.batch_size)
    training = Training(config, operator, seen)
    operators = {(config.physics, config.data.batch_size): operator}

    def control(method, made):
        solver, chosen = CONTROLS[method](p, training, made)
        solver = partial(_clipped, solver)
        return solver, {**chosen, "threshold": _threshold_of(solver, made)}

    def classical(method, made):
        chosen, image = tune(p, method, made)
        solver = partial(_clipped, CLASSICAL[method](p, **chosen))
        return solver, {**chosen, "threshold": tune_threshold(image, made)}

    def network(solver, own, made):
        chosen = {"refine": own.refine} if own.refine else {}
        return solver, {**chosen, "threshold": _threshold_of(solver, made)}

    rows = []
    for method in sorted(methods, key=_ORDER.index):
        if method != "transgan":
            prepare = control if method in CONTROLS else classical
            rows.append(Row(method, LABELS[method], {}, partial(prepare, method)))
    abouts = [_about(folder, c, g) for folder, c, g, _ in networks.values()]
    labels = _distinct([label(c, g) for _, c, g, _ in networks.values()], abouts)
    for name, title, about in zip(networks, labels, abouts, strict=True):
        _, own_config, generator, params = networks[name]
        # Signals are scaled by a run's own first training batches.
        key = own_config.physics, own_config.data.batch_size
        if key not in operators:
            operators[key] = data.build(own_config)
        own = operators[key]
        solver = partial(_network, generator, params, own)
        rows.append(Row(name, title, about, partial(network, solver, own)))
    return rows


def _threshold_of(solver, made):
    return tune_threshold(solver(made.voltage)[0], made)


def _examples(operator, config, snr_db, split, start, count) -> data.Examples:
    """At least `count` examples, in the batches that training has compiled already."""
    size = config.data.batch_size
    parts = [
        data.draw(operator, split, i, size, snr_db)
        for i in range(start, start + count, size)
    ]
    return jax.tree.map(lambda *a: jnp.concatenate(a), *parts)


def _measure(operator, made, snr_db, image, logit, thresholded) -> dict[str, Array]:
    """Every metric of each image, [B]. residual: |S x - u| / |n|, 1 where all that is
    left is noise; NaN without noise.
    """
    mask = thresholded if logit is None else logit > 0
    found = metrics.measure(image, made.image, mask, made.mask, 1.0)
    found["foreground_ssim"] = metrics.foreground_ssim(
        image, made.image, made.mask, 1.0
    )
    found["dice_thresholded"] = metrics.dice(thresholded, made.mask)
    found["iou_thresholded"] = metrics.iou(thresholded, made.mask)
    found["amount"] = jnp.sum(image, axis=(-2, -1))
    found["true_amount"] = jnp.sum(made.image, axis=(-2, -1))
    # In one unit for all channels, in which squares don't leave float32.
    unit = jnp.mean(operator.scale)

    def left(c):
        difference = system_matrix.forward(operator.matrix, c) - made.voltage
        return jnp.linalg.norm((difference / unit).reshape(len(c), -1), axis=-1)

    noise = left(made.image) if math.isfinite(snr_db) else jnp.nan
    found["residual"] = left(image) / noise
    return found


_AMOUNTS = ("amount", "true_amount")


def _lines(rows, results, family, levels) -> list[dict]:
    """A line of numbers for each level, method and family, with 95 % intervals."""
    lines = []
    for level in levels:
        for name in ("all", *phantoms.FAMILIES):
            own = family >= 0
            if name != "all":
                own = family == phantoms.FAMILIES.index(name)
            found = {
                (row.method, k): v[own]
                for row in rows
                for k, v in results[level, row.method][0].items()
            }
            # The same resampled images for all of them.
            drawn = bootstrap.means(*found.values())
            between = {k: bootstrap.ends(d) for k, d in zip(found, drawn, strict=True)}
            for row in rows:
                _, taken, settings = results[level, row.method]
                values = {k: found[m, k] for m, k in found if m == row.method}
                numbers = {}
                for k, v in values.items():
                    low, high = between[row.method, k]
                    if k not in _AMOUNTS:
                        numbers[k] = {**metrics.summary(v), "low": low, "high": high}
                lines.append(
                    {
                        "method": row.method,
                        "label": row.label,
                        "about": row.about,
                        "snr_db": level,
                        "family": name,
                        "num": int(own.sum()),
                        **numbers,
                        "pooled_psnr": metrics.pooled_psnr(values["mse"], 1.0),
                        "amount": metrics.amounts(*(values[k] for k in _AMOUNTS)),
                        "seconds_per_image": taken,
                        "settings": settings,
                        "segmentation": (
                            "predicted"
                            if row.about.get("kind") == "dual"
                            else "thresholded"
                        ),
                    }
                )
    order = [row.method for row in rows]
    return sorted(
        lines, key=lambda n: (levels.index(n["snr_db"]), order.index(n["method"]))
    )


def _network(generator, params, operator, u):
    out = train.predict(generator, params, operator, u)
    return out.reconstruction, out.segmentation


def _clipped(solver, u):
    return jnp.clip(solver(u), 0, 1), None


def _write(
    workdir, config, rows, lines, results, examples, shown, main, family, seconds
) -> None:
    folder = workdir / "evaluation"
    folder.mkdir(exist_ok=True)
    first = [
        int(np.argmax(examples.family == f)) for f in range(len(phantoms.FAMILIES))
    ]
    grid = data.make_scanner(config).grid
    labels = np.array([row.label for row in rows])
    methods = np.array([row.method for row in rows])
    arrays = {
        "truth": examples.image[first],
        "mask": np.asarray(examples.mask[first], np.uint8),
        "family": np.array(phantoms.FAMILIES),
        "pixel_size": np.asarray(grid.pitch)[:2],
        "methods": methods,
        "labels": labels,
    }
    for method, (image, mask) in shown.items():
        arrays[f"image_{method}"], arrays[f"mask_{method}"] = image[first], mask[first]
    values = {
        "family": np.array(phantoms.FAMILIES)[family],
        "methods": methods,
        "labels": labels,
        "main_snr_db": np.array(main),
        "snr_db": np.array(sorted({level for level, _ in results}, reverse=True)),
    }
    for (level, method), (found, _, _) in results.items():
        for name, v in found.items():
            values[f"{level:g}/{method}/{name}"] = np.asarray(v, np.float32)
    device = jax.local_devices()[0]
    about = json.loads((workdir / "config.json").read_text())
    info = {
        "num": len(family),
        "snr_db": main,
        "noise": "white, power SNR of each signal; data and reconstruction share one "
        "system matrix (an inverse crime: every row is better than on a real scanner)",
        "model": config.calibration.path or config.scanner.model,
        "seed": config.seed,
        "seconds": round(seconds, 1),
        "device": f"{device.device_kind}, {os.cpu_count()} CPU cores",
        "ssim": "Gaussian 11x11, sigma 1.5, range 1",
        "intervals": f"95 %, percentile bootstrap over images, {bootstrap.DRAWS} draws, "
        f"NumPy seed {bootstrap.SEED}",
        "grid": list(grid.shape),
    }
    summary = {
        "config": config.name,
        "commit": about.get("commit"),
        "version": about.get("version"),
        "trained_on": about.get("device"),
        **info,
        "rows": [
            {k: _rounded(v) for k, v in line.items() if k not in ("family", "snr_db")}
            for line in lines
            if line["family"] == "all" and line["snr_db"] == main
        ],
    }
    save_npz(folder / "arrays.npz", arrays)
    save_npz(folder / "values.npz", values)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    train.write_atomically(folder / "metrics.jsonl", text)
    train.write_atomically(folder / "info.json", json.dumps(info, indent=1))
    train.write_atomically(
        folder / "summary.json", json.dumps(summary, indent=1) + "\n"
    )


def _rounded(value):
    """Six digits: enough for tables, and small files to commit."""
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value


def compare(
    image: Float[np.ndarray, "*grid"], truth: Float[np.ndarray, "*grid"], cell: float
) -> dict[str, float]:
    """How close a reconstruction is to the concentration that was measured, both mmol/L.

    nrmse: relative to the root mean square of the truth; psnr [dB]: range from 0 to the
    largest true value; correlation (Pearson); dice of what is above half the largest
    value; iron [umol] and true_iron, with cell: volume of a voxel [m^3]. The truth is the
    phantom's nominal place and filling: a registration is not attempted.
    """
    if image.shape != truth.shape:
        raise ValueError(
            f"image: expected shape {truth.shape} like the truth, got {image.shape}"
        )
    if not truth.any():
        raise ValueError("truth: expected tracer on the grid, got none")
    image, truth = np.asarray(image, float), np.asarray(truth, float)
    mse = np.mean((image - truth) ** 2)
    one, two = image > image.max() / 2, truth > truth.max() / 2
    spread = np.std(image) * np.std(truth)
    covariance = np.mean((image - image.mean()) * (truth - truth.mean()))
    return {
        "nrmse": float(np.sqrt(mse / np.mean(truth**2))),
        "psnr": float(10 * np.log10(truth.max() ** 2 / max(mse, 1e-300))),
        "correlation": float(covariance / spread) if spread else 0.0,
        "dice": float(2 * np.sum(one & two) / (np.sum(one) + np.sum(two))),
        # 1 mmol/L is 1 mol/m^3.
        "iron": float(image.sum() * cell * 1e6),
        "true_iron": float(truth.sum() * cell * 1e6),
    }


def save_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """An .npz file, whole or not at all."""
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    train.write_atomically(path, content.getvalue())
