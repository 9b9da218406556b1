"""Files of a work folder, and the commit that they name."""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from mpi_jax import _files, configs, pretrained, results, runs

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture
def umask():
    def change(mask):
        os.umask(mask)

    before = os.umask(0o022)
    yield change
    os.umask(before)


@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o027, 0o640)])
def test_files_are_read_by_whom_the_umask_lets(tmp_path, umask, mask, mode):
    umask(mask)
    folder = tmp_path / "run"
    config = configs.get("test")
    runs.prepare(folder, config, resume=False)
    with runs.Log(folder, config, 0) as log:
        log.write(3, {"validation_psnr": 20.0})
    images = np.zeros((2, 4, 4), np.float32)
    names = ("truth", "true_mask", "image", "mask")
    samples = dict.fromkeys(names, images) | {"family": np.array(["bars", "numbers"])}
    runs.write_samples(folder, 3, samples)
    runs.export(folder, {"a": np.ones(2)}, 3, config, {"validation_psnr": 20.0})
    runs.unpack(folder / runs.WEIGHTS, tmp_path / "unpacked")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 6
    assert {path.stat().st_mode & 0o777 for path in files} == {mode}


def test_weights_say_which_run_they_are_of(tmp_path):
    folder, config = tmp_path / "run", configs.get("test")
    runs.prepare(folder, config, resume=False)
    assert not runs.has_weights(folder)
    validation = {"validation_psnr": 20.0, "validation_ssim": 0.5}
    runs.export(folder, {"a": {"b": np.float32(3)}}, 5, config, validation)
    weights, metadata = pretrained.load_weights(folder / runs.WEIGHTS)
    assert weights["a"]["b"].shape == () and weights["a"]["b"] == 3
    info = results.RunInfo.of(metadata, "weights")
    assert info.step == 5 and info.images == 5 * config.data.batch_size
    assert info.validation_psnr == 20 and info.validation_dice is None
    assert configs.from_dict(info.config) == config
    runs.unpack(folder / runs.WEIGHTS, tmp_path / "other")
    assert runs.read_info(tmp_path / "other") == info
    assert runs.read_config(tmp_path / "other") == config
    assert runs.has_weights(tmp_path / "other")


@pytest.mark.parametrize(
    "text, said",
    [
        ("{", "config.json: expected JSON"),
        ("[1]", r"expected a JSON object, got \[1\]"),
        ('{"seed": 0}', "missing config"),
        ('{"config": {"name": "a"}}', "config: expected the fields name, .*missing"),
        ('{"schema": 3, "config": {}}', "expected schema 1 or 2, got 3"),
    ],
)
def test_a_broken_config_is_told_in_one_line(tmp_path, text, said):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=said) as error:
        runs.read_config(tmp_path)
    assert "config.json" in str(error.value) and "\n" not in str(error.value)


def test_the_log_takes_known_numbers_alone(tmp_path):
    with runs.Log(tmp_path, configs.get("test"), 0) as log:
        with pytest.raises(TypeError, match="mea"):
            log.write(1, {"mea": 1.0})
        log.write(1, {"mae": 1.0}, 0.5)
    lines, cut = results.LogLine.read_all(tmp_path / "metrics.jsonl")
    assert cut == 0 and [(n.step, n.mae, n.seconds) for n in lines] == [(1, 1.0, 0.5)]
    assert runs.best_psnr(tmp_path / "metrics.jsonl") == -np.inf


