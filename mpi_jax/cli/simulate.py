"""The verb simulate."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING

import mpi_jax
from mpi_jax import configs
from mpi_jax._spelling import expect_one_of
from mpi_jax.cli.files import check_num, check_out, save_npz
from mpi_jax.cli.progress import Progress

if TYPE_CHECKING:
    import numpy as np

    from mpi_jax import data


_MDF_SNR = 20.0  # of one period of an MDF file [dB]


@dataclasses.dataclass(frozen=True)
class Options:
    """Phantoms and their noisy voltages as an .npz file; or a measurement and a
    calibration as MDF files in the layout of Open MPI Data.
    """

    config: str
    """Name of a config; `mpi-jax configs` lists them. With --phantom a sequence:
    open_mpi_1d, open_mpi_2d, open_mpi_3d."""
    out: Path
    """.npz or .mdf file to write."""
    num: int = 6
    """Number of phantoms (.npz)."""
    start: int = 0
    """Index of the first phantom (.npz)."""
    split: str = "test"
    """train, validation or test; image i of a split is always the same (.npz)."""
    snr: float | None = None
    """Power SNR [dB]; inf: no noise. Default: the config's, or 20 for one period of an
    MDF file."""
    system_matrix: bool = False
    """Store the system matrix [C, V, P] too (.npz)."""
    phantom: str | None = None
    """Open MPI phantom: shape, resolution, concentration (.mdf)."""
    calibration: Path | None = None
    """MDF file to write the calibration to (.mdf)."""
    voxels: int = 19
    """Voxels of the calibration along each axis, 19 or 37."""
    periods: int | None = None
    """Periods of each patch (1D, 2D) or frames (3D) of the measurement. Default: 1000 as
    in the real files."""
    seed: int = 0
    """Seed of the noise of MDF files."""


def run(options: Options) -> None:
    """Write the file, or for --out FILE.mdf the measurement and the calibration."""
    check_out(options.out, (".npz", ".mdf"))
    if options.out.suffix == ".mdf":
        _simulate_mdf(options)
    else:
        _simulate_npz(options)


# --- Phantoms and their voltages


def _simulate_npz(options: Options) -> None:
    for name in ("phantom", "calibration", "periods"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name}: expected --out FILE.mdf with it")
    check_num(options.num)
    if options.start < 0:
        raise ValueError(f"--start: expected a number >= 0, got {options.start}")
    config = configs.get(options.config)
    snr = config.data.test_snr_db if options.snr is None else options.snr
    if math.isnan(snr):
        raise ValueError("--snr: expected a number of dB or inf, got nan")
    import numpy as np

    from mpi_jax import data, phantoms

    expect_one_of("--split", options.split, phantoms.SPLITS)
    with Progress() as tell:
        tell("build", 0, 1, {})
        forward = data.simulator(config)
        image, mask, voltage, family = _draw(forward, options, snr, tell)
    arrays = {
        "voltage": voltage,
        "image": image,
        "mask": mask.astype(np.uint8),
        "family": np.array(phantoms.FAMILIES)[family],
        "pixel_size": np.asarray(forward.scanner.grid.pitch)[:2],
    }
    if options.system_matrix:
        arrays["system_matrix"] = np.asarray(forward.matrix)
        arrays["grid"] = np.array(forward.scanner.grid.shape)
    about = {
        "version": mpi_jax.__version__,
        "seed": config.seed,
        "split": options.split,
        "start": options.start,
        "snr_db": snr,
        "config": configs.to_dict(config),
    }
    save_npz(options.out, arrays, about)
    print(f"{options.out}: {options.num} voltages {voltage.shape[1:]} at {snr:g} dB")


def _draw(
    forward: data.ForwardModel, options: Options, snr: float, tell: Progress
) -> list[np.ndarray]:
    """Images, masks, voltages and families of the examples asked for, in parts of one
    size, which compiles once.
    """
    import numpy as np

    from mpi_jax import data

    size, parts = min(options.num, 60), []
    for start in range(0, options.num, size):
        part = data.draw(forward, options.split, options.start + start, size, snr)
        parts.append([np.asarray(array) for array in part])
        tell("simulate", min(start + size, options.num), options.num, {})
    return [
        np.concatenate(arrays)[: options.num] for arrays in zip(*parts, strict=True)
    ]


# --- A measurement and a calibration in Open MPI Data's layout


def _simulate_mdf(options: Options) -> None:
    from mpi_jax import open_mpi

    _check_mdf(options)
    open_mpi.sequence_scanner(options.config, options.voxels)  # before the work
    snr = _MDF_SNR if options.snr is None else options.snr
    volume = options.config == "open_mpi_3d"
    with Progress() as tell:
        if options.calibration is not None:
            tell("calibration", 0, 1, {})
            open_mpi.write_calibration(
                options.calibration,
                options.config,
                voxels=options.voxels,
                seed=options.seed,
                snr_db=snr,
            )
        tell("measurement", 0, 1, {})
        open_mpi.write_measurement(
            options.out,
            options.config,
            str(options.phantom),
            seed=options.seed,
            periods=None if volume else options.periods,
            frames=options.periods if volume else None,
            snr_db=snr,
        )
    for path in (options.calibration, options.out):
        if path is not None:
            print(f"{path}: {path.stat().st_size / 1e6:.0f} MB")


def _check_mdf(options: Options) -> None:
    """ValueError for options that don't go together, before any work."""
    from mpi_jax import open_mpi, phantoms

    expect_one_of("--config", options.config, open_mpi.SEQUENCES)
    expect_one_of("--phantom", options.phantom or "", phantoms.open_mpi.PHANTOMS)
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
