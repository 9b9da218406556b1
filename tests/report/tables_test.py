"""Tables built by hand: groups of methods stand apart, settings at an edge are marked."""

import dataclasses
import re

import numpy as np
import pytest

from mpi_jax import report, results


def line(method, kind, psnr, variant=None, rank=0, **more):
    network = variant and results.Network(
        variant=variant,
        config="c",
        generator="g",
        adversarial=0.0,
        bce=5.0,
        dice=5.0,
        rank=rank,
        seed=0,
        group=method,
    )
    return results.Line(
        method=method,
        label=f"label of {method}",
        kind=kind,
        physics=rank > 0,
        network=network,
        snr_db=40.0,
        family="all",
        num=6,
        psnr=results.Statistics(mean=psnr, sd=1.0),
        **more,
    )


LINES = [
    line("run_physics", "learned", 34.0, "dual", 64),
    line(
        *("kaczmarz", "classical", 30.0),
        settings={"iterations": 200, "lam": 0.003},
        at_edge=("iterations", "lam"),
    ),
    line("transgan", "learned", 20.0, "cnn"),  # a name says nothing
    line("zero", "control", 10.0),
    line("tv", "classical", 31.0, settings={"lam_tv": 1e-6}),
]
IN_GROUPS = [
    ("label of zero", "control"),
    ("label of kaczmarz †", "classical"),
    ("label of tv", "classical"),
    ("label of transgan", "voltage alone"),
    ("label of run_physics", "physics"),
]
EDGE = (
    "† Found at an end of what was tried, so that a value beyond it may be better: label "
    "of kaczmarz, iterations = 200; label of kaczmarz, lam = 0.003."
)


def rows(text):
    lines = [n for n in text.splitlines() if n.startswith("|")]
    return [[c.strip(" *") for c in n.split("|")[1:-1]] for n in lines]


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "evaluation").mkdir()
    results.write_lines(folder / "evaluation" / "metrics.jsonl", LINES)
    report.write(folder)
    read = results.Tables.read(folder / "report" / "table.json")
    return {table.title: table for table in read.tables}, folder / "report"


def test_groups_stand_apart_and_edges_are_marked(tables):
    found, folder = tables
    for title in ("Results", "Settings"):
        assert [row[:2] for row in found[title].rows] == IN_GROUPS, title
        assert EDGE in found[title].notes
    assert found["Results"].columns[:2] == ("Method", "Given")
    assert found["Results"].best == ((4, 5),)
    assert found["Results"].rows[4][5] == "34.00 ± 1.00"
    assert any("singular basis" in note for note in found["Results"].notes)
    text = (folder / "table.md").read_text()
    assert [tuple(r[:2]) for r in rows(text)[2:7]] == IN_GROUPS
    assert "| **34.00 ± 1.00** |" in text
    page = (folder / "report.html").read_text()
    results_only = page[page.index("<h2>Results") : page.index("<h2>Table 1")]
    assert results_only.count('class="apart"') == 3  # four groups
    assert EDGE in page


def test_networks_with_physics_are_no_rows_of_the_paper(tables):
    paper = tables[0]["Table 1 of the dual-task TransGAN paper, ours beside it"]
    ours = {row[1]: row for row in paper.rows if row[1] != "–"}
    assert set(ours) == {label for label, _ in IN_GROUPS[1:2] + IN_GROUPS[3:]}
    assert ours["label of transgan"][0] == "CNN"
    assert ours["label of transgan"][-2:] == ("21.4450", ".9784")
    assert paper.rows[-1][:3] == ("not in the paper", "label of run_physics", "physics")
    assert paper.rows[-1][-3:] == ("–", "–", "–")
    dual = [row for row in paper.rows if row[0] == "Dual-task TransGAN"]
    assert [row[1] for row in dual] == ["–"] and dual[0][-2] == "39.3996"


