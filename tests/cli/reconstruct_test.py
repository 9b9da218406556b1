"""reconstruct: which method, whose network, which options reach the work."""

import pathlib

import pytest

from mpi_jax import configs
from mpi_jax.cli import reconstruct
from mpi_jax.cli.main import main, read
from mpi_jax.methods import METHODS, networks

FIRST = next(iter(configs.SHIPPED))


def given(words):
    return read("reconstruct", f"--measurement a.npz --out b.npz {words}".split())


@pytest.fixture
def asked(monkeypatch):
    """Whose networks are loaded, without loading them."""
    places = []

    def shipped(name):
        places.append(name)

    def of_runs(folders):
        places.extend(folders)
        return {"run": None}

    monkeypatch.setattr(networks, "shipped", shipped)
    monkeypatch.setattr(networks, "of_runs", of_runs)
    return places


@pytest.mark.parametrize(
    "words, network",
    [
        ("", FIRST),
        ("--config small32", "small32"),
        ("--method small32", "small32"),
        ("--method small32 --config small32", "small32"),
        ("--run w", pathlib.Path("w")),
    ],
)
def test_whose_network(words, network, asked):
    options = given(words)
    reconstruct._check_source(options)
    reconstruct._network(options)
    assert asked == [network]


@pytest.mark.parametrize(
    "words, complaint",
    [
        ("--method kaczmarz", "expected one of --system-matrix, --config, --run"),
        (
            "--method kaczmarz --run w --config test",
            "--run: expected none with --config",
        ),
        ("--system-matrix s.npz", "--method: expected a classical method"),
        ("--system-matrix s.npz --run w", "--run: expected none with --system-matrix"),
        ("--method small32 --run w", "knows its own"),
        ("--method small32 --config test", "knows its own"),
        ("--method kaczmarcz --config test", "did you mean kaczmarz?"),
        ("--method small46 --config test", "did you mean small64?"),
        ("--method transgan --config test", "--method: expected one of"),
        ("--method kaczmarz --config test --rho 1", "--rho"),
        ("--config small32 --lam 1", "--lam"),
        ("--method mean --config test", "--method: expected one of xspace"),
        ("--method tikhonov --config test --frames 0:3", "--frames: only for MDF"),
        ("--method tikhonov --config test --no-transfer-function", "only for MDF"),
        ("--config small32 --phantom shape", "--phantom: only for MDF"),
        ("--config small32 --phantom shap", "did you mean shape?"),
        ("--config smal32", "a config that they ship for"),
    ],
)
def test_what_is_refused_before_the_work(words, complaint, capsys, tmp_path):
    out, signals = tmp_path / "b.npz", pathlib.Path(tmp_path / "a.npz")
    signals.write_bytes(npz())
    place = ["--measurement", str(signals), "--out", str(out)]
    assert main(["reconstruct", *place, *words.split()]) == 2
    said = capsys.readouterr().err
    assert complaint in said and said.count("\n") == 1
    assert not out.exists()


def npz():
    """The bytes of an .npz file with one voltage."""
    import io

    import numpy as np

    content = io.BytesIO()
    np.savez(content, voltage=np.ones((1, 2, 1632), np.float32))
    return content.getvalue()


def test_every_method_is_in_the_help():
    text = {f.name: f.text for f in fields()}["method"]
    classical = {name for name, m in METHODS.items() if m.kind == "classical"}
    for name in {*classical, *configs.SHIPPED}:
        assert name in text, name


def fields():
    from mpi_jax.cli import options

    return options.fields(reconstruct.Options)


def test_options_reach_the_preprocessing(monkeypatch, tmp_path):
    """What is written is what `preprocess.prepare` gets."""
    seen = []

    def prepare(calibration, measurement, settings, empty):
        seen.append((calibration, measurement, settings, empty))
        raise ValueError("seen enough")

    monkeypatch.setattr("mpi_jax.preprocess.prepare", prepare)
    monkeypatch.setattr("mpi_jax.mdf.read", lambda path: path.name)
    words = (
        "reconstruct --method kaczmarz --measurement a.mdf --system-matrix s.mdf "
        f"--out {tmp_path}/b.mdf --channels 0,1 --frames 0:3 --periods 900 1000 "
        "--stop-bands 1 2 3 4 --no-transfer-function --row-norm --empty e.mdf"
    )
    assert main(words.split()) == 2
    ((calibration, measurement, settings, empty),) = seen
    assert (calibration, measurement, empty) == ("s.mdf", "a.mdf", "e.mdf")
    assert settings == configs.Preprocessing(
        channels=(0, 1),
        frames=(0, 1, 2),
        periods=(900, 1000),
        stop_bands=((1.0, 2.0), (3.0, 4.0)),
        transfer_function=False,
        row_norm=True,
    )
