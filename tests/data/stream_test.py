"""Pictures of a training step: drawn on one device or on eight, or read by their index."""

import dataclasses

import numpy as np
import pytest

from mpi_jax import configs, data, phantoms, scanner
from mpi_jax.data import stream

GRID = scanner.paper(32).grid
FEW = ("vessels", "bars")


def config_of(**settings):
    config = configs.get("test")
    changed = dataclasses.replace(config.data, batch_size=16, **settings)
    return dataclasses.replace(config, data=changed)


def test_eight_devices_draw_what_one_does():
    """Bit by bit; the single device's program is that of a run of the config `test`."""
    settings = config_of()
    start, shares = data.training_pictures(settings, GRID)(3)
    np.testing.assert_array_equal(start, 48 + 2 * np.arange(8))
    assert shares.image.shape == shares.mask.shape == (8, 2, 32, 32)
    alone, whole = data.training_pictures(settings, GRID, devices=1)(3)
    np.testing.assert_array_equal(alone, [48])
    for share, expected in zip(shares, whole, strict=True):
        np.testing.assert_array_equal(
            np.reshape(share, expected.shape), expected, strict=True
        )
    np.testing.assert_array_equal(whole.family[0], np.arange(48, 64) % 6)


class Files:
    """In place of a data set of 30 images: each picture is its index."""

    def __init__(self, folder, split, shape):
        assert (folder, split, shape) == ("somewhere", "train", (32, 32))

    def __len__(self):
        return 30

    def __call__(self, index):
        return stream.Pictures(index, index, index % 6)


def test_files_are_read_at_the_positions_of_the_stream(monkeypatch):
    """Two processes with two devices each read every position once, in order."""
    monkeypatch.setattr(stream, "Reader", Files)
    settings = config_of(source="tfds", folder="somewhere", families=FEW, images=25)
    starts, indices = [], []
    for process in (0, 1):
        of_step = data.training_pictures(settings, GRID, (process, 2), devices=2)
        start, pictures = of_step(5)
        starts.extend(start)
        indices.append(pictures.image)
    assert starts == [80, 84, 88, 92]
    expected = phantoms.indices(np.arange(80, 96).reshape(2, 2, 4), FEW, 25)
    np.testing.assert_array_equal(indices, expected)
    # All 30 images, all six families: position by position.
    of_step = data.training_pictures(config_of(source="tfds", folder="somewhere"), GRID)
    index = of_step(2)[1].image
    np.testing.assert_array_equal(index.ravel(), (32 + np.arange(16)) % 30)


@pytest.mark.parametrize(
    "settings, words",
    [
        (
            {"images": 31, "source": "tfds"},
            "data.images: expected at most the 30 train",
        ),
        ({"images": 5}, "images: expected an integer >= 6, got 5"),
        ({"images": -1}, "data.images: expected a number >= 0, got -1"),
        ({"batch_size": 12}, "data.batch_size: expected a multiple of the 8 devices"),
        ({"accumulate": 3}, "data.accumulate: expected a divisor of the 2 images"),
        ({"families": ("bars", "bars")}, "families: expected different names"),
        ({"source": "disk"}, "data.source: expected stream or tfds, got 'disk'"),
        ({"source": "stream"}, "data.folder: only with data.source tfds"),
    ],
)
def test_settings_that_do_not_fit(monkeypatch, settings, words):
    monkeypatch.setattr(stream, "Reader", Files)
    config = config_of(source="tfds", folder="somewhere")
    changed = dataclasses.replace(config.data, **settings)
    with pytest.raises(ValueError, match=words):
        data.training_pictures(dataclasses.replace(config, data=changed), GRID)
