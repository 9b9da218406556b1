"""One evaluation of everything, small: rows whose numbers are known, files, the report."""

import dataclasses
import json
import pathlib
import re
import shutil

import numpy as np
import pytest

from mpi_jax import bootstrap, methods, phantoms, pretrained, report, results
from mpi_jax.evaluation import table
from mpi_jax.methods import networks

ROOT = pathlib.Path(__file__).resolve().parents[2]
# A few of each kind: how the others are tuned is tested beside them.
METHODS = ("zero", "mean", "ridge", "xspace_max", "xspace", "tikhonov", "test")


def copy_run(trained, folder, seed):
    """The run under another seed, with the same weights: what differs must be 0."""
    folder.mkdir()
    shutil.copy(trained / "metrics.jsonl", folder)
    about = json.loads((trained / "config.json").read_text())
    about["config"]["seed"] = about["seed"] = seed
    (folder / "config.json").write_text(json.dumps(about))
    params, metadata = pretrained.load_weights(trained / "weights.safetensors")
    metadata["config"]["seed"] = metadata["seed"] = seed
    pretrained.export_weights(folder / "weights.safetensors", params, metadata)
    return folder


@pytest.fixture(scope="module")
def evaluated(trained, command, tmp_path_factory):
    """Work folder of a run, evaluated beside another one at two levels of noise."""
    parent = tmp_path_factory.mktemp("evaluated")
    folder, other = (copy_run(trained, parent / f"run{n}", n) for n in (0, 1))
    done = command(
        "evaluate", "--workdir", folder, "--runs", other, "--num", "18",
        "--methods", *METHODS, "--snr", "inf", "40",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = results.read_lines(results.Line, folder / "evaluation/metrics.jsonl")
    values = results.Values.read(folder / "evaluation/values.npz")
    assert "tikhonov" in done.stdout.lower()  # the table
    return folder, lines, values


def test_every_line_is_there(evaluated):
    _, lines, values = evaluated
    found = [(n.snr_db, n.method, n.family) for n in lines]
    families = ("all", *phantoms.FAMILIES)
    # Two runs of one config are told apart by their folders.
    names = (*METHODS, "run1")
    controls = [m for m, row in methods.METHODS.items() if row.kind == "control"]
    order = [m for m in controls if m in names]
    order += [m for m in names if m not in controls]
    assert found == [(s, m, f) for s in (np.inf, 40.0) for m in order for f in families]
    each = {n.method: n for n in lines}
    assert each["test"].label == "Dual-task TransGAN + physics, seed 0"
    assert each["run1"].label == "Dual-task TransGAN + physics, seed 1"
    groups = {m: n.group for m, n in each.items()}
    assert groups["ridge"] == groups["xspace_max"] == "control"
    assert groups["tikhonov"] == "classical"
    assert groups["test"] == groups["run1"] == "physics"
    assert set(table.USUAL) <= set(methods.METHODS)
    assert values.main_snr_db == 40
    assert len(values.family) == 18


def test_rows_whose_numbers_are_known(evaluated):
    _, lines, values = evaluated
    np.testing.assert_allclose(values.main("zero", "nrmse"), 1, rtol=1e-6)
    assert not values.main("zero", "amount").any()
    assert not values.main("zero", "dice").any()
    # Nothing explained: the signal over its noise, whose powers are 40 dB apart, within
    # four standard deviations of the norm of 3264 random numbers.
    residual = values.main("zero", "residual")
    np.testing.assert_allclose(residual, np.sqrt(1e4 + 1), rtol=4 / np.sqrt(2 * 3264))
    assert np.isnan(values.numbers[np.inf, "zero", "residual"]).all()
    assert np.ptp(values.main("mean", "amount")) == 0
    every = {(n.snr_db, n.method): n for n in lines if n.family == "all"}
    mean, ridge = every[40.0, "mean"], every[40.0, "ridge"]
    np.testing.assert_allclose(mean.amount.slope, 0, atol=1e-6)
    assert ridge.psnr.mean > mean.psnr.mean
    best = every[np.inf, "tikhonov"].psnr.mean
    assert best > every[40.0, "tikhonov"].psnr.mean > ridge.psnr.mean
    # System-matrix methods know the physics; x-space blurs.
    psnr = {m: every[40.0, m].psnr.mean for m in METHODS}
    assert psnr["tikhonov"] > psnr["xspace"] + 5
    # Negative values set to 0 fit worse than the noise, and far better than nothing.
    assert 1 < every[40.0, "tikhonov"].residual.mean < 40


def test_lines_are_the_stored_values(evaluated):
    _, lines, values = evaluated
    for line in lines:
        shown = (values.family == line.family) | (line.family == "all")
        psnr, mse = (
            values.numbers[line.snr_db, line.method, metric][shown].astype(float)
            for metric in ("psnr", "mse")
        )
        assert line.num == shown.sum()
        np.testing.assert_allclose(line.psnr.mean, psnr.mean(), rtol=1e-5)
        low, high = bootstrap.interval(psnr)
        np.testing.assert_allclose(
            [line.psnr.low, line.psnr.high], [low, high], rtol=1e-5
        )
        pooled = -10 * np.log10(mse.mean())
        np.testing.assert_allclose(line.pooled_psnr, pooled, rtol=1e-5)
        assert line.psnr.mean >= line.pooled_psnr - 1e-4  # Jensen
        assert line.segmentation == (
            "predicted" if line.kind == "learned" else "thresholded"
        )
    # Both masks of a network are kept, and they aren't the same.
    dice = values.main("run1", "dice")
    assert (dice != values.main("run1", "dice_thresholded")).any()
    np.testing.assert_array_equal(
        values.main("ridge", "dice"), values.main("ridge", "dice_thresholded")
    )
    # The same weights under two seeds.
    np.testing.assert_array_equal(
        values.main("run1", "psnr"), values.main("test", "psnr")
    )


def test_report_of_it(evaluated):
    folder, lines, _ = evaluated
    read = results.Tables.read(folder / "report/table.json").tables
    tables = {table.title: table.rows for table in read}
    paper = tables["Table 1 of the dual-task TransGAN paper, ours beside it"]
    assert [row[1] for row in paper if row[0] == "CNN"] == ["–"]
    (dual,) = (row for row in paper if row[0] == "Dual-task TransGAN")
    assert dual[1] == "–" and dual[7:] == (".0012", "39.3996", ".9976")
    assert [row[0] for row in paper[-2:]] == ["not in the paper"] * 2
    seeds = tables["Several seeds"]
    assert len(seeds) == 1 and seeds[0][1:3] == ("physics", "2")
    assert "± 0.00" in seeds[0][3]
    claims = tables["Do the two tasks promote each other?"]
    assert len(claims) == 1 and claims[0][5] == "2" and "[" in claims[0][4]
    assert len(tables["PSNR by SNR of the signal [dB]"]) == len(METHODS) + 1
    for name in ("figure2.png", "figure2.pdf", "snr.png"):
        assert (folder / "report" / name).stat().st_size > 10_000
    page = (folder / "report" / "report.html").read_text()
    assert "data:image/png;base64" in page and "Dual-task TransGAN" in page
    found = [n.psnr.mean for n in lines if n.method == "tikhonov"]
    assert f"{found[-7]:.2f}" in (folder / "report" / "table.md").read_text()


def claim_run(tmp_path, *others, gain=0.5):
    """Files of an evaluation of a dual-task network, `gain` dB ahead of the others; three
    seeds each. others: what tells them from it.
    """
    rng = np.random.default_rng(0)
    base, numbers, lines = rng.normal(25, 4, 30), {}, []
    dual = results.Network(
        variant="dual",
        config="c",
        generator="g",
        adversarial=1.0,
        bce=5.0,
        dice=5.0,
        rank=0,
        seed=0,
        group="",
    )
    for n, changes in enumerate([{}, *others]):
        for seed in range(3):
            method = f"m{3 * n + seed}"
            psnr = base + (0 if n else gain) + 0.01 * rng.normal(size=30)
            for name, found in (
                ("psnr", psnr), ("ssim", psnr / 40), ("dice", psnr / 50),
                ("dice_thresholded", psnr / 50 + 0.01),
            ):  # fmt: skip
                numbers[40.0, method, name] = found
            network = dataclasses.replace(dual, **changes, group=str(n), seed=seed)
            lines.append(
                results.Line(
                    method=method,
                    label=f"{network.variant} {n}, seed {seed}",
                    kind="learned",
                    physics=network.rank > 0,
                    network=network,
                    snr_db=40.0,
                    family="all",
                    num=30,
                )
            )
    folder = tmp_path / "evaluation"
    folder.mkdir(parents=True)
    family = np.array(["bars"] * 30)
    values = results.Values(main_snr_db=40.0, family=family, numbers=numbers)
    values.write(folder / "values.npz")
    results.write_lines(folder / "metrics.jsonl", lines)
    return tmp_path


def difference(cell):
    """A cell of the claim's table: the difference, its interval, what is said of it."""
    found = re.fullmatch(r"(\S+) \[(\S+), (\S+)\] (.*)", cell)
    return *map(float, found.groups()[:3]), found[4]


def test_claim_is_reported_as_found(tmp_path):
    matched = {"variant": "matched"}
    for n, (gain, told) in enumerate([(0.5, "better"), (-0.5, "worse")]):
        folder = claim_run(tmp_path / str(n), matched, gain=gain)
        ((words, given, *cells, seeds), own) = report.claims(report.read(folder))[
            0
        ].rows
        assert words == "dual 0 against matched 1" and seeds == "3, 3"
        assert given == "voltage alone"
        psnr, ssim, dice = map(difference, cells)
        assert abs(psnr[0] - gain) < 0.02 and psnr[1] <= psnr[0] <= psnr[2]
        assert psnr[3] == ssim[3] == told and abs(ssim[0] - gain / 40) < 1e-3
        # Its mask against the other's thresholded image, and against its own.
        assert abs(dice[0] - (gain / 50 - 0.01)) < 1e-3
        assert own[2:4] == ("–", "–") and difference(own[4])[::3] == (-0.01, "worse")


def test_claim_compares_what_differs_in_one_thing(tmp_path):
    others = (
        {"variant": "matched", "adversarial": 0.0},
        {"variant": "single", "rank": 64},
        {"adversarial": 0.0},
        {"bce": 1.0, "dice": 0.1},
        {"bce": 1.0, "dice": 0.1, "adversarial": 0.0},
    )
    (table,) = report.claims(report.read(claim_run(tmp_path, *others)))
    compared = [row[0] for row in table.rows if "own" not in row[0]]
    assert compared == [
        "dual 0 against the same without adversary",
        "dual 3 against matched 1",
        "dual 4 against dual 0",
        "dual 4 against the same without adversary",
        "dual 5 against matched 1",
        "dual 5 against dual 3",
    ]
    # Both masks are predicted ones here.
    assert abs(difference(table.rows[0][4])[0] - 0.5 / 50) < 1e-3


def test_readme_table(evaluated, tmp_path):
    folder, lines, _ = evaluated
    shutil.copy(folder / "evaluation/summary.json", tmp_path / "one.json")
    assert (tmp_path / "one.json").stat().st_size < 30_000
    text = f"a\n<!-- results: one.json -->\nold\n{report.END}\nb\n"
    filled = report.fill(text, tmp_path)
    assert filled == report.fill(filled, tmp_path) and "old" not in filled
    assert filled.startswith("a\n<!-- results") and filled.endswith(
        f"{report.END}\nb\n"
    )
    assert (
        "18 test images of 32 x 32 pixels" in filled and "networks trained on" in filled
    )
    for line in lines:
        if line.family == "all" and line.snr_db == 40:
            assert f"{line.psnr.mean:.2f} ± {line.psnr.sd:.2f}" in filled
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ValueError, match="expected a summary"):
        report.readme_table([tmp_path / "bad.json"])


