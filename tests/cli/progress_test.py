"""Progress: lines without a terminal, and times without compilation."""

import sys

import pytest

from mpi_jax.cli import progress


@pytest.fixture
def clock(monkeypatch):
    """Seconds that a test lets pass."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def passes(seconds):
        now[0] += seconds

    return passes


def lines(capsys):
    said = capsys.readouterr()
    assert not said.out
    return said.err.splitlines()


def test_time_left_leaves_out_the_first_step_and_other_stages(clock, capsys):
    with progress.Progress() as tell:
        tell("build", 0, 1, {})
        clock(500)  # compiles
        tell("train", 10, 100, {"images_per_second": 0.1, "mae": 0.25})
        clock(20)
        tell("train", 20, 100, {"images_per_second": 60.0, "mae": 0.2})
        clock(300)  # compiles
        tell("validate", 20, 100, {"validation_psnr": 20.0})
        clock(100)
        tell("train", 30, 100, {"mae": 0.1})
        clock(20)
        tell("train", 40, 100, {"mae": 0.1})
    assert lines(capsys) == [
        "build 0 of 1",
        "train 10 of 100, mae 0.25",
        "train 20 of 100, images_per_second 60, mae 0.2, 160 s left",
        "validate 20 of 100, psnr 20",
        "train 30 of 100, mae 0.1, 140 s left",
        "train 40 of 100, mae 0.1, 120 s left",
    ]


def test_a_stage_from_0_leaves_out_its_first_step(clock, capsys):
    with progress.Progress() as tell:
        for done, seconds in ((0, 90), (1, 10), (2, 10), (3, 10), (4, 0)):
            tell("test", done, 4, {})
            clock(seconds)
    assert lines(capsys) == [
        "test 0 of 4",
        "test 1 of 4",
        "test 2 of 4, 20 s left",
        "test 3 of 4, 10 s left",
        "test 4 of 4",
    ]


def test_stages_whose_steps_differ_promise_nothing(clock, capsys):
    with progress.Progress() as tell:
        for done in range(5):
            tell("tune", done, 5, {})
            clock(30)
    assert not any("left" in line for line in lines(capsys))


def test_lines_are_seconds_apart_but_for_the_last(clock, capsys):
    with progress.Progress() as tell:
        for done in range(101):
            tell("simulate", done, 100, {})
            clock(1)
    said = [line.split(",")[0] for line in lines(capsys)]
    assert said == [f"simulate {done} of 100" for done in range(0, 101, 10)]


def test_a_terminal_gets_a_bar_without_a_rate(clock, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress.Progress() as tell:
        tell("train", 10, 30, {"mae": 0.25})
        clock(20)
        tell("train", 20, 30, {"mae": 0.2})
        tell("validate", 20, 30, {"validation_psnr": 20.0})
        tell("train", 30, 30, {"mae": 0.1})
    said = capsys.readouterr().err
    assert "train 10/30" in said and "train 30/30" in said and "left=20 s" in said
    assert "step 20: validation psnr 20" in said
    assert "it/s" not in said and "step/s" not in said
