"""The verbs reconstruct and check."""

from __future__ import annotations

import dataclasses
import json
import sys

import mpi_jax
from mpi_jax import configs
from mpi_jax.cli.arguments import (
    METHODS,
    SETTINGS,
    SHIPPED,
    check_out,
    fields,
    read_npz,
)
from mpi_jax.cli.progress import Progress


def reconstruct(options) -> None:
    import numpy as np

    from mpi_jax import _files, metrics, report

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
    check_out(options.out, (".npz", ".mdf") if is_mdf else (".npz",))
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
    measured = read_npz(options.measurement, "voltage")
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
    _files.save_npz(options.out, arrays)
    picture = options.out.with_suffix(".png")
    mm = None if pixel_size is None else tuple((1e3 * pixel_size).tolist())
    report.save_images(picture, image[:12], pixel_size_mm=mm)
    print(f"{options.out}, {picture}: {len(image)} images {image.shape[1:]}")
    truth = measured.get("image")
    if truth is not None and truth.shape == image.shape:
        psnr = np.mean(metrics.psnr(np.clip(image, 0, 1), truth, 1.0))
        print(f"mean PSNR against the phantoms in the file: {psnr:.2f} dB")


def check(options) -> None:
    from mpi_jax import mdf

    problems = mdf.check(options.file)
    if problems:
        print("\n".join(problems))
        raise ValueError(f"{options.file}: {len(problems)} contradictions (above)")
    print(f"{options.file}: nothing to complain about")


# --- Their parts


_MDF = (".mdf", ".h5", ".hdf5")


def _settings(options) -> dict:
    """Settings of a method that were given; ValueError for a method that the source
    doesn't allow, and for settings that the method doesn't have.
    """
    import inspect

    from mpi_jax.methods import classical, linear

    if options.system_matrix:
        source, methods = "--system-matrix", linear.METHODS
    else:
        source = "--config or --run"
        methods = {
            name: inspect.signature(solver).parameters
            for name, solver in classical.CLASSICAL.items()
        }
        methods["transgan"] = {}
    if options.method not in methods:
        raise ValueError(
            f"--method {options.method}: with {source} expected one of "
            f"{', '.join(methods)}"
        )
    given = {n: getattr(options, n) for n in SETTINGS}
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

    from mpi_jax import data, pretrained, runs, train
    from mpi_jax.methods import classical, networks, problem

    place = options.folder
    if options.method == "transgan":
        place = place or pretrained.shipped(options.config or SHIPPED)
        config, generator, params = networks.load_network(place)
    else:
        config = runs.read_config(place) if place else configs.get(options.config)
    scanner = data.make_scanner(config)
    voltage = jnp.asarray(data.check_voltage(scanner, voltage))
    mask = None
    if options.method == "transgan":
        forward = data.build(config)
        image, mask = train.predict(generator, params, forward, voltage)
        mask = None if mask is None else np.asarray(mask > 0, np.uint8)
    else:
        p = problem.problem(config, data.build(config))
        image = classical.CLASSICAL[options.method](p, **settings)(voltage)
    return image, mask, np.asarray(scanner.grid.pitch)[:2]


def _from_matrix(options, voltage, settings):
    """Images by a stored time-domain system matrix [C, V, P]."""
    import jax.numpy as jnp
    import numpy as np

    from mpi_jax import physics, preprocess, scanner, system_matrix
    from mpi_jax.methods import linear

    if len(options.system_matrix) > 1:
        raise ValueError("--system-matrix: expected one .npz file")
    path = options.system_matrix[0]
    stored = read_npz(path, "system_matrix", "grid")
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
    frequency_selection = np.ones((matrix.shape[0], matrix.shape[1] // 2 + 1), bool)
    frequency_selection[:, 0] = False  # a periodic signal has no DC
    spectra = system_matrix.to_frequency(matrix)
    system = preprocess.System(
        system_matrix=system_matrix.select_rows(spectra, frequency_selection, axis=1),
        measurement=system_matrix.select_rows(physics.spectrum(u), frequency_selection),
        weights=None,
        frequency_selection=frequency_selection,
        grid=scanner.Grid(shape, (1.0, 1.0, 1.0)),  # of unknown size
    )
    return linear.reconstruct(system, options.method, **settings)


def _reconstruct_mdf(options, settings) -> None:
    """Two MDF files to an image: .npz or .mdf, and a picture of all slices."""
    import numpy as np

    from mpi_jax import _files, mdf, metrics, open_mpi, phantoms, preprocess, report
    from mpi_jax.methods import linear

    paths = options.system_matrix or []
    if not paths or any(path.suffix not in _MDF for path in paths):
        raise ValueError(
            "--system-matrix: expected the MDF calibration that belongs to the measurement"
        )
    if options.phantom is not None and len(paths) > 1:
        raise ValueError("--phantom: expected one calibration with it")
    prepare = fields(configs.Preprocessing(), options.rest, "reconstruct")
    if (
        options.phantom is not None
        and options.phantom not in phantoms.open_mpi.PHANTOMS
    ):
        raise ValueError(
            f"--phantom: expected one of {', '.join(phantoms.open_mpi.PHANTOMS)}; "
            f"got {options.phantom!r}"
        )
    calibrations = [mdf.read(path) for path in paths]
    calibration, measurement = calibrations[0], mdf.read(options.measurement)
    empty = None if options.empty is None else mdf.read(options.empty)
    with Progress() as tell:
        tell("read", 0, 2, {})
        system = preprocess.prepare(
            calibrations if len(paths) > 1 else calibration, measurement, prepare, empty
        )
        tell("solve", 1, 2, {})
        rule, chosen = settings.get("lam"), {}
        if isinstance(rule, str):
            others = {n: v for n, v in settings.items() if n != "lam"}
            lams, curve, images = linear.choose_lam(
                system, options.method, rule=rule, **others
            )
            index = np.asarray(curve.index)
            image = np.asarray(images)[np.arange(len(index)), index]
            chosen = {"lam": lams, "lam_rule": rule}
        else:
            image = np.asarray(linear.reconstruct(system, options.method, **settings))
        tell("solve", 2, 2, {})
    for note in system.notes:
        print(f"note: {note}", file=sys.stderr)
    rows, voxels = system.system_matrix.shape
    grid = system.grid
    about = {
        "method": options.method,
        **linear.METHODS[options.method],
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
        _files.save_npz(options.out, {**arrays, "about": np.array(text)})
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
        middle = np.asarray(images[0]).reshape(len(linear.LAMS), -1, *grid.shape[-2:])
        report.save_l_curve(
            curves,
            np.array(linear.LAMS),
            *(np.asarray(a)[0] for a in (curve.residual, curve.solution)),
            int(index[0]),
            middle[:, middle.shape[1] // 2],
        )
        if rule == "discrepancy" and index.max() == len(linear.LAMS) - 1:
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
        truth = phantoms.open_mpi.phantom(options.phantom, grid)
        cell = float(np.prod(grid.pitch))
        found = metrics.compare(concentration, truth, cell)
        words = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
        print(f"against the {options.phantom} phantom [mmol/L, umol]: {words}")
