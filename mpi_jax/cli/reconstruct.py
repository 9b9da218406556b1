"""The verb reconstruct."""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import mpi_jax
from mpi_jax import configs
from mpi_jax._spelling import expect_one_of
from mpi_jax.cli.files import MDF, check_out, read_npz
from mpi_jax.cli.progress import Progress
from mpi_jax.methods.settings import Settings

if TYPE_CHECKING:
    import numpy as np

    from mpi_jax import mdf, preprocess, scanner
    from mpi_jax.reconstruct import parameter_choice


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
    """xspace, xspace_tensor, kaczmarz, tikhonov, nonnegative, tv with --config or --run;
    kaczmarz, cgnr, tikhonov, nonnegative, tv, elastic_net with --system-matrix; small64,
    small32: a network that ships with the package, on its own scanner. Default: the
    network of --run, or the one that ships for --config (without any source: small64)."""
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
    network = _network(options)
    is_mdf = options.measurement.suffix in MDF
    check_out(options.out, (".npz", ".mdf") if is_mdf else (".npz",))
    if not is_mdf:
        _refuse_mdf_options(options)
    settings = _settings(options, network)
    if is_mdf:
        _reconstruct_mdf(options, settings)
    else:
        _reconstruct_npz(options, network, settings)


# --- What is asked for


def _check_source(options: Options) -> None:
    """ValueError where options name several scanners, or none that a method needs."""
    given = {
        "--system-matrix": bool(options.system_matrix),
        "--config": options.config is not None,
        "--run": options.run is not None,
    }
    named = [name for name, is_given in given.items() if is_given]
    if len(named) > 1:
        raise ValueError(f"{named[1]}: expected none with {named[0]}")
    classical = options.method is not None and options.method not in configs.SHIPPED
    if classical and not named:
        raise ValueError(
            f"--method {options.method}: expected one of {', '.join(given)} with it"
        )


def _network(options: Options) -> Path | str | None:
    """Whose network reconstructs: a work folder, or a config that weights ship for. None
    for a classical method.
    """
    if options.method is None:
        if options.system_matrix:
            raise ValueError(
                "--method: expected a classical method with --system-matrix, got none"
            )
        return options.run or options.config or next(iter(configs.SHIPPED))
    if options.method not in configs.SHIPPED:
        return None
    if (
        options.system_matrix
        or options.run
        or options.config
        not in (
            None,
            options.method,
        )
    ):
        raise ValueError(
            f"--method {options.method}: expected no other scanner, for this network "
            "knows its own; for the network of a run leave --method out"
        )
    return options.method


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
    if isinstance(options.settings.lam, str):
        raise ValueError(f"--lam {options.settings.lam}: only for MDF measurements")


def _settings(options: Options, network: Path | str | None) -> dict[str, Any]:
    """Settings of a method that were given; ValueError for a method that the source
    doesn't allow, and for settings that the method doesn't have.
    """
    given = {
        name: value
        for name, value in dataclasses.asdict(options.settings).items()
        if value is not None
    }
    if network is not None:
        takes: Collection[str] = ()
    else:
        methods = _classical_methods(bool(options.system_matrix))
        expect_one_of("--method", str(options.method), (*methods, *configs.SHIPPED))
        if options.method not in methods:
            raise ValueError(f"--method {options.method}: expected a classical method")
        takes = methods[str(options.method)]
    for name, value in given.items():
        option = f"--{name.replace('_', '-')}"
        method = options.method or "the network"
        if name not in takes:
            raise ValueError(f"{option}: not an option of {method}")
        if isinstance(value, str) and name != "lam":
            raise ValueError(f"{option} {value}: expected a number with {method}")
    return given


def _classical_methods(by_matrix: bool) -> dict[str, Collection[str]]:
    """Method -> its settings, by a stored system matrix or by the scanner of a config."""
    from mpi_jax.methods import classical, linear

    if by_matrix:
        return {name: set(defaults) for name, defaults in linear.METHODS.items()}
    return {
        name: set(inspect.signature(solver).parameters)
        for name, solver in classical.CLASSICAL.items()
    }


# --- .npz: voltages of a simulated scanner


def _reconstruct_npz(
    options: Options, network: Path | str | None, settings: dict[str, Any]
) -> None:
    import numpy as np

    from mpi_jax import _files, report

    measured = read_npz(options.measurement, "voltage")
    mask, pixel_size = None, None
    if options.system_matrix:
        image = _from_matrix(options, measured["voltage"], settings)
    else:
        image, mask, pixel_size = _from_scanner(
            options, network, measured["voltage"], settings
        )
    about = {"method": options.method or str(network), **settings}
    arrays = {"image": image, "about": np.array(json.dumps(about))}
    if mask is not None:
        arrays["mask"] = mask
    if pixel_size is not None:
        arrays["pixel_size"] = pixel_size
    _files.save_npz(options.out, arrays)
    picture = options.out.with_suffix(".png")
    mm = None if pixel_size is None else tuple((1e3 * pixel_size).tolist())
    report.save_images(picture, image[:12], pixel_size_mm=mm)
    print(f"{options.out}, {picture}: {len(image)} images {image.shape[1:]}")
    _tell_psnr(image, measured.get("image"))


