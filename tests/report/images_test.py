"""Pictures show something, in the right place."""

import numpy as np
import pytest
from support.work_folders import read_image

from mpi_jax import report


def test_figures_show_something(run):
    folder, _ = run
    figure = read_image(folder / "figure2.png")
    height, width, _ = figure.shape
    assert width > 1000 and 1.5 < height / width < 2.2  # 6 columns, 2 rows a family
    assert len(np.unique(figure[::4, ::4].reshape(-1, 3), axis=0)) > 500
    assert read_image(folder / "training.png").shape == (896, 1440, 3)


def test_figure_panels_lie_where_the_images_belong():
    """The truth of the first family fills its panel, row 0 at the top."""
    arrays = {
        "truth": np.zeros((1, 8, 8)),
        "mask": np.zeros((1, 8, 8)),
        "family": np.array(["bars"]),
        "pixel_size": np.full(2, 1e-3),
        "methods": np.array([], str),
        "labels": np.array([], str),
    }
    arrays["truth"][0, :4] = 1
    figure = report.example_figure(arrays)
    picture = figure.axes[0].images[0]
    left, right, bottom, top = picture.get_extent()
    assert right - left == pytest.approx(bottom - top) and top < bottom
    assert picture.origin == "upper"
    np.testing.assert_array_equal(picture.get_array(), arrays["truth"][0])


def test_save_images(tmp_path):
    path = tmp_path / "images.png"
    ramp = np.linspace(0, 2, 20 * 30).reshape(20, 30)
    report.save_images(path, np.stack([ramp] * 5), list("abcde"), (0.1, 0.2))
    picture = read_image(path)
    assert picture.shape[1] > picture.shape[0] > 400
    assert len(np.unique(picture[::4, ::4].reshape(-1, 3), axis=0)) > 100
    report.save_images(path, ramp)  # one image, no titles, no scale bar
    assert read_image(path).shape[0] < picture.shape[0]
    report.save_images(path, np.zeros((2, 8, 8)))
    for wrong in (
        {"images": np.zeros(5)},
        {"images": ramp * np.nan},
        {"images": ramp, "titles": ["a", "b"]},
        {"images": ramp, "pixel_size_mm": 0.0},
    ):
        with pytest.raises(ValueError, match="images|titles|pixel_size_mm"):
            report.save_images(path, **wrong)
    assert [p.name for p in tmp_path.iterdir()] == ["images.png"]
