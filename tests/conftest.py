"""Test setting: eight simulated CPU devices, strict ranks, a place for reference data."""

import os

# Before JAX starts. NPROC: with fewer threads than twice the devices, queued collectives
# of simulated CPU devices deadlock. The optimisation level keeps compile times short.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("NPROC", "16")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=1"
).strip()

import pathlib  # noqa: E402

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def shared():
    """Folder with the reference vectors and measured data, which tests may do without."""
    here = pathlib.Path(__file__).resolve().parent
    folder = pathlib.Path(os.environ.get("MPI_JAX_SHARED", here.parent.parent / "shared"))
    if not (folder / "golden").is_dir():
        pytest.skip(f"reference data not found in {folder} (set MPI_JAX_SHARED)")
    return folder
