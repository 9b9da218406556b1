"""Examples made on the device from an index, and what a network is given of them.

Image i of a split is a function of (split, i), its noise of (key, i): batches don't
depend on the number of devices, resuming needs the step alone, and an epoch costs no
disk. Images are grey images of 8 bits, so that a file of them says the same as the
stream that draws them. One line of data:

    phantoms.batch -> `Pictures`, or a file of them                  0 ... 255
    Pictures -> system_matrix.forward -> noise -> `Examples`         what is true
    Examples.voltage -> `inputs` -> `Inputs`                         what a network sees
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt8

from mpi_jax import calibrated, phantoms, physics, scanner, system_matrix
from mpi_jax.configs import Config
from mpi_jax.reconstruct import variational

PRESETS = {"paper": scanner.paper, "open_mpi_2d": scanner.open_mpi_2d}
_SCALE_IMAGES = 120  # training images that set the scale of the signals


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Operator:
    """The fixed arrays of a run: how images become signals and signals become inputs.

    matrix [C, V, P] in the receiver's unit; scale [C, 1]: standard deviation of the
    noise-free training signals of each channel, which the network's signals are divided
    by (one number a channel, never one a signal, so that concentration survives);
    basis: truncated SVD of the matrix, None without physics features. keep [C, K]: the
    frequencies that signals and their noise have, None where these are all.
    """

    scanner: scanner.Scanner | scanner.Recorded
    matrix: Float[Array, "C V P"]
    scale: Float[Array, "C 1"]
    basis: variational.SpectralBasis | None
    lams: Float[Array, " L"]
    iterations: int = dataclasses.field(metadata={"static": True})
    refine: int = dataclasses.field(metadata={"static": True})
    keep: Bool[Array, "C K"] | None = None


class Pictures(NamedTuple):
    """What a file holds of examples: image [B, ny, nx] in steps of 1/255, mask, family.

    The mask was decided before the image was rounded.
    """

    image: UInt8[Array, "B ny nx"]
    mask: Bool[Array, "B ny nx"]
    family: Int[Array, " B"]


class Examples(NamedTuple):
    """What is true: image and mask [B, ny, nx], noisy voltage [B, C, V], family [B]."""

    image: Float[Array, "B ny nx"]
    mask: Float[Array, "B ny nx"]
    voltage: Float[Array, "B C V"]
    family: Int[Array, " B"]


class Inputs(NamedTuple):
    """What a generator gets: arguments of models.transgan.Generator.

    signal [B, C * V]; features [B, ny, nx, L + 1] (Tikhonov images, then the base), base
    [B, ny, nx] (the non-negative image) and measured, the signal in the singular basis:
    coefficients [B, k], s [k], V [P, k]; all None without physics
    features. With 0 iterations there is no base, and L features.
    """

    signal: Float[Array, "B M"]
    features: Float[Array, "B ny nx F"] | None
    base: Float[Array, "B ny nx"] | None
    measured: tuple[Array, Array, Array] | None = None


def make_scanner(config: Config) -> scanner.Scanner | scanner.Recorded:
    """The scanner of a config. ValueError for unknown presets or sizes."""
    settings = config.scanner
    if settings.preset == calibrated.PRESET:
        return calibrated.scanner_of(config)
    if settings.preset not in PRESETS:
        raise ValueError(
            f"scanner.preset: expected one of {', '.join((*PRESETS, calibrated.PRESET))}; "
            f"got {settings.preset!r}"
        )
    if config.calibration.path:
        raise ValueError(
            f"calibration.path: expected none with scanner.preset {settings.preset}, "
            f"got {config.calibration.path!r}"
        )
    physics.check_model(settings.model)
    return PRESETS[settings.preset](settings.pixels)


def simulator(config: Config) -> Operator:
    """What examples need: the calibration of a config's scanner. Scale 1, no basis."""
    made, keep = make_scanner(config), None
    if isinstance(made, scanner.Recorded):
        matrix, keep = map(jnp.asarray, calibrated.matrix(config))
    else:
        matrix = system_matrix.simulate(made, config.scanner.model)
    return Operator(
        scanner=made,
        matrix=matrix,
        scale=jnp.ones((made.channels, 1)),
        basis=None,
        lams=jnp.asarray(config.physics.lams, jnp.float32),
        iterations=config.physics.iterations,
        refine=config.physics.refine,
        keep=keep,
    )


