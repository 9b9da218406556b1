"""The tools of maintainers."""

import sys

from support.programs import load

from mpi_jax.cli.main import read


def test_table_trains_every_row_alike_and_evaluates_all(tmp_path, monkeypatch):
    """The commands that it runs, read by the command line itself."""
    table = load("table")
    commands = []

    def record(*words):
        verb, *rest = (str(word) for word in words)
        commands.append((verb, read(verb, rest)))

    monkeypatch.setattr(table, "mpi_jax", record)
    words = ["--table", "paper", "--workdir", tmp_path, "--rows", "dual", "unet"]
    words += ["--seeds", 3, 4, "--num", 60, "--methods", "tv", "--steps", 7]
    monkeypatch.setattr(sys, "argv", ["table.py", *map(str, words)])
    table.main()
    *trains, evaluate, report = commands
    runs = [tmp_path / f"{row}_{seed}" for seed in (3, 4) for row in ("dual", "unet")]
    assert [verb for verb, _ in commands] == 4 * ["train"] + ["evaluate", "report"]
    assert [train.workdir for _, train in trains] == runs
    assert [train.config for _, train in trains] == ["paper", "paper_unet"] * 2
    for (_, train), seed in zip(trains, (3, 3, 4, 4), strict=True):
        assert train.resume
        assert (train.overrides.seed, train.overrides.steps) == (seed, 7)
        assert train.overrides.name == train.config
    assert [evaluate[1].workdir, *evaluate[1].runs] == runs
    assert (evaluate[1].num, evaluate[1].methods) == (60, ("tv",))
    assert report[1].workdir == runs[0]
