"""Which measurements go with a calibration."""

import numpy as np
import pytest
from support.mdf_files import C, J, N, calibration, fields

from mpi_jax import mdf

COMPATIBLE = {
    "receive channels": dict(acquisition__receiver__numChannels=np.int64(1)),
    "bandwidth": dict(
        acquisition__receiver__bandwidth=12e3, acquisition__drivefield__cycle=0.5e-3
    ),
    "samples per period": dict(
        acquisition__receiver__numSamplingPoints=np.int64(24),
        acquisition__drivefield__cycle=2e-3,
    ),
    "dividers": dict(acquisition__drivefield__divider=np.array([[4], [6]])),
    "strength": dict(acquisition__drivefield__strength=np.full((J, 2, 1), 0.014)),
    "phase": dict(acquisition__drivefield__phase=np.full((J, 2, 1), 0.6)),
    "gradient": dict(acquisition__gradient=np.zeros((J, 1, 3, 3))),
    "transfer function": dict(measurement__isTransferFunctionCorrected=np.int8(1)),
    "frequency selection": dict(
        measurement__isFourierTransformed=np.int8(1),
        measurement__isFrequencySelection=np.int8(1),
        measurement__frequencySelection=np.array([2, 3]),
    ),
}


@pytest.mark.parametrize("name", COMPATIBLE)
def test_compatible_tells_what_differs(new_file, name):
    content = fields(**COMPATIBLE[name])
    channels = content["/acquisition/receiver/numChannels"]
    length = content["/acquisition/receiver/numSamplingPoints"]
    data = np.zeros((N, J, channels, length))
    if name == "frequency selection":
        data = np.zeros((N, J, C, 2), complex)
    content["/measurement/data"] = data
    matrix = mdf.read(new_file(calibration()))
    found = mdf.compatible(matrix, mdf.read(new_file(content)))
    assert len(found) == 1 and name in found[0], found


def test_compatible_files(new_file):
    matrix = mdf.read(new_file(calibration()))
    assert mdf.compatible(matrix, mdf.read(new_file(fields()))) == []
    turn = np.full((J, 2, 1), 0.5 - 2 * np.pi)
    other = mdf.read(new_file(fields(acquisition__drivefield__phase=turn)))
    assert mdf.compatible(matrix, other) == []
    # One period in the calibration, two equal ones in the measurement.
    one = {
        k: v[:1]
        for k, v in calibration().items()
        if k.endswith(("gradient", "offsetField", "phase", "strength", "/data"))
    }
    one["/acquisition/numPeriodsPerFrame"] = np.int64(1)
    matrix = mdf.read(new_file(calibration() | one))
    assert mdf.compatible(matrix, mdf.read(new_file(fields()))) == []
