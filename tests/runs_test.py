"""Work folders: their files, their checks, the log of a run."""

import dataclasses
import json

import pytest

from mpi_jax import configs, runs


def test_tensorboard_has_the_numbers_of_the_log(tmp_path):
    tensorboard = pytest.importorskip("tensorboardX")
    config = dataclasses.replace(configs.get("test"), tensorboard=True)
    with runs.Log(tmp_path, config, 0) as log:
        log.write(3, {"mae": 0.25}, 1.0)
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line == {"step": 3, "images": 48, "seconds": 1.0, "mae": 0.25}
    (events,) = (tmp_path / "tensorboard").iterdir()
    event = tensorboard.proto.event_pb2.Event()
    content, found = events.read_bytes(), {}
    while content:  # length, its checksum, event, its checksum
        size = int.from_bytes(content[:8], "little")
        event.ParseFromString(content[12 : 12 + size])
        content = content[16 + size :]
        found |= {(v.tag, event.step): v.simple_value for v in event.summary.value}
    assert found == {("mae", 3): 0.25}


def test_metrics_lines_follow_the_checkpoint(tmp_path):
    """Lines after the checkpoint, and a line cut by a kill, go; the rest stays."""
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": n, "mae": 1.0}) for n in (10, 20, 30)]
    path.write_text("\n".join(lines) + '\n{"step": 4')
    runs.keep_lines(path, 20)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [
        10,
        20,
    ]


def test_work_folders_are_checked(tmp_path):
    config = configs.get("test")
    runs.prepare(tmp_path / "run", config, resume=False)
    about = json.loads((tmp_path / "run" / "config.json").read_text())
    assert about["name"] == "test" and about["version"] and about["jax"]
    assert runs.read_config(tmp_path / "run") == config
    with pytest.raises(ValueError, match="pass --resume"):
        runs.prepare(tmp_path / "run", config, resume=False)
    runs.prepare(tmp_path / "run", config, resume=True)
    other = configs.get("small")
    with pytest.raises(ValueError, match="another config: .* there and .* here"):
        runs.prepare(tmp_path / "run", other, resume=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="other files"):
        runs.prepare(tmp_path / "mine", config, resume=False)
    with pytest.raises(ValueError, match="no config.json"):
        runs.read_config(tmp_path / "mine")
