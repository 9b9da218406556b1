"""The tools of maintainers."""

import sys

from support.programs import load

from mpi_jax import configs
from mpi_jax.cli import arguments, parser


def test_table_trains_every_row_alike_and_evaluates_all(tmp_path, monkeypatch):
    """The commands that it runs, read by the command line itself."""
    table = load("table")
    commands = []

    def record(*words):
        options, rest = parser._parser().parse_known_args([str(word) for word in words])
        commands.append((options, rest))

    monkeypatch.setattr(table, "mpi_jax", record)
    words = ["--table", "paper", "--workdir", tmp_path, "--rows", "dual", "unet"]
    words += ["--seeds", 3, 4, "--num", 60, "--methods", "tv", "--steps", 7]
    monkeypatch.setattr(sys, "argv", ["table.py", *map(str, words)])
    table.main()
    *trains, evaluate, report = commands
    runs = [tmp_path / f"{row}_{seed}" for seed in (3, 4) for row in ("dual", "unet")]
    assert [made.workdir for made, _ in trains] == runs
    assert [made.config for made, _ in trains] == ["paper", "paper_unet"] * 2
    for (made, rest), seed in zip(trains, (3, 3, 4, 4), strict=True):
        assert made.verb == "train" and made.resume
        changed = arguments.fields(configs.get(made.config), rest, "train")
        assert (changed.seed, changed.steps) == (seed, 7)
    assert [evaluate[0].workdir, *evaluate[0].runs] == runs
    assert (evaluate[0].num, evaluate[0].methods) == (60, ["tv"])
    assert (report[0].verb, report[0].workdir) == ("report", runs[0])
    assert not evaluate[1] and not report[1]
