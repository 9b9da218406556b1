"""The command line: verbs to library calls. The only place that parses and prints.

Exit codes: 0 done, 2 bad input (one line on stderr says what), 1 anything else.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import errno
import importlib.util
import io
import json
import os
import re
import sys
import time
import zipfile
from pathlib import Path

import mpi_jax
from mpi_jax import configs

METHODS = (
    "xspace",
    "xspace_tensor",
    "kaczmarz",
    "cgnr",
    "tikhonov",
    "nonnegative",
    "tv",
    "elastic_net",
    "transgan",
)
_SHIPPED = next(iter(configs.SHIPPED))  # the weights in use where none are named
_LINE_EVERY = 10.0  # [s] between lines of progress where there is no terminal


def main(arguments: list[str] | None = None) -> int:
    """Run a command line (default: sys.argv); returns the exit code."""
    _keep_memory()
    quick_compilation()
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        options, rest = _parser().parse_known_args(arguments)
        if rest and options.verb not in ("train", "reconstruct"):
            raise ValueError(f"unknown arguments: {' '.join(rest)}")
        options.rest = rest
        options.run(options)
        return 0
    except SystemExit as stop:  # argparse: --help, --version, or bad usage
        return int(stop.code or 0)
    except KeyboardInterrupt:
        print("mpi-jax: interrupted; finished work is kept", file=sys.stderr)
        return 130
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("MPI_JAX_TRACEBACK"):
            raise
        print(f"mpi-jax: {_one_line(error)}", file=sys.stderr)
        return 1 if isinstance(error, FloatingPointError) else 2


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename else ""
        if error.errno == errno.ENOSPC and error.filename:
            return f"{where}no space left on the disk"
        return f"{where}{error.strerror}"
    return " ".join(str(error).split())


def _keep_memory() -> None:
    """Let glibc keep freed blocks instead of handing them back to the system.

    XLA allocates its buffers anew in every step; fetching their pages again costs a
    fifth of a training step on CPU.
    """
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-8, 1)  # M_ARENA_MAX: one arena, which can grow without bound
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD [bytes]
        mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD [bytes]


def quick_compilation() -> None:
    """Compile for short waits: programs are kept for the next time, and optimised less
    where only the CPU is there.

    Kept in ~/.cache/mpi_jax, or where JAX_COMPILATION_CACHE_DIR says. XLA's full CPU
    optimisation takes several times longer to compile a network and doesn't make it
    faster; it is left alone on accelerators and where XLA_FLAGS is set.
    """
    accelerators = (
        "jax_cuda12_plugin",
        "jax_cuda13_plugin",
        "libtpu",
        "jax_rocm7_plugin",
    )
    if not any(importlib.util.find_spec(name) for name in accelerators):
        os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1")
    with contextlib.suppress(OSError, RuntimeError):  # no home, or not ours to write
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        programs = Path(cache) / "mpi_jax"
        programs.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(programs))


class _Parser(argparse.ArgumentParser):
    """argparse whose complaints are one line."""

    def error(self, message):
        print(f"mpi-jax: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="mpi-jax",
        description="Magnetic Particle Imaging in JAX: simulate, reconstruct, train, "
        "evaluate, report. (Not the message-passing interface.)",
        epilog="Exit codes: 0 done, 2 bad input, 1 anything else. "
        "MPI_JAX_TRACEBACK=1 shows where an error came from.",
    )
    parser.add_argument("--version", action="version", version=mpi_jax.__version__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    names = "; ".join(f"{n}: {text}" for n, text in configs.CONFIGS.items())

    def verb(name, run, words, **kwargs):
        made = verbs.add_parser(
            name,
            help=words,
            description=words,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
            **kwargs,
        )
        made.set_defaults(run=run)
        return made

    def config(made, **kwargs):
        made.add_argument(
            "--config", metavar="NAME", help=f"which run. {names}", **kwargs
        )

    def workdir(made, **kwargs):
        made.add_argument(
            "--workdir", type=Path, metavar="DIR", help="work folder", **kwargs
        )

    def resume(made):
        made.add_argument(
            "--resume",
            action="store_true",
            help="go on with the run that the folder holds, from its newest checkpoint",
        )

    made = verb(
        "demo",
        _demo,
        "The main job, small: train, evaluate, report. Minutes on two CPU cores.",
    )
    workdir(made, default=Path("mpi_jax_demo"))
    config(made, default="small")
    made.add_argument("--num", type=int, default=600, help="test images")
    resume(made)

    made = verb(
        "simulate",
        _simulate,
        "Phantoms and their noisy voltages as an .npz file; or a measurement and a "
        "calibration as MDF files in the layout of Open MPI Data.",
    )
    made.add_argument(
        "--config",
        metavar="NAME",
        required=True,
        help=f"which run. {names}; with --phantom a sequence: open_mpi_1d, open_mpi_2d, "
        "open_mpi_3d",
    )
    made.add_argument("--num", type=int, default=6, help="number of phantoms (.npz)")
    made.add_argument("--start", type=int, default=0, help="index of the first (.npz)")
    made.add_argument(
        "--split",
        default="test",
        help="train, validation or test; image i of a split is always the same (.npz)",
    )
    made.add_argument(
        "--snr",
        type=float,
        metavar="DB",
        help="power SNR [dB]; default: the config's, or 20 for one period of an MDF file",
    )
    made.add_argument(
        "--system-matrix",
        action="store_true",
        help="store the system matrix [C, V, P] too (.npz)",
    )
    made.add_argument(
        "--phantom",
        metavar="NAME",
        help="Open MPI phantom: shape, resolution, concentration (.mdf)",
    )
    made.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="write the calibration too (.mdf)",
    )
    made.add_argument(
        "--voxels",
        type=int,
        default=19,
        help="voxels of the calibration along each axis, 19 or 37",
    )
    made.add_argument(
        "--periods",
        type=int,
        help="periods of each patch (1D, 2D) or frames (3D) of the measurement; default: "
        "1000 as in the real files",
    )
    made.add_argument("--seed", type=int, default=0, help="of the noise of MDF files")
    made.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help=".npz or .mdf file"
    )

    made = verb(
        "reconstruct",
        _reconstruct,
        "Images from voltages: a file of them, and a .png beside it to look at.",
        epilog="Preprocessing of MDF files, as --min-frequency 80e3 --snr-threshold 1.5 "
        "--matrix-background interpolated --background mean: "
        + _field_help(configs.Preprocessing),
    )
    made.add_argument(
        "--method",
        required=True,
        metavar="M",
        help=f"{', '.join(METHODS)}; with --config or --run xspace, xspace_tensor, "
        "kaczmarz, tikhonov, nonnegative, tv or transgan, with --system-matrix all but "
        "these x-space ones and transgan",
    )
    made.add_argument(
        "--measurement",
        type=Path,
        required=True,
        metavar="FILE",
        help="MDF file (.mdf, .h5), or .npz file with `voltage` [N, C, V] (receive "
        "channels x samples of one period, in the receiver's unit) as `simulate` writes",
    )
    source = made.add_mutually_exclusive_group()
    source.add_argument(
        "--system-matrix",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="MDF calibration for an MDF measurement, or several, of different tracers, "
        "for an image of each; .npz file with `system_matrix` [C, V, P] and `grid` "
        "(ny, nx) for an .npz one",
    )
    source.add_argument(
        "--config",
        metavar="NAME",
        help="scanner of a config, for transgan with the weights that ship for it "
        f"(without any source: {_SHIPPED}). {names}",
    )
    source.add_argument(
        "--run",
        type=Path,
        metavar="DIR",
        dest="folder",
        help="work folder of a run: its scanner, and its network for transgan",
    )
    made.add_argument(
        "--empty",
        type=Path,
        metavar="FILE",
        help="MDF measurement without tracer, for --background external",
    )
    made.add_argument(
        "--phantom",
        metavar="NAME",
        help="Open MPI phantom that was measured (shape, resolution, concentration): "
        "compare the image with it",
    )
    for name, words in _SETTINGS.items():
        kind = {"iterations": int, "lam": _lam}.get(name, float)
        made.add_argument(f"--{name.replace('_', '-')}", type=kind, help=words)
    made.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help=".npz file, or .mdf file for MDF measurements",
    )

    made = verb(
        "check",
        _check,
        "What in an MDF file contradicts the format; exit code 2 if any.",
    )
    made.add_argument("file", type=Path, metavar="FILE")

    made = verb(
        "train",
        _train,
        "Train a config in a work folder. Any of its fields can be overridden.",
        epilog="Fields, as --data.batch-size 8 --steps 100 --optimiser.learning-rate 1e-3: "
        + _field_help(configs.Config),
    )
    config(made, required=True)
    workdir(made, required=True)
    resume(made)

    made = verb("evaluate", _evaluate, "Tune and measure methods on test images.")
    workdir(made, required=True)
    made.add_argument(
        "--shipped",
        metavar="NAME",
        help="make the work folder out of the weights that ship with the package, of the "
        f"config NAME ({', '.join(configs.SHIPPED)})",
    )
    made.add_argument(
        "--methods",
        nargs="+",
        metavar="M",
        help="some of xspace, xspace_tensor, kaczmarz, tikhonov, nonnegative, tv, "
        "transgan; controls zero, mean, nearest, ridge, xspace_max, kaczmarz_max; default: "
        "all but xspace_tensor, tv and the controls, and transgan where the run has weights",
    )
    made.add_argument(
        "--runs",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="further work folders of the same scanner and test settings, whose networks "
        "are evaluated beside",
    )
    made.add_argument(
        "--snr",
        nargs="+",
        type=float,
        metavar="DB",
        help="power SNRs of the test signals [dB], as inf 60 40 30 20; methods are tuned "
        "for each; default: the config's",
    )
    made.add_argument("--num", type=int, default=600, help="test images")

    made = verb(
        "figure3",
        _figure3,
        "The paper's Figure 3: measured Open MPI phantoms by the system matrix and by "
        "networks trained on one plane of its calibration, beside the drawing of the "
        "phantoms. Writes figure3.png, figure3.pdf, table.md.",
    )
    made.add_argument(
        "--runs",
        type=Path,
        nargs="+",
        required=True,
        metavar="DIR",
        help="work folders of runs of open_mpi configs: one calibration, plane and grid",
    )
    made.add_argument(
        "--measurements",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="MDF measurements, one for each phantom",
    )
    made.add_argument(
        "--phantoms",
        nargs="+",
        default=["shape", "resolution"],
        metavar="NAME",
        help="which phantom each measurement is of: shape, resolution, concentration",
    )
    made.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="the MDF calibration, where it isn't in the place that the runs know",
    )
    made.add_argument(
        "--periods",
        type=int,
        nargs=2,
        metavar=("FIRST", "BEHIND"),
        help="periods of the measurements with the phantom's plane in the calibration's; "
        "default: those with its offset field",
    )
    made.add_argument(
        "--background",
        default="mean",
        help="what the measurements lose: none, or their background frames' mean or "
        "interpolated",
    )
    made.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder")

    made = verb(
        "generalise",
        _generalise,
        "How far methods fall on other shapes, vessels, noise, scanners and "
        "concentrations, and what they invent: one table.",
    )
    workdir(made, required=True)
    made.add_argument(
        "--runs",
        nargs="+",
        type=Path,
        default=[],
        metavar="DIR",
        help="further work folders, on the same scanner, whose networks take part",
    )
    made.add_argument(
        "--methods",
        nargs="+",
        metavar="M",
        help="some of xspace, kaczmarz, tikhonov, nonnegative, tv, transgan; default: "
        "tikhonov, kaczmarz, nonnegative, and transgan where the run has weights",
    )
    made.add_argument("--num", type=int, default=60, help="images a case")
    made.add_argument(
        "--suites",
        nargs="+",
        metavar="S",
        help="some of families, shapes, vessels, snr, operator, linearity, "
        "hallucination; default: all. Finished ones are not measured again",
    )

    made = verb("report", _report, "Tables, figures and report.html of a work folder.")
    workdir(made, required=True)
    return parser


# Settings of the solvers; which method takes which, and defaults, is pipeline.METHODS.
_SETTINGS = {
    "lam": "ridge regularisation, relative: to the mean row energy per voxel (kaczmarz "
    "1e-2, cgnr 0, elastic_net 1e-3), to the largest singular value squared (tikhonov "
    "1e-4). For MDF files also l_curve or discrepancy: chosen out of a row of them for "
    "each frame, with a picture of the choice beside --out",
    "lam_tv": "weight of the total variation, relative likewise (tv 1e-6)",
    "l1": "weight of the sparsity, relative to the one that leaves nothing "
    "(elastic_net 0)",
    "rho": "penalty of the splitting, relative likewise (nonnegative, tv 3e-4, "
    "xspace_tensor 3e-3)",
    "width": "standard deviation of the gridding Gaussian (xspace), correlation length of "
    "the signal's tensor (xspace_tensor) [m]; default: from the gaps of the path",
    "iterations": "sweeps (kaczmarz 10) or steps (cgnr 10, nonnegative 20, tv 100, "
    "xspace_tensor 50, elastic_net 200)",
}


def _field_help(settings: type) -> str:
    def names(cls, prefix=""):
        for f in dataclasses.fields(cls):
            name = prefix + f.name.replace("_", "-")
            if dataclasses.is_dataclass(f.default):
                yield from names(type(f.default), f"{name}.")
            elif f.name != "name":
                yield f"--{name}"

    return " ".join(names(settings))


def _lam(text: str) -> float | str:
    """A number, or the name of a rule that finds one."""
    return text if text in ("l_curve", "discrepancy") else float(text)


# --- Verbs


def _demo(options) -> None:
    from mpi_jax import checkpoint, evaluate, report, train

    began = time.monotonic()
    config = configs.get(options.config)
    # Beside what is trained here: weights that ship for the same scanner.
    runs = []
    for name in configs.SHIPPED:
        other = configs.get(name)
        if (other.scanner, other.data.test_snr_db) == (
            config.scanner,
            config.data.test_snr_db,
        ):
            runs.append(options.workdir / f"shipped_{name}")
    with _Progress() as tell:
        train.run(config, options.workdir, resume=options.resume, tell=tell)
        for run in runs:
            train.unpack(checkpoint.shipped(run.name.removeprefix("shipped_")), run)
        evaluate.run(options.workdir, runs=runs, num=options.num, tell=tell)
    page = report.write(options.workdir)
    _print_table(options.workdir)
    print(f"\n{time.monotonic() - began:.0f} s. Open {page}")


def _simulate(options) -> None:
    import numpy as np

    from mpi_jax import data, evaluate, phantoms

    _check_out(options.out, (".npz", ".mdf"))
    if options.out.suffix == ".mdf":
        _simulate_mdf(options)
        return
    for name in ("phantom", "calibration", "periods"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name}: expected --out FILE.mdf with it")
    config = configs.get(options.config)
    if options.split not in phantoms.SPLITS:
        raise ValueError(
            f"--split: expected one of {', '.join(phantoms.SPLITS)}; "
            f"got {options.split!r}"
        )
    if options.num < 1 or options.start < 0:
        raise ValueError(
            f"--num, --start: expected num >= 1 and start >= 0, "
            f"got {options.num} and {options.start}"
        )
    snr = config.data.test_snr_db if options.snr is None else options.snr
    if np.isnan(snr):
        raise ValueError("--snr: expected a number of dB or inf, got nan")
    with _Progress() as tell:
        tell("build", 0, 1, {})
        operator = data.simulator(config)
        size, parts = min(options.num, 60), []
        for start in range(0, options.num, size):
            made = data.draw(operator, options.split, options.start + start, size, snr)
            parts.append([np.asarray(a) for a in made])
            tell("simulate", min(start + size, options.num), options.num, {})
    image, mask, voltage, family = (
        np.concatenate(a)[: options.num] for a in zip(*parts, strict=True)
    )
    arrays = {
        "voltage": voltage,
        "image": image,
        "mask": mask.astype(np.uint8),
        "family": np.array(phantoms.FAMILIES)[family],
        "pixel_size": np.asarray(operator.scanner.grid.pitch)[:2],
        "about": np.array(
            _about(config, split=options.split, start=options.start, snr_db=snr)
        ),
    }
    if options.system_matrix:
        arrays["system_matrix"] = np.asarray(operator.matrix)
        arrays["grid"] = np.array(operator.scanner.grid.shape)
    evaluate.save_npz(options.out, arrays)
    print(f"{options.out}: {options.num} voltages {voltage.shape[1:]} at {snr:g} dB")


def _simulate_mdf(options) -> None:
    """A measurement, and a calibration if asked for, in Open MPI Data's layout."""
    from mpi_jax import open_mpi

    if options.phantom is None:
        raise ValueError(
            f"--phantom: expected one of {', '.join(open_mpi.PHANTOMS)} for an .mdf file"
        )
    if options.system_matrix:
        raise ValueError("--system-matrix: expected --calibration FILE with .mdf files")
    if options.calibration is not None:
        if options.calibration.suffix != ".mdf" or options.calibration == options.out:
            raise ValueError(
                f"--calibration: expected another .mdf file, got {options.calibration}"
            )
        if not options.calibration.parent.is_dir():
            raise ValueError(
                f"--calibration: folder {options.calibration.parent} doesn't exist"
            )
    if options.periods is not None and options.periods < 1:
        raise ValueError(f"--periods: expected a number >= 1, got {options.periods}")
    noise = {} if options.snr is None else {"snr_db": options.snr}
    noise["seed"] = options.seed
    open_mpi.sequence_scanner(options.config, options.voxels)  # before the work
    with _Progress() as tell:
        if options.calibration is not None:
            tell("calibration", 0, 1, {})
            open_mpi.write_calibration(
                options.calibration, options.config, voxels=options.voxels, **noise
            )
        tell("measurement", 0, 1, {})
        count = "frames" if options.config == "open_mpi_3d" else "periods"
        open_mpi.write_measurement(
            options.out,
            options.config,
            options.phantom,
            **noise,
            **{count: options.periods},
        )
    for path in (options.calibration, options.out):
        if path is not None:
            print(f"{path}: {path.stat().st_size / 1e6:.0f} MB")