def build(config: Config) -> Operator:
    """What training needs: the simulator, its matrix decomposed, its signals scaled."""
    operator = simulator(config)
    if config.physics.rank:
        flat = operator.matrix.reshape(-1, operator.scanner.grid.size)
        basis = variational.spectral_basis(
            flat, config.physics.rank, config.physics.rho
        )
        operator = dataclasses.replace(operator, basis=basis)
    size = config.data.batch_size
    starts = range(0, max(_SCALE_IMAGES, size), size)
    families = config.data.families
    u = [
        draw(operator, "train", i, size, np.inf, families=families).voltage
        for i in starts
    ]
    scale = jnp.sqrt(jnp.mean(jnp.square(jnp.concatenate(u)), axis=(0, 2)))[:, None]
    return dataclasses.replace(operator, scale=scale)


def pictures(
    split: Int[Array, ""] | int,
    start: Int[Array, ""] | int,
    size: int,
    grid: scanner.Grid,
    families: tuple[str, ...] = phantoms.FAMILIES,
    images: int | None = None,
) -> Pictures:
    """Pictures start ... start + size - 1 of phantoms.SPLITS[split]; pure.

    families, images: the stream's, see phantoms.indices.
    """
    image, mask, family = phantoms.batch(split, start, size, grid, families, images)
    return Pictures(jnp.round(255 * image).astype(jnp.uint8), mask > 0, family)


def observe(
    operator: Operator,
    pictures: Pictures,
    start: Int[Array, ""] | int,
    snr_db: Float[Array, " 2"],
    key: PRNGKeyArray,
) -> Examples:
    """What the scanner measures of pictures from position `start` of a stream; pure.

    snr_db: smallest and largest power SNR [dB], drawn uniformly for each example.
    """
    image = pictures.image.astype(jnp.float32) / 255
    u = system_matrix.forward(operator.matrix, image)
    low, high = snr_db[0], snr_db[1]
    index = start + jnp.arange(len(image))

    def noisy(i, u):
        level, noise = jax.random.split(jax.random.fold_in(key, i))
        # An infinite SNR leaves u as it is; inf - inf must not make a NaN of it.
        span = jnp.where(high == low, 0.0, high - low)
        snr = low + span * jax.random.uniform(level)
        if operator.keep is None:
            return physics.add_noise(noise, u, snr)
        return u + physics.noise_level(u, snr) * _band_noise(noise, u, operator.keep)

    mask = pictures.mask.astype(jnp.float32)
    return Examples(image, mask, jax.vmap(noisy)(index, u), pictures.family)


