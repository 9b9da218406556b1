"""How far methods fall where data differ from what they were trained and tuned on.

Every method (networks with their own operator, classical ones as tuned on validation
images, the all-zero image) meets the same signals; what is told is PSNR and its drop
from the in-distribution test images, with a bootstrap interval over images:

    families       a family that a run was trained without, against the run with all
    shapes         phantoms_ood.SHAPES
    vessels        vessels grown by space colonisation
    snr            white noise at 60 ... 10 dB, 1/f noise, a narrow-band disturbance
    operator       data of another scanner than the reconstruction assumes
    linearity      other concentrations; f(u1 + u2) against f(u1) + f(u2)
    hallucination  what images hold that the signal cannot tell; pure noise; no signal

All cases share one realisation of the noise, and those that keep the images are compared
image by image.

    work folder -> generalisation/metrics.jsonl  a line per (suite, case, method)
                   generalisation/values.npz     values of each image, and examples
                   generalisation/table.json     the table: what report draws and prints
                   generalisation/parts/         finished suites, to go on from
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from mpi_jax import (
    bootstrap,
    data,
    evaluate,
    metrics,
    phantoms,
    phantoms_ood,
    physics,
    system_matrix,
    train,
)
from mpi_jax.configs import Config
from mpi_jax.reconstruct import variational
from mpi_jax.scanner import Grid, Scanner

# Names of the suites: keys of _BUILD below.
SUITES = (
    "families",
    "shapes",
    "vessels",
    "snr",
    "operator",
    "linearity",
    "hallucination",
)
METHODS = (*evaluate.CLASSICAL, "transgan")
USUAL = ("tikhonov", "kaczmarz", "nonnegative", "transgan")
ZERO = "zero"  # the control: an image of zeros for every signal

SNRS = (60.0, 50.0, 40.0, 30.0, 20.0, 10.0)  # [dB]
DIAMETERS = (0.8, 0.9, 1.1, 1.2)  # of the nominal core diameter
GRADIENTS = (0.98, 1.02)
PHASE = 1.0  # [degrees]
CONCENTRATIONS = (0.05, 0.2, 0.5, 2.0)
# Singular values above this part of the largest are what the signal tells of an image.
CUT = 1e-2
CHUNK = 60  # images at once
_SEED = 31415

Images = Float[Array, "N ny nx"]
Voltages = Float[Array, "N C V"]


# --- Other scanners, other noise, and what is measured: pure functions


def shifted(
    scanner: Scanner,
    *,
    diameter: float = 1.0,
    gradient: float = 1.0,
    phase: float = 0.0,
) -> Scanner:
    """The scanner with its core diameter and gradient times a factor, and its drive
    fields ahead by a phase [degrees] on every axis.
    """
    tracer, drive, field = scanner.tracer, scanner.drive_field, scanner.selection_field
    return dataclasses.replace(
        scanner,
        tracer=dataclasses.replace(
            tracer, core_diameter=tracer.core_diameter * diameter
        ),
        drive_field=dataclasses.replace(
            drive, phase=np.asarray(drive.phase) + phase / 360
        ),
        selection_field=dataclasses.replace(
            field, gradient=np.asarray(field.gradient) * gradient
        ),
    )


def signals(
    nominal: Scanner, other: Scanner, images: Float[Array, "N ny nx"], model: str
) -> Float[Array, "N C V"]:
    """Noise-free voltages of `other` for images on its grid, in the nominal unit.

    The same iron per volume makes them: of larger cores there are fewer, and a pixel of
    a finer grid counts by its area ("moment" scaling knows of neither).
    """
    u = physics.voltage(other, images, model)
    if nominal.receiver.scaling == "si":
        return u
    fewer = other.tracer.number_density / nominal.tracer.number_density
    return u * jnp.asarray(fewer * (nominal.grid.size / other.grid.size), u.dtype)


def pink(samples: int) -> Float[np.ndarray, " K"]:
    """Power density of 1/f noise at the rfft bins of a period, none at DC."""
    bins = np.arange(samples // 2 + 1)
    return np.where(bins > 0, 1 / np.maximum(bins, 1), 0.0)


def narrow_band(scanner: Scanner) -> Float[np.ndarray, " K"]:
    """Power density of a disturbance in the eleven bins around the third harmonic of the
    slowest drive frequency: in the midst of the signal.
    """
    bins = np.arange(scanner.samples // 2 + 1)
    slowest = min(f for f in np.asarray(scanner.drive_field.frequencies) if f > 0)
    third = np.argmin(np.abs(scanner.frequencies() - 3 * slowest))
    return (np.abs(bins - third) <= 5).astype(float)


def coloured_noise(
    key: PRNGKeyArray,
    u: Float[Array, "*batch C V"],
    snr_db: float,
    density: Float[np.ndarray, " K"],
) -> Float[Array, "*batch C V"]:
    """u plus Gaussian noise of a power density [K] over the rfft bins, any unit.

    Its expected power is that of white noise at snr_db [dB] (physics.noise_level); a
    constant density is white noise. Raises ValueError on a density of another length,
    negative or zero everywhere.
    """
    samples = u.shape[-1]
    density = np.asarray(density, float)
    if density.shape != (samples // 2 + 1,) or density.min() < 0 or not density.any():
        raise ValueError(
            f"density: expected {samples // 2 + 1} numbers >= 0, not all 0, one for "
            f"each rfft bin of {samples} samples, got shape {density.shape}"
        )
    # Bins without a mirror image count once, the others twice.
    own = np.arange(samples // 2 + 1) % (samples / 2) != 0
    power = np.sum(density * (1 + own)) / samples
    gain = jnp.asarray(np.sqrt(density / power), u.dtype)
    white = jnp.fft.rfft(jax.random.normal(key, u.shape, u.dtype))
    gain = gain.reshape((1,) * (u.ndim - 1) + gain.shape)
    noise = jnp.fft.irfft(white * gain, n=samples)
    return u + physics.noise_level(u, snr_db) * noise


def unseen(
    V: Float[Array, "P k"], image: Images, truth: Images
) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
    """What images hold outside of the span of V, relative to the truth's energy there.

    (energy of (I - V V^T) x^, energy of (I - V V^T) (x^ - x)), each over that of
    (I - V V^T) x. An image without any such part has (0, 1); the truth has (1, 0); an
    error above 1 means that what was added is worse than nothing. V has orthonormal
    columns.
    """

    def energy(x):
        x = x.reshape(len(x), -1)
        seen = jnp.matmul(x, V, precision="highest")
        x = x - jnp.matmul(seen, V.T, precision="highest")
        return jnp.sum(x * x, axis=-1)

    there = energy(truth)
    return energy(image) / there, energy(image - truth) / there


def superposition(whole: Images, one: Images, other: Images) -> Float[Array, " N"]:
    """Relative error norm(f(u1 + u2) - f(u1) - f(u2)) / norm(f(u1) + f(u2)); 0 where
    both are 0.
    """
    both = one + other
    error = jnp.sqrt(jnp.sum(jnp.square(whole - both), axis=(-2, -1)))
    size = jnp.sqrt(jnp.sum(jnp.square(both), axis=(-2, -1)))
    return jnp.where(error > 0, error / size, 0.0)


def drop(
    reference: np.ndarray, values: np.ndarray, *, paired: bool
) -> dict[str, float]:
    """mean(reference) - mean(values), and its 95 % bootstrap interval over images.

    paired: both belong to the same images, which are then drawn together.
    """
    if paired:
        one, other = bootstrap.means(reference, values)
    else:
        (one,) = bootstrap.means(reference)
        (other,) = bootstrap.means(values, seed=bootstrap.SEED + 1)
    low, high = bootstrap.ends(one - other)
    mean = float(np.mean(reference, dtype=float) - np.mean(values, dtype=float))
    return {"mean": mean, "low": low, "high": high}


def disjoint_pairs(masks: Bool[np.ndarray, "N ny nx"]) -> list[tuple[int, int]]:
    """Pairs of images without a common pixel, each image in one pair at most."""
    flat = masks.reshape(len(masks), -1).astype(np.float32)
    apart, pairs = flat @ flat.T == 0, []
    left = set(range(len(masks)))
    for i in range(len(masks)):
        if i in left:
            mate = next((j for j in sorted(left) if j > i and apart[i, j]), None)
            if mate is not None:
                pairs.append((i, mate))
                left -= {i, mate}
    return pairs


# --- Methods and cases


@dataclasses.dataclass(frozen=True)
class Method:
    """A solver with its settings: voltages [B, C, V] -> images >= 0 and a mask's logit.

    The images have no upper limit here. threshold: of masks, where there is no logit.
    """

    name: str
    label: str
    solve: Callable[[Voltages], tuple[Array, Array | None]]
    settings: dict[str, Any]
    lacks: tuple[str, ...] = ()  # families that its network was trained without


@dataclasses.dataclass(frozen=True)
class Case:
    """Signals that every method meets, and what is true of them.

    score(case, solve) -> {metric: [n]}, with solve(u) -> (image, logit). shows: metrics
    in the table. paired: the in-distribution images in their order; None: there is
    nothing to compare with. against: method -> method whose values of this case it is
    compared with, instead of the in-distribution ones. tuned_on: examples that classical
    methods are tuned on once more, as a second row.
    """

    name: str
    voltage: Float[Array, "*shape"]
    image: Images | None = None
    mask: Array | None = None
    score: Callable[..., dict[str, np.ndarray]] | None = None
    shows: tuple[str, ...] = ("psnr",)
    peak: float = 1.0
    paired: bool | None = False
    against: dict[str, str] | None = None
    tuned_on: data.Examples | None = None


QUANTITIES = {
    "psnr": "PSNR [dB]",
    "nrmse": "relative error",
    "superposition": "relative error of f(u1 + u2)",
    "unseen_energy": "energy outside V, of the truth's",
    "unseen_error": "error outside V, of the truth's",
    "rms": "root mean square of the image",
    "largest": "largest value of the image",
}


@dataclasses.dataclass(frozen=True)
class Context:
    """What all suites work with. The simulator is the operator that makes the data."""

    config: Config
    problem: evaluate.Problem | None
    truth: data.Examples  # noise-free, in distribution
    methods: dict[str, Method]
    V: Array | None  # [P, k] of the singular values above CUT
    validation: data.Examples  # noise-free
    simulator: data.Operator

    @property
    def snr(self) -> float:
        return self.config.data.test_snr_db

    def noisy(self, u: Voltages) -> Voltages:
        """The same white noise for every case, at the SNR of the test signals."""
        return physics.add_noise(jax.random.key(_SEED), u, self.snr)


def _against_truth(context: Context, case: Case, solve) -> dict[str, np.ndarray]:
    image, logit, fraction = solve(case.voltage)
    image = jnp.clip(image, 0, case.peak)
    mask = logit > 0 if fraction is None else evaluate.threshold(image, fraction)
    found = metrics.measure(image, case.image, mask, case.mask, case.peak)
    energy, error = unseen(context.V, image, case.image)
    return {**found, "unseen_energy": energy, "unseen_error": error}


def _superposed(context: Context, case: Case, solve) -> dict[str, np.ndarray]:
    one, other = case.voltage
    images = (solve(u)[0] for u in (one + other, one, other))
    return {"superposition": superposition(*images)}


def _blank(context: Context, case: Case, solve) -> dict[str, np.ndarray]:
    image = solve(case.voltage)[0]
    return {
        "rms": jnp.sqrt(jnp.mean(jnp.square(image), axis=(-2, -1))),
        "largest": jnp.max(image, axis=(-2, -1)),
    }


# --- The suites: context -> cases


def _reference(context: Context) -> Case:
    t = context.truth
    name = "in distribution; same S (inverse crime)"
    return Case(name, context.noisy(t.voltage), t.image, t.mask, paired=True)


def _families(context: Context) -> Iterator[Case]:
    count, size = len(context.truth.image), len(phantoms.FAMILIES)
    whole = [
        m.name for m in context.methods.values() if "transgan" in m.name and not m.lacks
    ]
    missing = {f for m in context.methods.values() for f in m.lacks}
    if not missing:
        return
    drawn = _test_images(context.simulator, context.config, count * size)
    for family in sorted(missing, key=phantoms.FAMILIES.index):
        own = np.asarray(drawn.family) == phantoms.FAMILIES.index(family)
        own = np.flatnonzero(own)[:count]
        u = context.noisy(drawn.voltage[own])
        lacking = [m.name for m in context.methods.values() if family in m.lacks]
        against = {name: whole[0] for name in lacking} if whole else {}
        name = f"{family}: left out by {', '.join(lacking)}"
        yield Case(name, u, drawn.image[own], drawn.mask[own], against=against)


def _drawn(context: Context, name: str, label: str) -> Case:
    grid = context.simulator.scanner.grid
    image = phantoms_ood.batch(name, len(context.truth.image), grid)
    u = system_matrix.forward(context.simulator.matrix, image)
    image = jnp.asarray(image)
    return Case(label, context.noisy(u), image, phantoms.mask(image))


def _shapes(context: Context) -> Iterator[Case]:
    for name in phantoms_ood.SHAPES:
        yield _drawn(context, name, name)


def _vessels(context: Context) -> Iterator[Case]:
    yield _drawn(context, "colony", "space colonisation")


def _snr(context: Context) -> Iterator[Case]:
    t, v = context.truth, context.validation
    scanner = context.simulator.scanner
    test, tuning = (jax.random.key(_SEED + n) for n in (0, 1))

    def case(name, noise, **options):
        u = noise(test, t.voltage, **options)
        tuned_on = v._replace(voltage=noise(tuning, v.voltage, **options))
        return Case(name, u, t.image, t.mask, paired=True, tuned_on=tuned_on)

    for snr in SNRS:
        yield case(f"white noise, {snr:g} dB", physics.add_noise, snr_db=snr)
    band = narrow_band(scanner)
    f = scanner.frequencies()[np.flatnonzero(band)[[0, -1]]] / 1e3
    level = context.snr if math.isfinite(context.snr) else 40.0
    for name, density in (
        ("1/f noise", pink(scanner.samples)),
        (f"{f[0]:.0f}-{f[1]:.0f} kHz noise", band),
    ):
        options = {"snr_db": level, "density": density}
        yield case(f"{name}, {level:g} dB", coloured_noise, **options)


def _operator(context: Context) -> Iterator[Case]:
    t, model = context.truth, context.config.scanner.model
    nominal = context.simulator.scanner

    def case(name, scanner, model=model):
        u = context.noisy(signals(nominal, scanner, t.image, model))
        return Case(name, u, t.image, t.mask, paired=True)

    yield dataclasses.replace(_reference(context), name="same S (inverse crime)")
    for factor in DIAMETERS:
        name = f"core diameter {100 * (factor - 1):+.0f} %"
        yield case(name, shifted(nominal, diameter=factor))
    for factor in GRADIENTS:
        name = f"gradient {100 * (factor - 1):+.0f} %"
        yield case(name, shifted(nominal, gradient=factor))
    yield case(f"drive phase {PHASE:+g} degree", shifted(nominal, phase=PHASE))
    other = "mpirf" if model == "tensor" else "tensor"
    words = {"mpirf": "scalar", "tensor": "tensor"}
    yield case(f"data of the {words[other]} model", nominal, other)
    fine = dataclasses.replace(nominal, grid=nominal.grid.refined(2))
    images = _images(fine.grid, context.config.data.batch_size, len(t.image))
    u = context.noisy(signals(nominal, fine, images, model))
    image = nominal.grid.average(images)
    yield Case("data on a 2x finer grid", u, image, t.mask, paired=True)


def _linearity(context: Context) -> Iterator[Case]:
    t = context.truth
    u = context.noisy(t.voltage)
    for factor in CONCENTRATIONS:
        # Signal and noise together, so that nothing but the scale differs.
        yield Case(
            f"concentration x {factor:g}",
            factor * u,
            factor * t.image,
            t.mask,
            peak=factor,
            paired=True,
            shows=("psnr", "nrmse"),
        )
    pairs = np.array(disjoint_pairs(np.asarray(t.image) > 0)).reshape(-1, 2)
    if len(pairs):
        yield Case(
            f"{len(pairs)} pairs of disjoint phantoms",
            jnp.stack([u[pairs[:, 0]], u[pairs[:, 1]]]),
            score=_superposed,
            shows=("superposition",),
            paired=None,
        )


def _hallucination(context: Context) -> Iterator[Case]:
    reference, count = _reference(context), context.V.shape[1]
    yield dataclasses.replace(
        reference,
        name=f"in distribution; V: {count} vectors above {CUT:g} of the largest",
        shows=("unseen_energy", "unseen_error"),
    )
    t = context.truth
    noise = context.noisy(t.voltage) - t.voltage
    for name, u in (
        ("noise without tracer", noise),
        ("no signal", jnp.zeros_like(noise)),
    ):
        yield Case(name, u, score=_blank, shows=("rms", "largest"), paired=None)


_BUILD: dict[str, Callable[[Context], Iterator[Case]]] = {
    "families": _families,
    "shapes": _shapes,
    "vessels": _vessels,
    "snr": _snr,
    "operator": _operator,
    "linearity": _linearity,
    "hallucination": _hallucination,
}


# --- Images of splits, whatever the runs were trained on


def _everything(config: Config) -> Config:
    """The config with all families: a run's own may be fewer."""
    if not hasattr(config.data, "families"):
        return config
    every = dataclasses.replace(config.data, families=phantoms.FAMILIES)
    return dataclasses.replace(config, data=every)


