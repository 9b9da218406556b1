"""The example programs: each once, small, and their numbers by other routes."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from support.programs import ROOT, load, script

from mpi_jax import physics, scanner, system_matrix


def run(name, folder, *options):
    """The record of a script run as a user does, in another process."""
    environment = dict(os.environ, PYTHONPATH=str(ROOT), JAX_NUM_CPU_DEVICES="1")
    words = [sys.executable, script(name), "--out", folder, *options]
    done = subprocess.run(
        [*map(str, words)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    picture = (folder / f"{name}.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n" and len(picture) > 20_000
    record = json.loads((folder / f"{name}.json").read_text())
    assert record["settings"]["seed"] == 0 and record["version"]
    return record


# --- fit_tracer


def test_tracer_fits_and_their_error_bars_are_honest(tmp_path):
    fits = 40
    r = run("fit_tracer", tmp_path, "--fits", fits, "--steps", 6, "--amplitudes", 2)
    assert np.all(np.array(r["rms_relative_error"]) < [0.03, 0.03, 0.12])
    # Four standard deviations of what 40 standard normal triples scatter.
    assert abs(r["chi2_per_parameter"] - 1) < 4 * np.sqrt(2 / (3 * fits))
    assert np.all(np.abs(r["standardised_mean"]) < 4 / np.sqrt(fits))
    spread = np.array(r["standardised_sd"])
    assert np.all(np.abs(spread - 1) < 4 / np.sqrt(2 * fits))
    # White noise of the stated size is all that is left.
    left = r["residual_per_number"]
    assert abs(left - 1) < 4 * np.sqrt(2 / (fits * r["numbers_per_measurement"]))
    assert r["last_step_change"] < 1e-6
    assert r["correlation"][0][2] < -0.9


def test_tracer_fit_agrees_with_finite_differences_and_scipy(x64):
    fit_tracer = load("fit_tracer")
    keep = fit_tracer.select(80e3)
    truth = jnp.log(jnp.array([25e-9, 2e-6, 1.0]))
    model = jax.jit(lambda theta: fit_tracer.model(theta, keep))
    clean = np.asarray(model(truth))
    unit = 0.05 * np.sqrt(np.mean(clean**2))
    y = clean + unit * np.random.default_rng(0).normal(size=clean.shape)

    def residual(theta):
        return (np.asarray(model(jnp.asarray(theta))) - y) / unit

    start = truth + jnp.log(jnp.array([0.8, 2.0, 1.5]))
    theta, covariance, _ = jax.jit(
        lambda y: fit_tracer.fit(y, start, keep, unit, steps=8)
    )(y)
    # SciPy's own Levenberg-Marquardt with its own finite differences.
    peer = scipy.optimize.least_squares(residual, start, method="lm", xtol=1e-12)
    np.testing.assert_allclose(theta, peer.x, rtol=0, atol=1e-6)
    steps = 1e-4 * np.eye(3)
    J = np.stack([residual(theta + h) - residual(theta - h) for h in steps], 1) / 2e-4
    sigma2 = 2 * peer.cost / (len(y) - 3)
    np.testing.assert_allclose(covariance, sigma2 * np.linalg.inv(J.T @ J), rtol=1e-4)


def test_gain_times_moment_is_all_that_a_weak_field_shows(x64):
    """Far below saturation u = gain m beta dB/dt / 3 ~ gain d^6: log-slopes 6 to 1."""
    fit_tracer = load("fit_tracer")
    keep = fit_tracer.select(0.0)
    # One pixel at the field centre: 1 uT is far below 1 / beta.
    centred = load("fit_tracer")

    def build(theta, amplitude):
        s = fit_tracer.build(theta, amplitude, pixels=1)
        grid = scanner.Grid((1, 1), (1e-6, 1e-6, 1e-6))
        return scanner.Scanner(
            s.tracer, s.drive_field, s.selection_field, s.receiver, grid
        )

    centred.build = build
    theta = jnp.log(jnp.array([25e-9, 2e-6, 1.0]))
    J = jax.jit(jax.jacfwd(lambda t: centred.model(t, keep, 1e-6)))(theta)
    scale = np.abs(J[:, 2]).max()
    np.testing.assert_allclose(J[:, 0] / scale, 6 * J[:, 2] / scale, atol=1e-5)


# --- design_sequence


def test_design_beats_its_start_in_images_it_never_saw(tmp_path):
    options = (
        "--shape 9 15 --snr 45 --steps 10 --map 2 --phantoms 12 --family ellipses "
        "--dividers 32 34 --fast 32 32"
    )
    r = run("design_sequence", tmp_path, *options.split())
    designs = r["designs"]
    start, best = designs["start"], designs["optimum"]
    assert best["posterior_variance"] < 0.8 * start["posterior_variance"]
    gain, error = best["rmse_change"], best["rmse_change_standard_error"]
    assert gain < -0.03 and gain < -3 * error
    worst = designs["worst dividers"]
    assert worst["posterior_variance"] > best["posterior_variance"]
    # What the merit promises is what images drawn from the prior get.
    for one in designs.values():
        np.testing.assert_allclose(
            one["prior_draws_mse"], one["posterior_variance"], rtol=0.1
        )
    assert len(r["dividers"]) > 1
    assert all(np.lcm(x, y) == 544 for x, y, _ in r["dividers"])


def test_merit_and_its_gradient(x64):
    design = load("design_sequence")
    sequence = {"shape": (4, 6), "field_of_view": (12e-3, 7.2e-3), "dividers": (16, 17)}
    settings = {"sigma": 1e-13, "prior": 0.3} | sequence
    x = jnp.log(jnp.array([8e-3, 6e-3]))
    value, slope = jax.jit(jax.value_and_grad(lambda x: design.merit(x, **settings)))(x)
    S = system_matrix.simulate(design.build(jnp.exp(x), **sequence))
    S = np.asarray(S).reshape(-1, 24) / 1e-13
    # By singular values: 1 / (s^2 + 1 / prior^2), P of them.
    s = np.linalg.svd(S, compute_uv=False)
    np.testing.assert_allclose(value, np.mean(1 / (s**2 + 1 / 0.09)), rtol=1e-9)
    merit = jax.jit(lambda x: design.merit(x, **settings))
    for k, step in enumerate(1e-4 * np.eye(2)):
        difference = (merit(x + step) - merit(x - step)) / 2e-4
        np.testing.assert_allclose(slope[k], difference, rtol=1e-5)


# --- calibrate_gradient


def test_scale_is_recovered_and_mends_the_image(tmp_path):
    options = (
        "--phantoms 3 --family bars --pixels 12 --finer 2 --profile 3 --scale 1.1 "
        "--steps 8 --snr 30"
    )
    r = run("calibrate_gradient", tmp_path, *options.split())
    # From 10 % off to a few thousandths, on a grid of 1 mm.
    assert r["rms_scale_error"] < 5e-3
    assert r["last_step"] < 1e-4  # against an error of some 1e-3
    nrms = r["image_nrms_mean"]
    assert nrms["fitted"] < 0.85 * nrms["nominal"]
    assert abs(nrms["fitted"] - nrms["true"]) < 0.05 * nrms["true"]
    # One position shows next to nothing of the scale.
    one, all_three = r["cost_range_one_position"], r["cost_range_all_positions"]
    assert one < 1.5 < 2 < all_three


def test_projected_slope_is_the_finite_difference(x64):
    calibrate = load("calibrate_gradient")
    settings = {"pixels": 4, "positions": [(0.0, 0.0), (3e-3, 0.0)], "prior": 0.3}
    image = np.random.default_rng(0).random(16)
    u = calibrate.matrix(1.05, 4, settings["positions"]) @ image
    sigma = 1e-2 * float(jnp.std(u))
    x = jnp.log(1.02)
    r, dr = jax.jit(lambda x: calibrate.slope(x, u, sigma, **settings))(x)
    residual = jax.jit(lambda x: calibrate.projected_residual(x, u, sigma, **settings))
    difference = (residual(x + 1e-5) - residual(x - 1e-5)) / 2e-5
    np.testing.assert_allclose(dr, difference, atol=1e-6 * np.abs(dr).max())
    # The image is the best one: SciPy's least squares leaves the same residual.
    S = np.asarray(calibrate.matrix(1.02, 4, settings["positions"])) / sigma
    stacked = np.concatenate([S, np.eye(16) / 0.3])
    target = np.pad(np.asarray(u) / sigma, (0, 16))
    c = np.linalg.lstsq(stacked, target, rcond=None)[0]
    np.testing.assert_allclose(
        r, stacked @ c - target, atol=1e-8 * np.abs(target).max()
    )


def test_one_position_cannot_tell_scale_from_size(x64):
    """Gradient s and grid of side L, or 1 and s L: the same signals, pixel by pixel."""
    calibrate = load("calibrate_gradient")
    strong = calibrate.build(1.06, 4, (0.0, 0.0))
    large = calibrate.build(1.0, 4, (0.0, 0.0))
    wide = scanner.Grid((4, 4), tuple(1.06 * np.array(large.grid.field_of_view)))
    large = scanner.Scanner(
        large.tracer, large.drive_field, large.selection_field, large.receiver, wide
    )
    image = np.random.default_rng(0).random((4, 4))
    u = physics.voltage(strong, image)
    np.testing.assert_allclose(
        physics.voltage(large, image), u, atol=1e-12 * np.abs(u).max()
    )
