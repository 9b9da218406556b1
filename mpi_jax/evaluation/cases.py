"""What a robustness suite measures: its cases, and how an image is judged in each."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from mpi_jax import bootstrap, data, methods, metrics, phantoms, system_matrix
from mpi_jax.configs import Config
from mpi_jax.noise import add_noise, coloured_noise, narrow_band, pink, signals
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
USUAL = ("tikhonov", "kaczmarz", "nonnegative")
ZERO = "zero"  # the control: an image of zeros for every signal

SNRS = (60.0, 50.0, 40.0, 30.0, 20.0, 10.0)  # [dB]
DIAMETERS = (0.8, 0.9, 1.1, 1.2)  # of the nominal core diameter
GRADIENTS = (0.98, 1.02)
PHASE = 1.0  # [degrees]
CONCENTRATIONS = (0.05, 0.2, 0.5, 2.0)
# Singular values above this part of the largest are what the signal tells of an image.
CUT = 1e-2
CHUNK = 60  # images at once
SEED = 31415

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
        coefficients = jnp.matmul(x, V, precision="highest")
        x = x - jnp.matmul(coefficients, V.T, precision="highest")
        return jnp.sum(x * x, axis=-1)

    true_energy = energy(truth)
    return energy(image) / true_energy, energy(image - truth) / true_energy


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
    unpaired = set(range(len(masks)))
    for i in range(len(masks)):
        if i in unpaired:
            mate = next((j for j in sorted(unpaired) if j > i and apart[i, j]), None)
            if mate is not None:
                pairs.append((i, mate))
                unpaired -= {i, mate}
    return pairs


# --- Cases


@dataclasses.dataclass(frozen=True)
class Case:
    """Signals that every method meets, and what is true of them.

    score(context, case, method) -> {metric: [n]}. shows: metrics
    in the table. paired: the in-distribution images in their order; None: there is
    nothing to compare with. against: method -> method whose values of this case it is
    compared with, instead of the in-distribution ones. tuned_on: examples that classical
    methods are tuned on once more, as a second row.
    """

    name: str
    voltage: Float[Array, "*shape"]
    image: Images | None = None
    mask: Array | None = None
    score: Callable[..., dict[str, Array]] | None = None
    shows: tuple[str, ...] = ("psnr",)
    peak: float = 1.0
    paired: bool | None = False
    against: dict[str, str] | None = None
    tuned_on: data.Examples | None = None

    @property
    def truth(self) -> tuple[Images, Array]:
        """Images and masks; ValueError where there are none to compare with."""
        if self.image is None or self.mask is None:
            raise ValueError(f"case {self.name}: expected images and masks, got none")
        return self.image, self.mask


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
    problem: methods.Problem
    truth: data.Examples  # noise-free, in distribution
    methods: dict[str, methods.Ready]
    lacks: dict[str, tuple[str, ...]]  # of networks: families they were trained without
    V: Array  # [P, k] of the singular values above CUT
    validation: data.Examples  # noise-free
    simulator: data.ForwardModel

    @property
    def scanner(self) -> Scanner:
        """The simulated one; TypeError for one that is known by its calibration."""
        scanner = self.simulator.scanner
        if not isinstance(scanner, Scanner):
            raise TypeError(f"simulator: expected a simulated scanner, got {scanner}")
        return scanner

    @property
    def snr(self) -> float:
        return self.config.data.test_snr_db

    def noisy(self, u: Voltages) -> Voltages:
        """The same white noise for every case, at the SNR of the test signals."""
        return add_noise(jax.random.key(SEED), u, self.snr)


def against_truth(
    context: Context, case: Case, method: methods.Ready
) -> dict[str, Array]:
    """Scores of the images, and what of them the signal cannot tell."""
    reconstruction = method.solve(case.voltage)
    image = jnp.clip(reconstruction.image, 0, case.peak)
    mask = method.mask(reconstruction._replace(image=image))
    truth, true_mask = case.truth
    scores = metrics.scores(image, truth, mask, true_mask, case.peak)
    energy, error = unseen(context.V, image, truth)
    return {**scores, "unseen_energy": energy, "unseen_error": error}


def _superposed(
    context: Context, case: Case, method: methods.Ready
) -> dict[str, Array]:
    one, other = case.voltage
    images = (method.solve(u).image for u in (one + other, one, other))
    return {"superposition": superposition(*images)}


def _blank(context: Context, case: Case, method: methods.Ready) -> dict[str, Array]:
    image = method.solve(case.voltage).image
    return {
        "rms": jnp.sqrt(jnp.mean(jnp.square(image), axis=(-2, -1))),
        "largest": jnp.max(image, axis=(-2, -1)),
    }


# --- The suites: context -> cases


def reference(context: Context) -> Case:
    t = context.truth
    name = "in distribution; same S (inverse crime)"
    return Case(name, context.noisy(t.voltage), t.image, t.mask, paired=True)


def _families(context: Context) -> Iterator[Case]:
    count, size = len(context.truth.image), len(phantoms.FAMILIES)
    complete = [name for name, lacks in context.lacks.items() if not lacks]
    missing = {family for lacks in context.lacks.values() for family in lacks}
    if not missing:
        return
    drawn = test_images(context.simulator, context.config, count * size)
    for family in sorted(missing, key=phantoms.FAMILIES.index):
        of_family = np.asarray(drawn.family) == phantoms.FAMILIES.index(family)
        places = np.flatnonzero(of_family)[:count]
        u = context.noisy(drawn.voltage[places])
        lacking = [name for name, lacks in context.lacks.items() if family in lacks]
        against = {name: complete[0] for name in lacking} if complete else {}
        name = f"{family}: left out by {', '.join(lacking)}"
        image, mask = drawn.image[places], drawn.mask[places]
        yield Case(name, u, image, mask, against=against)


def _drawn(context: Context, name: str, label: str) -> Case:
    grid = context.simulator.scanner.grid
    count = len(context.truth.image)
    image = jnp.asarray(phantoms.unseen.batch(name, count, grid))
    u = system_matrix.forward(context.simulator.matrix, image)
    return Case(label, context.noisy(u), image, phantoms.mask(image))


def _shapes(context: Context) -> Iterator[Case]:
    for name in phantoms.unseen.SHAPES:
        yield _drawn(context, name, name)


def _vessels(context: Context) -> Iterator[Case]:
    yield _drawn(context, "colony", "space colonisation")


def _snr(context: Context) -> Iterator[Case]:
    t, v = context.truth, context.validation
    scanner = context.scanner
    test, validation = (jax.random.key(SEED + n) for n in (0, 1))

    def case(name, noise, **options):
        u = noise(test, t.voltage, **options)
        tuned_on = v._replace(voltage=noise(validation, v.voltage, **options))
        return Case(name, u, t.image, t.mask, paired=True, tuned_on=tuned_on)

    for snr in SNRS:
        yield case(f"white noise, {snr:g} dB", add_noise, snr_db=snr)
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
    nominal = context.scanner

    def case(name, scanner, model=model):
        u = context.noisy(signals(nominal, scanner, t.image, model))
        return Case(name, u, t.image, t.mask, paired=True)

    yield dataclasses.replace(reference(context), name="same S (inverse crime)")
    for factor in DIAMETERS:
        name = f"core diameter {100 * (factor - 1):+.0f} %"
        yield case(name, shifted(nominal, diameter=factor))
    for factor in GRADIENTS:
        name = f"gradient {100 * (factor - 1):+.0f} %"
        yield case(name, shifted(nominal, gradient=factor))
    yield case(f"drive phase {PHASE:+g} degree", shifted(nominal, phase=PHASE))
    other_model = "mpirf" if model == "tensor" else "tensor"
    words = {"mpirf": "scalar", "tensor": "tensor"}
    yield case(f"data of the {words[other_model]} model", nominal, other_model)
    fine_scanner = dataclasses.replace(nominal, grid=nominal.grid.refined(2))
    images = _images(fine_scanner.grid, context.config.data.batch_size, len(t.image))
    u = context.noisy(signals(nominal, fine_scanner, images, model))
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
    count = context.V.shape[1]
    yield dataclasses.replace(
        reference(context),
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


BUILD: dict[str, Callable[[Context], Iterator[Case]]] = {
    "families": _families,
    "shapes": _shapes,
    "vessels": _vessels,
    "snr": _snr,
    "operator": _operator,
    "linearity": _linearity,
    "hallucination": _hallucination,
}


# --- Images of splits, whatever the runs were trained on


def with_all_families(config: Config) -> Config:
    """The config with all families: a run's own may be fewer."""
    if not hasattr(config.data, "families"):
        return config
    every = dataclasses.replace(config.data, families=phantoms.FAMILIES)
    return dataclasses.replace(config, data=every)


def test_images(
    simulator: data.ForwardModel, config: Config, count: int, split: str = "test"
) -> data.Examples:
    """The first `count` examples of a split, noise-free."""
    size = config.data.batch_size
    drawn = data.draw_batches(simulator, split, count, size, np.inf)
    return jax.tree.map(lambda a: a[:count], drawn)


def _images(grid: Grid, size: int, count: int) -> Images:
    """The first `count` test images on another grid."""
    draw = jax.jit(lambda start: phantoms.batch("test", start, size, grid)[0])
    return jnp.concatenate([draw(i) for i in range(0, count, size)])[:count]