def test_readme_takes_tables_of_a_report_by_their_titles(tmp_path):
    kept = {
        "Several seeds": {"columns": ["Method", "seeds"], "rows": [["a | b", "3"]]},
        "Other": {"columns": ["Method"], "rows": [["no"]]},
    }
    notes = {title: table | {"notes": [f"of {title}"]} for title, table in kept.items()}
    (tmp_path / "t.json").write_text(json.dumps(notes))
    mark = "<!-- tables: t.json: Several seeds -->"
    filled = report.fill(f"a\n{mark}\nold\n{report.END}\nb\n", tmp_path)
    assert filled == (
        f"a\n{mark}\n\n**Several seeds**\n\n| Method | seeds |\n| --- | ---: |\n"
        f"| a \\| b | 3 |\n\nof Several seeds\n\n{report.END}\nb\n"
    )
    assert filled == report.fill(filled, tmp_path)
    with pytest.raises(ValueError, match="expected a table 'Seeds', got .*Several"):
        report.fill(f"<!-- tables: t.json: Seeds -->\n{report.END}", tmp_path)


def test_results_page_agrees_with_committed_summaries():
    readme = (ROOT / "docs" / "results.md").read_text()
    assert readme == report.fill(readme, ROOT / "results")
    marks = readme.count("<!-- results:") + readme.count("<!-- tables:")
    assert marks == readme.count(report.END)
    named = re.findall(r"(\w+\.json)", " ".join(re.findall("<!-- .*-->", readme)))
    assert named and all((ROOT / "results" / name).is_file() for name in named)


