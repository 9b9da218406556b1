"""Synthetic work folders of runs, and readers of the report's page and pictures."""

import html.parser
import json

import numpy as np

FAMILIES = ("bars", "rectangles", "triangles", "ellipses", "numbers", "vessels")


METHODS = {  # label, blur [pixels], noise, segmentation, settings
    "xspace": ("x-space", 3.0, 0.02, "thresholded", {"deconvolve": False}),
    "kaczmarz": ("System matrix (Kaczmarz)", 1.6, 0.05, "thresholded", {"lam": 1e-2}),
    "tv": ("Non-negative + TV", 1.0, 0.02, "thresholded", {"lam": 3e-3, "weight": 0.2}),
    "cnn": ("CNN", 1.2, 0.02, "thresholded", {}),
    "dual": ("Dual-task <TransGAN> | a&b", 0.5, 0.01, "predicted", {"ema": 0.999}),
}


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
    return {
        "mean": float(np.mean(values)),
        "sd": float(np.std(values)),
        "median": float(np.median(values)),
        "p5": float(np.percentile(values, 5)),
    }


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
                "learning_rate": 1e-4,
            }
        )
        if step % 500 == 0:
            psnr = 26 - 8 * np.exp(-step / 900)
            log.append(
                {
                    "step": step,
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
    arrays = {
        "truth": truth.astype(np.float32),
        "mask": (truth > 0.3).astype(np.uint8),
        "family": family,
        "pixel_size": np.full(2, 12.8e-3 / size),
        "methods": np.array(list(METHODS)),
        "labels": np.array([method[0] for method in METHODS.values()]),
    }
    rows = []
    for method, (label, sigma, noise, segmentation, settings) in METHODS.items():
        image = np.stack([blur(t, sigma * size / 64) for t in truth])
        image = np.clip(image + noise * rng.normal(size=image.shape), 0, 1)
        mask = image > 0.3
        arrays[f"image_{method}"] = image.astype(np.float32)
        arrays[f"mask_{method}"] = mask.astype(np.uint8)
        error = np.mean((image - truth) ** 2, axis=(1, 2))
        both = (mask & (truth > 0.3)).sum((1, 2)) / (mask | (truth > 0.3)).sum((1, 2))
        for name in ("all", *FAMILIES):
            use = np.full(len(family), True) if name == "all" else family == name
            mse, iou = error[use], both[use]
            rows.append(
                {
                    "method": method,
                    "label": label,
                    "family": name,
                    "num": int(use.sum()),
                    "mse": statistics(mse),
                    "rmse": statistics(np.sqrt(mse)),
                    "nrmse": statistics(np.sqrt(mse) / 0.3),
                    "psnr": statistics(-10 * np.log10(mse)),
                    "ssim": statistics(1 - 4 * np.sqrt(mse)),
                    "dice": statistics(2 * iou / (1 + iou)),
                    "iou": statistics(iou),
                    "pooled_psnr": float(-10 * np.log10(mse.mean())),
                    "seconds_per_image": 0.0042,
                    "settings": settings,
                    "segmentation": segmentation,
                }
            )
    info = {
        "num": 600,
        "snr_db": 40.0,
        "noise": "white Gaussian, per channel",
        "model": "tensor",
        "seed": 0,
        "seconds": 30.1,
        "device": "2 CPU cores",
        "ssim": "Gaussian 11x11, sigma 1.5, range 1",
        "grid": [size, size],
    }
    (evaluation / "metrics.jsonl").write_text(lines(*rows))
    (evaluation / "info.json").write_text(json.dumps(info))
    np.savez(evaluation / "arrays.npz", **arrays)
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
