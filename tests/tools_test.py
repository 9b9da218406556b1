"""The tools of maintainers."""

import pathlib
import sys

from support.programs import load

from mpi_jax.cli.main import read


def test_table_trains_every_row_alike_and_evaluates_all(tmp_path, monkeypatch):
    """The commands that it runs, read by the command line itself."""
    table = load("table")
    commands = []

    def record(verb, *words):
        commands.append((verb, read(verb, [str(word) for word in words])))

    monkeypatch.setattr(table, "mpi_jax", record)
    words = ["--table", "paper", "--workdir", tmp_path, "--rows", "dual", "unet"]
    words += ["--seeds", 3, 4, "--num", 60, "--methods", "tv", "--steps", 7]
    monkeypatch.setattr(sys, "argv", ["table.py", *map(str, words)])
    table.main()
    verbs, options = zip(*commands, strict=True)
    assert verbs == (*["train"] * 4, "evaluate", "report")
    *trains, evaluate, report = options
    runs = [tmp_path / f"{row}_{seed}" for seed in (3, 4) for row in ("dual", "unet")]
    assert [train.workdir for train in trains] == runs
    assert [train.config for train in trains] == ["paper", "paper_unet"] * 2
    for train, seed in zip(trains, (3, 3, 4, 4), strict=True):
        assert train.resume
        assert (train.overrides.seed, train.overrides.steps) == (seed, 7)
    assert [evaluate.workdir, *evaluate.runs] == runs
    assert (evaluate.num, evaluate.methods) == (60, ("tv",))
    assert report.workdir == runs[0]


def test_table_trains_on_fewer_images_too(tmp_path, monkeypatch):
    table = load("table")
    commands = []
    monkeypatch.setattr(table, "mpi_jax", lambda *words: commands.append(words))
    words = ["--table", "table32", "--workdir", tmp_path, "--rows", "cnn"]
    words += ["--budgets", 640, 1000]
    monkeypatch.setattr(sys, "argv", ["table.py", *map(str, words)])
    table.main()
    trains = [read("train", [*map(str, words[1:])]) for words in commands[:3]]
    assert [train.overrides.steps for train in trains] == [9971, 10, 16]
    names = ["cnn_0", "cnn_0_640", "cnn_0_1000"]
    assert [train.workdir.name for train in trains] == names
    assert [pathlib.Path(n).name for n in commands[3][-2:]] == names[1:]
