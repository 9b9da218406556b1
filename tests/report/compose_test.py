"""The report of synthetic work folders: numbers, page, figures, and what may be missing."""

import html.parser
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from mpi_jax import report, results

FAMILIES = ("bars", "rectangles", "triangles", "ellipses", "numbers", "vessels")
METHODS = {  # label, blur [pixels], noise, segmentation, settings
    "xspace": ("x-space", 3.0, 0.02, "thresholded", {"deconvolve": False}),
    "kaczmarz": ("System matrix (Kaczmarz)", 1.6, 0.05, "thresholded", {"lam": 1e-2}),
    "tv": ("Non-negative + TV", 1.0, 0.02, "thresholded", {"lam": 3e-3, "weight": 0.2}),
    "cnn": ("CNN", 1.2, 0.02, "thresholded", {}),
    "dual": ("Dual-task <TransGAN> | a&b", 0.5, 0.01, "predicted", {"ema": 0.999}),
}
KINDS = {"cnn": "learned", "dual": "learned"}


def phantom(family, size, rng):
    """A plausible object of the family, [size, size] in 0..1."""
    y, x = np.mgrid[:size, :size] / size - 0.5
    a, b = rng.uniform(0.12, 0.3, 2)
    if family == "bars":
        inside = (
            (np.sin(2 * np.pi * (4 + 8 * b) * x) > 0) & (abs(y) < a) & (abs(x) < 0.4)
        )
    elif family == "rectangles":
        inside = (abs(x - 0.05) < a) & (abs(y) < b)
    elif family == "triangles":
        inside = (y < b) & (y > 2 * abs(x) - a)
    elif family == "ellipses":
        inside = (x / a) ** 2 + ((y - 0.05) / b) ** 2 < 1
    elif family == "numbers":
        inside = (abs(np.hypot(x, y + 0.15) - 0.13) < 0.04) | (
            abs(np.hypot(x, y - 0.13) - 0.16) < 0.04
        )
    else:
        inside = abs(x - 0.15 * np.sin(6 * y + 9 * a)) < 0.03 + 0.02 * y
        inside |= abs(y - 0.5 * x - 0.05) < 0.02
    return inside * rng.uniform(0.5, 1.0)


def blur(image, sigma):
    distance = np.arange(image.shape[0])[:, None] - np.arange(image.shape[0])
    kernel = np.exp(-0.5 * (distance / sigma) ** 2)
    kernel /= kernel.sum(0)
    return kernel.T @ image @ kernel


def statistics(values):
    return results.Statistics(
        mean=float(np.mean(values)),
        sd=float(np.std(values)),
        median=float(np.median(values)),
        p5=float(np.percentile(values, 5)),
    )


def lines(*values):
    return "".join(json.dumps(value) + "\n" for value in values)


def make_config(folder):
    config = {
        "name": "small",
        "seed": 0,
        "version": "0.1.0",
        "commit": "abc1234",
        "python": "3.11.7",
        "jax": "0.10.1",
        "platform": "cpu",
        "device": "2 CPU cores",
        "config": {"data": {"grid": [64, 64], "snr_db": [20, 60]}, "note": "<b>&"},
    }
    (folder / "config.json").write_text(json.dumps(config))


def make_training(folder, steps=3000):
    rng = np.random.default_rng(0)
    log = []
    for step in range(100, steps + 1, 100):
        decay = 1 / (1 + step / 300) * rng.uniform(0.9, 1.1)
        log.append(
            {
                "step": step,
                "images": 32 * step,
                "seconds": step * 0.12,
                "images_per_second": 265 + rng.normal() * 5,
                "generator_loss": 9 * decay,
                "mae": 0.1 * decay,
                "bce": 0.5 * decay,
                "dice": 0.8 * decay,
                "adversarial": 0.7 + 0.1 * rng.normal(),
                "discriminator_loss": 1.3 + 0.1 * rng.normal(),
                "gradient_norm": 2.5,
            }
        )
        if step % 500 == 0:
            psnr = 26 - 8 * np.exp(-step / 900)
            log.append(
                {
                    "step": step,
                    "images": 32 * step,
                    "validation_psnr": psnr,
                    "validation_ssim": 0.9,
                    "validation_dice": 0.8,
                }
            )
    (folder / "metrics.jsonl").write_text(lines(*log))


