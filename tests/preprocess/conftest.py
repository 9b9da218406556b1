"""Files of a test."""

import pytest
from support.two_files import pair


@pytest.fixture
def plain(tmp_path):
    """A calibration, and a measurement of 6 + 4 frames of 6 periods."""
    return pair(tmp_path)
