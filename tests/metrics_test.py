"""Metrics against scikit-image, closed forms and inequalities that always hold."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from mpi_jax import metrics


@pytest.fixture
def pair():
    """Five pairs of images [5, 24, 32], from nearly equal to far apart."""
    rng = np.random.default_rng(0)
    truth = rng.uniform(size=(5, 24, 32))
    noise = rng.normal(size=truth.shape) * np.logspace(-2.5, -0.3, 5)[:, None, None]
    return (truth + noise).astype(np.float32), truth.astype(np.float32)


@pytest.mark.parametrize("data_range", [1.0, 2.0, 255.0])
def test_psnr_and_ssim_agree_with_scikit_image(pair, data_range):
    image, truth = pair[0] * data_range, pair[1] * data_range
    psnr = [
        peak_signal_noise_ratio(t, i, data_range=data_range)
        for i, t in zip(image, truth, strict=True)
    ]
    ssim = [
        structural_similarity(
            *both,
            data_range=data_range,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for both in zip(image.astype(float), truth.astype(float), strict=True)
    ]
    np.testing.assert_allclose(metrics.psnr(image, truth, data_range), psnr, rtol=1e-5)
    np.testing.assert_allclose(metrics.ssim(image, truth, data_range), ssim, atol=1e-5)


def test_closed_forms():
    truth = np.full((2, 16, 16), 0.5, np.float32)
    image = truth + np.array([0.1, -0.2], np.float32)[:, None, None]
    np.testing.assert_allclose(metrics.mse(image, truth), [0.01, 0.04], rtol=1e-5)
    np.testing.assert_allclose(metrics.rmse(image, truth), [0.1, 0.2], rtol=1e-5)
    np.testing.assert_allclose(metrics.nrmse(image, truth), [0.2, 0.4], rtol=1e-5)
    decibel = [20, 20 - 20 * math.log10(2)]
    np.testing.assert_allclose(metrics.psnr(image, truth, 1.0), decibel, rtol=1e-5)
    # For constant images only the luminance term of SSIM is left.
    expected = [
        (2 * 0.5 * mean + 1e-4) / (0.5**2 + mean**2 + 1e-4) for mean in (0.6, 0.3)
    ]
    np.testing.assert_allclose(metrics.ssim(image, truth, 1.0), expected, rtol=1e-4)


def test_identical_images_are_perfect(pair):
    _, truth = pair
    mask = truth > 0.5
    values = metrics.scores(truth, truth, mask, mask, 1.0)
    assert np.all(np.isposinf(values.pop("psnr")))
    perfect = {"mse": 0, "rmse": 0, "nrmse": 0, "ssim": 1, "dice": 1, "iou": 1}
    assert values.keys() == perfect.keys()
    for name, value in values.items():
        np.testing.assert_allclose(value, perfect[name], atol=1e-6, err_msg=name)


def test_nrmse_of_a_zero_reference():
    zero = jnp.zeros((12, 12))
    assert metrics.nrmse(zero, zero) == 0
    assert metrics.nrmse(zero + 0.1, zero) == jnp.inf


def test_mean_psnr_is_bounded_by_the_psnr_of_the_means(pair):
    """Jensen: -log is convex, so averaging before the logarithm can only lose."""
    image, truth = pair
    peak = 1.0
    psnr = np.mean(metrics.psnr(image, truth, peak), dtype=float)
    mse, rmse = metrics.mse(image, truth), metrics.rmse(image, truth)
    pooled = metrics.pooled_psnr(mse, peak)
    assert pooled == pytest.approx(10 * math.log10(peak**2 / np.mean(mse)), rel=1e-6)
    bound = 20 * math.log10(peak / np.mean(rmse))
    assert psnr > bound > pooled


def test_dice_and_iou():
    a = np.zeros((4, 4), bool)
    b = a.copy()
    a[:2], b[1:3] = True, True  # 8 pixels each, 4 in common
    assert metrics.dice(a, b) == pytest.approx(0.5)
    assert metrics.iou(a, b) == pytest.approx(1 / 3)
    empty = np.zeros_like(a)
    for overlap in (metrics.dice, metrics.iou):
        assert overlap(a, a) == 1
        assert overlap(a, ~a) == 0
        assert overlap(a, empty) == overlap(empty, a) == 0
        assert overlap(empty, empty) == 1
        assert overlap(a.astype(np.float32), b.astype(np.int32)) == overlap(a, b)


def test_dice_follows_from_iou():
    masks = np.random.default_rng(1).uniform(size=(2, 3, 7, 9, 9)) > 0.6
    dice, iou = metrics.dice(*masks), metrics.iou(*masks)
    assert dice.shape == (3, 7)
    np.testing.assert_allclose(dice, 2 * iou / (1 + iou), rtol=1e-6)


def test_jit_and_vmap_change_nothing(pair):
    image, truth = pair
    arguments = (image, truth, image > 0.5, truth > 0.5)

    def measure(*arrays):
        return metrics.scores(*arrays, 1.0)

    plain = measure(*arguments)
    for variant in (jax.jit(measure), jax.vmap(measure), jax.jit(jax.vmap(measure))):
        for name, value in variant(*arguments).items():
            np.testing.assert_allclose(value, plain[name], atol=1e-5, err_msg=name)


def test_summary():
    values = np.arange(101, dtype=np.float32)
    assert metrics.summary(values) == pytest.approx(
        {"mean": 50, "sd": math.sqrt((101**2 - 1) / 12), "median": 50, "p5": 5}
    )
    assert metrics.summary(jnp.ones(1)) == {"mean": 1, "sd": 0, "median": 1, "p5": 1}
    perfect = metrics.summary(np.array([20.0, 30.0, np.inf]))
    assert perfect["mean"] == math.inf and math.isnan(perfect["sd"])
    assert perfect["median"] == 30 and perfect["p5"] == pytest.approx(21)
    assert metrics.pooled_psnr(np.zeros(3), 1.0) == math.inf


def test_wrong_input_is_named():
    image = jnp.zeros((3, 16, 16))
    mask = jnp.zeros((3, 16, 16), bool)
    for function in (metrics.mse, metrics.rmse, metrics.nrmse):
        with pytest.raises(ValueError, match=r"image, reference: .*\(3, 16, 16\)"):
            function(image, image[:1])
    for function in (metrics.psnr, metrics.ssim):
        with pytest.raises(ValueError, match="image, reference"):
            function(image, image[0], 1.0)
        for wrong in (0.0, -1.0, math.inf, math.nan):
            with pytest.raises(ValueError, match="data_range"):
                function(image, image, wrong)
    for function in (metrics.dice, metrics.iou):
        with pytest.raises(ValueError, match="mask, reference"):
            function(mask, mask[:, :8])
    with pytest.raises(ValueError, match="at least 11 pixels.* 10 x 16"):
        metrics.ssim(image[:, :10], image[:, :10], 1.0)
    with pytest.raises(ValueError, match="image, mask"):
        metrics.scores(image, image, mask[:1], mask[:1], 1.0)
    with pytest.raises(ValueError, match="values"):
        metrics.summary(np.zeros(0))
    with pytest.raises(ValueError, match="data_range"):
        metrics.pooled_psnr(np.ones(3), 0.0)


def test_foreground_ssim():
    """scikit-image's map, averaged over the mask by hand."""
    from skimage.metrics import structural_similarity

    rng = np.random.default_rng(5)
    truth = rng.uniform(size=(3, 20, 24)).astype(np.float32)
    image = np.clip(truth + 0.2 * rng.standard_normal(truth.shape), 0, 1)
    image = image.astype(np.float32)
    mask = rng.uniform(size=truth.shape) > 0.7
    mask[1] = False
    mask[1, 0, :] = True  # only where no window fits
    got = metrics.foreground_ssim(image, truth, mask, 1.0)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    for n in range(3):
        _, full = structural_similarity(
            image[n].astype(float), truth[n].astype(float), data_range=1.0, full=True,
            win_size=11, **options,
        )  # fmt: skip
        full, inside = full[5:-5, 5:-5], mask[n, 5:-5, 5:-5]
        expected = full[inside].mean() if n != 1 else full.mean()
        np.testing.assert_allclose(got[n], expected, atol=2e-5)


def test_amounts():
    truth = np.array([1.0, 2.0, 4.0, 7.0])
    found = metrics.amounts(0.5 * truth + 2, truth)
    np.testing.assert_allclose(found["slope"], 0.5)
    np.testing.assert_allclose(found["bias"], (2 - 0.5 * 3.5) / 3.5)
    assert np.isnan(metrics.amounts(truth, np.ones(4))["slope"])
    with pytest.raises(ValueError, match="expected 4 values"):
        metrics.amounts(truth, truth[1:])
