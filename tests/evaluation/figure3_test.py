"""Figure 3 from end to end: a run on a calibration file, a measured phantom, a picture."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.calibrated_scanner import changed

from mpi_jax import (
    configs,
    data,
    mdf,
    methods,
    open_mpi,
    phantoms,
    preprocess,
    pretrained,
    results,
    train,
)
from mpi_jax.cli.main import main
from mpi_jax.reconstruct import kaczmarz


@pytest.fixture(scope="module")
def small(calibrated_config):
    config = calibrated_config
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, batch_size=6),
        physics=dataclasses.replace(config.physics, rank=60, iterations=3, refine=1),
        validation_images=6,
    )


@pytest.fixture(scope="module")
def forward(small):
    return data.build(small)


@pytest.fixture(scope="module")
def runs(small, forward, tmp_path_factory):
    """Work folders of an untrained dual-task and an untrained single-task network."""
    inputs = data.inputs(forward, jnp.zeros((1, 2, 1632)))
    folders = []
    for name in ("open_mpi", "open_mpi_single"):
        own = dataclasses.replace(small, generator=configs.get(name).generator)
        generator = train.make_networks(own).generator
        params = jax.jit(generator.init)(jax.random.key(0), *inputs)["params"]
        folders.append(tmp_path_factory.mktemp(name))
        about = {"config": configs.to_dict(own)}
        pretrained.export_weights(folders[-1] / "weights.safetensors", params, about)
    return folders


def test_examples_are_signals_of_the_file(small, forward):
    matrix, frequency_selection = data.calibrated.matrix(small)
    made = data.draw(forward, "train", 0, 6, np.inf)
    u = np.einsum("cvp,np->ncv", matrix, np.asarray(made.image).reshape(6, -1))
    np.testing.assert_allclose(made.voltage, u, atol=1e-4 * np.abs(u).max())
    noisy = data.draw(forward, "train", 0, 6, 20.0)
    noise = np.asarray(noisy.voltage) - np.asarray(made.voltage)
    snr = 10 * np.log10(np.mean(u**2, (1, 2)) / np.mean(noise**2, (1, 2)))
    np.testing.assert_allclose(snr, 20.0, atol=0.5)
    outside = np.abs(np.fft.rfft(noise)[:, ~frequency_selection]).max()
    assert outside < 1e-3 * np.abs(np.fft.rfft(noise)).max()


def test_classical_methods_take_the_file(small, forward):
    p = methods.from_forward(small, forward)
    assert p.rows.shape == (data.calibrated.matrix(small)[1].sum(), 32 * 32)
    with pytest.raises(ValueError, match="method xspace: expected a simulated scanner"):
        methods.METHODS["xspace"].prepare(p)


def test_figure(small, forward, runs, calibrated_folder, tmp_path, capsys):
    out = tmp_path / "figure"
    words = ["figure3", "--phantoms", "shape", "--runs", *map(str, runs)]
    words += ["--measurements", str(calibrated_folder / "shape.mdf"), "--out", str(out)]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "Dual-task TransGAN + physics" in said and "Single-task" in said
    assert (out / "figure3.png").read_bytes()[1:4] == b"PNG"
    assert (out / "figure3.pdf").read_bytes()[:4] == b"%PDF"
    rows = results.read_lines(results.Figure3Line, out / "metrics.jsonl")
    groups = [row.group for row in rows]
    assert groups == ["classical"] * 3 + ["physics"] * 2
    assert len(rows) == 5 and len(said.split("\n| shape")) == 6
    stored = results.Figure3Images.read(out / "arrays.npz")
    images = list(stored.images.values())
    grid = data.calibrated.scanner_of(small).grid
    np.testing.assert_allclose(
        stored.truth[0], phantoms.open_mpi.phantom("shape", grid)
    )
    # Second route to the first method: the rows and the measured signal themselves.
    settings = dataclasses.replace(
        data.calibrated.preprocessing(small), background="mean", periods=(4, 8)
    )
    file = data.calibrated.read(small)
    system = preprocess.prepare(
        file, mdf.read(calibrated_folder / "shape.mdf"), settings
    )
    S, right = np.asarray(system.system_matrix), system.measurement
    image = kaczmarz.solve(S, right, lam=0.01, iterations=10)
    expected = np.asarray(image).reshape(32, 32) * open_mpi.unit(file)
    error = np.abs(images[0][0] - expected).max()
    assert error < 1e-3 * expected.max()
    # The factor is that of least squares.
    image, truth = images[0][0].ravel(), stored.truth[0].ravel()
    factor = np.linalg.lstsq(image[:, None], truth, rcond=None)[0][0]
    assert rows[0].factor == pytest.approx(factor, rel=1e-5)
    rest = np.linalg.norm(factor * image - truth) / np.linalg.norm(truth)
    assert rows[0].scaled_nrmse == pytest.approx(rest, rel=1e-5)

    other = tmp_path / "other"
    other.mkdir()
    params, about = pretrained.load_weights(runs[0] / "weights.safetensors")
    about["config"] = configs.to_dict(changed(small, slab=1))
    pretrained.export_weights(other / "weights.safetensors", params, about)
    for more, word in (
        (["--runs", str(tmp_path)], "has no weights yet"),
        (["--phantoms", "shape", "resolution"], "one file for each phantom"),
        (["--runs", str(runs[0]), str(other)], "one calibration and grid"),
        (["--calibration", "no.mdf"], "found none in no.mdf"),
    ):
        assert main([*words, *more]) == 2
        said = capsys.readouterr().err
        assert word in said and said.count("\n") == 1