def test_bad_input(trained, tmp_path):
    folder = copy_run(trained, tmp_path / "run", 0)
    other = copy_run(trained, tmp_path / "other", 1)
    about = json.loads((other / "config.json").read_text())
    about["config"]["scanner"]["model"] = "mpirf"
    about["config"]["data"]["test_snr_db"] = 30.0
    (other / "config.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="scanner.model.*'mpirf'.*test_snr_db.*30"):
        table.run(folder, runs=[other], num=6)
    with pytest.raises(ValueError, match="method: expected one of.*'magic'"):
        table.run(folder, names=["magic"], num=6)
    with pytest.raises(ValueError, match="snr: expected numbers"):
        table.run(folder, snr=[float("nan")], num=6)
    (other / "config.json").write_text((folder / "config.json").read_text())
    (other / "weights.safetensors").unlink()
    with pytest.raises(ValueError, match="no weights yet"):
        table.run(folder, runs=[other], num=6)


def test_labels_tell_runs_apart():
    abouts = [
        {
            **{"adversarial": a, "bce": 5.0, "dice": 5.0, "config": "c", "seed": s},
            "budget": 9600,
        }
        for a, s in ((0, 0), (1, 0), (1, 1), (1, 1))
    ]
    assert networks.distinct(["A"] * 4, abouts) == [
        "A, adversarial weight 0",
        "A, adversarial weight 1, seed 0",
        "A, adversarial weight 1, seed 1, run 1",
        "A, adversarial weight 1, seed 1, run 2",
    ]
    two = [abouts[0], {**abouts[0], "config": "d"}]
    assert networks.distinct(["A"] * 2, two) == ["A, config c", "A, config d"]
    two = [abouts[0], {**abouts[0], "dice": 0.1}]
    assert networks.distinct(["A"] * 2, two) == [
        "A, mask terms 5 BCE + 5 Dice",
        "A, mask terms 5 BCE + 0.1 Dice",
    ]
    two = [abouts[0], {**abouts[0], "budget": 640_000, "seed": 1}]
    assert networks.distinct(["A"] * 2, two) == [
        "A, budget of 9,600 images",
        "A, budget of 640,000 images",
    ]
    assert networks.distinct(["A", "B"], abouts[:2]) == ["A", "B"]
