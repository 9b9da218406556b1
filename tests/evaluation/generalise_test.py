"""The generalisation suite: its pure parts in closed form, then a few suites in whole."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.processes import copy_run, together

from mpi_jax import configs, data, methods, physics, results, scanner, system_matrix
from mpi_jax.cli.main import main
from mpi_jax.evaluation import cases, generalise, lines
from mpi_jax.noise import coloured_noise, narrow_band, pink, signals

SMALL = scanner.paper(6)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def test_coloured_noise_has_its_slope_and_the_power_of_white_noise(x64):
    u = jnp.asarray(np.random.default_rng(0).normal(size=(64, 2, 512))) + 1.0
    key = jax.random.key(1)
    for density in (pink(512), np.ones(257)):
        noise = coloured_noise(key, u, 20.0, density) - u
        # Power SNR of 20 dB: a hundredth of the signal's, over 65,536 samples.
        ratio = jnp.mean(noise**2) / jnp.mean(u**2)
        assert abs(ratio / 0.01 - 1) < 0.03
    pink_noise = coloured_noise(key, u, 20.0, pink(512)) - u
    power = np.mean(np.abs(np.fft.rfft(pink_noise)) ** 2, axis=(0, 1))[1:-1]
    slope = np.polyfit(np.log(np.arange(1, 256)), np.log(power), 1)[0]
    assert abs(slope + 1) < 0.05
    np.testing.assert_allclose(np.mean(pink_noise, axis=-1), 0, atol=1e-12)


def test_a_disturbance_stays_in_its_band():
    band = narrow_band(SMALL)
    bins = np.flatnonzero(band)
    # Third harmonic of 2.5 MHz / 102 in periods of 1632 samples: bin 3 * 16.
    np.testing.assert_array_equal(bins, np.arange(43, 54))
    u = jnp.ones((1, 2, SMALL.samples))
    noise = coloured_noise(jax.random.key(0), u, 10.0, band) - u
    power = np.sum(np.abs(np.fft.rfft(noise)) ** 2, axis=(0, 1))
    assert power[bins].sum() > 0.999 * power.sum()


def test_densities_that_fit_no_signal_are_refused():
    u = jnp.ones((1, 2, 8))
    for density in (np.ones(8), np.zeros(5), -np.ones(5)):
        with pytest.raises(ValueError, match="density: expected 5 numbers"):
            coloured_noise(jax.random.key(0), u, 10.0, density)


def test_shifted_scanners_change_what_they_say():
    other = cases.shifted(SMALL, diameter=1.1, gradient=0.98, phase=1.0)
    assert other.tracer.core_diameter == pytest.approx(33e-9)
    gradient = np.diag([-1.96, -1.96, 3.92])
    np.testing.assert_allclose(other.selection_field.gradient, gradient)
    # One degree on, x is a sine at sin(1 degree) in its first sample.
    field = np.asarray(other.drive_field.field()[0])
    np.testing.assert_allclose(field[0, 0], 12.8e-3 * np.sin(np.pi / 180), rtol=1e-4)
    same = cases.shifted(SMALL)
    u, v = (np.asarray(s.drive_field.field()[0]) for s in (SMALL, same))
    np.testing.assert_array_equal(u, v)


def test_signals_are_those_of_the_same_iron(x64):
    """A weak field magnetises each particle in proportion to its volume squared; of the
    same iron there are fewer particles, in proportion to the inverse of the volume.
    """
    image = jnp.ones((1, 1, 1))
    weak = scanner.paper(1, amplitude=1e-7, gradient=1e-5)
    other = cases.shifted(weak, diameter=1.1)
    u = signals(weak, weak, image, "tensor")
    v = signals(weak, other, image, "tensor")
    np.testing.assert_array_equal(u, physics.voltage(weak, image))
    np.testing.assert_allclose(jnp.max(v) / jnp.max(u), 1.1**3, rtol=1e-6)


def test_a_finer_grid_gives_the_signal_of_the_same_tracer(x64):
    """Of a constant image: the integral over the field of view, by the midpoint rule,
    whose error falls by four when the grid is refined by two.
    """
    nominal = scanner.paper(8, oversample=1)  # a short period, all of its harmonics
    short = dataclasses.replace(nominal.drive_field, divider=(10, 8, 0))
    nominal = dataclasses.replace(nominal, drive_field=short)

    def at(factor):
        grid = nominal.grid.refined(factor)
        other = dataclasses.replace(nominal, grid=grid)
        image = jnp.ones((1, *grid.shape))
        return np.asarray(signals(nominal, other, image, "tensor"))

    u = [at(factor) for factor in (1, 2, 4, 8)]
    error = [np.linalg.norm(v - u[-1]) / np.linalg.norm(u[-1]) for v in u[:-1]]
    assert error[1] < error[0] / 3 and error[2] < error[1] / 3 and error[2] < 0.01
    si = dataclasses.replace(
        nominal, receiver=dataclasses.replace(nominal.receiver, scaling="si")
    )
    v = signals(si, si, jnp.ones((1, 8, 8)), "tensor")
    assert np.corrcoef(np.ravel(v), -np.ravel(u[0]))[0, 1] > 0.999999


def test_energy_outside_of_a_subspace_is_that_of_the_svd(x64):
    rng = np.random.default_rng(2)
    S = rng.normal(size=(9, 20))
    _, _, Vh = np.linalg.svd(S)
    truth, image = rng.normal(size=(2, 3, 4, 5))
    null = Vh[6:].reshape(-1, 20)  # what the first six vectors leave

    def energy(x):
        return np.sum((x.reshape(3, 20) @ null.T) ** 2, axis=1)

    V = jnp.asarray(Vh[:6].T)
    found = cases.unseen(V, jnp.asarray(image), jnp.asarray(truth))
    np.testing.assert_allclose(found[0], energy(image) / energy(truth), rtol=1e-10)
    expected = energy(image - truth) / energy(truth)
    np.testing.assert_allclose(found[1], expected, rtol=1e-10)
    # An image inside of the span has none of it, the truth all.
    inside = jnp.asarray((truth.reshape(3, 20) @ Vh[:6].T @ Vh[:6]).reshape(3, 4, 5))
    ratio, error = cases.unseen(V, inside, jnp.asarray(truth))
    np.testing.assert_allclose(ratio, 0, atol=1e-20)
    np.testing.assert_allclose(error, 1, rtol=1e-10)


def test_superposition_is_exact_for_a_linear_solver_and_not_for_another():
    # Small whole numbers: float32 sums of them are exact.
    rng = np.random.default_rng(3)
    S = rng.integers(-3, 4, (16, 10)).astype(np.float32)
    u, v = rng.integers(-3, 4, (2, 5, 10)).astype(np.float32)

    def linear(u):
        return jnp.asarray(u @ S.T).reshape(5, 4, 4)

    error = cases.superposition(linear(u + v), linear(u), linear(v))
    np.testing.assert_array_equal(error, 0)
    one, two = jnp.ones((1, 2, 2)), 2 * jnp.ones((1, 2, 2))
    # (1 + 2)^2 = 9 against 1 + 4 = 5.
    error = cases.superposition((one + two) ** 2, one**2, two**2)
    np.testing.assert_allclose(error, 4 / 5, rtol=1e-6)


def test_bootstrap_interval_is_that_of_the_normal_mean():
    rng = np.random.default_rng(4)
    before = rng.normal(30, 5, 400)
    after = before - 2 + rng.normal(0, 0.5, 400)
    paired = cases.drop(before, after, paired=True)
    assert paired["mean"] == pytest.approx(np.mean(before - after))
    half = 1.96 * np.std(before - after) / np.sqrt(400)
    assert (paired["high"] - paired["low"]) / 2 == pytest.approx(half, rel=0.15)
    # Without pairs both spreads count.
    apart = cases.drop(before, after, paired=False)
    half = 1.96 * np.sqrt((before.var() + after.var()) / 400)
    assert (apart["high"] - apart["low"]) / 2 == pytest.approx(half, rel=0.15)
    assert paired["low"] < paired["mean"] < paired["high"]


def test_pairs_have_no_pixel_in_common():
    masks = np.zeros((5, 2, 3), bool)
    masks[0, 0, 0] = masks[1, 0] = masks[2, 1] = masks[3, 1, 0] = True
    masks[4] = True
    assert cases.disjoint_pairs(masks) == [(0, 2), (1, 3)]


def context(ready=(), lacks=None, images=2, pixels=6):
    """What suites work with, without any network or solver."""
    config = configs.get("test")
    settings = dataclasses.replace(config.data, test_snr_db=np.inf)
    config = dataclasses.replace(config, data=settings)
    made = scanner.paper(pixels)
    matrix = system_matrix.simulate(made)
    simulator = data.ForwardModel(
        scanner=made,
        matrix=matrix,
        scale=jnp.ones((2, 1)),
        basis=None,
        lams=jnp.ones(1),
        iterations=1,
        refine=0,
    )
    rng = np.random.default_rng(6)
    image = jnp.asarray(rng.uniform(size=(images, pixels, pixels)), jnp.float32)
    family = jnp.arange(images) % 6
    u = system_matrix.forward(matrix, image)
    truth = data.Examples(image, (image > 0.5).astype(jnp.float32), u, family)
    every = {one.method.name: one for one in ready}
    problem = methods.from_forward(config, simulator)
    V = jnp.eye(pixels**2)[:, :2]
    return cases.Context(
        config, problem, truth, every, lacks or {}, V, truth, simulator
    )


def test_a_family_left_out_is_compared_with_the_run_that_has_it(monkeypatch):
    def method(name):
        kind = "classical" if name == "tv" else "learned"
        own = methods.Method(name, name, kind, {}, lambda _: methods.Reconstruction)
        return methods.Ready(own, methods.Reconstruction, {}, 0.5)

    ready = [method("tv"), method("whole"), method("part")]
    drawn = context(images=12).truth
    monkeypatch.setattr(cases, "test_images", lambda *_: drawn)
    [case] = cases._families(context(ready, {"whole": (), "part": ("vessels",)}))
    assert case.against == {"part": "whole"}
    assert case.name == "vessels: left out by part"
    np.testing.assert_array_equal(case.image, drawn.image[np.array([5, 11])])
    np.testing.assert_allclose(case.voltage, drawn.voltage[np.array([5, 11])])
    assert list(cases._families(context(ready[:2], {"whole": ()}))) == []

    # Its drop is that of the same images by the other run; tv has none.
    about = {
        "case": "c",
        "shows": ["psnr"],
        "paired": False,
        "settings": {},
        "at_edge": {},
    }
    first = about | {"paired": True, "against": None}
    values = {f"c|{one.method.name}|psnr": np.arange(4.0) for one in ready}
    found = {
        "reference": {**values, "about": json.dumps([first])},
        "families": {
            **values,
            "c|part|psnr": np.arange(4.0) - 3,
            "about": json.dumps([about | {"against": case.against}]),
        },
    }
    infos = [lines.method_info(one.method) for one in ready]
    rows = generalise._rows(found, infos)
    drops = {r.method: r.drop for r in rows if r.drop}
    assert drops == {"part": results.Change(mean=3.0, low=3.0, high=3.0)}


def test_operators_shift_the_data_and_nothing_else(monkeypatch):
    here = context()
    fine = jnp.repeat(jnp.repeat(here.truth.image, 2, 1), 2, 2)
    monkeypatch.setattr(cases, "_images", lambda *_: fine)
    made = {case.name: case for case in cases._operator(here)}
    assert list(made) == [
        "same S (inverse crime)",
        "core diameter -20 %",
        "core diameter -10 %",
        "core diameter +10 %",
        "core diameter +20 %",
        "gradient -2 %",
        "gradient +2 %",
        "drive phase +1 degree",
        "data of the scalar model",
        "data on a 2x finer grid",
    ]
    u = made["same S (inverse crime)"].voltage
    for name, case in made.items():
        np.testing.assert_allclose(case.image, here.truth.image, rtol=1e-6)
        assert case.paired and case.voltage.shape == u.shape
        change = float(jnp.linalg.norm(case.voltage - u) / jnp.linalg.norm(u))
        assert (change == 0) == name.startswith("same"), name
        assert change < 1.5
    expected = physics.voltage(here.simulator.scanner, here.truth.image, "mpirf")
    np.testing.assert_array_equal(made["data of the scalar model"].voltage, expected)


def test_suites_of_a_trained_run(trained, command, tmp_path):
    """Two suites from the command line: files, drops, and a second call that reads."""
    folder, twin = (copy_run(trained, tmp_path / name) for name in ("run", "twin"))
    words = ("generalise", "--workdir", folder, "--runs", twin)
    words += ("--num", "16", "--methods")
    words += ("nonnegative", "test", "--suites", "vessels", "linearity")
    done = command(*words, "hallucination", "families")
    assert done.returncode == 0, done.stderr
    assert "linearity" in done.stderr  # progress
    made = folder / "generalisation"
    for name in ("table.md", "drops.png", "drops.pdf", "shapes.png"):
        assert (made / name).stat().st_size > 500, name
    rows = results.read_lines(results.GeneralisationLine, made / "metrics.jsonl")
    found = {(r.case, r.method): r for r in rows}
    groups = {r.method: r.group for r in rows}
    assert groups == {
        "zero": "control",
        "nonnegative": "classical",
        "test": "physics",
        "twin": "physics",
    }
    networks = ("test", "twin")
    assert {m for _, m in found} == {"zero", "nonnegative", *networks}
    values = results.GeneralisationValues.read(made / "values.npz")

    first = "in distribution; same S (inverse crime)"
    for method in ("nonnegative", "test", "zero"):
        row, before = found["space colonisation", method], found[first, method]
        expected = before.psnr.mean - row.psnr.mean
        assert row.drop.mean == pytest.approx(expected, abs=1e-4)
        assert row.drop.low < row.drop.mean < row.drop.high
        assert not row.paired and row.num == 16
        network = found["space colonisation", "test"].drop.mean
        expected = row.drop.mean - network
        assert row.excess.mean == pytest.approx(expected, abs=1e-4)
        key = "vessels", "space colonisation", method, "psnr"
        assert np.mean(values.numbers[key]) == pytest.approx(row.psnr.mean, rel=1e-5)
    # The same weights: the same images, and nothing beyond the drop of the first.
    for name in ("psnr", "dice", "unseen_error"):
        one, two = (
            getattr(found["space colonisation", m], name).mean for m in networks
        )
        assert one == two
    excess = found["space colonisation", "twin"].excess
    assert excess == results.Change(mean=0.0, low=0.0, high=0.0)
    # Zeros: relative error 1 at every concentration, and the same PSNR.
    for factor in ("0.05", "2"):
        row = found[f"concentration x {factor}", "zero"]
        assert row.nrmse.mean == pytest.approx(1, rel=1e-5)
        assert row.drop.mean == pytest.approx(0, abs=1e-4) and row.paired
    # Non-negative least squares scales with its data, in every iteration.
    row = found["concentration x 0.05", "nonnegative"]
    assert row.drop.mean == pytest.approx(0, abs=0.05)
    for method in ("nonnegative", "test"):
        assert found["no signal", method].largest.mean < 0.5
        assert found["noise without tracer", method].rms.mean < 0.5
    assert found["no signal", "nonnegative"].largest.mean == 0
    [pairs] = [case for case, _ in found if "pairs of disjoint" in case and _ == "zero"]
    assert found[pairs, "zero"].superposition.mean == 0
    text = (made / "table.md").read_text()
    assert text == done.stdout
    assert "space colonisation" in text and "none of the runs" in text
    assert text.count("beyond that of") == 1

    # Finished suites are read: the same files, and nothing is built.
    again = command(*words, "hallucination", "families")
    assert again.returncode == 0 and "build" not in again.stderr
    assert "taken up from an earlier call 9 of 9" in again.stderr
    assert (made / "table.md").read_text() == text
    assert not list(folder.glob("generalisation.*[!s]"))

    # Of two processes, each measures a part; the lines are the same.
    shared = copy_run(trained, tmp_path / "shared")
    words = ("generalise", "--workdir", shared, *words[3:-1])
    (lead, table_text, progress), other = together(command, words, words)
    assert lead == 0, progress
    assert other == (0, "", ""), other[2]
    again = results.read_lines(
        results.GeneralisationLine, shared / "generalisation/metrics.jsonl"
    )
    assert again == [row for row in rows if row.suite in ("reference", "vessels")]
    assert "space colonisation" in table_text

    for wrong, said in (
        (("--suites", "moon"), "suites: expected one of families"),
        (("--methods", "magic"), "methods: expected one of"),
        (("--num", "3"), "at least 6"),
        (("--runs", tmp_path), "no config.json"),
    ):
        done = command("generalise", "--workdir", folder, *wrong)
        assert done.returncode == 2 and said in done.stderr, done.stderr


def test_calibrated_scanners_are_refused_in_one_line(tmp_path, capsys):
    """Their physics is not known, so that it can't be changed."""
    known = configs.get("open_mpi")
    config = dataclasses.replace(
        known, calibration=dataclasses.replace(known.calibration, path="some.mdf")
    )
    about = {"config": configs.to_dict(config)}
    (tmp_path / "config.json").write_text(json.dumps(about))
    assert main(["generalise", "--workdir", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "a simulated scanner" in said and "some.mdf" in said
    assert said.count("\n") == 1
