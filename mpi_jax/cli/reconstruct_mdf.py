"""The verb reconstruct on MDF files: a calibration and a measurement."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mpi_jax
from mpi_jax.cli.files import MDF, save_npz
from mpi_jax.cli.progress import Progress

if TYPE_CHECKING:
    import numpy as np

    from mpi_jax import mdf, methods, scanner
    from mpi_jax.cli.reconstruct import Options


def run(options: Options, method: methods.Method) -> None:
    """Two MDF files to an image: .npz or .mdf, and a picture of all slices."""
    import numpy as np

    from mpi_jax import mdf, methods, preprocess
    from mpi_jax.methods.problem import weighted

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
        solve = method.prepare(methods.from_system(system), options.settings)
        reconstruction = solve(weighted(system))
        tell("solve", 2, 2, {})
    for note in system.notes:
        print(f"note: {note}", file=sys.stderr)
    image, rows = np.asarray(reconstruction.image), len(system.system_matrix)
    about = _about(options, method, reconstruction.choice, rows)
    _write(options.out, image, system.grid, measurement, about)
    picture = options.out.with_suffix(".png")
    _draw(picture, image, system.grid, len(paths))
    if reconstruction.choice is not None:
        show_choice(options.out, reconstruction.choice)
    print(
        f"{options.out}, {picture}: {len(image)} images {image.shape[1:]} from {rows} rows"
    )
    if options.phantom is not None:
        _compare(image[0], options.phantom, calibration, system.grid)


def _about(
    options: Options, method: methods.Method, choice: methods.Choice | None, rows: int
) -> dict[str, Any]:
    """What made an image, by name."""
    return {
        "method": method.name,
        **method.complete(options.settings),
        **({} if choice is None else about_choice(choice)),
        "rows": rows,
        "preprocessing": dataclasses.asdict(options.preprocessing),
        "calibration": ", ".join(map(str, options.system_matrix)),
        "measurement": str(options.measurement),
        "mpi_jax": mpi_jax.__version__,
    }


def about_choice(choice: methods.Choice) -> dict[str, Any]:
    """What a rule chose, frame by frame."""
    return {choice.setting: choice.values, f"{choice.setting}_rule": choice.rule}


def _write(
    out: Path,
    image: np.ndarray,
    grid: scanner.Grid,
    measurement: mdf.MDF,
    about: dict[str, Any],
) -> None:
    """Images as .mdf or .npz file, with what made them."""
    import numpy as np

    from mpi_jax import mdf

    if out.suffix == ".mdf":
        about["preprocessing"] = json.dumps(about["preprocessing"])
        mdf.write_reconstruction(
            out, image, grid=grid, source=measurement, parameters=about
        )
        return
    save_npz(out, {"image": image, "pixel_size": np.asarray(grid.pitch)}, about)


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


def show_choice(out: Path, choice: methods.Choice) -> None:
    """The curve that a setting was chosen on, and its numbers."""
    import numpy as np

    from mpi_jax import report

    path = out.with_name(f"{out.stem}_{choice.setting}.png")
    images = np.asarray(choice.images[0])
    middle = images.reshape(len(images), -1, *images.shape[-2:])
    report.save_l_curve(
        path,
        choice.candidates,
        np.asarray(choice.curve.residual)[0],
        np.asarray(choice.curve.solution)[0],
        int(choice.curve.corner[0]),
        middle[:, middle.shape[1] // 2],
    )
    if choice.unmet.any():
        print(
            f"note: in {int(choice.unmet.sum())} of {len(choice.unmet)} frames no "
            f"{choice.setting} leaves as little as the noise: the system matrix doesn't "
            "explain the measurement, or the method isn't done; try l_curve",
            file=sys.stderr,
        )
    words = ", ".join(f"{value:.2g}" for value in choice.values)
    print(f"{path}: {choice.setting} {words} by {choice.rule}")


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