def _tell_psnr(image: np.ndarray, truth: np.ndarray | None) -> None:
    import numpy as np

    from mpi_jax import metrics

    if truth is not None and truth.shape == image.shape:
        psnr = np.mean(metrics.psnr(np.clip(image, 0, 1), truth, 1.0))
        print(f"mean PSNR against the phantoms in the file: {psnr:.2f} dB")


def _from_scanner(
    options: Options,
    network: Path | str | None,
    voltage: np.ndarray,
    settings: dict[str, Any],
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Images by the scanner of a config or run: image, mask, pixel size [m]."""
    import jax.numpy as jnp
    import numpy as np

    from mpi_jax import data, pretrained, runs, train
    from mpi_jax.methods import classical, networks, problem

    if network is not None:
        place = pretrained.shipped(network) if isinstance(network, str) else network
        config, generator, params = networks.load_network(place)
    elif options.run is not None:
        config = runs.read_config(options.run)
    else:
        config = configs.get(str(options.config))
    scanner = data.make_scanner(config)
    u = jnp.asarray(data.check_voltage(scanner, voltage))
    forward = data.build(config)
    mask = None
    if network is not None:
        image, logit = train.predict(generator, params, forward, u)
        mask = None if logit is None else np.asarray(logit > 0, np.uint8)
    else:
        solver = classical.CLASSICAL[str(options.method)]
        image = solver(problem.problem(config, forward), **settings)(u)
    return np.asarray(image), mask, np.asarray(scanner.grid.pitch)[:2]


def _from_matrix(
    options: Options, voltage: np.ndarray, settings: dict[str, Any]
) -> np.ndarray:
    """Images by a stored time-domain system matrix [C, V, P]."""
    import jax.numpy as jnp
    import numpy as np

    from mpi_jax import physics, preprocess, scanner, system_matrix
    from mpi_jax.methods import linear

    matrix, shape = _stored_matrix(options.system_matrix)
    voltage = _voltage_like(matrix, voltage)
    scale = np.sqrt(np.mean(np.square(voltage, dtype=np.float64))) or 1.0
    S, u = (jnp.asarray(a / scale, jnp.float32) for a in (matrix, voltage))
    frequency_selection = np.ones((matrix.shape[0], matrix.shape[1] // 2 + 1), bool)
    frequency_selection[:, 0] = False  # a periodic signal has no DC
    spectra = system_matrix.to_frequency(S)
    system = preprocess.System(
        system_matrix=system_matrix.select_rows(spectra, frequency_selection, axis=1),
        measurement=system_matrix.select_rows(physics.spectrum(u), frequency_selection),
        weights=None,
        frequency_selection=frequency_selection,
        grid=scanner.Grid(shape, (1.0, 1.0, 1.0)),  # of unknown size
    )
    return np.asarray(linear.reconstruct(system, str(options.method), **settings))


def _stored_matrix(paths: Sequence[Path]) -> tuple[np.ndarray, tuple[int, ...]]:
    """A system matrix [C, V, P] of an .npz file and its grid (ny, nx)."""
    import numpy as np

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


# --- MDF: a calibration and a measurement


class Choice(NamedTuple):
    """How lam was chosen for each frame."""

    rule: str
    lams: np.ndarray  # [F]
    curve: parameter_choice.LCurve
    images: np.ndarray  # [F, L, ...], of every lam


def _reconstruct_mdf(options: Options, settings: dict[str, Any]) -> None:
    """Two MDF files to an image: .npz or .mdf, and a picture of all slices."""
    from mpi_jax import mdf, preprocess

    paths = options.system_matrix
    if not paths or any(path.suffix not in MDF for path in paths):
        raise ValueError(
            "--system-matrix: expected the MDF calibration that belongs to the measurement"
        )
    if options.phantom is not None and len(paths) > 1:
        raise ValueError("--phantom: expected one calibration with it")
    calibrations = [mdf.read(path) for path in paths]
    calibration, measurement = calibrations[0], mdf.read(options.measurement)
    empty = None if options.empty is None else mdf.read(options.empty)
    with Progress() as tell:
        tell("read", 0, 2, {})
        system = preprocess.prepare(
            calibrations if len(paths) > 1 else calibration,
            measurement,
            options.preprocessing,
            empty,
        )
        tell("solve", 1, 2, {})
        image, choice = _solve(system, str(options.method), settings)
        tell("solve", 2, 2, {})
    for note in system.notes:
        print(f"note: {note}", file=sys.stderr)
    about = _about(options, settings, choice, len(system.system_matrix))
    _write(options.out, image, system.grid, measurement, about)
    picture = options.out.with_suffix(".png")
    _draw(picture, image, system.grid, len(paths))
    if choice is not None:
        _show_choice(options.out, choice, system.grid)
    rows = len(system.system_matrix)
    print(
        f"{options.out}, {picture}: {len(image)} images {image.shape[1:]} from {rows} rows"
    )
    if options.phantom is not None:
        _compare(image[0], options.phantom, calibration, system.grid)


def _solve(
    system: preprocess.System, method: str, settings: dict[str, Any]
) -> tuple[np.ndarray, Choice | None]:
    """Images [F, ...], and how lam was chosen where a rule chose it."""
    import numpy as np

    from mpi_jax.methods import linear

    rule = settings.get("lam")
    if not isinstance(rule, str):
        return np.asarray(linear.reconstruct(system, method, **settings)), None
    others = {n: v for n, v in settings.items() if n != "lam"}
    lams, curve, images = linear.choose_lam(system, method, rule=rule, **others)
    index = np.asarray(curve.index)
    image = np.asarray(images)[np.arange(len(index)), index]
    return image, Choice(rule, lams, curve, np.asarray(images))


def _about(
    options: Options, settings: dict[str, Any], choice: Choice | None, rows: int
) -> dict[str, Any]:
    """What made an image, by name."""
    from mpi_jax.methods import linear

    method = str(options.method)
    chosen = {} if choice is None else {"lam": choice.lams, "lam_rule": choice.rule}
    return {
        "method": method,
        **linear.METHODS[method],
        **settings,
        **chosen,
        "rows": rows,
        "preprocessing": dataclasses.asdict(options.preprocessing),
        "calibration": ", ".join(map(str, options.system_matrix)),
        "measurement": str(options.measurement),
        "mpi_jax": mpi_jax.__version__,
    }


def _write(
    out: Path,
    image: np.ndarray,
    grid: scanner.Grid,
    measurement: mdf.MDF,
    about: dict[str, Any],
) -> None:
    """Images as .mdf or .npz file, with what made them."""
    import numpy as np

    from mpi_jax import _files, mdf

    if out.suffix == ".mdf":
        about["preprocessing"] = json.dumps(about["preprocessing"])
        mdf.write_reconstruction(
            out, image, grid=grid, source=measurement, parameters=about
        )
        return
    text = json.dumps(about, default=lambda a: np.asarray(a).tolist())
    arrays = {"image": image, "pixel_size": np.asarray(grid.pitch)}
    _files.save_npz(out, {**arrays, "about": np.array(text)})


def _draw(picture: Path, image: np.ndarray, grid: scanner.Grid, tracers: int) -> None:
    """All frames of a plane, or all slices of the first frame; of each tracer."""
    import numpy as np

    from mpi_jax import report

    x_mm, y_mm, _ = (1e3 * np.asarray(grid.pitch)).tolist()
    slices, titles = image[:12], None
    if len(grid.shape) == 3:
        slices = image[0]
        titles = [f"z = {1e3 * float(z):.1f} mm" for z in grid.axes()[2]]
    if tracers > 1:  # of the first frame, one tracer after the other
        slices = image[0].reshape(-1, *grid.shape[-2:])
        words = titles or [""]
        titles = [f"{n + 1} {word}".strip() for n in range(tracers) for word in words]
    report.save_images(picture, slices, titles, pixel_size_mm=(x_mm, y_mm))


def _show_choice(out: Path, choice: Choice, grid: scanner.Grid) -> None:
    """The curve that lam was chosen on, and its numbers."""
    import numpy as np

    from mpi_jax import report
    from mpi_jax.methods import linear

    path = out.with_name(f"{out.stem}_lam.png")
    middle = choice.images[0].reshape(len(linear.LAMS), -1, *grid.shape[-2:])
    index = np.asarray(choice.curve.index)
    report.save_l_curve(
        path,
        np.array(linear.LAMS),
        np.asarray(choice.curve.residual)[0],
        np.asarray(choice.curve.solution)[0],
        int(index[0]),
        middle[:, middle.shape[1] // 2],
    )
    if choice.rule == "discrepancy" and index.max() == len(linear.LAMS) - 1:
        print(
            "note: hardly a lam leaves as little as the noise: the system matrix "
            "doesn't explain the measurement; try l_curve",
            file=sys.stderr,
        )
    words = ", ".join(f"{lam:.2g}" for lam in choice.lams)
    print(f"{path}: lam {words} by {choice.rule}")


def _compare(
    image: np.ndarray, name: str, calibration: mdf.MDF, grid: scanner.Grid
) -> None:
    """Print how near an image comes to the drawing of an Open MPI phantom."""
    import numpy as np

    from mpi_jax import metrics, open_mpi, phantoms

    truth = phantoms.open_mpi.phantom(name, grid)
    cell = float(np.prod(grid.pitch))
    numbers = metrics.compare(image * open_mpi.unit(calibration), truth, cell)
    words = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
    print(f"against the {name} phantom [mmol/L, umol]: {words}")
