"""Processes on this machine and jobs of SLURM, run for real; all scripts as text."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import time

import pytest
from support.launching import (
    ENVIRONMENT,
    LAUNCH,
    PYTHON,
    ROOT,
    STEPS,
    TRAIN,
    local,
    run,
    tool,
    wait_for,
)

from mpi_jax.cli.main import read

SCRIPTS = sorted(
    [*LAUNCH.rglob("*.sh"), *LAUNCH.rglob("*.sbatch"), ROOT / ".ci" / "run"]
)


# --- Scripts as text


def test_the_scripts_are_those_of_the_readme():
    named = {path.relative_to(LAUNCH) for path in SCRIPTS if LAUNCH in path.parents}
    text = (LAUNCH / "README.md").read_text()
    assert len(named) == 6 and all(str(path) in text for path in named)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(path):
    assert run(["bash", "-n", path]).returncode == 0
    checked = run([tool("shellcheck"), path])
    assert checked.returncode == 0, checked.stdout


# --- One machine


def test_local_tells_every_process_who_it_is():
    names = "$MPI_JAX_PROCESS_ID $MPI_JAX_NUM_PROCESSES $MPI_JAX_COORDINATOR"
    done = local(3, "--", "bash", "-c", f"echo {names}")
    assert done.returncode == 0, done.stderr
    lines = sorted(line.split() for line in done.stdout.splitlines())
    assert [line[:2] for line in lines] == [["0", "3"], ["1", "3"], ["2", "3"]]
    (address,) = {line[2] for line in lines}
    assert re.fullmatch(r"127\.0\.0\.1:\d+", address)


def test_local_shares_the_gpus_out():
    environment = ENVIRONMENT | {"CUDA_VISIBLE_DEVICES": "0,1,4,5", "JAX_PLATFORMS": ""}
    echo = ["--", "bash", "-c", "echo $MPI_JAX_PROCESS_ID $CUDA_VISIBLE_DEVICES"]
    done = local(2, *echo, env=environment)
    assert sorted(done.stdout.splitlines()) == ["0 0,1", "1 4,5"]
    done = local(3, *echo, env=environment)
    assert done.returncode == 2 and "divides 4 GPUs, got 3" in done.stderr


@pytest.mark.parametrize("words", [(), (2,), (2, "--"), (0, "--", "ls"), (2, "ls")])
def test_local_says_what_it_expects(words):
    done = local(*words)
    assert done.returncode == 2 and "expected N -- COMMAND" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_local_ends_all_when_one_fails():
    """One that ignores TERM, too, after the time that it has for words of its own."""
    here = "trap '' TERM; ((MPI_JAX_PROCESS_ID)) && exit 7; sleep 300"
    start = time.monotonic()
    assert local(2, "--", "bash", "-c", here).returncode == 7
    assert 8 < time.monotonic() - start < 30


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_local_passes_signals_on(number, tmp_path):
    heard = (
        f"trap 'echo heard >{tmp_path}/$MPI_JAX_PROCESS_ID; exit 75' {number.name[3:]}"
    )
    here = f"{heard}; touch {tmp_path}/at$MPI_JAX_PROCESS_ID; sleep 300 & wait"
    words = [LAUNCH / "local.sh", "2", "--", "bash", "-c", here]
    process = subprocess.Popen(words, start_new_session=True)
    wait_for(lambda: len(list(tmp_path.glob("at*"))) == 2, 30, "processes")
    process.send_signal(number)
    assert process.wait(30) == 75
    assert (tmp_path / "0").exists() and (tmp_path / "1").exists()


def digest(folder):
    return hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()


def test_local_trains_with_two_processes(never_stopped):
    (start,) = json.loads((never_stopped / "config.json").read_text())["starts"]
    assert len(start["hosts"]) == 2 and start["devices"] == "4 x cpu"
    assert (never_stopped / "weights.safetensors").exists()


# --- SLURM


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Runs a command on a cluster of two nodes of this machine."""
    path = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
    for name in ("slurmctld", "munged"):
        if shutil.which(name, path=path) is None:
            pytest.skip(f"{name}: not installed (apt-get install slurm-wlm munge)")
    if os.geteuid() != 0:
        pytest.skip("a cluster of SLURM needs root here")
    folder = tmp_path_factory.mktemp("slurm")
    script = LAUNCH / "mini_slurm.sh"
    started = run([script, "start", folder])
    assert started.returncode == 0, started.stderr
    environment = ENVIRONMENT | {"SLURM_CONF": started.stdout.strip()}

    def on_cluster(*words):
        done = run(words, env=environment)
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout.strip()

    yield on_cluster
    run([script, "stop", folder])


def state_of(slurm, job):
    return re.search(r"JobState=(\w+)", slurm("scontrol", "show", "job", job))[1]


