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
    folder = pathlib.Path(
        os.environ.get("MPI_JAX_SHARED", here.parent.parent / "shared")
    )
    if not (folder / "golden").is_dir():
        pytest.skip(f"reference data not found in {folder} (set MPI_JAX_SHARED)")
    return folder


@pytest.fixture(scope="session")
def command(tmp_path_factory):
    """Run mpi-jax as a user does: another process, one device; returns what came of it."""
    import subprocess
    import sys

    cache = tmp_path_factory.mktemp("compiled")
    environment = dict(
        os.environ,
        JAX_NUM_CPU_DEVICES="1",
        # Later runs take over what the first one compiled.
        JAX_COMPILATION_CACHE_DIR=str(cache),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1",
    )

    def run(*arguments, background=False, before=None):
        words = [sys.executable, "-m", "mpi_jax", *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(words, env=environment, preexec_fn=before, **pipes)
        if background:
            return process
        out, err = process.communicate(timeout=540)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    return run


@pytest.fixture(scope="session")
def trained(command, tmp_path_factory):
    """Work folder of the config `test`, trained from start to end."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    done = command("train", "--config", "test", "--workdir", folder)
    assert done.returncode == 0, done.stderr
    return folder
