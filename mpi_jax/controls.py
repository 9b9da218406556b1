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

import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float


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
