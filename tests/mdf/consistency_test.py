"""Every rule of the format, broken once."""

import numpy as np
import pytest
from support.mdf_files import (
    BACKGROUND,
    SPARSE,
    C,
    J,
    K,
    N,
    calibration,
    fields,
    samples,
)

from mpi_jax import mdf

BROKEN = {
    "/study/name": fields(study__name=None),
    "/acquisition/receiver/bandwidth": fields(acquisition__receiver__bandwidth=None),
    "/measurement/isBackgroundFrame": fields(
        measurement__isBackgroundFrame=BACKGROUND[1:]
    ),
    "/measurement/data": fields(measurement__data=samples()[:, :, :, 1:]),
    "/tracer/batch": fields(tracer__batch=["1"]),
    "/acquisition/gradient": fields(acquisition__gradient=np.zeros((J, 1, 3, 2))),
    "/acquisition/offsetField": fields(acquisition__offsetField=np.zeros((J, 1, 2))),
    "/acquisition/drivefield/divider": fields(
        acquisition__drivefield__divider=np.array([[4]])
    ),
    "/acquisition/drivefield/waveform": fields(
        acquisition__drivefield__waveform=[["sine"]]
    ),
    "/acquisition/drivefield/phase": fields(
        acquisition__drivefield__phase=np.zeros((J, 1, 1))
    ),
    "/acquisition/drivefield/strength": fields(
        acquisition__drivefield__strength=np.zeros((1, 2, 1))
    ),
    "/acquisition/receiver/dataConversionFactor": fields(
        acquisition__receiver__dataConversionFactor=np.ones((C, 1))
    ),
    "/acquisition/receiver/inductionFactor": fields(
        acquisition__receiver__inductionFactor=np.ones(C + 1)
    ),
    "/acquisition/receiver/transferFunction": fields(
        acquisition__receiver__transferFunction=np.ones((C, K - 1), complex)
    ),
    "/acquisition/receiver/numSamplingPoints": fields(
        acquisition__drivefield__cycle=2e-3
    ),
    "/acquisition/numFrames": fields(acquisition__numFrames=np.int64(-1)),
    "/acquisition/numPeriodsPerFrame": fields(
        acquisition__numPeriodsPerFrame=np.int64(2**40)
    ),
    "/acquisition/drivefield/baseFrequency": fields(
        acquisition__drivefield__baseFrequency=np.nan
    ),
    "/acquisition/numAverages": fields(acquisition__numAverages="ten"),
    "/scanner/operator": fields(scanner__operator=np.int64(3)),
    "/scanner": {k: v for k, v in fields().items() if not k.startswith("/scanner")},
    "/measurement/framePermutation": fields(
        measurement__isFramePermutation=np.int8(1),
        measurement__framePermutation=np.array([1, 2, 3, 4, 4]),
    ),
    "/measurement/framePermutation ": fields(
        measurement__isFramePermutation=np.int8(1)
    ),
    "/measurement/framePermutation  ": fields(
        measurement__isFramePermutation=np.int8(1),
        measurement__framePermutation=np.arange(1, N),
    ),
    "/measurement/frequencySelection": calibration(
        measurement__isFrequencySelection=np.int8(1),
        measurement__frequencySelection=np.arange(K) + 2,
    ),
    "/measurement/isFourierTransformed": fields(
        measurement__isFourierTransformed=np.int8(2)
    ),
    "/measurement/data ": fields(measurement__data=samples() + 0j),
    "/measurement/data  ": fields(measurement__data=None),
    "/measurement/data   ": fields(measurement__data="text"),
    "/measurement/sparsityTransformation": calibration(
        **SPARSE | dict(measurement__sparsityTransformation="FFT")
    ),
    "/measurement/subsamplingIndices": calibration(
        **SPARSE | dict(measurement__subsamplingIndices=np.ones((J, C, K, 5), int))
    ),
    "/measurement/isBackgroundFrame ": calibration(
        **SPARSE,
        measurement__isBackgroundFrame=np.repeat(np.array([1, 0], np.int8), [4, 12]),
    ),
    "/calibration/size": calibration(calibration__size=np.array([3, 2, 1])),
    "/calibration/size ": calibration(calibration__size=np.array([12])),
    "/calibration/order": calibration(calibration__order="xzz"),
    "/calibration/fieldOfView": calibration(calibration__fieldOfView=np.ones(2)),
    "/calibration/positions": calibration(calibration__positions=np.ones((12, 2))),
    "/calibration/offsetFields": calibration(
        calibration__offsetFields=np.ones((11, 3))
    ),
    "/calibration/snr": calibration(calibration__snr=np.ones((1, C, K))),
    "/reconstruction/size": fields(
        reconstruction__data=np.ones((1, 6, 1), "f4"),
        reconstruction__size=np.array([2, 2, 1]),
    ),
    "/reconstruction/positions": fields(
        reconstruction__data=np.ones((1, 6, 1), "f4"),
        reconstruction__positions=np.ones((5, 3)),
    ),
    "/reconstruction/isOverscanRegion": fields(
        reconstruction__data=np.ones((1, 6, 1), "f4"),
        reconstruction__isOverscanRegion=np.zeros(5, np.int8),
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_every_rule_is_checked(new_file, name):
    path = new_file(BROKEN[name])
    problems = mdf.check(path)
    assert len(problems) == 1, problems
    assert problems[0].startswith(f"{name.strip()}: expected "), problems
    assert ", found " in problems[0]
    with pytest.raises(ValueError) as caught:
        mdf.read(path)
    assert str(caught.value) == f"{path}: {problems[0]}"


def test_a_good_file_has_no_problems(new_file):
    assert mdf.check(new_file(fields())) == mdf.check(new_file(calibration())) == []
