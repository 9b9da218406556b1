"""What is measured is kept: calls that end early, are killed, or are shared."""

import json
import signal
import time

import jax
import numpy as np
import pytest
from support.processes import copy_run, together

from mpi_jax import data, methods, results
from mpi_jax.evaluation import parts, table

WORDS = ("--methods", "zero", "tikhonov", "test", "--snr", "inf", "40", "--num", "12")


def numbers(workdir):
    """All that an evaluation says, without how long it took."""
    folder = workdir / "evaluation"
    lines = [
        json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    summary = json.loads((folder / "summary.json").read_text())
    for line in (*lines, *summary["rows"]):
        assert line.pop("seconds_per_image") > 0
    assert summary.pop("seconds") > 0
    arrays = {}
    for name in ("values.npz", "arrays.npz"):
        with np.load(folder / name) as file:
            arrays |= {f"{name}/{array}": file[array] for array in file.files}
    return json.dumps([lines, summary]), arrays


def assert_same(workdir, other):
    (text, arrays), (expected, others) = numbers(workdir), numbers(other)
    assert text == expected
    assert list(arrays) == list(others)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, others[name], err_msg=name)
    names = {path.name for path in workdir.iterdir()} - {"report"}
    assert names == {"config.json", "weights.safetensors", "evaluation"}


# --- The parts themselves


def test_parts_of_another_call_are_swept(tmp_path):
    folder = tmp_path / "x.parts"
    before = parts.Parts(folder, "one")
    for name in ("a", "b", "cut"):
        before.write(name, {"v": np.arange(3.0)})
    whole = (before.folder / "cut.npz").read_bytes()
    (before.folder / "cut.npz").write_bytes(whole[:-30])
    (before.folder / ".c.npz.0123.part").write_bytes(whole)  # of a kill while it wrote
    again = parts.Parts(folder, "one")
    assert again.kept == {"a", "b"}
    assert sorted(p.name for p in again.folder.iterdir()) == ["a.npz", "b.npz"]
    assert again.left(["a", "c", "b", "d"]) == ["c", "d"]
    np.testing.assert_array_equal(again.read("a")["v"], [0, 1, 2])
    with pytest.raises(ValueError, match="expected a part c, found none"):
        again.read("c")
    other = parts.Parts(folder, "two")
    assert other.kept == set() and not again.folder.exists()
    other.remove()
    assert not folder.exists()


def test_kept_parts_are_told_once(tmp_path):
    told = []
    kept = parts.Parts(tmp_path, "k")
    kept.tell_kept(["a", "b"], lambda *words: told.append(words))
    assert told == []
    kept.write("a", {"v": np.zeros(1)})
    parts.Parts(tmp_path, "k").tell_kept(["a", "b"], lambda *words: told.append(words))
    assert told == [("taken up from an earlier call", 1, 2, {})]


def test_every_part_is_the_share_of_one_process(tmp_path, monkeypatch):
    kept = parts.Parts(tmp_path, "k")
    kept.write("p3", {"v": np.zeros(1)})
    kept = parts.Parts(tmp_path, "k")
    names = [f"p{n}" for n in range(8)]
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    shares = []
    for index in range(3):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        shares.append(kept.share(names))
    assert shares == [["p0", "p4", "p7"], ["p1", "p5"], ["p2", "p6"]]


def test_keys_tell_what_parts_depend_on(tmp_path, monkeypatch):
    weights = tmp_path / "weights"
    weights.write_bytes(b"1")
    first = parts.key([1, "a"], [weights])
    assert parts.key([1, "a"], [weights]) == first
    others = {parts.key([1, "b"], [weights]), parts.key([1, "a"], [])}
    weights.write_bytes(b"2")
    others.add(parts.key([1, "a"], [weights]))
    weights.write_bytes(b"1")
    monkeypatch.setattr("mpi_jax.__version__", "other")
    others.add(parts.key([1, "a"], [weights]))
    assert len(others) == 4 and first not in others


def test_chosen_settings_come_back_as_they_were(tmp_path):
    kept = parts.Parts(tmp_path, "k")
    settings = {"width": None, "lam": 10.0**-0.5, "iterations": 20, "rho": "noise"}
    row = methods.METHODS["zero"]
    ready = methods.Ready(row, lambda u: u, settings, 0.35, ("lam",))
    parts.write_chosen(kept, "tuned", ready)
    chosen = parts.read_chosen(kept, "tuned")
    assert chosen == parts.Chosen(settings, 0.35, ("lam",))
    assert [type(v) for v in chosen.settings.values()] == [
        type(v) for v in settings.values()
    ]
    assert chosen.all_settings == {**settings, "threshold": 0.35}


