"""Checkpoints: whole or absent, and the right ones are kept."""

import jax
import numpy as np
import pytest

from mpi_jax import train
from mpi_jax.train import checkpoint


def state(step):
    return {"a": np.full((3, 2), step, np.float32), "b": {"n": np.int32(step)}}


def test_newest_and_best_are_kept(tmp_path):
    with train.checkpoint.manager(tmp_path / "c") as store:
        for step, psnr in enumerate([20.0, 25.0, 24.0, 10.0, 9.0]):
            train.checkpoint.save(store, step, state(step), {"seed": 0}, psnr)
        train.checkpoint.finish(store)
        assert sorted(store.all_steps()) == [1, 3, 4]
    with train.checkpoint.manager(tmp_path / "c") as store:
        step, found = train.checkpoint.restore(store, state(0))
        assert step == 4
        jax.tree.map(np.testing.assert_array_equal, found, state(4))
        assert train.checkpoint.restore(store, state(0), 1)[1]["b"]["n"] == 1


def test_full_disk_is_noticed_before_writing(tmp_path, monkeypatch):
    usage = checkpoint.shutil.disk_usage(tmp_path)
    with train.checkpoint.manager(tmp_path / "c") as store:
        train.checkpoint.save(store, 1, state(1), {}, 1.0)
        train.checkpoint.finish(store)
    full = usage._replace(free=1000)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: full)
    with pytest.raises(OSError, match="no space left .* earlier ones are intact"):
        with train.checkpoint.manager(tmp_path / "c") as store:
            train.checkpoint.save(store, 2, state(2), {}, 2.0)
    with train.checkpoint.manager(tmp_path / "c") as store:
        assert train.checkpoint.restore(store, state(0))[0] == 1