def submit(slurm, log, *words):
    """A job of two tasks on one node without GPUs; its number."""
    place = ["--nodes=1", "--ntasks-per-node=2", "--gres=none", "--cpus-per-task=1"]
    options = ["--parsable", f"--output={log}", *place]
    return slurm("sbatch", *options, LAUNCH / "slurm.sbatch", *words)


def test_slurm_stops_queues_again_and_ends_with_the_same_bits(
    slurm, never_stopped, tmp_path
):
    folder, log = tmp_path / "run", tmp_path / "log"
    train = [PYTHON, "-m", "mpi_jax", *TRAIN, "--workdir", folder, "--resume"]
    job = submit(slurm, log, *train)
    metrics = folder / "metrics.jsonl"

    def steps():
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        return [json.loads(line)["step"] for line in lines]

    def running():
        assert state_of(slurm, job) in ("PENDING", "RUNNING"), log.read_text()
        return steps()

    wait_for(running, 500, "step of training")  # compilation is over
    start = time.monotonic()
    slurm("scancel", "--signal=TERM", job)
    wait_for(lambda: state_of(slurm, job) != "RUNNING", 30, "end after TERM")
    seconds = time.monotonic() - start
    said = log.read_text()
    stopped = int(re.search(r"stopped after step (\d+)", said)[1])
    assert 2 <= stopped < STEPS and f"job {job} queues again" in said, said
    assert seconds <= 10, said
    wait_for(lambda: state_of(slurm, job) == "COMPLETED", 500, "end of the job")
    starts = json.loads((folder / "config.json").read_text())["starts"]
    assert [one["step"] for one in starts] == [0, stopped]
    assert steps()[-1] == STEPS
    assert digest(folder) == digest(never_stopped)


def test_slurm_ends_with_a_failure_and_for_scancel(slurm, tmp_path):
    """No job that failed, or that somebody has cancelled, is queued again."""
    fails = submit(
        slurm, tmp_path / "fails", "bash", "-c", "exit $((3 * SLURM_PROCID))"
    )
    wait_for(lambda: state_of(slurm, fails) == "FAILED", 30, "failure")
    assert "ExitCode=3:0" in slurm("scontrol", "show", "job", fails)
    saves = "trap 'exit 75' TERM; echo there; sleep 300 & wait"
    job = submit(slurm, log := tmp_path / "cancelled", "bash", "-c", saves)
    wait_for(lambda: log.exists() and log.read_text().count("there") == 2, 30, "tasks")
    slurm("scancel", job)
    wait_for(lambda: state_of(slurm, job) == "CANCELLED", 30, "end")
    assert "Restarts=0" in slurm("scontrol", "show", "job", job)


def test_slurm_trains_a_table_as_an_array(slurm, tmp_path):
    """Which commands it starts, and that they are those of tools/table.py."""
    program = tmp_path / "bin" / "mpi-jax"
    program.parent.mkdir()
    program.write_text(
        f'#!/usr/bin/env bash\necho "$*" >{tmp_path}/$SLURM_ARRAY_TASK_ID\n'
    )
    program.chmod(0o755)
    words = [
        "--table",
        "paper",
        "--workdir",
        tmp_path / "runs",
        "--rows",
        "unet",
        "dual",
    ]
    words += ["--seeds", "0", "3", "--steps", "7"]
    options = ["--gres=none", "--cpus-per-task=1", f"--output={tmp_path}/log_%a"]
    options.append(f"--export=ALL,PATH={program.parent}:{os.environ['PATH']}")
    script = LAUNCH / "slurm_table.sbatch"
    slurm("sbatch", "--wait", "--array=0-3", *options, script, *words)
    commands = [(tmp_path / str(n)).read_text().split() for n in range(4)]
    options = [read(verb, rest) for verb, *rest in commands]
    rows = [(f"{row}_{seed}", seed) for seed in (0, 3) for row in ("unet", "dual")]
    found = [(one.workdir.name, one.overrides.seed) for one in options]
    assert found == rows
    assert [one.config for one in options] == ["paper_unet", "paper"] * 2
    assert all(one.resume and one.overrides.steps == 7 for one in options)


@pytest.mark.parametrize(
    ("words", "array", "message"),
    [
        (
            "--table t --workdir w --rows a b --seeds 0",
            (2, 1),
            "--array=0-1 for 2 rows",
        ),
        (
            "--table t --workdir w --rows a b --seeds 0",
            (3, 0),
            "--array=0-1 for 2 rows",
        ),
        ("--table t --workdir w --rows a", (1, 0), "expected --table, --workdir"),
    ],
)
def test_slurm_table_says_what_it_expects(words, array, message):
    count, least = map(str, array)
    environment = ENVIRONMENT | {
        "SLURM_ARRAY_TASK_COUNT": count,
        "SLURM_ARRAY_TASK_MIN": least,
    }
    script = LAUNCH / "slurm_table.sbatch"
    done = run(["bash", script, *words.split()], env=environment)
    assert done.returncode == 2 and message in done.stderr
