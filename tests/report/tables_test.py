"""Tables hold the numbers of the evaluation and say how they were measured."""

import pytest
from support.work_folders import lines

from mpi_jax import report


def test_table_has_the_numbers(run):
    folder, rows = run
    text = (folder / "table.md").read_text()
    table = [
        [cell.strip(" *") for cell in line.split("|")[1:-1]]
        for line in text.replace("\\|", "/").splitlines()
        if line.startswith("|")
    ]
    results = {row[0]: row[1:] for row in table[2:7]}
    assert table[0][:5] == ["Method", "MSE", "RMSE", "nRMSE", "PSNR [dB]"]
    for row in rows:
        if row["family"] == "all" and row["method"] != "dual":
            cells = results[row["label"]]
            assert float(cells[0]) == pytest.approx(row["mse"]["mean"], abs=5e-5)
            assert float(cells[1]) == pytest.approx(row["rmse"]["mean"], abs=5e-5)
            psnr = row["psnr"]
            assert cells[3] == f"{psnr['mean']:.2f} ± {psnr['sd']:.2f}"
            assert cells[4] == "–"  # no interval in these lines
            assert cells[5:8] == [
                f"{x:.2f}" for x in (psnr["median"], psnr["p5"], row["pooled_psnr"])
            ]
            assert cells[8:] == [
                *(f"{row[key]['mean']:.4f}" for key in ("ssim", "dice", "iou")),
                "0.0042",
            ]
        elif row["family"] != "all":
            psnr = row["psnr"]
            assert f"{psnr['mean']:.2f} ± {psnr['sd']:.2f}" in text
    best = next(line for line in text.splitlines() if line.startswith("| Dual"))
    assert best.count("**") == 2 * 10  # the clear winner of all columns but the time
    assert "Dual-task &lt;TransGAN&gt; \\| a&amp;b" in best


def test_table_says_how_it_was_measured(run):
    text = (run[0] / "table.md").read_text()
    for phrase in (
        "600 test images",
        "SNR 40.0 dB",
        "Gaussian 11x11, sigma 1.5, range 1",
        "lam = 0.003, weight = 0.2",
        "printed as RMSE, read as MSE",
        "not comparable",
        "39.3996",
    ):
        assert phrase in text


def test_sparse_and_infinite_numbers(tmp_path):
    (tmp_path / "evaluation").mkdir()
    psnr = {"mean": float("inf"), "sd": float("nan"), "median": 30.0, "p5": None}
    (tmp_path / "evaluation" / "metrics.jsonl").write_text(
        lines({"method": "oracle", "family": "all", "psnr": psnr})
    )
    report.write(tmp_path)
    row = (tmp_path / "report" / "table.md").read_text().splitlines()[4]
    assert row == "| oracle | – | – | – | inf | – | 30.00 | – | – | – | – | – | – |"
