"""Checkpoints: whole or absent, the right ones are kept, damaged ones are passed over."""

import shutil

import jax
import numpy as np
import pytest

from mpi_jax import train
from mpi_jax.train import checkpoint


def state(step):
    noise = np.random.default_rng(0).normal(size=(40, 30)).astype(np.float32)
    return {"a": noise + step, "b": {"n": np.int32(step)}}


def saved(folder, *psnr):
    with checkpoint.manager(folder) as store:
        for step, value in enumerate(psnr):
            checkpoint.save(store, step, state(step), {"seed": 0}, value)
        checkpoint.finish(store)
    return folder


def test_newest_and_best_are_kept(tmp_path):
    folder = saved(tmp_path / "c", 20.0, 25.0, 24.0, 10.0, 9.0)
    assert sorted(p.name for p in folder.iterdir()) == ["1", "3", "4"]
    step, read = checkpoint.restore_newest(folder, state(0))
    assert step == 4
    jax.tree.map(np.testing.assert_array_equal, read, state(4))
    assert checkpoint.best_step(folder) == 1
    assert checkpoint.restore(folder, state(0), 1)["b"]["n"] == 1


def test_checkpoints_without_validation_are_never_the_best(tmp_path):
    folder = saved(tmp_path / "c", -np.inf, 3.0, -np.inf, -np.inf, -np.inf)
    assert sorted(p.name for p in folder.iterdir()) == ["1", "3", "4"]
    assert checkpoint.best_step(folder) == 1
    assert checkpoint.best_step(saved(tmp_path / "d", -np.inf, -np.inf)) is None
    assert checkpoint.restore_newest(tmp_path / "none", state(0)) is None


def largest_file(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def cut_data(step):
    path = largest_file(step / "state")
    path.write_bytes(path.read_bytes()[:100])


def flip_a_byte(step):
    path = largest_file(step / "state")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def other_checksum(step):
    path = step / "checksums" / "metadata"
    path.write_text(path.read_text().replace("1", "2"))


def no_state(step):
    shutil.rmtree(step / "state")


def no_metadata(step):
    shutil.rmtree(step / "metrics")


def cut_metadata(step):
    (step / "metrics" / "metrics").write_text('{"psn')


@pytest.mark.parametrize(
    "damage, words",
    [
        (cut_data, "can't be read"),
        (flip_a_byte, "other bytes than were written|can't be read"),
        (other_checksum, "other bytes than were written"),
        (no_state, "can't be read"),
        (no_metadata, "can't be read"),
        (cut_metadata, "can't be read"),
    ],
)
def test_damaged_checkpoints_are_passed_over(tmp_path, damage, words):
    folder = saved(tmp_path / "c", 1.0, 2.0, 1.5)
    damage(folder / "2")
    with pytest.warns(UserWarning, match=f"checkpoint 2 is skipped: .*({words})") as w:
        step, read = checkpoint.restore_newest(folder, state(0))
    (told,) = w
    assert len(str(told.message)) < 300 + len(str(folder))
    assert "\n" not in str(told.message)
    assert step == 1
    jax.tree.map(np.testing.assert_array_equal, read, state(1))
    assert (folder / "2.broken").is_dir()
    with checkpoint.manager(folder) as store:  # the run goes on
        checkpoint.save(store, 2, state(2), {}, 5.0)
        checkpoint.finish(store)
    assert checkpoint.restore_newest(folder, state(0))[0] == 2


def test_leftovers_of_kills_are_swept(tmp_path):
    folder = saved(tmp_path / "c", 1.0, 2.0)
    (folder / "2").mkdir()
    assert checkpoint.restore_newest(folder, state(0))[0] == 1
    assert sorted(p.name for p in folder.iterdir()) == ["0", "1"]


def test_another_network_is_no_checkpoint_of_this_one(tmp_path):
    folder = saved(tmp_path / "c", 1.0)
    with pytest.raises(ValueError, match="can't be read"):
        checkpoint.restore(folder, {"a": np.zeros(3, np.float32)}, 0)


def test_full_disk_is_noticed_before_writing(tmp_path, monkeypatch):
    folder = saved(tmp_path / "c", 1.0)
    usage = checkpoint.shutil.disk_usage(tmp_path)
    full = usage._replace(free=1000)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: full)
    with pytest.raises(OSError, match="no space left .* earlier ones are intact"):
        with train.checkpoint.manager(folder) as store:
            train.checkpoint.save(store, 2, state(2), {}, 2.0)
    assert checkpoint.restore_newest(folder, state(0))[0] == 0
