"""The report of synthetic work folders, whole: what may be missing, what is refused."""

import subprocess
import sys

import pytest
from support.work_folders import (
    Page,
    make_config,
    make_evaluation,
    make_samples,
    make_training,
    read_image,
)

from mpi_jax import report


def test_missing_parts_are_named(tmp_path):
    make_config(tmp_path)
    text = report.write(tmp_path).read_text()
    Page(text)
    assert "No training yet" in text and "No evaluation yet" in text
    assert sorted(p.name for p in (tmp_path / "report").iterdir()) == ["report.html"]

    make_training(tmp_path, steps=1000)
    (tmp_path / "config.json").unlink()
    text = report.write(tmp_path).read_text()
    assert "No config.json" in text and "No training yet" not in text
    assert "1,000" in text and (tmp_path / "report" / "training.png").exists()

    make_evaluation(tmp_path, num=1)
    for name in ("arrays.npz", "info.json"):
        (tmp_path / "evaluation" / name).unlink()
    text = report.write(tmp_path).read_text()
    assert "No evaluation yet" not in text and "No example images" in text
    assert "settings not recorded" in (tmp_path / "report" / "table.md").read_text()


def test_a_run_under_way_shows_its_samples(tmp_path):
    """Curves and samples, the first and the newest among them; figure 2 once evaluated."""
    make_config(tmp_path)
    make_training(tmp_path)
    make_samples(tmp_path, range(500, 4001, 500))
    page = Page(report.write(tmp_path).read_text())
    shown = [attributes["alt"] for attributes in page.all("img")]
    assert len(shown) == 2 and "bars, rectangles" in shown[0]
    assert "step 500," in shown[0] and "step 4000." in shown[0]
    assert shown[0].count("step ") == report.SAMPLES_SHOWN
    picture = read_image(tmp_path / "report" / "samples.png")
    assert picture.std() > 0.1
    make_evaluation(tmp_path)
    page = Page(report.write(tmp_path).read_text())
    assert not any("step 500" in image["alt"] for image in page.all("img"))

    (tmp_path / "samples" / "00000500.npz").write_bytes(b"PK cut")
    with pytest.raises(ValueError, match="00000500.npz: cannot be read"):
        report.write(tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    make_config(tmp_path)
    page = report.write(tmp_path)
    old = page.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        report.write(tmp_path)
    assert page.read_bytes() == old
    assert [path.name for path in page.parent.iterdir()] == ["report.html"]


def test_report_needs_no_jax():
    code = "import sys, mpi_jax.report; print({'jax', 'matplotlib'} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )
    assert result.stdout.strip() == "set()", result.stderr