def _test_images(simulator, config, count, split="test") -> data.Examples:
    """The first `count` examples of a split, noise-free."""
    size = config.data.batch_size
    parts = [
        data.draw(simulator, split, i, size, np.inf) for i in range(0, count, size)
    ]
    return jax.tree.map(lambda *a: jnp.concatenate(a)[:count], *parts)


def _images(grid: Grid, size: int, count: int) -> Images:
    """The first `count` test images on another grid."""
    draw = jax.jit(lambda start: phantoms.batch("test", start, size, grid)[0])
    return jnp.concatenate([draw(i) for i in range(0, count, size)])[:count]


# --- Measuring


def _solver(method: Method, size: int):
    """voltages [n, C, V] -> (image, logit, threshold), in chunks of one size."""

    def solve(u):
        n = len(u)
        u = jnp.pad(u, ((0, -n % size), (0, 0), (0, 0)))
        parts = [method.solve(u[i : i + size]) for i in range(0, len(u), size)]
        image, logit = (
            None if a[0] is None else jnp.concatenate(a)[:n]
            for a in zip(*parts, strict=True)
        )
        return image, logit, method.settings.get("threshold")

    return solve


def _classical(context_problem, name: str, validation: data.Examples) -> Method:
    """A classical method, tuned on these examples."""
    chosen, image = evaluate.tune(context_problem, name, validation)
    fraction = evaluate.tune_threshold(jnp.clip(image, 0, 1), validation)
    run = evaluate.CLASSICAL[name](context_problem, **chosen)
    settings = {**chosen, "threshold": fraction}
    return Method(name, evaluate.LABELS[name], lambda u: (run(u), None), settings)


