"""Trainings that are killed: tools/kills.py, in a short form."""

import json

from support.launching import PYTHON, ROOT, run


def test_kills_lose_nothing(tmp_path):
    """Ten kills of a training; the tool has more of them, and of more kinds."""
    words = ["--workdir", tmp_path, "--kills", 10, "--devices", 1, "--stages", "train"]
    done = run([PYTHON, ROOT / "tools" / "kills.py", *words])
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert sum(line["kills"] for line in lines) == 10
    assert all(line["same"] for line in lines)
