"""The verb reconstruct: one method, three ways to know the scanner."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mpi_jax import configs
from mpi_jax._spelling import expect_one_of
from mpi_jax.cli import reconstruct_mdf
from mpi_jax.cli.files import MDF, check_out, save_npz
from mpi_jax.methods.settings import Settings

if TYPE_CHECKING:
    import numpy as np

    from mpi_jax import methods


@dataclasses.dataclass(frozen=True)
class Options:
    """Images from voltages: a file of them, and a .png beside it to look at.

    Settings of the methods are --lam to --gain; what is done to MDF files before is
    --min-frequency to --tolerate. Several numbers stand apart by spaces or commas.
    """

    measurement: Path
    """MDF file (.mdf, .h5), or .npz file with `voltage` [N, C, V] (receive channels x
    samples of one period, in the receiver's unit) as `simulate` writes."""
    out: Path
    """.npz file to write, or .mdf file for MDF measurements."""
    method: str | None = None
    """kaczmarz, cgnr, tikhonov, elastic_net, nonnegative, tv; with --config or --run also
    xspace and xspace_tensor; small64, small32: a network that ships with the package, on
    its own scanner. Default: the network of --run, or the one that ships for --config
    (without any source: small64)."""
    system_matrix: tuple[Path, ...] = ()
    """MDF calibration for an MDF measurement, or several, of different tracers, for an
    image of each; .npz file with `system_matrix` [C, V, P] and `grid` (ny, nx) for an .npz
    one."""
    config: str | None = None
    """Scanner of this config; `mpi-jax configs` lists them."""
    run: Path | None = None
    """Work folder of a run: its scanner, and without --method its network."""
    empty: Path | None = None
    """MDF measurement without tracer, for --background external."""
    phantom: Literal["shape", "resolution", "concentration"] | None = None
    """Open MPI phantom that was measured: compare the image with it (MDF)."""
    settings: Settings = Settings()
    preprocessing: configs.Preprocessing = configs.Preprocessing()


def run(options: Options) -> None:
    """Reconstruct, write images and picture, print how good they are where known."""
    _check_source(options)
    is_mdf = options.measurement.suffix in MDF
    check_out(options.out, (".npz", ".mdf") if is_mdf else (".npz",))
    if is_mdf:
        method = _method(options)
        reconstruct_mdf.run(options, method)
    else:
        _refuse_mdf_options(options)
        if not _is_network(options):
            _method(options)  # before any work
        _reconstruct_npz(options)


# --- What is asked for


def _check_source(options: Options) -> None:
    """ValueError where options name several scanners, or none that a method needs."""
    sources = {
        "--system-matrix": bool(options.system_matrix),
        "--config": options.config is not None,
        "--run": options.run is not None,
    }
    named = [name for name, is_given in sources.items() if is_given]
    if len(named) > 1:
        raise ValueError(f"{named[1]}: expected none with {named[0]}")
    if not (_is_network(options) or named):
        raise ValueError(
            f"--method {options.method}: expected one of {', '.join(sources)} with it"
        )
    if options.method is None and options.system_matrix:
        raise ValueError(
            "--method: expected a classical method with --system-matrix, got none"
        )
    knows = options.method in configs.SHIPPED
    others = options.system_matrix or options.run
    if knows and (others or options.config not in (None, options.method)):
        raise ValueError(
            f"--method {options.method}: expected no other scanner, for this network "
            "knows its own; for the network of a run leave --method out"
        )


def _method(options: Options) -> methods.Method:
    """A classical method by its name, once its settings are looked at."""
    from mpi_jax.methods import METHODS

    classical = [name for name, one in METHODS.items() if one.kind == "classical"]
    named = options.method or ""
    expect_one_of("--method", named, (*classical, *configs.SHIPPED))
    if named in configs.SHIPPED:
        raise ValueError(
            f"--method {named}: expected a classical method for MDF measurements, for "
            "this network knows its own scanner"
        )
    METHODS[named].complete(options.settings)
    return METHODS[named]


def _is_network(options: Options) -> bool:
    return options.method is None or options.method in configs.SHIPPED


def _refuse_mdf_options(options: Options) -> None:
    """ValueError for options that an .npz file has no use for."""
    changed = [
        field.name
        for field in dataclasses.fields(configs.Preprocessing)
        if getattr(options.preprocessing, field.name) != field.default
    ]
    changed += [n for n in ("empty", "phantom") if getattr(options, n) is not None]
    if changed:
        name = changed[0].replace("_", "-")
        raise ValueError(f"--{name}: only for MDF measurements")


# --- .npz: voltages


def _reconstruct_npz(options: Options) -> None:
    import jax.numpy as jnp
    import numpy as np

    from mpi_jax import report
    from mpi_jax._files import read_npz

    measured = read_npz(options.measurement, "voltage")
    door = _by_matrix if options.system_matrix else _by_scanner
    method, problem, u = door(options, measured["voltage"])
    reconstruction = method.prepare(problem, options.settings)(jnp.asarray(u))
    image = np.asarray(reconstruction.image)
    arrays = {"image": image}
    about = {"method": method.name, **method.complete(options.settings)}
    if reconstruction.mask_logit is not None:
        arrays["mask"] = np.asarray(reconstruction.mask_logit > 0, np.uint8)
    mm = None
    if not options.system_matrix:
        arrays["pixel_size"] = np.asarray(problem.grid.pitch)[:2]
        mm = tuple((1e3 * arrays["pixel_size"]).tolist())
    if reconstruction.choice is not None:
        about |= reconstruct_mdf.about_choice(reconstruction.choice)
    save_npz(options.out, arrays, about)
    picture = options.out.with_suffix(".png")
    report.save_images(picture, image[:12], pixel_size_mm=mm)
    if reconstruction.choice is not None:
        reconstruct_mdf.show_choice(options.out, reconstruction.choice)
    print(f"{options.out}, {picture}: {len(image)} images {image.shape[1:]}")
    _tell_psnr(image, measured.get("image"))


def _tell_psnr(image: np.ndarray, truth: np.ndarray | None) -> None:
    import numpy as np

    from mpi_jax import metrics

    if truth is not None and truth.shape == image.shape:
        psnr = np.mean(metrics.psnr(np.clip(image, 0, 1), truth, 1.0))
        print(f"mean PSNR against the phantoms in the file: {psnr:.2f} dB")


def _by_scanner(
    options: Options, voltage: np.ndarray
) -> tuple[methods.Method, methods.Problem, np.ndarray]:
    """By the scanner of a config, of a run or of shipped weights."""
    from mpi_jax import data, methods, runs

    if _is_network(options):
        network = _network(options)
        method, config = network.method, network.config
        method.complete(options.settings)  # refused before any work
    else:
        method = _method(options)
        if options.run is not None:
            config = runs.read_config(options.run)
        else:
            config = configs.get(str(options.config))
    scanner = data.make_scanner(config)
    u = data.check_voltage(scanner, voltage)
    if method.kind == "learned":
        forward = data.build(config)
    else:  # classical methods need no features of a network
        forward = data.simulator(config)
    return method, methods.from_forward(config, forward), u


def _network(options: Options):
    """The network that is asked for: a run's, or one that ships."""
    from mpi_jax.methods import networks

    if options.run is not None:
        (network,) = networks.of_runs([options.run]).values()
        return network
    default = options.config or next(iter(configs.SHIPPED))
    return networks.shipped(options.method or default)


def _by_matrix(
    options: Options, voltage: np.ndarray
) -> tuple[methods.Method, methods.Problem, np.ndarray]:
    """By a stored time-domain system matrix [C, V, P]."""
    from mpi_jax import methods, scanner

    method = _method(options)
    matrix, shape = _stored_matrix(options.system_matrix)
    u = _voltage_like(matrix, voltage)
    grid = scanner.Grid(shape, (1.0, 1.0, 1.0))  # of unknown size
    return method, methods.from_matrix(matrix, grid), u


def _stored_matrix(paths: Sequence[Path]) -> tuple[np.ndarray, tuple[int, ...]]:
    """A system matrix [C, V, P] of an .npz file and its grid (ny, nx)."""
    import numpy as np

    from mpi_jax._files import read_npz

    if len(paths) > 1:
        raise ValueError("--system-matrix: expected one .npz file")
    stored = read_npz(paths[0], "system_matrix", "grid")
    matrix, shape = stored["system_matrix"], tuple(int(n) for n in stored["grid"])
    if matrix.ndim != 3 or len(shape) != 2 or matrix.shape[-1] != shape[0] * shape[1]:
        raise ValueError(
            f"{paths[0]}: expected system_matrix [C, V, ny * nx] and grid "
            f"(ny, nx), got {list(matrix.shape)} and {list(shape)}"
        )
    if not np.isfinite(matrix).all():
        raise ValueError(f"{paths[0]}: expected finite numbers")
    return matrix, shape


def _voltage_like(matrix: np.ndarray, voltage: np.ndarray) -> np.ndarray:
    """The voltage as [N, C, V]; ValueError where it can't be one of the matrix."""
    import numpy as np

    voltage = np.asarray(voltage)
    if voltage.shape[-2:] != matrix.shape[:2]:
        raise ValueError(
            f"voltage: expected [N, {matrix.shape[0]}, {matrix.shape[1]}] like the "
            f"system matrix, got shape {list(voltage.shape)}"
        )
    if not np.isfinite(voltage).all():
        raise ValueError("voltage: expected finite numbers, got NaN or infinite ones")
    return voltage.reshape(-1, *matrix.shape[:2])
