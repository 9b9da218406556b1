"""What a method has to beat: rows that know little or nothing of the scanner's physics.

| row     | what it returns                                                            |
|---------|----------------------------------------------------------------------------|
| zero    | nothing                                                                    |
| mean    | the mean training image, whatever the signal                               |
| nearest | the training image whose signal is nearest (Euclidean, amplitudes as they  |
|         | are: not scale-invariant)                                                  |
| ridge   | the best linear map from signals to images, C = (Y^T Y + lam I)^-1 Y^T X    |

Signals Y [n, M] are the network's: scaled, never normalised one by one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float

from mpi_jax import data
from mpi_jax.configs import Config
from mpi_jax.methods import classical, table, tuning
from mpi_jax.methods.problem import Problem, Reconstruction, Solve


def moments(
    signals: Float[np.ndarray, "n M"], images: Float[np.ndarray, "_n P"]
) -> tuple[Float[np.ndarray, "M M"], Float[np.ndarray, "M P"]]:
    """Y^T Y and Y^T X in float64; the sums of chunks are those of all of them."""
    y, x = np.asarray(signals, np.float64), np.asarray(images, np.float64)
    if len(y) != len(x):
        raise ValueError(
            f"signals, images: expected as many of each, got {len(y)} and {len(x)}"
        )
    return y.T @ y, y.T @ x


def ridge(
    gram: Float[np.ndarray, "M M"], cross: Float[np.ndarray, "M P"], lam: float
) -> Float[np.ndarray, "M P"]:
    """The linear map of least squares with a ridge; images are signals @ map.

    lam: relative to the mean of gram's diagonal, the mean energy of a sample. Raises
    ValueError unless lam > 0.
    """
    if not 0 < lam < np.inf:
        raise ValueError(f"lam: expected a number > 0, got {lam}")
    size = len(gram)
    ridged = gram + lam * np.trace(gram) / size * np.eye(size)
    factor = scipy.linalg.cho_factor(ridged, lower=True, overwrite_a=True)
    return scipy.linalg.cho_solve(factor, cross)


def nearest(
    training_signals: Float[Array | np.ndarray, "n M"],
    images: Float[Array | np.ndarray, "n ny nx"],
    signals: Float[Array | np.ndarray, "B _M"],
) -> Float[Array, "B ny nx"]:
    """The image of the nearest known signal, by Euclidean distance."""
    training_signals, signals = jnp.asarray(training_signals), jnp.asarray(signals)
    if training_signals.shape[1] != signals.shape[1]:
        raise ValueError(
            f"signals: expected {training_signals.shape[1]} samples, got "
            f"{signals.shape[1]}"
        )
    # |y - k|^2 = |y|^2 - 2 y . k + |k|^2, of which the first is the same for all k.
    product = jnp.matmul(signals, training_signals.T, precision="highest")
    distance = jnp.sum(training_signals**2, axis=1)[None] - 2 * product
    return jnp.asarray(images)[jnp.argmin(distance, axis=1)]


def max_normalised(
    image: Float[Array | np.ndarray, "*batch ny nx"],
) -> Float[Array, "*batch ny nx"]:
    """Each image over its maximum, as MPIRF scales its own: amplitudes are lost."""
    image = jnp.maximum(image, 0)
    top = jnp.max(image, axis=(-2, -1), keepdims=True)
    return image / jnp.where(top > 0, top, 1)


# --- Controls: tuned and run like the others, from training examples

TRAINING_IMAGES = 20_000  # at most, for the mean image and the linear map
NEAREST_IMAGES = 5_000  # at most, to look for the nearest signal among
RIDGE_LAMS = tuple(10.0 ** (-k) for k in range(1, 8))


class Training:
    """Training examples, as many as the networks saw up to a cap; moments once asked."""

    def __init__(self, config: Config, forward: data.ForwardModel, count: int):
        size = config.data.batch_size
        self.count = min(-(-count // size) * size, TRAINING_IMAGES // size * size)
        self.config, self.forward = config, forward

    def _batches(self, count: int) -> Iterator[tuple[np.ndarray, Array]]:
        noise, _ = data.training_keys(self.config.seed)  # the run's own
        size, snr = self.config.data.batch_size, self.config.data.snr_db
        for start in range(0, count, size):
            examples = data.draw(self.forward, "train", start, size, snr, noise)
            signals = data.scaled(self.forward, examples.voltage)
            yield np.asarray(signals), examples.image

    @cached_property
    def examples(self) -> tuple[np.ndarray, np.ndarray]:
        """Signals and images to look among."""
        batches = self._batches(min(self.count, NEAREST_IMAGES))
        signals, images = zip(*batches, strict=True)
        return np.concatenate(signals), np.concatenate(images)

    @cached_property
    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Y^T Y and Y^T X over all of them, in sums of some thousand examples."""
        batches = self._batches(self.count)
        together = max(1, 2000 // self.config.data.batch_size)
        gram: np.ndarray | float = 0.0
        cross: np.ndarray | float = 0.0
        while some := list(itertools.islice(batches, together)):
            signals = np.concatenate([y for y, _ in some])
            images = np.concatenate([np.asarray(x) for _, x in some])
            more = moments(signals, images.reshape(len(images), -1))
            gram, cross = gram + more[0], cross + more[1]
        return np.asarray(gram), np.asarray(cross)

    @cached_property
    def mean(self) -> np.ndarray:
        """The mean image."""
        parts = [np.mean(image, axis=0) for _, image in self._batches(self.count)]
        return np.mean(parts, axis=0)


def _training_of(problem: Problem, method: str) -> tuple[data.ForwardModel, Training]:
    if problem.forward is None or problem.training is None:
        raise ValueError(
            f"method {method}: expected training examples, which only a run has "
            "(mpi-jax evaluate)"
        )
    return problem.forward, problem.training


def zero_solver(problem: Problem) -> Solve:
    """Nothing, whatever the signal."""
    return lambda u: Reconstruction(jnp.zeros((len(u), *problem.shape)))


def mean_solver(problem: Problem) -> Solve:
    """The mean training image, whatever the signal."""
    _, training = _training_of(problem, "mean")
    mean = jnp.asarray(training.mean)
    return lambda u: Reconstruction(jnp.broadcast_to(mean, (len(u), *mean.shape)))


def nearest_solver(problem: Problem) -> Solve:
    """The training image whose signal is nearest."""
    forward, training = _training_of(problem, "nearest")
    training_signals, images = (jnp.asarray(a) for a in training.examples)
    return lambda u: Reconstruction(
        nearest(training_signals, images, data.scaled(forward, u))
    )


def ridge_solver(problem: Problem, *, lam: float) -> Solve:
    """The linear map of least squares over training examples; lam as in `ridge`."""
    forward, training = _training_of(problem, "ridge")
    linear = jnp.asarray(ridge(*training.moments, lam), jnp.float32)
    return lambda u: Reconstruction(problem.images(data.scaled(forward, u) @ linear))


def xspace_max_solver(problem: Problem, *, width: float | None) -> Solve:
    """x-space over its maximum."""
    solve = classical.xspace_solver(problem, width=width, gain=1.0)
    return lambda u: Reconstruction(max_normalised(solve(u).image))


def kaczmarz_max_solver(problem: Problem, **settings: Any) -> Solve:
    """Kaczmarz over its maximum."""
    solve = classical.kaczmarz_solver(problem, **settings)
    return lambda u: Reconstruction(max_normalised(solve(u).image))


def tune(problem: Problem, method: str, examples: data.Examples) -> tuning.Tuned:
    """The settings of a control with the best mean PSNR on these examples."""
    u = examples.voltage
    if method == "kaczmarz_max":
        candidates = (
            (settings, max_normalised(image))
            for settings, image in tuning.kaczmarz_candidates(problem, examples)
        )
        return tuning.best(candidates, examples)
    grids: dict[str, list[dict[str, float]]] = {
        "ridge": [{"lam": x} for x in RIDGE_LAMS]
    }
    if method == "xspace_max":
        grids[method] = [{"width": w} for w in tuning.xspace_widths(problem)]
    prepare = table.METHODS[method].prepare
    candidates = (
        (settings, prepare(problem, settings)(u).image)
        for settings in grids.get(method, [{}])
    )
    return tuning.best(candidates, examples)
