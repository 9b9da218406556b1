"""Test setting: eight simulated CPU devices, strict ranks, and what all workers share."""

import atexit
import os
import shutil
import tempfile

# Before JAX starts. NPROC: with fewer threads than twice the devices, queued collectives
# of simulated CPU devices deadlock. The optimisation level keeps compile times short.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("NPROC", "16")
# JAX would set 1, and processes that tests start would inherit it, unlike a user's.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
FLAG = "--xla_backend_optimization_level=1"
if FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAG}".strip()

# What one test or process compiled the others need not: half of the time is compilation.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="mpi_jax_tests_")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import contextlib  # noqa: E402
import fcntl  # noqa: E402
import pathlib  # noqa: E402

import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

pytest.register_assert_rewrite("support")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x64():
    """Double precision, so that arithmetic by hand agrees to rounding."""
    with jax.enable_x64(True):
        yield


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
def command():
    """Run mpi-jax as a user does: another process, one device; returns what came of it."""
    import subprocess
    import sys

    environment = dict(os.environ, JAX_NUM_CPU_DEVICES="1")

    def run(*arguments, background=False, before=None, env=environment):
        words = [sys.executable, "-m", "mpi_jax", *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(words, env=env, preexec_fn=before, **pipes)
        if background:
            return process
        out, err = process.communicate(timeout=540)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    return run


@pytest.fixture(scope="session")
def common(tmp_path_factory):
    """A temporary folder of all workers."""
    place = tmp_path_factory.getbasetemp()
    return place.parent if "PYTEST_XDIST_WORKER" in os.environ else place


@pytest.fixture(scope="session")
def alone(common):
    """`with alone(name)`: one worker at a time, and the next finds what it left."""

    @contextlib.contextmanager
    def enter(name):
        with open(common / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    return enter


@pytest.fixture(scope="session")
def trained(command, common, alone):
    """Work folder of the config `test`, trained from start to end."""
    folder = common / "trained" / "run"
    with alone("trained"):
        if not folder.exists():
            folder.parent.mkdir(exist_ok=True)
            done = command("train", "--config", "test", "--workdir", folder)
            assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def never_stopped(common, alone):
    """Work folder of two processes of two devices each, which local.sh started."""
    from support.launching import PYTHON, TRAIN, local

    folder = common / "never_stopped" / "run"
    with alone("never_stopped"):
        if not folder.exists():
            folder.parent.mkdir(exist_ok=True)
            words = [2, "--", PYTHON, "-m", "mpi_jax", *TRAIN, "--workdir", folder]
            done = local(*words)
            assert done.returncode == 0, done.stderr
            assert done.stdout.count("validation PSNR") == 1  # the lead alone prints
    return folder


@pytest.fixture(scope="session")
def calibrated_folder(common, alone):
    """A small calibration and a measurement in three positions, in Open MPI's layout."""
    from support import calibrated_scanner

    folder = common / "calibrated"
    with alone("calibrated"):
        if not folder.exists():
            calibrated_scanner.write_files(folder)
    return folder


@pytest.fixture(scope="session")
def calibrated_config(calibrated_folder):
    """The config `open_mpi` with the middle plane of that calibration."""
    from support import calibrated_scanner

    return calibrated_scanner.config_of(calibrated_folder)


@pytest.fixture
def unannotated():
    """Without the tests' type checker: users have none, and meet the checks alone."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