def _band_noise(key, u, keep):
    """Noise of unit power like u [C, V] that only has the frequencies keep [C, K]."""
    samples = u.shape[-1]
    white = jnp.fft.rfft(jax.random.normal(key, u.shape, u.dtype))
    # A bin stands for two frequencies, but those without an opposite one.
    twice = np.full(keep.shape[-1], 2.0)
    twice[0] = 1
    twice[samples // 2 :] = 1 if samples % 2 == 0 else 2
    share = jnp.sum(keep * twice[None]) / u.size
    return jnp.fft.irfft(jnp.where(keep, white, 0), samples) / jnp.sqrt(share)


def inputs(operator: Operator, voltage: Float[Array, "B C V"]) -> Inputs:
    """Network inputs of measured voltages; nothing but the operator is used of truth."""
    signal = (voltage / operator.scale[None]).reshape(len(voltage), -1)
    if operator.basis is None:
        return Inputs(signal, None, None)
    flat = voltage.reshape(len(voltage), -1)
    shape = (len(voltage), *operator.scanner.grid.shape)
    tikhonov = variational.tikhonov(operator.basis, flat, operator.lams)
    images = jnp.moveaxis(tikhonov.reshape(shape[0], -1, *shape[1:]), 1, -1)
    coefficients = variational.project(operator.basis, flat) / operator.basis.scale
    measured = coefficients, operator.basis.s, operator.basis.V
    if not operator.iterations:
        return Inputs(signal, images, None, measured)
    base = variational.nonnegative(
        operator.basis, flat, iterations=operator.iterations
    ).reshape(shape)
    features = jnp.concatenate([images, base[..., None]], -1)
    return Inputs(signal, features, base, measured)


def refine(
    operator: Operator, voltage: Float[Array, "B C V"], image: Float[Array, "B ny nx"]
) -> Float[Array, "B ny nx"]:
    """A network's images, made consistent with the measured voltages.

    A few steps towards the non-negative image that explains them, from the network's:
    strong singular values are set by the measurement, weak ones by the network.
    """
    if operator.basis is None or not operator.refine:
        return image
    count = len(voltage)
    return variational.nonnegative(
        operator.basis,
        voltage.reshape(count, -1),
        iterations=operator.refine,
        start=image.reshape(count, -1),
    ).reshape(image.shape)


# Noise of everything but training: one for all seeds, so that runs compare.
_NOISE_SEED = 2718


def draw(
    operator: Operator,
    split: str,
    start: int,
    size: int,
    snr_db: float | tuple[float, float],
    key: PRNGKeyArray | None = None,
    families: tuple[str, ...] = phantoms.FAMILIES,
) -> Examples:
    """Examples of a split by name at one SNR [dB] or a range, compiled once for all.

    key: noise; by default that of validation and test signals, the same for every run.
    """
    pair = jnp.broadcast_to(jnp.asarray(snr_db, jnp.float32), (2,))
    key = jax.random.key(_NOISE_SEED) if key is None else key
    number = phantoms.SPLITS.index(split)
    made = draw_pictures(number, start, size, operator.scanner.grid, families)
    return _observe(operator, made, start, pair, key)


# What is compiled for one device and any split serves all who draw that many.
draw_pictures = jax.jit(pictures, static_argnames=("size", "families", "images"))
_observe = jax.jit(observe)


# --- Training pictures, drawn or read


def training_pictures(
    config: Config,
    grid: scanner.Grid,
    process: tuple[int, int] = (0, 1),
    devices: int | None = None,
) -> Callable[[int], tuple[np.ndarray, Pictures]]:
    """Pictures of a training step: step -> (start [D], Pictures [D, B / D, ...]).

    One row for each device of this process (default: the local ones); start: position
    of its first picture in the stream. process: (this one, how many), of which each
    draws or reads its own share. The same bits from both sources, for any step, in any
    order. Raises ValueError for settings that don't fit, or not to the data set.
    """
    settings, devices = config.data, devices or jax.local_device_count()
    shares = process[1] * devices
    if settings.batch_size < 1 or settings.batch_size % shares:
        raise ValueError(
            f"data.batch_size: expected a multiple of the {shares} devices, "
            f"got {settings.batch_size}"
        )
    if settings.images < 0:
        raise ValueError(f"data.images: expected a number >= 0, got {settings.images}")
    if settings.source not in ("stream", "tfds"):
        raise ValueError(
            f"data.source: expected stream or tfds, got {settings.source!r}"
        )
    if settings.source == "stream" and settings.folder:
        raise ValueError("data.folder: only with data.source tfds")
    size = settings.batch_size // shares
    first = size * (process[0] * devices + np.arange(devices))
    images, families = settings.images or None, settings.families
    phantoms.indices(jnp.zeros(1, int), families, images)  # complain early

    if settings.source == "tfds":
        reader = Reader(settings.folder, "train", grid.shape)
        images = images or len(reader)
        if images > len(reader):
            raise ValueError(
                f"data.images: expected at most the {len(reader)} training images of "
                f"{settings.folder}, got {images}"
            )

        def made(start):
            position = start[:, None] + np.arange(size)
            index = np.asarray(phantoms.indices(position, families, images))
            return reader(index)

    elif devices == 1:

        def made(start):
            one = draw_pictures(0, start[0], size, grid, families, images)
            return jax.tree.map(lambda a: a[None], one)

    else:
        drawn = jax.pmap(lambda start: pictures(0, start, size, grid, families, images))

        def made(start):
            return drawn(start)

    def of_step(step):
        start = step * settings.batch_size + first
        return start, made(start)

    return of_step


class Reader:
    """A split of a built data set, which reads pictures by their index.

    Takes the folder that `datasets/build.py mpi_phantoms` names, or one above it where
    it is the only data set. Raises ValueError where there is none, for another data set
    or other sizes than `shape` (ny, nx), and where tensorflow-datasets is absent.
    """

    def __init__(self, folder: str | Path, split: str, shape: tuple[int, int]):
        folder = Path(folder).expanduser() if folder else None
        if folder is None or not folder.is_dir():
            raise ValueError(
                f"data.folder: expected the folder of a data set built by "
                f"datasets/build.py mpi_phantoms, got {folder or 'none'}"
            )
        found = sorted(path.parent for path in folder.rglob("dataset_info.json"))
        if len(found) != 1:
            these = ", ".join(str(path.relative_to(folder)) for path in found)
            raise ValueError(
                f"data.folder: expected one data set in {folder}, found {these or 'none'}"
            )
        try:
            import tensorflow_datasets as tfds
        except ImportError:
            raise ValueError(
                "data.source: tfds needs tensorflow-datasets: pip install mpi_jax[data]"
            ) from None
        builder = tfds.builder_from_directory(found[0])
        if builder.name != "mpi_phantoms" or split not in builder.info.splits:
            raise ValueError(
                f"data.folder: expected mpi_phantoms with a split {split}, found "
                f"{builder.name} with {', '.join(builder.info.splits) or 'none'}"
            )
        have = builder.info.features["image"].shape
        if tuple(shape) != have:
            raise ValueError(
                f"data.folder: expected images of {shape[0]} x {shape[1]} pixels, those "
                f"of {folder} have {have[0]} x {have[1]}"
            )
        self._folder, self._shape = folder, have
        self._records = builder.as_data_source(split)

    def __len__(self) -> int:
        return len(self._records)

    def __call__(self, index: Int[np.ndarray, "*n"]) -> Pictures:
        """Pictures [*n, ...]; ValueError where a record isn't the image it should be."""
        wanted = index.ravel().tolist()
        if min(wanted) < 0 or max(wanted) >= len(self):
            raise ValueError(
                f"index: expected 0 to {len(self) - 1}, the images in {self._folder}; got "
                f"{min(wanted)} to {max(wanted)}"
            )
        records = self._records.__getitems__(wanted)
        for i, record in zip(wanted, records, strict=True):
            if record["index"] != i:
                raise ValueError(
                    f"{self._folder}: expected image {i} in record {i}, found "
                    f"{record['index']}"
                )
        pixels = self._shape[0] * self._shape[1]
        packed = np.stack([record["mask"] for record in records])
        mask = np.unpackbits(packed, axis=-1, count=pixels).astype(bool)
        shape = *index.shape, *self._shape
        return Pictures(
            np.stack([record["image"] for record in records]).reshape(shape),
            mask.reshape(shape),
            np.array([record["family"] for record in records], np.int32).reshape(
                index.shape
            ),
        )


def check_voltage(scanner: scanner.Scanner, voltage: np.ndarray) -> np.ndarray:
    """A measured voltage as [N, C, V] float32; ValueError where it can't be one.

    Takes [C, V], [N, C, V] or flat [C * V], [N, C * V].
    """
    channels, samples = scanner.channels, scanner.samples
    u = np.asarray(voltage)
    if u.ndim and u.shape[-1] == channels * samples:
        u = u.reshape(*u.shape[:-1], channels, samples)
    if u.ndim not in (2, 3) or u.shape[-2:] != (channels, samples):
        raise ValueError(
            f"voltage: expected [N, {channels}, {samples}] or [N, {channels * samples}] "
            f"(channels x samples of one period), got shape {list(np.shape(voltage))}"
        )
    if not np.issubdtype(u.dtype, np.floating):
        raise ValueError(f"voltage: expected real numbers, got {u.dtype}")
    if not np.isfinite(u).all():
        bad = int(np.size(u) - np.isfinite(u).sum())
        raise ValueError(f"voltage: expected finite numbers, got {bad} NaN or infinite")
    return u.reshape(-1, channels, samples).astype(np.float32)