def _reconstruct(options) -> None:
    import numpy as np

    from mpi_jax import evaluate, metrics, report

    if options.method not in METHODS:
        raise ValueError(
            f"--method: expected one of {', '.join(METHODS)}; got {options.method!r}"
        )
    sources = options.system_matrix, options.config, options.folder
    if options.method != "transgan" and not any(sources):
        raise ValueError(
            "one of --system-matrix, --config and --run is needed, but for transgan with "
            "the weights that ship"
        )
    is_mdf = options.measurement.suffix in _MDF
    _check_out(options.out, (".npz", ".mdf") if is_mdf else (".npz",))
    if not is_mdf:
        for name in ("empty", "phantom"):
            if getattr(options, name) is not None:
                raise ValueError(f"--{name}: only for MDF measurements")
        if options.rest:
            raise ValueError(f"unknown arguments: {' '.join(options.rest)}")
        if isinstance(options.lam, str):
            raise ValueError(f"--lam {options.lam}: only for MDF measurements")
    settings = _settings(options)
    if is_mdf:
        _reconstruct_mdf(options, settings)
        return
    measured = _read_npz(options.measurement, "voltage")
    pixel_size = mask = None
    if options.system_matrix:
        image = _from_matrix(options, measured["voltage"], settings)
    else:
        image, mask, pixel_size = _from_scanner(options, measured["voltage"], settings)
    image = np.asarray(image)
    arrays = {
        "image": image,
        "about": np.array(json.dumps({"method": options.method, **settings})),
    }
    if mask is not None:
        arrays["mask"] = mask
    if pixel_size is not None:
        arrays["pixel_size"] = pixel_size
    evaluate.save_npz(options.out, arrays)
    picture = options.out.with_suffix(".png")
    mm = None if pixel_size is None else tuple((1e3 * pixel_size).tolist())
    report.save_images(picture, image[:12], pixel_size_mm=mm)
    print(f"{options.out}, {picture}: {len(image)} images {image.shape[1:]}")
    truth = measured.get("image")
    if truth is not None and truth.shape == image.shape:
        psnr = np.mean(metrics.psnr(np.clip(image, 0, 1), truth, 1.0))
        print(f"mean PSNR against the phantoms in the file: {psnr:.2f} dB")


