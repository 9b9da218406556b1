"""Work folders are read, cut files complained of."""

import numpy as np
import pytest
from support.work_folders import lines, make_config, make_training

from mpi_jax import report


def test_cut_lines_and_repeated_steps(tmp_path):
    """Killed while writing, resumed from an older step, killed again."""
    make_training(tmp_path, steps=500)
    log = tmp_path / "metrics.jsonl"
    again = {"step": 300, "images": 9600, "mae": 0.123, "images_per_second": 1.0}
    log.write_text(
        log.read_text() + '{"step": 600, "ima' + "\n" + lines(again) + '{"st'
    )
    remarks = []
    assert len(report.read_lines(tmp_path, "metrics.jsonl", remarks)) == 7
    assert remarks == ["metrics.jsonl: 2 unreadable line(s) left out."]
    run = report.read(tmp_path)
    assert [line["step"] for line in run.training] == [100, 200, 300, 400, 500]
    assert run.training[2]["mae"] == 0.123
    assert "2 unreadable" in report.write(tmp_path).read_text()


def test_what_is_no_work_folder_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(
            ValueError, match="workdir: expected a work folder"
        ) as error:
            report.write(folder)
        assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json: expected JSON"):
        report.write(tmp_path)
    make_config(tmp_path)
    (tmp_path / "evaluation").mkdir()
    broken = tmp_path / "evaluation" / "arrays.npz"
    broken.write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(ValueError, match="arrays.npz: cannot be read"):
        report.write(tmp_path)
    np.savez(broken, truth=np.zeros((2, 4, 4)), mask=np.zeros((1, 4, 4)), methods=[])
    with pytest.raises(ValueError, match="wrong: .'mask'.*missing: .'family'"):
        report.write(tmp_path)
