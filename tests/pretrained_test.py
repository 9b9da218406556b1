"""Files of weights: whole or absent, and those that ship are the released ones."""

import jax
import numpy as np
import pytest

from mpi_jax import configs, data, pretrained


def test_weights_round_trip(tmp_path):
    params = {"dense": {"kernel": np.arange(6.0, dtype=np.float32).reshape(2, 3)}}
    path = tmp_path / "weights.safetensors"
    pretrained.export_weights(path, params, {"step": 3, "name": "test"})
    found, about = pretrained.load_weights(path)
    assert about == {"step": 3, "name": "test"}
    jax.tree.map(np.testing.assert_array_equal, found, params)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # no parts left


def test_failed_export_leaves_the_old_file(tmp_path):
    path = tmp_path / "weights.safetensors"
    pretrained.export_weights(path, {"a": np.ones(2)}, {"step": 1})
    with pytest.raises(TypeError):
        pretrained.export_weights(path, {"a": np.ones(2)}, {"step": object()})
    assert pretrained.load_weights(path)[1] == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("content", [b"", b"not weights", None])
def test_unreadable_weights(tmp_path, content):
    path = tmp_path / "weights.safetensors"
    if content is None:  # cut short
        pretrained.export_weights(path, {"a": np.ones(1000)}, {})
        content = path.read_bytes()[:500]
    path.write_bytes(content)
    with pytest.raises(ValueError, match="can't be read"):
        pretrained.load_weights(path)
    with pytest.raises(FileNotFoundError):
        pretrained.load_weights(tmp_path / "none")


@pytest.mark.parametrize("name", configs.SHIPPED)
def test_shipped_weights_are_the_released_ones(name):
    path = pretrained.shipped(name)
    assert path.stat().st_size < 16 * 2**20
    about = pretrained.load_weights(path)[1]
    assert about["config"]["name"] == name
    for key in ("commit", "seed", "step", "images", "device"):
        assert about[key] is not None, key
    assert about["test"]["num"] >= 600 and about["test"]["psnr"]["mean"] > 20
    # What it was trained with is what the package would build today.
    config = configs.from_dict(about["config"])
    assert config.scanner == configs.get(name).scanner
    assert config.physics == configs.get(name).physics
    oversample = {"small64": 1, "small32": 2}[name]
    assert data.make_scanner(config).receiver.oversample == oversample


def test_a_changed_file_is_refused(tmp_path, monkeypatch):
    name = next(iter(configs.SHIPPED))
    monkeypatch.setitem(pretrained.SHIPPED, name, "0" * 64)
    with pytest.raises(ValueError, match="expected the released file"):
        pretrained.shipped(name)