def _check(options) -> None:
    from mpi_jax import mdf

    problems = mdf.check(options.file)
    if problems:
        print("\n".join(problems))
        raise ValueError(f"{options.file}: {len(problems)} contradictions (above)")
    print(f"{options.file}: nothing to complain about")


def _train(options) -> None:
    from mpi_jax import train

    config = _fields(configs.get(options.config), options.rest, "train")
    with _Progress() as tell:
        result = train.run(config, options.workdir, resume=options.resume, tell=tell)
    if result:
        print(
            f"{options.workdir}: validation PSNR {result['validation_psnr']:.2f} dB, "
            f"SSIM {result['validation_ssim']:.3f}, Dice {result['validation_dice']:.3f}"
        )
    else:
        print(f"{options.workdir}: all {config.steps} steps were done already")


def _evaluate(options) -> None:
    from mpi_jax import checkpoint, evaluate, report, train

    if options.shipped is not None:
        train.unpack(checkpoint.shipped(options.shipped), options.workdir)
    with _Progress() as tell:
        evaluate.run(
            options.workdir,
            methods=options.methods,
            runs=options.runs,
            num=options.num,
            snr=options.snr,
            tell=tell,
        )
    report.write(options.workdir)
    _print_table(options.workdir)


def _figure3(options) -> None:
    from mpi_jax import figure3, report

    with _Progress() as tell:
        figure3.run(
            options.runs,
            options.measurements,
            options.phantoms,
            options.out,
            calibration=options.calibration,
            periods=None if options.periods is None else tuple(options.periods),
            background=options.background,
            tell=tell,
        )
    path = report.write_measured(options.out)
    print(path.read_text())
    print(f"{options.out / 'figure3.png'}, {options.out / 'figure3.pdf'}, {path}")


