"""The verbs and their options."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import mpi_jax
from mpi_jax import configs
from mpi_jax.cli.arguments import METHODS, SETTINGS, SHIPPED
from mpi_jax.cli.evaluate import _evaluate, _figure3, _generalise, _report
from mpi_jax.cli.reconstruct import check, reconstruct
from mpi_jax.cli.simulate import simulate
from mpi_jax.cli.train import _train, demo


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
        demo,
        "The main job, small: train, evaluate, report. Minutes on two CPU cores.",
    )
    workdir(made, default=Path("mpi_jax_demo"))
    config(made, default="small")
    made.add_argument("--num", type=int, default=600, help="test images")
    resume(made)

    made = verb(
        "simulate",
        simulate,
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
        reconstruct,
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
        f"(without any source: {SHIPPED}). {names}",
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
    for name, words in SETTINGS.items():
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
        check,
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
