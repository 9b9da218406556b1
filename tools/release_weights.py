"""Turn a trained, evaluated run into weights that ship with the package.

    python tools/release_weights.py --workdir runs/small64 [--out mpi_jax/weights]

Writes OUT/CONFIG.safetensors: the weights of the work folder with their config, seed,
steps, commit and hardware, and the test numbers of the run's own network out of its
evaluation. Prints the SHA-256 that mpi_jax.configs.SHIPPED expects.
"""

import argparse
import dataclasses
import hashlib
import pathlib

from mpi_jax import pretrained, results, runs

LIMIT = 16 * 2**20  # bytes


def test_numbers(summary):
    """What the network of the work folder reached on test images.

    Raises ValueError where it wasn't evaluated.
    """
    lines = [line for line in summary.rows if line.method == summary.run]
    if not lines:
        raise ValueError(
            f"summary.json: expected a line of the folder's network {summary.run!r}, got "
            f"{', '.join(line.method for line in summary.rows)}; run mpi-jax evaluate"
        )
    (line,) = lines
    return results.TestNumbers(
        num=summary.num,
        snr_db=summary.snr_db,
        device=summary.device,
        model=summary.model,
        psnr=line.psnr,
        ssim=line.ssim,
        mse=line.mse,
        dice=line.dice,
        iou=line.iou,
    )


def release(workdir, out):
    """The file written, and its SHA-256. Raises ValueError where it is too large."""
    source = workdir / runs.WEIGHTS
    weights, metadata = pretrained.load_weights(source)
    summary = results.Summary.read(workdir / "evaluation" / "summary.json")
    info = results.RunInfo.of(metadata, str(source))
    info = dataclasses.replace(info, test=test_numbers(summary))
    path = out / f"{info.config['name']}.safetensors"
    out.mkdir(parents=True, exist_ok=True)
    size = source.stat().st_size
    if size > LIMIT:
        raise ValueError(f"{workdir}: expected at most {LIMIT:,} bytes, got {size:,}")
    pretrained.export_weights(path, weights, info.as_json())
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, default="mpi_jax/weights")
    options = parser.parse_args()
    path, digest = release(options.workdir, options.out)
    print(f'{path}: {path.stat().st_size:,} bytes\n"{path.stem}": "{digest}",')