def _network(folder: Path, name: str, main: Config, built: dict) -> Method:
    """The network of a work folder with its own operator."""
    config, generator, params = evaluate.load_network(folder)
    if config.scanner != main.scanner:
        raise ValueError(
            f"--runs {folder}: expected a run with the scanner of the first, "
            f"{main.scanner}, got {config.scanner}"
        )
    wanted = json.dumps(
        [dataclasses.asdict(config.physics), dataclasses.asdict(config.data)]
    )
    if wanted not in built:
        built[wanted] = data.build(config)
    operator = built[wanted]

    def solve(u):
        out = train.predict(generator, params, operator, u, largest=math.inf)
        return out.reconstruction, out.segmentation

    label = evaluate.label(config, generator)
    label = label if name == "transgan" else f"{label} ({Path(folder).name})"
    lacks = tuple(f for f in phantoms.FAMILIES if f not in config.data.families)
    return Method(name, label, solve, {}, lacks)


def _zero(grid) -> Method:
    def solve(u):
        return jnp.zeros((len(u), *grid.shape), u.dtype), None

    return Method(ZERO, "All-zero image", solve, {"threshold": 0.5})


def _score(context: Context, case: Case, method: Method, size: int):
    score = case.score or _against_truth
    found = score(context, case, _solver(method, size))
    return {k: np.asarray(v) for k, v in found.items()}


