"""The command line as a user meets it: results, one-line errors, kills, full disks."""

import json
import os
import re
import resource
import shutil
import sys
import time
import warnings

import jax
import numpy as np
import pytest

import mpi_jax
from mpi_jax import pretrained, report
from mpi_jax.cli.main import VERBS, main


def bad(done, *words, code=2, quiet=True):
    """A failed command: its code, and one line on stderr that says what was wrong."""
    lines = [n for n in done.stderr.splitlines() if n.startswith("mpi-jax:")]
    if not quiet:  # threads that complain too may have written into the line
        lines = re.findall("mpi-jax:.*", done.stderr)
    assert done.returncode == code, done.stderr
    assert len(lines) == 1, done.stderr
    assert not quiet or "Traceback" not in done.stderr, done.stderr
    for word in words:
        assert word in lines[0], lines[0]


def weights(folder):
    return pretrained.load_weights(folder / "weights.safetensors")


def test_training_leaves_everything(trained):
    lines = [
        json.loads(n) for n in (trained / "metrics.jsonl").read_text().splitlines()
    ]
    assert [n["step"] for n in lines if "mae" in n] == [2, 3, 4, 6]
    assert all(n["images_per_second"] > 0 for n in lines if "mae" in n)
    assert [n["step"] for n in lines if "validation_psnr" in n] == [3, 6]
    params, about = weights(trained)
    assert about["config"]["name"] == "test" and about["version"] and params
    best = max(n.get("validation_psnr", 0) for n in lines)
    assert about["validation_psnr"] == best


@pytest.mark.parametrize("home", ["writable", "a file"])
def test_compiled_programs_are_kept_for_the_next_time(home, command, tmp_path):
    """In the user's cache folder; where there can be none, work goes on without."""
    cache = tmp_path / "cache"
    if home == "a file":
        cache.write_text("")
    env = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    env |= {"XDG_CACHE_HOME": str(cache), "JAX_NUM_CPU_DEVICES": "1"}
    env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # however quick this CPU is
    out = tmp_path / "signals.npz"
    words = ("simulate", "--config", "test", "--num", 2, "--out", out)
    done = command(*words, env=env)
    assert done.returncode == 0, done.stderr
    kept = sorted(cache.glob("mpi_jax/jaxlib-*/jit_*"))
    assert bool(kept) == (home == "writable")
    if kept:
        times = [file.stat().st_mtime_ns for file in kept]
        first = dict(np.load(out))
        done = command(*words, env=env)
        assert done.returncode == 0, done.stderr
        assert done.stderr == "build 0 of 1\nsimulate 2 of 2\n"
        assert sorted(cache.glob("mpi_jax/jaxlib-*/jit_*")) == kept
        assert [file.stat().st_mtime_ns for file in kept] == times
        again = np.load(out)
        assert all(np.array_equal(first[k], again[k]) for k in first)


def test_killed_and_full_and_resumed_is_bit_equal(trained, command, tmp_path):
    """kill -9 after the first checkpoint, then a disk that is full at the second; the
    resumed run ends with the same bits.
    """
    folder = tmp_path / "run"
    words = ("train", "--config", "test", "--workdir", folder)
    process = command(*words, background=True)
    until = time.monotonic() + 400
    while not (folder / "checkpoints" / "3" / "commit_success.txt").exists():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    process.kill()
    process.communicate()
    bad(command(*words), "pass --resume")

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    # Such a limit isn't seen before writing, and the threads that write complain too.
    full = command(*words, "--resume", before=small_files)
    bad(full, "no space left", quiet=False)
    done = command(*words, "--resume")
    assert done.returncode == 0, done.stderr
    # What says how often it was stopped is in config.json alone.
    sums = [
        json.loads((run / "checkpoints/6/checksums/metadata").read_text())["leaves"]
        for run in (folder, trained)
    ]
    assert sums[0] == sums[1] and len(set(sums[0])) > 100
    starts = json.loads((folder / "config.json").read_text())["starts"]
    assert [start["step"] for start in starts] == [0, 3, 3]
    jax.tree.map(np.testing.assert_array_equal, weights(folder)[0], weights(trained)[0])
    steps = [json.loads(n)["step"] for n in (folder / "metrics.jsonl").open()]
    assert steps == [json.loads(n)["step"] for n in (trained / "metrics.jsonl").open()]
    kept = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").unlink()  # the best checkpoint has them still
    again = command(*words, "--resume")
    assert again.returncode == 0 and "done already" in again.stdout
    assert (folder / "weights.safetensors").read_bytes() == kept


