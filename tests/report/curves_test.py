"""Growth with the number of images: against lines that were drawn beforehand."""

import dataclasses
import math

import numpy as np
import pytest

from mpi_jax import report, results
from mpi_jax.report.curves import power_law

IMAGES = (1000, 10_000, 100_000)


def around(mean, seed, count=400, runs=1):
    """[runs, count] whose mean is exact."""
    values = np.random.default_rng(seed).normal(size=(runs, count))
    return values - values.mean() + mean


def test_a_power_law_is_found_with_where_it_meets_another_method():
    """20 dB at 10^3, 3 dB for ten times the images: level with 35 dB at 10^8."""
    psnr = [around(20 + 3 * k, seed=k) for k in range(3)]
    law = power_law(IMAGES, psnr, around(35, seed=9)[0])
    slope, low, high = law.slope
    assert slope == pytest.approx(3) and low < 3 < high
    # Independent values of standard deviation 1: that of the slope is sqrt(1 / (2 N)).
    assert high - low == pytest.approx(2 * 1.96 / math.sqrt(2 * 400), rel=0.15)
    meets, low, high = law.meets
    assert meets == pytest.approx(1e8, rel=1e-6) and low < 1e8 < high
    assert law.start + 3 * slope == pytest.approx(20)


def test_values_that_move_together_leave_the_slope_sure():
    """The bootstrap is paired: what all budgets share says nothing of the slope."""
    shared = 10 * around(0, seed=0)
    law = power_law(IMAGES, [20 + 3 * k + shared for k in range(3)], 40 + shared[0])
    assert law.slope == pytest.approx((3, 3, 3))


def test_a_line_that_falls_meets_nothing():
    psnr = [around(20 - k, seed=k) for k in range(3)]
    assert power_law(IMAGES, psnr, around(35, seed=9)[0]).meets == (math.inf,) * 3
    with pytest.raises(ValueError, match="two numbers or more"):
        power_law([1000], psnr[:1], around(35, seed=9)[0])


def line(method, label, psnr, network=None):
    statistics = results.Statistics(mean=psnr, sd=1.0, low=psnr - 0.1, high=psnr + 0.1)
    kind = "learned" if network else "classical"
    return results.Line(
        method=method, label=label, kind=kind, snr_db=40.0, family="all", num=400,
        psnr=statistics, ssim=statistics, dice=statistics, network=network,
    )  # fmt: skip


def test_the_page_shows_growth_where_there_are_several_budgets(tmp_path):
    network = results.Network(
        variant="dual", config="c", generator="g", adversarial=0.0, bce=1.0, dice=0.1,
        rank=0, seed=0, group="",
    )  # fmt: skip
    lines = [line("tv", "TV", 35.0), line("kaczmarz", "Kaczmarz", 30.0)]
    numbers = {"tv": around(35, 7)[0], "kaczmarz": around(30, 8)[0]}
    for k, images in enumerate(IMAGES):
        one = dataclasses.replace(network, group=str(k), budget=images)
        label = f"Net, budget of {images:,} images"
        lines.append(line(f"n{k}", label, 20.0 + 3 * k, one))
        numbers[f"n{k}"] = around(20 + 3 * k, k)[0]
    folder = tmp_path / "evaluation"
    folder.mkdir()
    results.write_lines(folder / "metrics.jsonl", lines)
    results.Values(
        main_snr_db=40.0,
        family=np.repeat("bars", 400),
        numbers={
            (40.0, method, metric): v
            for method, v in numbers.items()
            for metric in ("psnr", "ssim", "dice", "dice_thresholded")
        },
    ).write(folder / "values.npz")
    page = report.write(tmp_path).read_text()
    tables = results.Tables.read(tmp_path / "report" / "table.json").tables
    by_title = {table.title: table for table in tables}
    assert [row[2] for row in by_title["More images"].rows] == [
        "1,000",
        "10,000",
        "100,000",
    ]
    (law,) = by_title["What ten times the images bring"].rows
    # The tail: the two largest budgets.
    assert (
        law[0] == "Net"
        and law[1].startswith("+3.00 [")
        and law[2].startswith("1.0e+08")
    )
    assert by_title["What ten times the images bring"].columns[2] == "level with TV"
    assert (tmp_path / "report" / "growth.png").stat().st_size > 10_000
    assert "Three charts: PSNR, SSIM and Dice" in page