RETUNED = "tuned on such data"


def _measure_suite(context: Context, suite: str, size: int, tell) -> dict:
    """{(case, method, metric): values [n]} of a suite, and its case's properties."""
    values, about = {}, []
    cases = list(_BUILD[suite](context))
    methods = context.methods
    for done, case in enumerate(cases):
        tell(suite, done, len(cases), {})
        rows = [(case.name, methods)]
        if case.tuned_on is not None:
            rows.append(
                (
                    f"{case.name}; {RETUNED}",
                    {
                        name: _classical(context.problem, name, case.tuned_on)
                        for name in methods
                        if name in evaluate.CLASSICAL
                    },
                )
            )
        for name, own in rows:
            if not own:
                continue
            for method in own.values():
                for metric, v in _score(context, case, method, size).items():
                    values[f"{name}|{method.name}|{metric}"] = v
            about.append(
                {
                    "case": name,
                    "shows": case.shows,
                    "paired": case.paired,
                    "against": case.against,
                    "settings": {m.name: m.settings for m in own.values()},
                }
            )
        if suite in ("shapes", "vessels"):
            values[f"{case.name}|truth|example"] = np.asarray(case.image[0])
            for method in methods.values():
                image = _solver(method, size)(case.voltage[:1])[0][0]
                image = np.clip(np.asarray(image), 0, 1)
                values[f"{case.name}|{method.name}|example"] = image
    tell(suite, len(cases), len(cases), {})
    return {**values, "about": np.array(json.dumps(about))}


