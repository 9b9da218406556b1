"""Several processes: who is who, one fails, one is told to stop, training together."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from support.launching import TRAIN
from support.processes import finish

from mpi_jax import cluster, pretrained

SLURM = {"SLURM_NTASKS": "4", "SLURM_JOB_ID": "7", "SLURM_PROCID": "1"}
INSIDE = SLURM | {"SLURM_STEP_NODELIST": "n1", "SLURM_LOCALID": "1"}
OURS = {"MPI_JAX_NUM_PROCESSES": "2", "MPI_JAX_COORDINATOR": "n1:99"}
ONE = cluster.Place(1, 0, None)
TWO = cluster.Place(2, 1, "n1:99")
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}


@pytest.mark.parametrize(
    "environment, expected",
    [
        ({}, ONE),
        ({"MPI_JAX_NUM_PROCESSES": "1"}, ONE),
        (OURS | {"MPI_JAX_PROCESS_ID": "1"}, TWO),
        (OURS | {"JOB_COMPLETION_INDEX": "1"}, TWO),
        (OURS | OPEN_MPI, TWO),
        (OURS | SLURM, TWO),
        (OPEN_MPI | {"MPI_JAX_COORDINATOR": "n1:99"}, TWO),
        (INSIDE, cluster.Place()),
        # A step of one task, or a job that asks for one process alone.
        (INSIDE | {"SLURM_NTASKS": "1"}, ONE),
        (SLURM | {"MPI_JAX_NUM_PROCESSES": "1"}, ONE),
        ({"JOB_COMPLETION_INDEX": "0"}, ONE),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, cluster.Place()),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, ONE),
        ({"MPI_JAX_CLUSTER": "tpu"}, cluster.Place()),
    ],
)
def test_who_a_process_is(environment, expected):
    assert cluster.place(environment) == expected


def test_processes_of_one_host_meet_without_being_told_where():
    local = OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "PMIX_NAMESPACE": "job1"}
    one, other = cluster.place(local), cluster.place(local | {"PMIX_NAMESPACE": "job2"})
    assert one.coordinator.startswith("127.0.0.1:")
    assert one.coordinator != other.coordinator
    with pytest.raises(ValueError, match="missing MPI_JAX_COORDINATOR"):
        cluster.place(local | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"})


@pytest.mark.parametrize(
    "environment, words",
    [
        (
            OURS,
            "found .*NUM_PROCESSES = 2, .*COORDINATOR = n1:99; missing .*PROCESS_ID",
        ),
        ({"MPI_JAX_COORDINATOR": "n1:99"}, "missing .*NUM_PROCESSES, .*PROCESS_ID"),
        ({"MPI_JAX_PROCESS_ID": "0"}, "found .*PROCESS_ID = 0; missing"),
        (SLURM, "found SLURM_NTASKS = 4; missing .*STEP_NODELIST.* start with srun"),
        (OURS | {"MPI_JAX_PROCESS_ID": "2"}, "expected 0 to 1 of 2 processes, got 2"),
        (
            OURS | {"MPI_JAX_PROCESS_ID": "one"},
            "expected a whole number >= 0, got 'one'",
        ),
        (
            OURS | {"MPI_JAX_PROCESS_ID": "1", "MPI_JAX_COORDINATOR": "n1"},
            "expected host:port of process 0, got n1",
        ),
        ({"MPI_JAX_CLUSTER": "moon"}, "expected tpu or nothing, got moon"),
    ],
)
def test_what_is_missing_is_said_in_one_line(environment, words):
    with pytest.raises(ValueError, match=words) as error:
        cluster.place(environment)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_one_process_agrees_with_itself():
    assert cluster.gather("a") == ["a"] and cluster.is_lead()
    cluster.check_equal("config", "a")
    with pytest.raises(OSError, match="no"):
        cluster.on_lead(lambda: (_ for _ in ()).throw(OSError("no")))
    assert not cluster.stop_requested(0)


def test_signals_are_kept_for_the_step_and_the_second_interrupts():
    before = signal.getsignal(signal.SIGTERM)
    with cluster.join(stops=True):
        assert not cluster.stop_requested(0)
        os.kill(os.getpid(), signal.SIGTERM)
        assert cluster.stop_requested(1)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert signal.getsignal(signal.SIGTERM) is before


# --- Two processes


def start(words, count=2, devices=1, cwd=None):
    """The processes of a command, one for each of `count`."""
    common = dict(os.environ, JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES=str(devices))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [
        subprocess.Popen(
            [sys.executable, *map(str, words)], cwd=cwd, env=common | place, **pipes
        )
        for place in cluster.local_places(count)
    ]


def test_a_host_without_an_address_is_said_soon(monkeypatch):
    monkeypatch.setattr(cluster, "_RESOLVE_S", 1.0)
    for name, value in cluster.local_places(2)[1].items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MPI_JAX_COORDINATOR", "train-0.nowhere.invalid:9000")
    began = time.monotonic()
    words = "MPI_JAX_COORDINATOR.*train-0.nowhere.invalid has no address after 1 s"
    with pytest.raises(ValueError, match=words), cluster.join():
        pass
    assert time.monotonic() - began < 20


SUM_UNTIL_KILLED = """
import time
from mpi_jax import cluster
with cluster.join():
    import jax
    total = jax.pmap(lambda x: jax.lax.psum(x, "i"), "i")
    while True:
        float(total(jax.numpy.ones(1))[0])
        print("ready", flush=True)
        time.sleep(.1)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_is_gone_is_named_by_the_others(number):
    """Killed, it breaks the computation at once; stopped, it leaves the others waiting."""
    processes = start(["-c", SUM_UNTIL_KILLED])
    try:
        for process in processes:
            assert any(line.startswith("ready") for line in process.stdout)
        processes[1].send_signal(number)
        began = time.monotonic()
        _, said = processes[0].communicate(timeout=120)
        seconds = time.monotonic() - began
    finally:
        for process in processes:
            process.kill()
    assert processes[0].returncode == 1
    last = said.splitlines()[-1]
    assert last.startswith("mpi-jax: process 1 on ") and "no sign of life" in last
    assert "Traceback" not in said
    assert seconds < (25 if number == signal.SIGKILL else 80)