def git(folder, *words):
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    done = subprocess.run(
        ["git", *who, *words], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    """What a build looks at, in a repository of its own."""
    pytest.importorskip("setuptools")
    folder = tmp_path / "checkout"
    (folder / "mpi_jax").mkdir(parents=True)
    for name in ("setup.py", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copy(ROOT / "mpi_jax" / "__init__.py", folder / "mpi_jax")
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "all")
    return folder


def build(folder, *words):
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", *map(str, words)],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_a_build_writes_down_its_commit(checkout, tmp_path):
    here = git(checkout, "rev-parse", "--short", "HEAD")
    build(checkout, "build_py", "--build-lib", tmp_path / "built")
    assert (tmp_path / "built/mpi_jax/commit.txt").read_text().strip() == here
    assert not (checkout / "mpi_jax" / "commit.txt").exists()
    # Through an archive of the source, which has no git.
    build(checkout, "sdist", "--dist-dir", tmp_path / "archive")
    (archive,) = (tmp_path / "archive").iterdir()
    shutil.unpack_archive(archive, tmp_path / "source")
    (source,) = (tmp_path / "source").iterdir()
    build(source, "build_py", "--build-lib", tmp_path / "again")
    assert (tmp_path / "again/mpi_jax/commit.txt").read_text().strip() == here


def test_a_build_without_git_claims_no_commit(checkout, tmp_path):
    shutil.rmtree(checkout / ".git")
    build(checkout, "build_py", "--build-lib", tmp_path / "built")
    assert (tmp_path / "built/mpi_jax/__init__.py").exists()
    assert not (tmp_path / "built/mpi_jax/commit.txt").exists()


def test_an_installed_copy_names_its_commit(tmp_path, monkeypatch):
    place = tmp_path / "site-packages" / "mpi_jax"
    place.mkdir(parents=True)
    monkeypatch.setattr(runs, "__file__", str(place / "runs.py"))
    assert runs.commit() == "unknown"
    (place / "commit.txt").write_text("abc1234\n")
    assert runs.commit() == "abc1234"
    # A checkout is asked itself; one that git can't read is no commit.
    (tmp_path / "site-packages" / ".git").mkdir()
    assert runs.commit() == "unknown"
    shutil.rmtree(tmp_path / "site-packages" / ".git")
    repository = tmp_path / "site-packages"
    git(repository, "init", "-q")
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", "all")
    assert runs.commit() == git(repository, "rev-parse", "--short", "HEAD")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    _files.write_atomically(path, "old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    for write in (
        lambda: _files.write_atomically(path, b"new"),
        lambda: _files.save_npz(path, {"a": np.ones(2)}),
        lambda: pretrained.export_weights(path, {"a": np.ones(2)}, {}),
    ):
        with pytest.raises(OSError, match="disk full"):
            write()
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_tensorboard_has_the_numbers_of_the_log(tmp_path):
    tensorboard = pytest.importorskip("tensorboardX")
    config = dataclasses.replace(configs.get("test"), tensorboard=True)
    with runs.Log(tmp_path, config, 0) as log:
        log.write(3, {"mae": 0.25}, 1.0)
    ((line,), _) = results.LogLine.read_all(tmp_path / "metrics.jsonl")
    assert line == results.LogLine(step=3, images=48, seconds=1.0, mae=0.25)
    (events,) = (tmp_path / "tensorboard").iterdir()
    event = tensorboard.proto.event_pb2.Event()
    content, found = events.read_bytes(), {}
    while content:  # length, its checksum, event, its checksum
        size = int.from_bytes(content[:8], "little")
        event.ParseFromString(content[12 : 12 + size])
        content = content[16 + size :]
        found |= {(v.tag, event.step): v.simple_value for v in event.summary.value}
    assert found == {("mae", 3): 0.25}


def test_metrics_lines_follow_the_checkpoint(tmp_path):
    """Lines after the checkpoint, and a line cut by a kill, go; the rest stays."""
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": n, "images": n, "mae": 1.0}) for n in (10, 20, 30)]
    path.write_text("\n".join(lines) + '\n{"step": 4')
    runs.keep_lines(path, 20)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [
        10,
        20,
    ]


def test_work_folders_are_checked(tmp_path):
    config = configs.get("test")
    runs.prepare(tmp_path / "run", config, resume=False)
    about = json.loads((tmp_path / "run" / "config.json").read_text())
    assert about["name"] == "test" and about["version"] and about["jax"]
    assert runs.read_config(tmp_path / "run") == config
    with pytest.raises(ValueError, match="pass --resume"):
        runs.prepare(tmp_path / "run", config, resume=False)
    runs.prepare(tmp_path / "run", config, resume=True)
    other = configs.get("small")
    with pytest.raises(ValueError, match="another config: .* there and .* here"):
        runs.prepare(tmp_path / "run", other, resume=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="other files"):
        runs.prepare(tmp_path / "mine", config, resume=False)
    with pytest.raises(ValueError, match="no config.json"):
        runs.read_config(tmp_path / "mine")


def test_steps_may_grow_where_the_rate_does_not_hang_on_them(tmp_path):
    config = configs.get("test")
    constant = dataclasses.replace(config.optimiser, schedule="constant")
    config = dataclasses.replace(config, optimiser=constant)
    runs.prepare(tmp_path / "run", config, resume=False)
    longer = dataclasses.replace(config, steps=config.steps + 4)
    runs.prepare(tmp_path / "run", longer, resume=True)
    assert runs.read_config(tmp_path / "run") == longer
    with pytest.raises(ValueError, match="steps is 10 there and 6 here"):
        runs.prepare(tmp_path / "run", config, resume=True)
    cosine = dataclasses.replace(config.optimiser, schedule="cosine")
    one, other = (dataclasses.replace(c, optimiser=cosine) for c in (config, longer))
    runs.prepare(tmp_path / "cosine", one, resume=False)
    with pytest.raises(ValueError, match="learning rate of its schedule hangs on"):
        runs.prepare(tmp_path / "cosine", other, resume=True)


def test_how_often_is_free_to_change(tmp_path):
    config = configs.get("test")
    runs.prepare(tmp_path, config, resume=False)
    changed = dataclasses.replace(
        config, checkpoint_every=1, validate_every=2, checkpoint_minutes=3.0
    )
    runs.prepare(tmp_path, changed, resume=True)
    assert runs.read_config(tmp_path) == changed


def test_initial_weights_are_kept_and_named(tmp_path):
    config, given = configs.get("test"), tmp_path / "theirs.safetensors"
    pretrained.export_weights(given, {"a": np.ones(2)}, {})
    folder = tmp_path / "run"
    runs.prepare(folder, config, resume=False, init=given)
    assert (folder / runs.INIT).read_bytes() == given.read_bytes()
    init = runs.read_info(folder).init
    digest = hashlib.sha256(given.read_bytes()).hexdigest()
    assert init == results.InitialWeights(file="theirs.safetensors", sha256=digest)
    runs.prepare(folder, config, resume=True)
    runs.prepare(folder, config, resume=True, init=given)
    pretrained.export_weights(given, {"a": np.zeros(2)}, {})
    with pytest.raises(ValueError, match="init: expected none, or the file that"):
        runs.prepare(folder, config, resume=True, init=given)


def test_every_start_is_written_down(tmp_path):
    runs.prepare(tmp_path, configs.get("test"), resume=False)
    runs.add_start(tmp_path, 0, ["here"])
    runs.add_start(tmp_path, 4, ["here", "there"])
    one, other = runs.read_info(tmp_path).starts
    assert (one.step, other.step) == (0, 4) and other.hosts == ("here", "there")
    assert one.jax and one.commit and one.time.endswith("+00:00")
    # The weights of a run don't depend on how often it was stopped.
    runs.export(tmp_path, {"a": np.ones(2)}, 5, configs.get("test"), {})
    _, metadata = pretrained.load_weights(tmp_path / runs.WEIGHTS)
    assert results.RunInfo.of(metadata, "weights").starts == ()


def test_a_second_training_is_kept_out(tmp_path):
    with runs.locked(tmp_path):
        words = (
            f"no training is at work in, but process {os.getpid()} on .* is; stop it"
        )
        with pytest.raises(ValueError, match=words):
            with runs.locked(tmp_path):
                pass
    assert not (tmp_path / runs.LOCK).exists()
    with pytest.raises(RuntimeError), runs.locked(tmp_path):
        raise RuntimeError
    with runs.locked(tmp_path) as died:  # nothing is left of it
        assert died == ""


def test_the_lock_of_a_dead_training_is_taken_over(tmp_path):
    program = (
        "import os, pathlib, sys; from mpi_jax import runs\n"
        "with runs.locked(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    dead = subprocess.run([sys.executable, "-c", program, tmp_path])
    assert dead.returncode == -9 and (tmp_path / runs.LOCK).exists()
    with runs.locked(tmp_path) as died:
        assert died.startswith("process ")


def test_files_that_a_kill_cut_are_swept(tmp_path):
    (tmp_path / "samples").mkdir()
    for name in (".weights.safetensors.0a.part", "samples/.00000003.npz.0b.part"):
        (tmp_path / name).write_text("half")
    (tmp_path / "notes.part").write_text("mine")
    runs.sweep(tmp_path)
    files = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert files == ["notes.part"]