def run(
    workdir: Path,
    *,
    runs: list[Path] | tuple[Path, ...] = (),
    methods: list[str] | None = None,
    num: int = 60,
    suites: list[str] | None = None,
    tell: train.Tell = train.silent,
) -> list[dict]:
    """Measure the suites on `num` images a case; returns the rows of metrics.jsonl.

    runs: further work folders whose networks take part, on the same scanner. methods:
    names of METHODS, by default USUAL (transgan where the run has weights); the all-zero
    image always joins. A suite that is finished is kept in generalisation/parts, and
    not measured again while nothing that it depends on has changed.
    Raises ValueError for unknown names, num < 6 and missing weights.
    """
    workdir = Path(workdir)
    main = train.read_config(workdir)
    trained = (workdir / "weights.safetensors").exists()
    if methods is None:
        methods = [m for m in USUAL if m != "transgan" or trained]
    suites = list(SUITES) if suites is None else suites
    for name, given, known in (
        ("methods", methods, METHODS),
        ("suites", suites, SUITES),
    ):
        unknown = [g for g in given if g not in known]
        if unknown or not given:
            raise ValueError(
                f"{name}: expected some of {', '.join(known)}; got {unknown or 'none'}"
            )
    if num < len(phantoms.FAMILIES):
        raise ValueError(
            f"num: expected at least {len(phantoms.FAMILIES)}, one image of each "
            f"family, got {num}"
        )
    folders = {"transgan": workdir} if "transgan" in methods else {}
    for folder in map(Path, runs):
        name = f"transgan {folder.resolve().name}"
        if name in folders:
            raise ValueError(
                f"--runs: expected folders of different names, got {folder}"
            )
        folders[name] = folder
    for folder in folders.values():
        if not (folder / "weights.safetensors").exists():
            raise ValueError(
                f"{folder}: has no weights yet; finish its training with --resume, or "
                "leave it out"
            )

    folder = workdir / "generalisation"
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    whole = _everything(main)
    fingerprint = _fingerprint(whole, methods, num, folders)
    found = {
        suite: _read_part(folder / "parts" / f"{suite}.npz", fingerprint)
        for suite in ("reference", *suites)
    }
    if not all(found.values()):
        context = _context(whole, methods, num, folders, tell)
        size = min(num, CHUNK)
        for suite in found:
            if found[suite]:
                continue
            if suite == "reference":
                case = _reference(context)
                values = {
                    f"{case.name}|{m.name}|{metric}": v
                    for m in context.methods.values()
                    for metric, v in _score(context, case, m, size).items()
                }
                about = {
                    "case": case.name,
                    "shows": case.shows,
                    "paired": True,
                    "against": None,
                    "settings": {m.name: m.settings for m in context.methods.values()},
                }
                values["about"] = np.array(json.dumps([about]))
                values["labels"] = np.array(
                    json.dumps({m.name: m.label for m in context.methods.values()})
                )
            else:
                values = _measure_suite(context, suite, size, tell)
            values["fingerprint"] = np.array(fingerprint)
            evaluate.save_npz(folder / "parts" / f"{suite}.npz", values)
            found[suite] = values
    labels = json.loads(str(found["reference"]["labels"]))
    rows = _rows(found, labels)
    _write(folder, whole, found, rows, labels, num)
    return rows


