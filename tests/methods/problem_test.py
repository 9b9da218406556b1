"""One method, three doors: a config, a stored system matrix, two MDF files."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from mpi_jax import configs, data, mdf, methods, metrics, preprocess, system_matrix
from mpi_jax.methods import problem as problems

COUNT = 12
BY_MATRIX = [
    name
    for name, method in methods.METHODS.items()
    if method.kind == "classical" and not name.startswith("xspace")
]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Config, forward model and examples; and the same as MDF files."""
    config = configs.get("test")
    forward = data.simulator(config)
    made = data.draw(forward, "test", 0, COUNT, 30.0)
    folder = tmp_path_factory.mktemp("mdf")
    head = mdf.header(forward.scanner, calibration=True)
    spectra = np.asarray(system_matrix.to_frequency(forward.matrix))  # [C, K, P]
    stored = np.empty_like(spectra)
    stored[..., mdf.voxel_order(head).reshape(-1)] = spectra
    mdf.write_calibration(folder / "calibration.mdf", head, stored[None])
    head = mdf.header(forward.scanner, frames=COUNT)
    u = np.asarray(made.voltage)[:, None]  # [N, J, C, V]
    mdf.write_measurement(folder / "measurement.mdf", head, u)
    return config, forward, made, folder


@pytest.fixture(scope="module")
def doors(measured):
    """Door -> problem and what its solvers take."""
    config, forward, made, folder = measured
    files = [mdf.read(folder / f"{n}.mdf") for n in ("calibration", "measurement")]
    settings = configs.Preprocessing(min_frequency=1.0)  # without DC, as the others
    system = preprocess.prepare(*files, settings)
    by_matrix = methods.from_matrix(forward.matrix, forward.scanner.grid)
    return {
        "config": (methods.from_forward(config, forward), made.voltage),
        "npz": (by_matrix, made.voltage),
        "mdf": (methods.from_system(system), problems.weighted(system)),
    }


def psnr(image, made):
    image = jnp.clip(image.reshape(made.image.shape), 0, 1)
    return float(jnp.mean(metrics.psnr(image, made.image, 1.0)))


@pytest.mark.parametrize("name", BY_MATRIX)
def test_every_door_gives_the_same_image(measured, doors, name):
    made = measured[2]
    images = {
        door: methods.METHODS[name].prepare(problem)(u).image
        for door, (problem, u) in doors.items()
    }
    found = {door: psnr(image, made) for door, image in images.items()}
    assert found["config"] > 15
    for door, value in found.items():
        assert abs(value - found["config"]) < 1e-4, found
        np.testing.assert_allclose(
            images[door].reshape(-1), images["config"].reshape(-1), atol=2e-3
        )


@pytest.mark.parametrize(
    "name, settings",
    [
        ("tikhonov", {"lam": "discrepancy"}),
        ("kaczmarz", {"lam": "l_curve"}),
        ("nonnegative", {"iterations": "discrepancy"}),
        ("tv", {"lam_tv": "discrepancy"}),
    ],
)
def test_every_door_chooses_alike(doors, name, settings):
    values = [
        methods.METHODS[name].prepare(problem, settings)(u).choice.values
        for problem, u in doors.values()
    ]
    for other in values[1:]:
        np.testing.assert_array_equal(other, values[0])


def test_a_network_has_no_say_in_classical_images(measured):
    """The rank of its basis, and the scale of its signals, are the network's own."""
    config, _, made, _ = measured
    poor = dataclasses.replace(config.physics, rank=8)
    poor = dataclasses.replace(config, physics=poor)
    images = [
        methods.METHODS["tikhonov"]
        .prepare(methods.from_forward(c, forward))(made.voltage)
        .image
        for c, forward in ((config, data.simulator(config)), (poor, data.build(poor)))
    ]
    np.testing.assert_allclose(*images, atol=1e-5)


def test_frames_do_not_depend_on_their_company(doors):
    """Penalties and weights follow each frame's own noise."""
    problem, u = doors["config"]
    for name in ("nonnegative", "tv"):
        solve = methods.METHODS[name].prepare(problem)
        np.testing.assert_allclose(solve(u).image[3:4], solve(u[3:4]).image, atol=1e-4)


@pytest.mark.parametrize("snr", [10.0, 20.0, 40.0, 60.0])
def test_defaults_are_near_the_best_settings_at_any_noise(measured, doors, snr):
    """Within 1.2 dB of the best of a grid, where the worst are 10 dB and more below."""
    _, forward, _, _ = measured
    made = data.draw(forward, "validation", 0, COUNT, snr)
    problem, _ = doors["config"]
    grids = {
        "nonnegative": [
            {"rho": rho, "iterations": n} for rho in (1e-4, 1e-3, 1e-1) for n in (5, 20)
        ],
        "tv": [{"lam_tv": w, "rho": 1e-3} for w in (1e-7, 1e-5, 1e-3)],
    }
    for name, grid in grids.items():
        method = methods.METHODS[name]
        scores = [
            psnr(method.prepare(problem, settings)(made.voltage).image, made)
            for settings in ({}, *grid)
        ]
        assert scores[0] > max(scores[1:]) - 1.2, scores


def test_signals_of_other_scanners_are_refused(doors):
    (problem, u), (_, rows) = doors["config"], doors["mdf"]
    with pytest.raises(ValueError, match=r"signal: expected \[B, 2, V\]"):
        problem.measure(u[:, :1])
    with pytest.raises(ValueError, match=r"signal: expected \[B, "):
        doors["mdf"][0].measure(rows[:, 1:])
    with pytest.raises(ValueError, match="method xspace: expected a simulated scanner"):
        methods.METHODS["xspace"].prepare(doors["npz"][0])
    with pytest.raises(ValueError, match="method mean: expected training examples"):
        methods.METHODS["mean"].prepare(doors["npz"][0])


def test_noise_that_nothing_tells_is_asked_for(doors):
    """More voxels than rows, no background frames: the span of the basis is all there is."""
    problem, u = doors["config"]
    rng = np.random.default_rng(0)
    few = jnp.asarray(rng.normal(size=(40, 1024)) + 1j * rng.normal(size=(40, 1024)))
    selected = np.zeros_like(problem.frequency_selection)
    selected[0, 1:41] = True
    small = methods.Problem(few, problem.grid, selected, problem.unit)
    solve = methods.METHODS["tv"].prepare(small)
    with pytest.raises(ValueError, match="noise: expected background frames"):
        solve(u)
    fixed = {"lam_tv": 1e-5, "rho": 1e-3}
    assert np.isfinite(methods.METHODS["tv"].prepare(small, fixed)(u).image).all()
