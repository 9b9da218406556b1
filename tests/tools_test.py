"""The tools of maintainers."""

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