def make_evaluation(folder, size=24, num=4):
    rng = np.random.default_rng(1)
    evaluation = folder / "evaluation"
    evaluation.mkdir()
    family = np.repeat(FAMILIES, num)
    truth = np.stack([blur(phantom(name, size, rng), 0.5) for name in family])
    rows, images, masks = [], {}, {}
    for method, (label, sigma, noise, segmentation, settings) in METHODS.items():
        image = np.stack([blur(t, sigma * size / 64) for t in truth])
        image = np.clip(image + noise * rng.normal(size=image.shape), 0, 1)
        mask = image > 0.3
        images[method] = image.astype(np.float32)
        masks[method] = mask.astype(np.uint8)
        error = np.mean((image - truth) ** 2, axis=(1, 2))
        both = (mask & (truth > 0.3)).sum((1, 2)) / (mask | (truth > 0.3)).sum((1, 2))
        for name in ("all", *FAMILIES):
            use = np.full(len(family), True) if name == "all" else family == name
            mse, iou = error[use], both[use]
            rows.append(
                results.Line(
                    method=method,
                    label=label,
                    kind=KINDS.get(method, "classical"),
                    snr_db=40.0,
                    family=name,
                    num=int(use.sum()),
                    mse=statistics(mse),
                    rmse=statistics(np.sqrt(mse)),
                    nrmse=statistics(np.sqrt(mse) / 0.3),
                    psnr=statistics(-10 * np.log10(mse)),
                    ssim=statistics(1 - 4 * np.sqrt(mse)),
                    dice=statistics(2 * iou / (1 + iou)),
                    iou=statistics(iou),
                    pooled_psnr=float(-10 * np.log10(mse.mean())),
                    seconds_per_image=0.0042,
                    settings=settings,
                    segmentation=segmentation,
                )
            )
    results.write_lines(evaluation / "metrics.jsonl", rows)
    results.Info(
        num=600,
        snr_db=40.0,
        noise="white Gaussian, per channel",
        model="tensor",
        seed=0,
        seconds=30.1,
        device="2 CPU cores",
        ssim="Gaussian 11x11, sigma 1.5, range 1",
        grid=(size, size),
    ).write(evaluation / "info.json")
    results.Examples(
        truth=truth.astype(np.float32),
        mask=(truth > 0.3).astype(np.uint8),
        family=tuple(map(str, family)),
        pixel_size=(12.8e-3 / size, 12.8e-3 / size),
        labels={method: label for method, (label, *_) in METHODS.items()},
        images=images,
        masks=masks,
    ).write(evaluation / "arrays.npz")
    return rows


def make_run(folder, size=24):
    make_config(folder)
    make_training(folder)
    return make_evaluation(folder, size)


class Page(html.parser.HTMLParser):
    """Collects what a page holds; fails on tags that do not nest."""

    VOID = {"meta", "img", "br", "link", "input"}

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.text = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.attributes.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text.append(data.strip())

    def all(self, tag):
        return [attributes for name, attributes in self.attributes if name == tag]


def read_image(path):
    from matplotlib.image import imread

    return imread(path)[..., :3]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    rows = make_run(folder)
    page = report.write(folder)
    assert page == folder / "report" / "report.html"
    return folder / "report", rows


def test_table_has_the_numbers(run):
    folder, rows = run
    text = (folder / "table.md").read_text()
    table = [
        [cell.strip(" *") for cell in line.split("|")[1:-1]]
        for line in text.replace("\\|", "/").splitlines()
        if line.startswith("|")
    ]
    found = {row[0]: row[2:] for row in table[2:7]}
    assert table[0][:6] == ["Method", "Given", "MSE", "RMSE", "nRMSE", "PSNR [dB]"]
    assert [row[1] for row in table[2:7]] == ["classical"] * 3 + ["voltage alone"] * 2
    for row in rows:
        psnr = row.psnr
        if row.family == "all" and row.method != "dual":
            cells = found[row.label]
            assert float(cells[0]) == pytest.approx(row.mse.mean, abs=5e-5)
            assert float(cells[1]) == pytest.approx(row.rmse.mean, abs=5e-5)
            assert cells[3] == f"{psnr.mean:.2f} ± {psnr.sd:.2f}"
            assert cells[4] == "–"  # no interval in these lines
            assert cells[5:8] == [
                f"{x:.2f}" for x in (psnr.median, psnr.p5, row.pooled_psnr)
            ]
            numbers = (row.ssim, row.dice, row.iou)
            assert cells[8:] == [*(f"{n.mean:.4f}" for n in numbers), "0.0042"]
        elif row.family != "all":
            assert f"{psnr.mean:.2f} ± {psnr.sd:.2f}" in text
    best = next(line for line in text.splitlines() if line.startswith("| Dual"))
    assert best.count("**") == 2 * 10  # the clear winner of all columns but the time
    assert "Dual-task &lt;TransGAN&gt; \\| a&amp;b" in best


def test_table_says_how_it_was_measured(run):
    text = (run[0] / "table.md").read_text()
    for phrase in (
        "600 test images",
        "SNR 40.0 dB",
        "Gaussian 11x11, sigma 1.5, range 1",
        "lam = 0.003, weight = 0.2",
        "printed as RMSE, read as MSE",
        "not comparable",
        "39.3996",
    ):
        assert phrase in text


