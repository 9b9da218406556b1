"""How sure a mean over test images is: bootstrap intervals and paired differences.

B. Efron, R. Tibshirani, An Introduction to the Bootstrap (1993), percentile intervals.
Values are [N], one number for each image, or [S, N] for S runs that differ by their seed:
then runs are drawn with replacement as well as images, the same images for every run.
NumPy alone, so that a report needs no JAX.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

SEED = 1993  # of the resampling
DRAWS = 2000
LEVEL = 0.95
_CHUNK = 100  # draws at once: their weights of 18,233 images are 15 MB

# An underscore leaves the sizes to the functions: see metrics.
Values = Float[np.ndarray, " _N"] | Float[np.ndarray, "_S _N"]


def means(
    *values: Values, draws: int = DRAWS, seed: int = SEED
) -> list[Float[np.ndarray, " draws"]]:
    """Means of resampled values; all arguments share the images that were drawn.

    Runs (the S of [S, N]) are drawn for each argument on its own: trainings of two
    methods are independent of each other. Raises ValueError unless all have the same N.
    """
    arrays = [np.atleast_2d(np.asarray(v, np.float64)) for v in values]
    count = arrays[0].shape[-1]
    if not count or any(a.ndim != 2 or a.shape[1] != count for a in arrays):
        raise ValueError(
            f"values: expected [N] or [S, N] of the same N images, N >= 1, got "
            f"{[np.shape(v) for v in values]}"
        )
    rng = np.random.default_rng(seed)
    images = rng.spawn(1)[0]
    runs = [np.random.default_rng([seed, i]) for i in range(len(arrays))]
    lines = np.concatenate(arrays).T  # [N, all S]: one matrix product for all of them
    borders = np.cumsum([len(a) for a in arrays])[:-1]
    resampled: list[list[np.ndarray]] = [[] for _ in arrays]
    for start in range(0, draws, _CHUNK):
        size = min(_CHUNK, draws - start)
        weights = images.multinomial(count, np.full(count, 1 / count), size) / count
        with np.errstate(invalid="ignore"):  # 0 times an infinite PSNR
            parts = np.split(weights @ lines, borders, axis=1)  # each [size, S]
        for part, rng_of_runs, out in zip(parts, runs, resampled, strict=True):
            s = part.shape[1]
            drawn = rng_of_runs.multinomial(s, [1 / s] * s, size) / s
            out.append(np.sum(part * drawn, axis=1))
    return [np.concatenate(out) for out in resampled]


def interval(
    values: Values, *, level: float = LEVEL, draws: int = DRAWS, seed: int = SEED
) -> tuple[float, float]:
    """Ends of the percentile interval of the mean; NaN where a value isn't finite."""
    return ends(means(values, draws=draws, seed=seed)[0], level)


def paired(
    a: Values,
    b: Values,
    *,
    level: float = LEVEL,
    draws: int = DRAWS,
    seed: int = SEED,
) -> dict[str, float]:
    """Mean of a less mean of b on the same images: {"difference", "low", "high"}.

    a, b: [N], or [S, N] and [S', N]. An interval that excludes 0 tells the two apart.
    """
    one, two = means(a, b, draws=draws, seed=seed)
    with np.errstate(invalid="ignore"):
        low, high = ends(one - two, level)
        difference = float(np.mean(a) - np.mean(b))
    return {"difference": difference, "low": low, "high": high}


def ends(
    resampled: Float[np.ndarray, " draws"], level: float = LEVEL
) -> tuple[float, float]:
    """Ends of the percentile interval of resampled means; NaN if any isn't finite."""
    if not np.isfinite(resampled).all():
        return float("nan"), float("nan")
    tail = 50 * (1 - level)
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return float(low), float(high)
