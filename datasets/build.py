"""Build a data set of this project as tensorflow-datasets files, without TensorFlow.

    python datasets/build.py mpi_phantoms --config small --data-dir DIR --workers 2
    python datasets/build.py open_mpi --config measurement_2d --data-dir DIR --from FOLDER

Stopped at any time, also by kill -9, the same command goes on, and ends with the same
bytes. The last line of output is the folder to read (`mpi-jax train --data.source tfds
--data.folder FOLDER`, or tensorflow_datasets.builder_from_directory).
"""

import argparse
import contextlib
import os
import shutil
import sys
import time
from pathlib import Path

from tqdm import tqdm

from mpi_jax.cli import environment

HERE = Path(__file__).resolve().parent


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0 done, 2 bad input."""
    try:
        options = _options(arguments)
        # Flat modules: tensorflow-datasets wants importlib_resources for packages.
        sys.path.insert(0, str(HERE / options.name))
        environment.quick_compilation()
        # A picture is painted by one core; the others paint their own.
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
        os.environ["XLA_FLAGS"] = flags.strip()
        import tensorflow_datasets as tfds

        tfds.disable_progress_bar()  # it would count records, not images drawn
        tfds.core.example_serializer.ExampleSerializer.serialize_example = _serialize
        run = _build_phantoms if options.name == "mpi_phantoms" else _build_open_mpi
        print(run(options))
        return 0
    except ImportError as error:
        print(f"build.py: {error}; pip install 'mpi_jax[data]'", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"build.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _serialize(serializer, example) -> bytes:
    """A record with its fields in order: protobuf's own order is another in each process."""
    return serializer.get_tf_example(example).SerializeToString(deterministic=True)


def _options(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=("mpi_phantoms", "open_mpi"))
    parser.add_argument("--config", required=True, help="see the data set's README.md")
    parser.add_argument("--data-dir", type=Path, required=True, help="where to write")
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count(),
        help="threads that draw (mpi_phantoms)",
    )
    parser.add_argument(
        "--from",
        type=Path,
        dest="source",
        help="folder of Open MPI Data's MDF files (open_mpi)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="count images that occur twice, in a split or across (mpi_phantoms)",
    )
    return parser.parse_args(arguments)


def _builder(make, names, options, **kwargs):
    if options.config not in names:
        raise ValueError(
            f"--config: expected one of {', '.join(names)}; got {options.config!r}"
        )
    options.data_dir.mkdir(parents=True, exist_ok=True)
    dataset = make(config=options.config, data_dir=str(options.data_dir), **kwargs)
    # What a killed build left behind.
    folder = Path(dataset.data_dir)
    for leftover in folder.parent.glob(f"{folder.name}.incomplete*"):
        shutil.rmtree(leftover)
    return dataset, folder


def _build_phantoms(options) -> Path:
    import mpi_phantoms_dataset_builder as builder
    import phantom_parts

    if options.workers < 1:
        raise ValueError(f"--workers: expected a number >= 1, got {options.workers}")
    dataset, folder = _builder(builder.MpiPhantoms, builder.VARIANTS, options)
    variant, total = dataset.variant, dataset.variant.train + dataset.variant.test
    if not folder.exists():
        phantom_parts.prepare(variant, dataset.parts)
        remaining = sum(
            count for *_, count in phantom_parts.missing(variant, dataset.parts)
        )
        began = time.monotonic()
        with _bar("drawn", total, total - remaining) as bar:
            for _, _, count in phantom_parts.draw(
                variant, dataset.parts, options.workers
            ):
                bar.update(count)
        drawn = time.monotonic() - began
        with contextlib.redirect_stdout(sys.stderr):
            dataset.download_and_prepare()
        seconds = time.monotonic() - began
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(
            f"{remaining} of {total} images drawn in {drawn:.1f} s, files written in "
            f"{seconds - drawn:.1f} s: {remaining / seconds:.0f} images/s, {size / 1e6:.1f} MB",
            file=sys.stderr,
        )
    shutil.rmtree(dataset.parts, ignore_errors=True)
    if options.check:
        for words, count in builder.shared_images(folder).items():
            print(f"{words}: {count}")
    return folder


def _build_open_mpi(options) -> Path:
    import open_mpi_dataset_builder as builder
    import tensorflow_datasets as tfds

    dataset, folder = _builder(builder.OpenMpi, builder.CONFIGS, options)
    if not folder.exists():
        if options.source is None or not options.source.is_dir():
            raise ValueError(
                f"--from: expected a folder with files of Open MPI Data, got "
                f"{options.source}. {builder.INSTRUCTIONS}"
            )
        manual = tfds.download.DownloadConfig(manual_dir=str(options.source.resolve()))
        with contextlib.redirect_stdout(sys.stderr):
            dataset.download_and_prepare(download_config=manual)
    return folder


def _bar(words, total, done):
    quiet = not sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=done,
        desc=words,
        unit=" images",
        mininterval=10 if quiet else 0.5,
        ascii=quiet,
    )


if __name__ == "__main__":
    sys.exit(main())
