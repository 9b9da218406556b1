"""How far an image is from the truth, and a mask from its truth.

    [..., ny, nx]  ->  [...]     one number for each image

| name  | formula                              | best | range    |
|-------|--------------------------------------|------|----------|
| mse   | mean (x^ - x)^2                      | 0    | [0, inf) |
| rmse  | sqrt(mse)                            | 0    | [0, inf) |
| nrmse | norm(x^ - x) / norm(x)               | 0    | [0, inf] |
| psnr  | 10 log10(data_range^2 / mse)  [dB]   | inf  |          |
| ssim  | Gaussian window 11 x 11, sigma 1.5   | 1    | [-1, 1]  |
| foreground_ssim | the same, where the truth's mask is | 1 | [-1, 1]  |
| dice  | 2 n(a and b) / (n(a) + n(b))         | 1    | [0, 1]   |
| iou   | n(a and b) / n(a or b), n: pixels    | 1    | [0, 1]   |

The data range is always given, never guessed from the images: the same error must cost
the same in every image. It is a plain number, fixed when a function is jitted.

`summary` and `pooled_psnr` close the line: they return Python numbers, ready for JSON.
"""

from __future__ import annotations

import math

import dm_pix
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num


def compare(
    image: Float[np.ndarray, "*grid"], truth: Float[np.ndarray, "*grid"], cell: float
) -> dict[str, float]:
    """How close a reconstruction is to the concentration that was measured, both mmol/L.

    nrmse: relative to the root mean square of the truth; psnr [dB]: range from 0 to the
    largest true value; correlation (Pearson); dice of what is above half the largest
    value; iron [umol] and true_iron, with cell: volume of a voxel [m^3]. The truth is the
    phantom's nominal place and filling: a registration is not attempted.

    Examples:
      >>> import numpy as np
      >>> truth = np.zeros((19, 19, 19))
      >>> truth[8:11, 8:11, 8:11] = 50.0  # [mmol/L]
      >>> numbers = compare(truth / 2, truth, cell=4e-9)  # voxels of 2 x 2 x 1 mm
      >>> round(numbers["correlation"], 3), numbers["dice"]
      (1.0, 1.0)
      >>> round(numbers["iron"], 2), round(numbers["true_iron"], 2)  # [umol]
      (2.7, 5.4)
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


# An underscore leaves the sizes of the second argument to `_check_pair`: the type
# checker of the tests would else speak first, and users have no such checker.
Image = Float[Array | np.ndarray, "*batch ny nx"]
Reference = Float[Array | np.ndarray, "*_batch _ny _nx"]
Mask = (
    Bool[Array | np.ndarray, "*batch ny nx"] | Num[Array | np.ndarray, "*batch ny nx"]
)
ReferenceMask = (
    Bool[Array | np.ndarray, "*_batch _ny _nx"]
    | Num[Array | np.ndarray, "*_batch _ny _nx"]
)
PerImage = Float[Array, "*batch"]

SSIM_WINDOW = 11  # pixels; with sigma 1.5 the window of Wang et al. 2004
SSIM_SIGMA = 1.5  # pixels


def mse(image: Image, reference: Reference) -> PerImage:
    """Mean squared error of each image, in the square of the images' unit.

    Raises ValueError if the shapes differ.

    Examples:
      >>> import numpy as np
      >>> truth = np.zeros((2, 16, 16), np.float32)
      >>> truth[:, 4:8, 4:8] = 1
      >>> print(np.asarray(mse(truth + 0.1, truth), float).round(4))
      [0.01 0.01]
    """
    _check_pair(image, reference)
    return jnp.mean(jnp.square(jnp.asarray(image) - jnp.asarray(reference)), (-2, -1))


def rmse(image: Image, reference: Reference) -> PerImage:
    """Root of the mean squared error of each image, in the images' unit.

    Raises ValueError if the shapes differ.

    Examples:
      >>> import numpy as np
      >>> truth = np.zeros((2, 16, 16), np.float32)
      >>> truth[:, 4:8, 4:8] = 1
      >>> print(np.asarray(rmse(truth + 0.1, truth), float).round(4))
      [0.1 0.1]
    """
    return jnp.sqrt(mse(image, reference))


def nrmse(image: Image, reference: Reference) -> PerImage:
    """Error energy relative to the reference, norm(x^ - x) / norm(x).

    A reference that is zero everywhere gives 0 if the image is zero too, else inf.
    Raises ValueError if the shapes differ.

    Examples:
      >>> import numpy as np
      >>> truth = np.zeros((2, 16, 16), np.float32)
      >>> truth[:, 4:8, 4:8] = 1
      >>> print(np.asarray(nrmse(0.75 * truth, truth), float).round(3))
      [0.25 0.25]
    """
    error = mse(image, reference)
    energy = jnp.mean(jnp.square(jnp.asarray(reference)), axis=(-2, -1))
    ratio = error / jnp.where(energy > 0, energy, 1)
    empty = jnp.where(error > 0, jnp.inf, 0)
    return jnp.sqrt(jnp.where(energy > 0, ratio, empty))


def psnr(image: Image, reference: Reference, data_range: float) -> PerImage:
    """Peak signal-to-noise ratio of each image [dB]; inf for identical images.

    data_range: largest minus smallest value a true image can have, 1 for [0, 1].
    Raises ValueError if the shapes differ or data_range is not positive.

    Examples:
      >>> import numpy as np
      >>> truth = np.zeros((2, 16, 16), np.float32)
      >>> truth[:, 4:8, 4:8] = 1
      >>> print(np.asarray(psnr(truth + 0.1, truth, 1.0), float).round(3))  # [dB]
      [20. 20.]
    """
    _check_range(data_range)
    return 20 * math.log10(data_range) - 10 * jnp.log10(mse(image, reference))


def ssim(image: Image, reference: Reference, data_range: float) -> PerImage:
    """Structural similarity of each image, the mean of its map where the window fits.

    Z. Wang et al., IEEE Trans. Image Process. 13 (2004) 600, with a Gaussian window of
    11 x 11 pixels, sigma 1.5, K1 = 0.01, K2 = 0.03 and population variances. Other
    windows give other numbers, so tables must name this one.
    Raises ValueError if the shapes differ, data_range is not positive or a side of the
    image is shorter than the window.

    Examples:
      >>> import numpy as np
      >>> truth = np.zeros((2, 16, 16), np.float32)
      >>> truth[:, 4:8, 4:8] = 1
      >>> print(np.asarray(ssim(truth, truth, 1.0), float).round(3))
      [1. 1.]
    """
    _check_pair(image, reference)
    _check_range(data_range)
    *batch, ny, nx = image.shape
    if min(ny, nx) < SSIM_WINDOW:
        raise ValueError(
            f"image: expected sides of at least {SSIM_WINDOW} pixels, the SSIM window, "
            f"got {ny} x {nx}"
        )
    value = dm_pix.ssim(
        jnp.asarray(image).reshape(-1, ny, nx, 1),
        jnp.asarray(reference).reshape(-1, ny, nx, 1),
        max_val=data_range,
        filter_size=SSIM_WINDOW,
        filter_sigma=SSIM_SIGMA,
    )
    return value.reshape(batch)


def foreground_ssim(
    image: Image, reference: Reference, mask: ReferenceMask, data_range: float
) -> PerImage:
    """Mean of the map of `ssim` over the pixels of a mask, the true one.

    Most of a phantom is empty, where a black image is right: this looks at the rest.
    Where no pixel of the mask lies where the window fits, the mean of the whole map.
    Raises ValueError as `ssim` does.

    Examples:
      >>> import numpy as np
      >>> truth = np.zeros((2, 16, 16), np.float32)
      >>> truth[:, 4:8, 4:8] = 1
      >>> zero = np.zeros_like(truth)
      >>> inside = foreground_ssim(zero, truth, truth > 0.5, 1.0)
      >>> bool(np.all(inside < ssim(zero, truth, 1.0)))  # a black image is right elsewhere
      True
    """
    whole = ssim(image, reference, data_range)
    _check_pair(image, mask, names=("image", "mask"))
    *batch, ny, nx = image.shape
    ssim_map = dm_pix.ssim(
        jnp.asarray(image).reshape(-1, ny, nx, 1),
        jnp.asarray(reference).reshape(-1, ny, nx, 1),
        max_val=data_range,
        filter_size=SSIM_WINDOW,
        filter_sigma=SSIM_SIGMA,
        return_map=True,
    )
    edge = SSIM_WINDOW // 2
    inside = (jnp.asarray(mask) > 0.5)[..., edge : ny - edge, edge : nx - edge]
    ssim_map = ssim_map.reshape(inside.shape)
    count = jnp.sum(inside, axis=(-2, -1))
    mean = jnp.sum(ssim_map * inside, axis=(-2, -1)) / jnp.maximum(count, 1)
    return jnp.where(count > 0, mean, whole)


def amounts(
    amount: Float[Array | np.ndarray, " n"], truth: Float[Array | np.ndarray, " _n"]
) -> dict[str, float]:
    """How summed amplitudes follow the true ones over a test set.

    slope: of the least squares line amount = offset + slope truth; bias: mean error over
    the mean truth. 1 and 0 are right. NaN where the truth doesn't vary, or is nothing.
    Raises ValueError if N = 0 or the lengths differ.

    Examples:
      >>> import numpy as np
      >>> amounts(np.array([1.5, 3.0, 4.5]), np.array([1.0, 2.0, 3.0]))
      {'slope': 1.5, 'bias': 0.5}
    """
    amount, truth = _host(amount, "amount"), _host(truth, "truth")
    if len(amount) != len(truth):
        raise ValueError(
            f"truth: expected {len(amount)} values like amount, got {len(truth)}"
        )
    spread, mean = np.mean((truth - truth.mean()) ** 2), truth.mean()
    covariance = np.mean((truth - mean) * (amount - amount.mean()))
    return {
        "slope": float(covariance / spread) if spread > 0 else math.nan,
        "bias": float((amount.mean() - mean) / mean) if mean else math.nan,
    }


def dice(mask: Mask, reference: ReferenceMask) -> PerImage:
    """Dice overlap of each pair of masks (boolean or 0/1); 1 if both are empty.

    Raises ValueError if the shapes differ.

    Examples:
      >>> import numpy as np
      >>> truth = np.zeros((2, 16, 16), np.float32)
      >>> truth[:, 4:8, 4:8] = 1
      >>> mask = truth[:1] > 0.5
      >>> print(dice(mask, np.roll(mask, 2, axis=-1)))
      [0.5]
    """
    both, either = _overlap(mask, reference)
    # |a| + |b| = |a or b| + |a and b|
    return jnp.where(either > 0, 2 * both / jnp.maximum(either + both, 1), 1.0)


def iou(mask: Mask, reference: ReferenceMask) -> PerImage:
    """Intersection over union of masks (boolean or 0/1); 1 if both are empty.

    Raises ValueError if the shapes differ.

    Examples:
      >>> import numpy as np
      >>> truth = np.zeros((2, 16, 16), np.float32)
      >>> truth[:, 4:8, 4:8] = 1
      >>> mask = truth[:1] > 0.5
      >>> print(np.asarray(iou(mask, np.roll(mask, 2, axis=-1)), float).round(3))
      [0.333]
    """
    both, either = _overlap(mask, reference)
    return jnp.where(either > 0, both / jnp.maximum(either, 1), 1.0)


def scores(
    image: Image,
    reference: Reference,
    mask: ReferenceMask,
    reference_mask: ReferenceMask,
    data_range: float,
) -> dict[str, PerImage]:
    """Every metric of this module for each image: {"mse": [N], ..., "iou": [N]}.

    image, reference: [N, ny, nx]; mask, reference_mask: [N, ny, nx], boolean or 0/1.
    Raises ValueError as the single metrics do.

    Examples:
      >>> import numpy as np
      >>> truth = np.zeros((2, 16, 16), np.float32)
      >>> truth[:, 4:8, 4:8] = 1
      >>> numbers = scores(truth, truth, truth > 0.5, truth > 0.5, 1.0)
      >>> list(numbers)
      ['mse', 'rmse', 'nrmse', 'psnr', 'ssim', 'dice', 'iou']
      >>> numbers["dice"].shape
      (2,)
    """
    _check_pair(image, mask, names=("image", "mask"))
    return {
        "mse": mse(image, reference),
        "rmse": rmse(image, reference),
        "nrmse": nrmse(image, reference),
        "psnr": psnr(image, reference, data_range),
        "ssim": ssim(image, reference, data_range),
        "dice": dice(mask, reference_mask),
        "iou": iou(mask, reference_mask),
    }


def summary(values: Float[Array | np.ndarray, " n"]) -> dict[str, float]:
    """Mean, standard deviation (over N, not N - 1), median and 5th percentile (p5).

    One infinite value (the PSNR of a perfect image) makes the mean infinite and the
    deviation NaN; median and percentile stand while finite values surround them.
    Raises ValueError if N = 0.

    Examples:
      >>> import numpy as np
      >>> summary(np.array([20.0, 30.0, 40.0]))
      {'mean': 30.0, 'sd': 8.16..., 'median': 30.0, 'p5': 21.0}
    """
    values = _host(values, "values")
    with np.errstate(invalid="ignore"):  # inf - inf in the deviation: NaN, as said
        mean, sd = values.mean(), values.std()
        median, p5 = np.median(values), np.percentile(values, 5)
    return {
        "mean": float(mean),
        "sd": float(sd),
        "median": float(median),
        "p5": float(p5),
    }


def pooled_psnr(
    mse_values: Float[Array | np.ndarray, " n"], data_range: float
) -> float:
    """PSNR [dB] of the mean of all squared errors, at most the mean of the PSNRs.

    The gap between the two measures how unequal the images are (Jensen's inequality).
    Raises ValueError if N = 0 or data_range is not positive.

    Examples:
      >>> import numpy as np
      >>> errors = np.array([1e-2, 1e-4])  # PSNRs of 20 and 40 dB
      >>> round(pooled_psnr(errors, 1.0), 2)
      22.97
    """
    _check_range(data_range)
    mean = float(_host(mse_values, "mse_values").mean())
    return 10 * math.log10(data_range**2 / mean) if mean > 0 else math.inf


def _overlap(mask: Mask, reference: ReferenceMask) -> tuple[PerImage, PerImage]:
    """Pixels in both masks and pixels in either, for each image."""
    _check_pair(mask, reference, names=("mask", "reference"))
    a, b = jnp.asarray(mask) > 0.5, jnp.asarray(reference) > 0.5
    both, either = jnp.sum(a & b, axis=(-2, -1)), jnp.sum(a | b, axis=(-2, -1))
    return both.astype(float), either.astype(float)


def _host(values: Float[Array | np.ndarray, " n"], name: str) -> np.ndarray:
    # float64: a mean over 18,233 images must not lose digits in the last step
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"{name}: expected shape [N] with N >= 1, got {values.shape}")
    return values


def _check_pair(a, b, names=("image", "reference")) -> None:
    if a.ndim < 2 or a.shape != b.shape:
        raise ValueError(
            f"{names[0]}, {names[1]}: expected one shape [..., ny, nx], "
            f"got {a.shape} and {b.shape}"
        )


def _check_range(data_range: float) -> None:
    if not 0 < data_range < math.inf:
        raise ValueError(f"data_range: expected a positive number, got {data_range}")
