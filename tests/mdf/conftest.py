"""MDF files of a test."""

import itertools

import pytest
from support.mdf_files import build


@pytest.fixture
def new_file(tmp_path):
    """Writes datasets to a new file each time: {name: value} -> path."""
    numbers = itertools.count()
    return lambda content: build(tmp_path / f"{next(numbers)}.mdf", content)