def summary(folder, lines):
    path = folder / "one.json"
    results.Summary(
        num=6,
        snr_db=40.0,
        noise="white",
        model="tensor",
        seed=0,
        seconds=1.0,
        device="cpu",
        ssim="Gaussian",
        grid=(8, 8),
        config="test",
        rows=tuple(lines),
    ).write(path)
    return path


def test_readme_tables_say_it_too(tmp_path):
    text = report.readme_table([summary(tmp_path, LINES)])
    assert [tuple(r[:2]) for r in rows(text)[2:]] == IN_GROUPS
    assert EDGE in text and "singular basis" in text
    assert re.search(r"commit unknown", text)


def test_without_networks_or_edges_there_is_no_note(tmp_path):
    plain = [dataclasses.replace(n, at_edge=()) for n in LINES if n.kind != "learned"]
    text = report.readme_table([summary(tmp_path, plain)])
    assert "†" not in text and "Given: " not in text
    assert "† " not in text


def test_a_level_of_noise_has_its_own_marks(tmp_path):
    """Settings are tuned for each level, and marked where they are at an edge."""
    (tmp_path / "evaluation").mkdir()
    other = [dataclasses.replace(n, snr_db=20.0, at_edge=()) for n in LINES]
    results.write_lines(tmp_path / "evaluation" / "metrics.jsonl", [*LINES, *other])
    report.write(tmp_path)
    read = results.Tables.read(tmp_path / "report" / "table.json").tables
    (table,) = (t for t in read if t.title.startswith("PSNR by SNR"))
    assert table.columns == ("Method", "Given", "40 dB", "20 dB")
    assert table.rows[1] == ("label of kaczmarz", "classical", "30.00 – †", "30.00 –")
    assert EDGE in table.notes
    assert (tmp_path / "report" / "snr.png").stat().st_size > 10_000


def test_suites_name_what_is_given(tmp_path):
    folder = tmp_path / "generalisation"
    folder.mkdir()
    change = results.Change(mean=1.0, low=0.5, high=1.5)
    cells = {
        n.method: results.GeneralisationCell(
            mean=n.psnr.mean, drop=change, excess=change
        )
        for n in LINES
    }
    methods = [
        results.MethodInfo(
            method=n.method, label=n.label, kind=n.kind, physics=n.physics
        )
        for n in LINES
    ]
    row = {"suite": "shapes", "case": "spirals", "cells": cells}
    results.GeneralisationTable(
        methods=tuple(results.in_groups(methods)),
        rows=(
            results.GeneralisationRow(**row, quantity="PSNR [dB]", in_db=True),
            results.GeneralisationRow(**row, quantity="relative error", in_db=False),
        ),
        first_network="transgan",
        num=6,
        snr_db=40.0,
        grid=(8, 8),
        model="tensor",
        bootstrap="some draws",
        device="cpu",
    ).write(folder / "table.json")
    image = np.eye(8, dtype=np.float32)
    images = {("shapes", "spirals", m.method): 0.9 * image for m in methods}
    truths = {("shapes", "spirals"): image}
    values = results.GeneralisationValues(numbers={}, truths=truths, images=images)
    values.write(folder / "values.npz")
    text = report.write_generalisation(tmp_path).read_text()
    found = rows(text)
    labels = [f"label of {name}" for name in ("zero", "kaczmarz", "tv", "transgan")]
    assert found[0] == ["Suite", "Case", "Quantity", *labels, "label of run_physics"]
    assert found[2][3:] == [group for _, group in IN_GROUPS]
    assert found[3][3] == "10.00 (-1.00 [-1.50, -0.50])" and found[4][3] == "10"
    # Beyond the first network: without it, and without controls.
    assert "beyond that of label of transgan" in text
    assert found[-1][2:] == ["+1.00 [+0.50, +1.50]"] * 3
    for name in ("drops.png", "drops.pdf", "shapes.png"):
        assert (folder / name).stat().st_size > 1000
