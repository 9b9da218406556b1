"""A scanner known by its file: a small calibration, a measurement, and a config for them."""

import dataclasses

import numpy as np
import pytest

from mpi_jax import configs, open_mpi

SIDE = 9  # voxels of the calibration along each axis, 4 x 4 x 1 mm
CENTRES = 1e-3 * np.array([(0.0, 0.0, -1.0), (0.0, 0.0, 0.0), (0.0, 0.0, 1.0)])


def changed(config, **settings):
    """The config with other settings of its calibration, and of the scanner's pixels."""
    pixels = settings.pop("pixels", config.scanner.pixels)
    return dataclasses.replace(
        config,
        scanner=dataclasses.replace(config.scanner, pixels=pixels),
        calibration=dataclasses.replace(config.calibration, **settings),
    )


def write_files(folder):
    """calibration.mdf and shape.mdf in a new folder, which appears with both in it."""
    partial = folder.with_name(f".{folder.name}")
    partial.mkdir(exist_ok=True)
    short = dataclasses.replace(open_mpi.SEQUENCES["open_mpi_2d"], patches=CENTRES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(open_mpi._EXTENTS, SIDE, (36e-3, 36e-3, 9e-3))
        patch.setitem(open_mpi.SEQUENCES, "open_mpi_2d", short)
        open_mpi.write_calibration(
            partial / "calibration.mdf", "open_mpi_2d", voxels=SIDE, supersampling=1
        )
        open_mpi.write_measurement(
            partial / "shape.mdf", "open_mpi_2d", "shape", periods=4
        )
    partial.rename(folder)


def config_of(folder):
    """The config `open_mpi` with the middle plane of the folder's calibration."""
    path = str(folder / "calibration.mdf")
    return changed(configs.get("open_mpi"), path=path, plane=4)