def _context(config, methods, num, folders, tell) -> Context:
    tell("build", 0, 1, {})
    operator = data.build(config)
    simulator = dataclasses.replace(operator, basis=None)
    problem = evaluate.problem(config, operator)
    validation = _test_images(
        simulator, config, config.validation_images, split="validation"
    )
    level = config.data.test_snr_db
    noise = jax.random.key(_SEED + 1)
    noisy = physics.add_noise(noise, validation.voltage, level)
    key = json.dumps(
        [dataclasses.asdict(config.physics), dataclasses.asdict(config.data)]
    )
    built, made = {key: operator}, {}
    names = [m for m in methods if m != "transgan"]
    for n, name in enumerate(names):
        tell("tune", n, len(names), {})
        made[name] = _classical(problem, name, validation._replace(voltage=noisy))
    tell("tune", len(names), len(names), {})
    for name, folder in folders.items():
        method = _network(folder, name, config, built)
        image, logit = method.solve(noisy)
        if logit is None:
            fraction = evaluate.tune_threshold(jnp.clip(image, 0, 1), validation)
            method = dataclasses.replace(method, settings={"threshold": fraction})
        made[name] = method
    made[ZERO] = _zero(operator.scanner.grid)
    basis = problem.basis
    if float(basis.s[-1]) > CUT and len(basis.s) < min(
        basis.U.shape[0], basis.V.shape[0]
    ):
        flat = operator.matrix.reshape(-1, operator.scanner.grid.size)
        basis = variational.spectral_basis(flat)
    V = basis.V[:, np.asarray(basis.s) > CUT]
    truth = _test_images(simulator, config, num)
    return Context(config, problem, truth, made, V, validation, simulator)


