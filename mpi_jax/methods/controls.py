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
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float

from mpi_jax import data
from mpi_jax.configs import Config
from mpi_jax.methods.classical import _images, kaczmarz_solver, xspace_solver
from mpi_jax.methods.problem import WIDTHS
from mpi_jax.methods.tuning import _best, kaczmarz_candidates
from mpi_jax.reconstruct import xspace


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
    known: Float[Array | np.ndarray, "n M"],
    images: Float[Array | np.ndarray, "n ny nx"],
    signals: Float[Array | np.ndarray, "B _M"],
) -> Float[Array, "B ny nx"]:
    """The image of the nearest known signal, by Euclidean distance."""
    known, signals = jnp.asarray(known), jnp.asarray(signals)
    if known.shape[1] != signals.shape[1]:
        raise ValueError(
            f"signals: expected {known.shape[1]} samples, got {signals.shape[1]}"
        )
    # |y - k|^2 = |y|^2 - 2 y . k + |k|^2, of which the first is the same for all k.
    product = jnp.matmul(signals, known.T, precision="highest")
    distance = jnp.sum(known**2, axis=1)[None] - 2 * product
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

    def _batches(self, count):
        # The noise of the run's own training.
        noise, _, _ = jax.random.split(jax.random.key(self.config.seed), 3)
        size, snr = self.config.data.batch_size, self.config.data.snr_db
        for start in range(0, count, size):
            made = data.draw(self.forward, "train", start, size, snr, noise)
            yield np.asarray(_signals(self.forward, made.voltage)), made.image

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
                found = moments(y, x)
                if total is not None:
                    found = tuple(a + b for a, b in zip(total, found, strict=True))
                total, held = found, []
        return total

    @cached_property
    def mean(self) -> np.ndarray:
        """The mean image."""
        parts = [np.mean(image, axis=0) for _, image in self._batches(self.count)]
        return np.mean(parts, axis=0)


def _signals(forward, u):
    """Voltages as the networks get them, [B, M]."""
    return (u / forward.scale[None]).reshape(len(u), -1)


def _zero(p, training, made):
    return (lambda u: jnp.zeros((len(u), *p.forward.scanner.grid.shape))), {}


def _mean(p, training, made):
    mean = jnp.asarray(training.mean)
    about = {"training_images": training.count}
    return (lambda u: jnp.broadcast_to(mean, (len(u), *mean.shape))), about


def _nearest(p, training, made):
    known, images = (jnp.asarray(a) for a in training.known)

    def solve(u):
        return nearest(known, images, _signals(p.forward, u))

    about = {"training_images": len(known), "distance": "Euclidean, amplitudes kept"}
    return solve, about


def _ridge(p, training, made):
    signals = _signals(p.forward, made.voltage)

    def linear(lam):
        return jnp.asarray(ridge(*training.moments, lam), jnp.float32)

    candidates = (
        ({"lam": lam}, _images(p, signals @ linear(lam))) for lam in RIDGE_LAMS
    )
    chosen, _ = _best(candidates, made.image)
    best = linear(**chosen)
    about = {**chosen, "training_images": training.count}
    return (lambda u: _images(p, _signals(p.forward, u) @ best)), about


def _xspace_max(p, training, made):
    default = float(xspace.default_width(p.forward.scanner))

    def solver(width):
        return lambda u: max_normalised(xspace_solver(p, width)(u))

    widths = [factor * default for factor in WIDTHS]
    candidates = (({"width": w}, solver(w)(made.voltage)) for w in widths)
    chosen, _ = _best(candidates, made.image)
    return solver(**chosen), chosen


def _kaczmarz_max(p, training, made):
    candidates = (
        (settings, max_normalised(image))
        for settings, image in kaczmarz_candidates(p, made.voltage, made.image)
    )
    chosen, _ = _best(candidates, made.image)
    solver = kaczmarz_solver(p, **chosen)
    return (lambda u: max_normalised(solver(u))), chosen


CONTROLS = {
    "zero": _zero,
    "mean": _mean,
    "nearest": _nearest,
    "ridge": _ridge,
    "xspace_max": _xspace_max,
    "kaczmarz_max": _kaczmarz_max,
}
