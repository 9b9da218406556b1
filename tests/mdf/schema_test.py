"""The typed header: values, names and 0-based indices."""

import numpy as np
import pytest
from support.mdf_files import N, fields, samples

from mpi_jax import mdf


@pytest.mark.filterwarnings("error")
def test_header_and_indices(new_file):
    file = mdf.read(new_file(fields()))
    assert file.study.description == "Gräser" and file.experiment.number == 4
    assert file.tracer.name == ("Perimag", "Synomag") and file.notes == ()
    assert file.acquisition.offset_field.tolist() == [[[0, 1, 2]], [[3, 4, 5]]]
    assert file.measurement.background.tolist() == [1, 4]
    assert file.measurement.foreground.tolist() == [0, 2, 3]
    order = np.array([3, 1, 5, 2, 4])
    changes = {
        "measurement__isFramePermutation": np.int8(1),
        "measurement__framePermutation": order,
    }
    file = mdf.read(new_file(fields(**changes)))
    assert file.measurement.frame_permutation.tolist() == [2, 0, 4, 1, 3]
    # Stored frame n was acquired as frame order[n].
    acquired = mdf.signals(file, frames=mdf.acquisition_order(file))
    for n in range(N):
        np.testing.assert_array_equal(acquired[order[n] - 1], samples()[n])