AGREE = """
import sys, time
from mpi_jax import cluster
from mpi_jax._progress import Stopped
fails = sys.argv[1]
try:
    with cluster.join(stops=True):
        import jax
        index = str(jax.process_index())
        assert cluster.gather(index) == ["0", "1"] and jax.device_count() == 2
        try:
            cluster.check_equal("word", index)
        except ValueError as error:
            print(error)
        try:
            cluster.on_lead(lambda: open("/nowhere/at all"))
        except (ValueError, OSError) as error:
            print(type(error).__name__, error)
        print("ready", flush=True)
        if fails == index:
            raise ValueError(f"{index} has an empty disk")
        for step in range(1000):
            if cluster.stop_requested(step):
                raise Stopped(step)
            time.sleep(.02)
except ValueError as error:
    print("mpi-jax:", error, file=sys.stderr)
    sys.exit(2)
except Stopped as stop:
    print("stopped", stop)
    sys.exit(75)
"""


@pytest.mark.parametrize("fails", ["0", "1"])
def test_an_error_of_one_is_the_end_of_all_in_its_words(fails):
    began = time.monotonic()
    ended = finish(start(["-c", AGREE, fails]))
    assert time.monotonic() - began < 60
    for index, (code, out, error) in enumerate(ended):
        assert code == 2
        assert "word: expected the same on all 2 processes; process 0 has 0" in out
        assert "No such file" in out
        told = "" if str(index) == fails else f"process {fails}: "
        assert error.splitlines()[-1] == f"mpi-jax: {told}{fails} has an empty disk"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_stops_all_after_the_same_step(number):
    processes = start(["-c", AGREE, "none"])
    for line in processes[1].stdout:
        if line.startswith("ready"):
            break
    processes[1].send_signal(number)
    ended = finish(processes)
    assert [code for code, *_ in ended] == [75, 75]
    steps = [out.split("stopped ")[1] for _, out, _ in ended]
    assert steps[0] == steps[1]


def result(folder):
    """Weights and losses of a training."""
    weights, _ = pretrained.load_weights(folder / "weights.safetensors")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line).get("generator_loss") for line in lines]
    return jax.tree.leaves(weights), [loss for loss in losses if loss is not None]


def largest_difference(a, b):
    return max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True))


def test_processes_train_as_devices_do(never_stopped, tmp_path):
    """2 x 2 devices against 1 x 4. That eight devices equal one is in train/step_test.py,
    what a stop leaves in launch_test.py.
    """
    words = ["-m", "mpi_jax", *TRAIN, "--workdir", tmp_path / "run"]
    ((code, _, error),) = finish(start(words, count=1, devices=4))
    assert code == 0, error
    two, losses = result(never_stopped)
    four, losses_of_four = result(tmp_path / "run")
    # Rounding grows from step to step: lines are means over two steps each.
    np.testing.assert_allclose(losses[:4], losses_of_four[:4], rtol=3e-4)
    assert len(losses) == len(losses_of_four)
    scale = max(float(np.abs(leaf).max()) for leaf in four)
    assert largest_difference(two, four) < 0.02 * scale


def test_a_folder_of_one_process_alone_is_refused_by_all(tmp_path):
    for name in "01":
        (tmp_path / name).mkdir()
    script = (
        "import os, sys; os.chdir(os.environ['MPI_JAX_PROCESS_ID']); "
        "from mpi_jax.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    processes = start(["-c", script, *TRAIN, "--workdir", "run"], cwd=tmp_path)
    for code, _, error in finish(processes):
        assert code == 2
        assert "expected a folder that all processes share, but process 1" in error
        assert len(error.splitlines()[-1]) < 300