def _generalise(options) -> None:
    from mpi_jax import generalise, report

    with _Progress() as tell:
        generalise.run(
            options.workdir,
            runs=options.runs,
            methods=options.methods,
            num=options.num,
            suites=options.suites,
            tell=tell,
        )
    print(report.write_generalisation(options.workdir).read_text(), end="")


def _report(options) -> None:
    from mpi_jax import report

    print(report.write(options.workdir))


# --- Their parts


_MDF = (".mdf", ".h5", ".hdf5")


def _settings(options) -> dict:
    """Settings of a method that were given; ValueError for a method that the source
    doesn't allow, and for settings that the method doesn't have.
    """
    import inspect

    from mpi_jax import evaluate, pipeline

    if options.system_matrix:
        source, methods = "--system-matrix", pipeline.METHODS
    else:
        source = "--config or --run"
        methods = {
            name: inspect.signature(solver).parameters
            for name, solver in evaluate.CLASSICAL.items()
        }
        methods["transgan"] = {}
    if options.method not in methods:
        raise ValueError(
            f"--method {options.method}: with {source} expected one of "
            f"{', '.join(methods)}"
        )
    given = {n: getattr(options, n) for n in _SETTINGS}
    given = {n: v for n, v in given.items() if v is not None}
    for name in given:
        if name not in methods[options.method]:
            raise ValueError(
                f"--{name.replace('_', '-')}: not an option of --method {options.method}"
            )
    return given


