"""A report that several tests read."""

import pytest
from support.work_folders import make_run

from mpi_jax import report


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """The folder of a report, and the lines of the evaluation that it shows."""
    folder = tmp_path_factory.mktemp("run")
    rows = make_run(folder)
    page = report.write(folder)
    assert page == folder / "report" / "report.html"
    return folder / "report", rows
