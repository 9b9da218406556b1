"""The training loop: resumed runs, complaints before any work, numbers that are none."""

import dataclasses
import sys

import numpy as np
import pytest

from mpi_jax import configs, phantoms, train
from mpi_jax.methods.networks import label, load_network
from mpi_jax.train import loop


def test_missing_tensorboard_is_said_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    config = dataclasses.replace(configs.get("test"), tensorboard=True)
    with pytest.raises(ValueError, match=r"pip install 'mpi_jax\[tensorboard\]'"):
        train.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_batch_statistics_survive(command, tmp_path):
    """A DCGAN by the programs: resumed bit-equal, samples written, reported, evaluated."""
    folder = tmp_path / "run"
    words = ["train", "--config", "table32_dcgan", "--workdir", folder]
    words += ["--steps", "4", "--checkpoint-every", "2", "--log-every", "2"]
    # Batches of the config `test`, whose pictures other tests have compiled.
    words += ["--optimiser.warmup", "1", "--data.batch-size", "16"]
    words += ["--validation-images", "12"]
    words += ["--data.images", "0", "--data.signal-norm", "channel"]
    done = command(*words)
    assert done.returncode == 0, done.stderr
    whole = (folder / "weights.safetensors").read_bytes()
    for step, name in ((2, "00000002"), (4, "00000004")):
        with np.load(folder / "samples" / f"{name}.npz") as samples:
            assert samples["step"] == step
            assert sorted(samples["family"]) == sorted(phantoms.FAMILIES)
            assert samples["image"].shape == samples["truth"].shape == (6, 32, 32)
    (largest,) = sorted(
        (
            path
            for path in (folder / "checkpoints/4/state").rglob("*")
            if path.is_file()
        ),
        key=lambda path: path.stat().st_size,
    )[-1:]
    largest.write_bytes(largest.read_bytes()[:100])
    (folder / "samples" / "00000004.npz").unlink()
    done = command(*words, "--resume")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("warning: checkpoint 4 is skipped") == 1
    assert "Traceback" not in done.stderr
    assert (folder / "checkpoints" / "4.broken").is_dir()
    assert (folder / "weights.safetensors").read_bytes() == whole
    assert (folder / "samples" / "00000004.npz").exists()
    config, generator, weights = load_network(folder)
    assert config.name == "table32_dcgan"
    assert label(config, generator) == "DCGAN"
    assert set(weights["batch_stats"]) == {"norm_4", "norm_8", "norm_16"}


def test_not_a_number_is_named(tmp_path):
    values = [
        {"finite": np.float32(n != 7), "mae": np.float32(1 if n != 7 else np.nan)}
        for n in range(5, 9)
    ]
    import collections

    pending = collections.deque(zip(range(5, 9), values, strict=True))
    with pytest.raises(FloatingPointError, match="step 7: mae not finite"):
        loop._drain(pending, tmp_path)