def _fingerprint(config, methods, num, folders) -> str:
    """What the values of a suite depend on: settings, weights, the code of methods and
    cases (a change further down asks for an empty generalisation/parts).
    """
    about = [dataclasses.asdict(config), methods, num, list(folders)]
    digest = hashlib.sha256(json.dumps(about).encode())
    weights = (f / "weights.safetensors" for f in folders.values())
    for path in (*weights, evaluate.__file__, phantoms_ood.__file__, __file__):
        digest.update(Path(path).read_bytes())
    return digest.hexdigest()


def _read_part(path: Path, fingerprint: str) -> dict | None:
    """A finished suite; None where there is none that belongs here."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["fingerprint"]) == fingerprint:
                return {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError, EOFError):
        pass
    return None


# --- Rows and files


def _rows(found: dict, labels: dict[str, str]) -> list[dict]:
    """A line per (suite, case, method), with the drop where there is one, and its
    excess over the drop of the first network.
    """
    networks = [name for name in labels if "transgan" in name] or [ZERO]
    reference = found["reference"]
    first = json.loads(str(reference["about"]))[0]["case"]
    rows = []
    for suite, values in found.items():
        for about in json.loads(str(values["about"])):
            for name in labels:
                prefix = f"{about['case']}|{name}|"
                own = {
                    k.removeprefix(prefix): v
                    for k, v in values.items()
                    if k.startswith(prefix) and not k.endswith("|example")
                }
                if not own:
                    continue
                row = {
                    "suite": suite,
                    "case": about["case"],
                    "method": name,
                    "label": labels[name],
                    "shows": list(about["shows"]),
                    "num": len(next(iter(own.values()))),
                    **{k: metrics.summary(v) for k, v in own.items()},
                    "settings": about["settings"].get(name, {}),
                }
                other, paired = None, bool(about["paired"])
                if about["against"] is not None:
                    against = about["against"].get(name)
                    if against:
                        other = values[f"{about['case']}|{against}|psnr"]
                        row["against"], paired = against, True
                elif about["paired"] is not None and suite != "reference":
                    other = reference[f"{first}|{name}|psnr"]
                    row["against"] = "in distribution"
                if other is not None and "psnr" in own:
                    row["drop"] = drop(other, own["psnr"], paired=paired)
                    row["paired"] = paired
                base = values.get(f"{about['case']}|{networks[0]}|psnr")
                if row.get("against") == "in distribution" and base is not None:
                    # The same images met both methods: differences, then their drop.
                    before = other - reference[f"{first}|{networks[0]}|psnr"]
                    row["excess"] = drop(before, own["psnr"] - base, paired=paired)
                rows.append(row)
    return rows


def _table(rows: list[dict], labels: dict[str, str]) -> list[dict]:
    """Lines of the one table: suite, case, quantity, and a cell for each method."""
    lines: dict[tuple, dict] = {}
    for row in rows:
        for metric in row["shows"]:
            key = row["suite"], row["case"], QUANTITIES[metric]
            line = lines.setdefault(
                key, dict(zip(("suite", "case", "quantity"), key, strict=True))
            )
            cell = {"mean": row[metric]["mean"]}
            if metric == "psnr" and "drop" in row:
                cell |= {k: row[k] for k in ("drop", "excess") if k in row}
            line.setdefault("cells", {})[row["method"]] = cell
    return list(lines.values())


def _write(folder, config, found, rows, labels, num) -> None:
    device = jax.local_devices()[0]
    table = {
        "methods": labels,
        "rows": _table(rows, labels),
        "num": num,
        "snr_db": config.data.test_snr_db,
        "grid": [config.scanner.pixels] * 2,
        "model": config.scanner.model,
        "bootstrap": f"{bootstrap.DRAWS} draws of images, 95 % percentile interval",
        "device": f"{device.device_kind}, {os.cpu_count()} CPU cores",
        "notes": []
        if "families" not in found or len(json.loads(str(found["families"]["about"])))
        else [
            "families: none of the runs was trained without a family (data.families)."
        ],
    }
    arrays = {
        f"{suite}|{name}": v
        for suite, values in found.items()
        for name, v in values.items()
        if name not in ("about", "fingerprint", "labels")
    }
    evaluate.save_npz(folder / "values.npz", arrays)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    train.write_atomically(folder / "metrics.jsonl", lines)
    train.write_atomically(folder / "table.json", json.dumps(table, indent=1))