def test_diverging_training_names_the_step(command, tmp_path):
    folder = tmp_path / "run"
    noise = ("--data.snr-db", "-2000", "-2000")  # beyond float32
    done = command("train", "--config", "test", "--workdir", folder, *noise)
    bad(done, "step 1", "not finite", "checkpoint", code=1)


def test_simulate_and_reconstruct(trained, command, capsys, tmp_path):
    signals = tmp_path / "signals.npz"
    done = command(
        "simulate",
        "--config",
        "test",
        "--num",
        "16",  # as many as the config's batch, for which drawing is compiled already
        "--out",
        signals,
        "--system-matrix",
    )
    assert done.returncode == 0, done.stderr
    with np.load(signals) as file:
        stored = {n: file[n] for n in file.files}
    assert stored["voltage"].shape == (16, 2, 1632)
    assert list(stored["family"][:6]) == list(
        ("bars", "rectangles", "triangles", "ellipses", "numbers", "vessels")
    )
    assert json.loads(str(stored["about"]))["config"]["name"] == "test"
    found = {}
    for method, *source in (
        ("kaczmarz", "--config", "test", "--lam", "1e-3", "--iterations", "5"),
        ("xspace", "--config", "test"),
        ("xspace_tensor", "--config", "test", "--iterations", "20", "--rho", "1e-3"),
        ("tikhonov", "--system-matrix", signals),
        ("nonnegative", "--run", trained),
        (None, "--run", trained),
    ):
        out = tmp_path / f"{method}.npz"
        words = ("--measurement", signals, *source, "--out", out)
        words += ("--method", method) if method else ()
        if method is None:
            done = command("reconstruct", *words)
            assert done.returncode == 0, done.stderr
            said = done.stdout
        else:  # in this process, which compiles the drawing of phantoms once for all
            assert main(["reconstruct", *map(str, words)]) == 0
            said = capsys.readouterr().out
        with np.load(out) as file:
            found[method] = file["image"]
            assert ("mask" in file.files) == (method is None)
        assert found[method].shape == (16, 32, 32)
        assert out.with_suffix(".png").stat().st_size > 1000
        assert "mean PSNR against the phantoms" in said
    error = {m: np.mean((v - stored["image"]) ** 2) for m, v in found.items()}
    assert error["kaczmarz"] < error["xspace"] and error["tikhonov"] < error["xspace"]
    assert 10 * error["xspace_tensor"] < error["xspace"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Measurements that can't be used."""
    folder = tmp_path_factory.mktemp("files")
    good = np.ones((1, 2, 1632), np.float32)
    np.savez(folder / "good.npz", voltage=good)
    np.savez(folder / "short.npz", voltage=good[..., :1600])
    np.savez(folder / "nan.npz", voltage=np.where(np.arange(1632) == 5, np.nan, good))
    np.savez(folder / "other.npz", image=good)
    np.savez(folder / "pickled.npz", voltage=np.array([{}], object))
    content = (folder / "good.npz").read_bytes()
    (folder / "cut.npz").write_bytes(content[: len(content) // 2])
    (folder / "text.npz").write_text("hello")
    return folder


def run_here(capsys, *arguments):
    """cli.main in this process: for what fails before any work."""
    code = main([str(a) for a in arguments])
    found = capsys.readouterr()
    assert found.err.count("\n") == 1, found.err
    return code, found.err


@pytest.mark.parametrize(
    "name, words",
    [
        ("short", "expected [N, 2, 1632]"),
        ("nan", "2 NaN or infinite"),
        ("other", "missing voltage"),
        ("pickled", "can't be read"),
        ("cut", "can't be read"),
        ("text", "can't be read"),
        ("none", "No such file"),
    ],
)
def test_unusable_measurements(files, capsys, tmp_path, name, words):
    out = tmp_path / "out.npz"
    code, line = run_here(
        capsys, "reconstruct", "--method", "kaczmarz", "--config", "test",
        "--measurement", files / f"{name}.npz", "--out", out,
    )  # fmt: skip
    assert code == 2 and words in line and not out.exists()


@pytest.mark.parametrize(
    "arguments, words",
    [
        ("train --config medium --workdir {tmp}/w", "config: expected one of test"),
        ("train --config test --workdir {tmp}/w --colour red", "colour"),
        ("train --config test --workdir {tmp}/w --steps many", "many"),
        ("train --config test --workdir {tmp}/w --steps 0", "steps"),
        ("simulate --config test --num 0 --out {tmp}/a.npz", "--num: expected at least 1"),
        ("simulate --config test --start -1 --out {tmp}/a.npz", "--start: expected"),
        ("demo --num 0 --workdir {tmp}/w", "--num: expected at least 6"),
        ("evaluate --num 0 --workdir {trained}", "--num: expected at least 6"),
        ("generalise --num 0 --workdir {trained}", "--num: expected at least 6"),
        ("generalise --suites shape --workdir {trained}", "did you mean shapes?"),
        ("figure3 --phantoms shap --runs a --measurements b --out {tmp}/w", "did you mean shape?"),
        ("simulate --config test --split exam --out {tmp}/a.npz", "--split"),
        ("simulate --config test --out {tmp}/a.mat", "ends in .npz"),
        ("simulate --config test --out {tmp}/no/a.npz", "doesn't exist"),
        ("evaluate --workdir {tmp}", "no config.json"),
        ("evaluate --workdir {trained} --methods magic", "--methods: expected one of zero, mean"),
        ("evaluate --workdir {trained} --num 3", "num: expected at least 6"),
        ("report --workdir {tmp}/none", "none"),
        ("reconstruct --method magic --config test --measurement a --out b.npz", "magic"),
        ("reconstruct --method xspace --lam 1 --config test --measurement a --out b.npz", "--lam"),
        ("reconstruct --config test --measurement {files}/good.npz --out {tmp}/b.npz", "weights: expected a config that they ship for"),
        ("reconstruct --method kaczmarz --measurement {files}/good.npz --out {tmp}/b.npz", "--system-matrix"),
        ("evaluate --shipped test --workdir {tmp}/w", "weights: expected a config that they ship for"),
        ("reconstruct --run {tmp} --measurement {files}/good.npz --out {tmp}/b.npz", "has no weights yet"),
        ("fly", "verb: expected one of demo, simulate"),
        ("evalute --workdir {tmp}", "did you mean evaluate?"),
        ("evaluate --workdir {trained} --methods kaczmarcz", "did you mean kaczmarz?"),
        ("train --config smal --workdir {tmp}/w", "did you mean small?"),
        ("report", "--workdir"),
        ("simulate --config test --out a.npz --loud", "--loud"),
    ],
)  # fmt: skip
def test_bad_arguments(files, trained, capsys, tmp_path, arguments, words):
    filled = arguments.format(tmp=tmp_path, files=files, trained=trained).split()
    code, line = run_here(capsys, *filled)
    assert code == 2 and words in line, line
    assert not list(tmp_path.glob("w/*"))


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_help_lists_the_verbs(capsys, words):
    assert main(list(words)) == 0
    said = capsys.readouterr()
    starts = [line.split()[0] for line in said.out.splitlines() if line[:2] == "  "]
    assert [word for word in starts if word in VERBS] == list(VERBS)
    assert not said.err


def test_help_starts_at_once(command):
    """Without JAX and NumPy, and so in a fraction of a second."""
    for words in (["--help"], *([verb, "--help"] for verb in VERBS)):
        done = command(*words, env=dict(os.environ, PYTHONPROFILEIMPORTTIME="1"))
        assert done.returncode == 0
        loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert "tyro" in loaded and not {"jax", "numpy", "matplotlib"} & loaded


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{mpi_jax.__version__}\n"


def test_warnings_are_one_line(capsys, monkeypatch):
    """Not two with a line of source code."""
    before = warnings.formatwarning

    def warn(_):
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = shown  # pytest keeps them from stderr
            warnings.warn("rows\nare few", UserWarning, stacklevel=1)

    def shown(message, category, filename, lineno, file=None, line=None):
        words = warnings.formatwarning(message, category, filename, lineno, line)
        sys.stderr.write(words)

    monkeypatch.setattr("mpi_jax.cli.configs.run", warn)
    assert main(["configs"]) == 0
    assert capsys.readouterr().err == "mpi-jax: warning: rows are few\n"
    assert warnings.formatwarning is before


def test_an_interruption_has_its_own_exit_code(capsys, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("mpi_jax.cli.configs.run", interrupted)
    assert main(["configs"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_report_of_a_run_under_way(trained, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(trained / "config.json", folder)
    shutil.copy(trained / "metrics.jsonl", folder)
    assert "training" in report.write(folder).read_text().lower()