def _from_scanner(options, voltage, settings):
    """Images by the scanner of a config or run: image, mask, pixel size [m]."""
    import jax.numpy as jnp
    import numpy as np

    from mpi_jax import checkpoint, data, evaluate, train

    place = options.folder
    if options.method == "transgan":
        place = place or checkpoint.shipped(options.config or _SHIPPED)
        config, generator, params = evaluate.load_network(place)
    else:
        config = train.read_config(place) if place else configs.get(options.config)
    scanner = data.make_scanner(config)
    voltage = jnp.asarray(data.check_voltage(scanner, voltage))
    mask = None
    if options.method == "transgan":
        operator = data.build(config)
        image, mask = train.predict(generator, params, operator, voltage)
        mask = None if mask is None else np.asarray(mask > 0, np.uint8)
    else:
        p = evaluate.problem(config, data.build(config))
        image = evaluate.CLASSICAL[options.method](p, **settings)(voltage)
    return image, mask, np.asarray(scanner.grid.pitch)[:2]


def _from_matrix(options, voltage, settings):
    """Images by a stored time-domain system matrix [C, V, P]."""
    import jax.numpy as jnp
    import numpy as np

    from mpi_jax import physics, pipeline, scanner, system_matrix

    if len(options.system_matrix) > 1:
        raise ValueError("--system-matrix: expected one .npz file")
    path = options.system_matrix[0]
    stored = _read_npz(path, "system_matrix", "grid")
    matrix, shape = stored["system_matrix"], tuple(int(n) for n in stored["grid"])
    if matrix.ndim != 3 or len(shape) != 2 or matrix.shape[-1] != shape[0] * shape[1]:
        raise ValueError(
            f"{path}: expected system_matrix [C, V, ny * nx] and grid "
            f"(ny, nx), got {list(matrix.shape)} and {list(shape)}"
        )
    if not np.isfinite(matrix).all():
        raise ValueError(f"{path}: expected finite numbers")
    voltage = np.asarray(voltage)
    if voltage.shape[-2:] != matrix.shape[:2]:
        raise ValueError(
            f"voltage: expected [N, {matrix.shape[0]}, {matrix.shape[1]}] like the "
            f"system matrix, got shape {list(voltage.shape)}"
        )
    if not np.isfinite(voltage).all():
        raise ValueError("voltage: expected finite numbers, got NaN or infinite ones")
    voltage = voltage.reshape(-1, *matrix.shape[:2])
    scale = np.sqrt(np.mean(np.square(voltage, dtype=np.float64))) or 1.0
    matrix, u = (jnp.asarray(a / scale, jnp.float32) for a in (matrix, voltage))
    keep = np.ones((matrix.shape[0], matrix.shape[1] // 2 + 1), bool)
    keep[:, 0] = False  # a periodic signal has no DC
    spectra = system_matrix.to_frequency(matrix)
    system = pipeline.System(
        rows=system_matrix.select_rows(spectra, keep, axis=1),
        data=system_matrix.select_rows(physics.spectrum(u), keep),
        weights=None,
        keep=keep,
        grid=scanner.Grid(shape, (1.0, 1.0, 1.0)),  # of unknown size
    )
    return pipeline.reconstruct(system, options.method, **settings)


def _reconstruct_mdf(options, settings) -> None:
    """Two MDF files to an image: .npz or .mdf, and a picture of all slices."""
    import numpy as np

    from mpi_jax import evaluate, mdf, open_mpi, pipeline, report

    paths = options.system_matrix or []
    if not paths or any(path.suffix not in _MDF for path in paths):
        raise ValueError(
            "--system-matrix: expected the MDF calibration that belongs to the measurement"
        )
    if options.phantom is not None and len(paths) > 1:
        raise ValueError("--phantom: expected one calibration with it")
    prepare = _fields(configs.Preprocessing(), options.rest, "reconstruct")
    if options.phantom is not None and options.phantom not in open_mpi.PHANTOMS:
        raise ValueError(
            f"--phantom: expected one of {', '.join(open_mpi.PHANTOMS)}; "
            f"got {options.phantom!r}"
        )
    calibrations = [mdf.read(path) for path in paths]
    calibration, measurement = calibrations[0], mdf.read(options.measurement)
    empty = None if options.empty is None else mdf.read(options.empty)
    with _Progress() as tell:
        tell("read", 0, 2, {})
        system = pipeline.prepare(
            calibrations if len(paths) > 1 else calibration, measurement, prepare, empty
        )
        tell("solve", 1, 2, {})
        rule, chosen = settings.get("lam"), {}
        if isinstance(rule, str):
            others = {n: v for n, v in settings.items() if n != "lam"}
            lams, curve, images = pipeline.choose_lam(
                system, options.method, rule=rule, **others
            )
            index = np.asarray(curve.index)
            image = np.asarray(images)[np.arange(len(index)), index]
            chosen = {"lam": lams, "lam_rule": rule}
        else:
            image = np.asarray(pipeline.reconstruct(system, options.method, **settings))
        tell("solve", 2, 2, {})
    for note in system.notes:
        print(f"note: {note}", file=sys.stderr)
    rows, voxels = system.rows.shape
    grid = system.grid
    about = {
        "method": options.method,
        **pipeline.METHODS[options.method],
        **settings,
        **chosen,
        "rows": rows,
        "preprocessing": dataclasses.asdict(prepare),
        "calibration": ", ".join(map(str, paths)),
        "measurement": str(options.measurement),
        "mpi_jax": mpi_jax.__version__,
    }
    if options.out.suffix == ".mdf":
        about["preprocessing"] = json.dumps(about["preprocessing"])
        mdf.write_reconstruction(
            options.out, image, grid=grid, source=measurement, parameters=about
        )
    else:
        arrays = {"image": image, "pixel_size": np.asarray(grid.pitch)}
        text = json.dumps(about, default=lambda a: np.asarray(a).tolist())
        evaluate.save_npz(options.out, {**arrays, "about": np.array(text)})
    picture = options.out.with_suffix(".png")
    x_mm, y_mm, _ = (1e3 * np.asarray(grid.pitch)).tolist()
    slices, titles = image[:12], None
    if len(grid.shape) == 3:
        slices = image[0]
        titles = [f"z = {1e3 * float(z):.1f} mm" for z in grid.axes()[2]]
    if len(paths) > 1:  # of the first frame, one tracer after the other
        slices = image[0].reshape(-1, *grid.shape[-2:])
        words = titles or [""]
        titles = [
            f"{n + 1} {word}".strip() for n in range(len(paths)) for word in words
        ]
    report.save_images(picture, slices, titles, pixel_size_mm=(x_mm, y_mm))
    if chosen:
        curves = options.out.with_name(f"{options.out.stem}_lam.png")
        middle = np.asarray(images[0]).reshape(len(pipeline.LAMS), -1, *grid.shape[-2:])
        report.save_l_curve(
            curves,
            np.array(pipeline.LAMS),
            *(np.asarray(a)[0] for a in (curve.residual, curve.solution)),
            int(index[0]),
            middle[:, middle.shape[1] // 2],
        )
        if rule == "discrepancy" and index.max() == len(pipeline.LAMS) - 1:
            print(
                "note: hardly a lam leaves as little as the noise: the system matrix "
                "doesn't explain the measurement; try l_curve",
                file=sys.stderr,
            )
        words = ", ".join(f"{lam:.2g}" for lam in lams)
        print(f"{curves}: lam {words} by {rule}")
    print(
        f"{options.out}, {picture}: {len(image)} images {image.shape[1:]} from {rows} rows"
    )
    if options.phantom is not None:
        concentration = image[0] * open_mpi.unit(calibration)
        truth = open_mpi.phantom(options.phantom, grid)
        cell = float(np.prod(grid.pitch))
        found = evaluate.compare(concentration, truth, cell)
        words = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
        print(f"against the {options.phantom} phantom [mmol/L, umol]: {words}")


def _about(config, **more) -> str:
    """What made a file, as JSON."""
    version = {"version": mpi_jax.__version__, "seed": config.seed}
    return json.dumps({**version, **more, "config": configs.to_dict(config)})


def _read_npz(path: Path, *names: str) -> dict:
    """Arrays of an .npz file; ValueError for files that can't be read or lack one."""
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("a single array")
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise ValueError(
            f"{path}: expected an .npz file of arrays, got one that can't be read "
            f"({' '.join(str(error).split())[:120]})"
        ) from None
    missing = [name for name in names if name not in arrays]
    if missing:
        raise ValueError(
            f"{path}: expected the arrays {', '.join(names)}; missing "
            f"{', '.join(missing)}, it holds {', '.join(arrays) or 'none'}"
        )
    return arrays


def _check_out(path: Path, suffixes: tuple[str, ...] = (".npz",)) -> None:
    """Complain about an unusable output path before the work, not after it."""
    if path.suffix not in suffixes:
        raise ValueError(
            f"--out: expected a name that ends in {' or '.join(suffixes)}, got {path}"
        )
    if not path.parent.is_dir():
        raise ValueError(f"--out: folder {path.parent} doesn't exist")


def _fields(settings, arguments: list[str], verb: str):
    """Settings (a dataclass) with the fields that command-line arguments name."""
    if not arguments:
        return settings
    import tyro

    words = io.StringIO()
    try:
        with contextlib.redirect_stderr(words), contextlib.redirect_stdout(words):
            return tyro.cli(type(settings), default=settings, args=arguments)
    except SystemExit:
        # Its message is a box of several lines; keep the words.
        text = re.sub(r"\x1b\[[0-9;]*m|[╭╮╰╯│─]+", " ", words.getvalue())
        raise ValueError(
            f"{' '.join(arguments)}: {' '.join(text.split())[:300]} "
            f"(mpi-jax {verb} --help lists the fields)"
        ) from None


def _print_table(workdir: Path) -> None:
    table = (workdir / "report" / "table.md").read_text()
    print(table.split("\n\n")[0] if table.startswith("|") else table)


class _Progress:
    """A Tell: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self):
        self.bar, self.stage, self.last = None, None, 0.0
        self.first: dict[str, tuple[float, int]] = {}  # of a stage: when, and how far

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._close()

    def _close(self):
        if self.bar is not None:
            self.bar.close()
        self.bar = None

    def __call__(self, stage: str, done: int, total: int, numbers: dict) -> None:
        shown = {
            name.removeprefix("validation_"): f"{value:.4g}"
            for name, value in numbers.items()
            if name in ("generator_loss", "mae", "images_per_second")
            or name.startswith("validation_")
        }
        if sys.stderr.isatty():
            self._draw(stage, done, total, shown)
            return
        now = time.monotonic()
        if stage == self.stage and done < total and now - self.last < _LINE_EVERY:
            return
        self.stage, self.last = stage, now
        began, before = self.first.setdefault(stage, (now, done))
        left = ""
        if before < done < total:
            left = f", {(now - began) / (done - before) * (total - done):.0f} s left"
        words = "".join(f", {name} {value}" for name, value in shown.items())
        print(f"{stage} {done}/{total}{words}{left}", file=sys.stderr, flush=True)

    def _draw(self, stage, done, total, shown):
        from tqdm import tqdm

        if stage == "validate":  # a line above the training bar
            words = ", ".join(f"{n} {v}" for n, v in shown.items())
            tqdm.write(f"step {done}: validation {words}", file=sys.stderr)
            return
        if stage != self.stage:
            self._close()
            self.stage = stage
            self.bar = tqdm(total=total, desc=stage, unit="step", file=sys.stderr)
        self.bar.set_postfix(shown, refresh=False)
        self.bar.n = done
        self.bar.refresh()
        if done >= total:
            self._close()
            self.stage = None


if __name__ == "__main__":
    sys.exit(main())
