"""Turn a trained, evaluated run into weights that ship with the package.

    python tools/release_weights.py --workdir runs/small64 [--out mpi_jax/weights]

Writes OUT/CONFIG.safetensors: the weights of the work folder with their config, seed,
steps, commit and hardware, and the test numbers of the run's own network out of its
evaluation. Prints the SHA-256 that mpi_jax.configs.SHIPPED expects.
"""

import argparse
import hashlib
import json
import pathlib

from mpi_jax import pretrained

LIMIT = 16 * 2**20  # bytes
METRICS = ("psnr", "ssim", "mse", "dice", "iou")


def test_numbers(summary):
    """What the network reached on test images, out of evaluation/summary.json."""
    (row,) = (r for r in summary["rows"] if r["method"] == "transgan")
    keep = ("num", "snr_db", "device", "model")
    return {k: summary[k] for k in keep} | {k: row[k] for k in METRICS if k in row}


def release(workdir, out):
    """The file written, and its SHA-256. Raises ValueError where it is too large."""
    weights, about = pretrained.load_weights(workdir / "weights.safetensors")
    summary = json.loads((workdir / "evaluation" / "summary.json").read_text())
    about["test"] = test_numbers(summary)
    path = out / f"{about['config']['name']}.safetensors"
    out.mkdir(parents=True, exist_ok=True)
    size = (workdir / "weights.safetensors").stat().st_size
    if size > LIMIT:
        raise ValueError(f"{workdir}: expected at most {LIMIT:,} bytes, got {size:,}")
    pretrained.export_weights(path, weights, about)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, default="mpi_jax/weights")
    options = parser.parse_args()
    path, digest = release(options.workdir, options.out)
    print(f'{path}: {path.stat().st_size:,} bytes\n"{path.stem}": "{digest}",')