def test_page_is_one_sound_file(run):
    folder, _ = run
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert not page.all("script") and not page.all("link")
    assert "url(" not in text and "@import" not in text
    for _, attributes in page.attributes:
        for name in ("src", "href"):
            assert attributes.get(name, "data:image/png;base64,").startswith("data:")
    images = page.all("img")
    assert len(images) == 2 and all(len(image["alt"]) > 20 for image in images)
    words = " ".join(page.text)
    for phrase in ("run small", "abc1234", "0.10.1", "Dual-task <TransGAN> | a&b"):
        assert phrase in words
    assert '"note": "<b>&"' in words and not page.all("b>&")
    assert "600" in words and "No training" not in words
    assert str(folder.parent) not in text


def test_figures_show_something(run):
    folder, _ = run
    figure = read_image(folder / "figure2.png")
    height, width, _ = figure.shape
    assert width > 1000 and 1.5 < height / width < 2.2  # 6 columns, 2 rows a family
    assert len(np.unique(figure[::4, ::4].reshape(-1, 3), axis=0)) > 500
    assert read_image(folder / "training.png").shape == (896, 1440, 3)


def test_figure_panels_lie_where_the_images_belong():
    """The truth of the first family fills its panel, row 0 at the top."""
    truth = np.zeros((1, 8, 8))
    truth[0, :4] = 1
    examples = results.Examples(
        truth=truth,
        mask=np.zeros((1, 8, 8)),
        family=("bars",),
        pixel_size=(1e-3, 1e-3),
        labels={},
        images={},
        masks={},
    )
    figure = report.example_figure(examples)
    picture = figure.axes[0].images[0]
    left, right, bottom, top = picture.get_extent()
    assert right - left == pytest.approx(bottom - top) and top < bottom
    assert picture.origin == "upper"
    np.testing.assert_array_equal(picture.get_array(), truth[0])


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


def make_samples(folder, steps, size=16):
    """Samples of a run under way: at each validation a sharper image."""
    rng = np.random.default_rng(2)
    truth = np.stack([phantom(name, size, rng) for name in FAMILIES])
    (folder / "samples").mkdir()
    for step in steps:
        image = np.stack([blur(t, 3000 / step) for t in truth])
        arrays = {"truth": truth, "true_mask": truth > 0.3, "image": image}
        masks = {"mask": (image > 0.3).astype(np.uint8), "family": np.array(FAMILIES)}
        np.savez(folder / "samples" / f"{step:08d}.npz", step=step, **arrays, **masks)


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
    with pytest.raises(ValueError, match="00000500.npz: expected an .npz file"):
        report.write(tmp_path)


def test_sparse_and_infinite_numbers(tmp_path):
    (tmp_path / "evaluation").mkdir()
    psnr = {"mean": float("inf"), "sd": float("nan"), "median": 30.0, "p5": None}
    (tmp_path / "evaluation" / "metrics.jsonl").write_text(
        lines({"method": "oracle", "family": "all", "snr_db": 40, "psnr": psnr})
    )
    report.write(tmp_path)
    row = (tmp_path / "report" / "table.md").read_text().splitlines()[4]
    assert (
        row
        == "| oracle | voltage alone | – | – | – | inf | – | 30.00 | – | – | – | – | – | – |"
    )


def test_cut_lines_and_repeated_steps(tmp_path):
    """Killed while writing, resumed from an older step, killed again."""
    make_training(tmp_path, steps=500)
    log = tmp_path / "metrics.jsonl"
    again = {"step": 300, "images": 9600, "mae": 0.123, "images_per_second": 1.0}
    log.write_text(
        log.read_text() + '{"step": 600, "ima' + "\n" + lines(again) + '{"st'
    )
    run = report.read(tmp_path)
    assert run.remarks[-2] == "metrics.jsonl: 2 unreadable line(s) left out."
    assert [line.step for line in run.training] == [100, 200, 300, 400, 500]
    assert run.training[2].mae == 0.123
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
    with pytest.raises(ValueError, match="arrays.npz: expected an .npz file"):
        report.write(tmp_path)
    np.savez(broken, truth=np.zeros((2, 4, 4)), mask=np.zeros((1, 4, 4)), methods=[])
    with pytest.raises(ValueError, match="missing family, pixel_size, labels"):
        report.write(tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    make_config(tmp_path)
    page = report.write(tmp_path)
    old = page.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        report.write(tmp_path)
    assert page.read_bytes() == old
    assert [path.name for path in page.parent.iterdir()] == ["report.html"]


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


def test_report_needs_no_jax():
    code = "import sys, mpi_jax.report; print({'jax', 'matplotlib'} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )
    assert result.stdout.strip() == "set()", result.stderr