def files(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_files_are_replaced_together(tmp_path):
    folder = tmp_path / "evaluation"

    def write(text, *names, stop=False):
        with parts.replaced(folder) as new:
            for name in names:
                (new / name).write_text(text)
            if stop:
                raise InterruptedError

    write("old", "a", "b")
    assert files(folder) == {"a": "old", "b": "old"}
    with pytest.raises(InterruptedError):
        write("half", "a", stop=True)
    assert files(folder) == {"a": "old", "b": "old"}
    write("new", "b", "c")
    assert files(folder) == {"b": "new", "c": "new"}
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("at", [1, 2])
def test_a_kill_while_folders_are_renamed_loses_nothing(tmp_path, monkeypatch, at):
    """At either renaming: the old files or the new ones, as the next call finds them."""
    folder = tmp_path / "evaluation"
    folder.mkdir()
    (folder / "a").write_text("old")
    count, rename = 0, type(folder).rename

    def killed(self, target):
        nonlocal count
        count += 1
        if count == at:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(type(folder), "rename", killed)
    with pytest.raises(KeyboardInterrupt), parts.replaced(folder) as new:
        (new / "a").write_text("new")
    monkeypatch.undo()
    with pytest.raises(InterruptedError), parts.replaced(folder):
        assert files(folder) == {"a": "old" if at == 1 else "new"}
        raise InterruptedError


# --- Evaluations that end early


def test_an_evaluation_that_is_cut_off_goes_on(trained, tmp_path, monkeypatch):
    """Cut off before the test images and between them; nothing is measured twice."""
    monkeypatch.setattr(table, "CHUNK", 16)
    options = {"names": ["zero", "tikhonov"], "num": 36}  # chunks of 16, 16, 4
    whole, cut = (copy_run(trained, tmp_path / name) for name in ("whole", "cut"))
    lines = table.run(whole, **options)
    assert [line.family for line in lines].count("all") == 2
    # A part of another call is no part of this one.
    other = parts.Parts(cut / "evaluation.parts", "other")
    other.write("measured-0-0", {"v": np.zeros(1)})

    write, written, told = parts.Parts.write, [], []

    def stopping(self, name, arrays):
        write(self, name, arrays)
        written.append(name)
        if len(written) in (2, 4):
            raise KeyboardInterrupt

    monkeypatch.setattr(parts.Parts, "write", stopping)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            table.run(cut, **options)
        assert not (cut / "evaluation").exists() and not other.folder.exists()
    table.run(cut, **options, tell=lambda *words: told.append(words))
    chunks = [f"measured-0-{start}" for start in (0, 16, 32)]
    assert written == ["tuned-0-0", "tuned-0-1", *chunks]
    assert told[0] == ("taken up from an earlier call", 4, 5, {})
    assert [words[:3] for words in told if words[0] == "test"] == [("test", 4, 4)]
    assert_same(cut, whole)


def test_all_that_is_left_is_to_write(trained, tmp_path, monkeypatch):
    """A kill after the last part: nothing is built again, and the old files are whole."""
    folder = copy_run(trained, tmp_path / "run")
    options = {"names": ["zero"], "num": 6}
    table.run(folder, **options)
    before = numbers(folder)[0]

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(results.Summary, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        table.run(folder, **options)
    assert numbers(folder)[0] == before
    monkeypatch.undo()
    monkeypatch.setattr(data, "build", killed)
    table.run(folder, **options)
    assert numbers(folder)[0] == before
    assert not (folder / "evaluation.parts").exists()


# --- Real processes


@pytest.fixture(scope="module")
def once(trained, command, tmp_path_factory):
    """A work folder that one process has evaluated without a stop."""
    folder = copy_run(trained, tmp_path_factory.mktemp("once") / "run")
    done = command("evaluate", "--workdir", folder, *WORDS)
    assert done.returncode == 0, done.stderr
    return folder


def test_killed_and_called_again(trained, command, once, tmp_path):
    folder = copy_run(trained, tmp_path / "run")
    words = ("evaluate", "--workdir", folder, *WORDS)
    process = command(*words, background=True)
    began = time.monotonic()
    while not list(folder.glob("evaluation.parts/*/tuned-0-2.npz")):
        assert process.poll() is None and time.monotonic() - began < 300
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "evaluation").exists()
    done = command(*words)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("taken up from an earlier call") == 1
    assert_same(folder, once)


def test_two_processes_give_what_one_gives(trained, command, once, tmp_path):
    folder = copy_run(trained, tmp_path / "run")
    words = ("evaluate", "--workdir", folder, *WORDS)
    (lead, table_text, progress), other = together(command, words, words)
    assert lead == 0, progress
    assert other[0] == 0, other[2]
    assert "System matrix (Tikhonov)" in table_text and "test 12 of 12" in progress
    assert other[1:] == ("", "")  # the lead alone speaks
    assert_same(folder, once)


def test_work_folders_that_are_not_shared_are_refused(trained, command, tmp_path):
    folders = [copy_run(trained, tmp_path / name) for name in ("here", "there")]
    each = [("evaluate", "--workdir", folder, *WORDS) for folder in folders]
    for code, out, said in together(command, *each):
        assert code == 2 and out == ""
        assert said.count("\n") == 1 and "share" in said, said
        assert "process 1 on" in said and len(said) < 400
    names = {"config.json", "weights.safetensors"}
    assert all({path.name for path in folder.iterdir()} == names for folder in folders)
