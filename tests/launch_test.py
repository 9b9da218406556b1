"""What launch/ holds: run for real where that is possible, else checked offline."""

import configparser
import copy
import hashlib
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import jsonschema
import pytest
import yaml
from support.jobset_schema import SCHEMA

from mpi_jax import cluster
from mpi_jax.cli.main import read

ROOT = pathlib.Path(__file__).resolve().parent.parent
LAUNCH = ROOT / "launch"
SCRIPTS = sorted(
    [*LAUNCH.rglob("*.sh"), *LAUNCH.rglob("*.sbatch"), ROOT / ".ci" / "run"]
)
PYTHON = pathlib.Path(sys.executable)
# One processor device for each process; NPROC as conftest says.
ENVIRONMENT = dict(os.environ, JAX_NUM_CPU_DEVICES="1")


def tool(name):
    """A program that the test extra installs beside Python."""
    beside = PYTHON.parent / name
    return str(beside) if beside.exists() else shutil.which(name)


def run(words, **options):
    options = {"env": ENVIRONMENT, "cwd": ROOT, "timeout": 540} | options
    words = [str(word) for word in words]
    return subprocess.run(words, text=True, capture_output=True, **options)


def wait_for(condition, seconds, what):
    until = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < until, f"no {what} within {seconds} s"
        time.sleep(0.1)
    return value


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


def local(*words, **options):
    return run([LAUNCH / "local.sh", *words], **options)


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
    assert 9 < time.monotonic() - start < 30


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


# A run of two processes, with no checkpoint but where it stops or ends.
STEPS = 60
TRAIN = ["train", "--config", "test", "--steps", STEPS, "--checkpoint-every", 1000]


def digest(folder):
    return hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory):
    """The work folder of two processes that local.sh started."""
    folder = tmp_path_factory.mktemp("local") / "run"
    words = [2, "--", PYTHON, "-m", "mpi_jax", *TRAIN, "--workdir", folder]
    done = local(*words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("validation PSNR") == 1  # the lead alone prints
    return folder


def test_local_trains_with_two_processes(never_stopped):
    (start,) = json.loads((never_stopped / "config.json").read_text())["starts"]
    assert len(start["hosts"]) == 2
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


# --- Kubernetes


@pytest.fixture(scope="module")
def jobset():
    return yaml.safe_load((LAUNCH / "kubernetes" / "jobset.yaml").read_text())


def test_jobset_has_the_fields_of_its_schema(jobset):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(jobset, SCHEMA)


def test_the_schema_sees_misspelt_fields(jobset):
    """At every depth: a field more, and each required one less."""

    def objects(tree):
        if isinstance(tree, dict):
            yield tree
        for part in tree.values() if isinstance(tree, dict) else tree:
            if isinstance(part, dict | list):
                yield from objects(part)

    count = len(list(objects(jobset)))
    free = 0  # limits of resources have names of any kind
    for number in range(count):
        damaged = copy.deepcopy(jobset)
        list(objects(damaged))[number]["parallelizm"] = 2
        free += jsonschema.Draft202012Validator(SCHEMA).is_valid(damaged)
    assert count > 15 and free == 1


def test_jobset_gives_every_pod_its_place(jobset):
    """Names as the JobSet controller gives them: NAME-JOB-REPLICA-INDEX.SUBDOMAIN."""
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    environment = {one["name"]: one["value"] for one in container["env"]}
    count = spec["completions"]
    assert count == spec["parallelism"] and spec["completionMode"] == "Indexed"
    subdomain = jobset["spec"]["network"]["subdomain"]
    first = f"{jobset['metadata']['name']}-{job['name']}-0-0.{subdomain}"
    port = container["ports"][0]["containerPort"]
    for index in range(count):
        place = cluster.place(environment | {"JOB_COMPLETION_INDEX": str(index)})
        assert place == cluster.Place(count, index, f"{first}:{port}")


def test_jobset_goes_on_after_a_stop(jobset):
    (job,) = jobset["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    program, verb, *words = container["command"]
    options = read(verb, words)
    assert program == "mpi-jax" and options.resume
    mounts = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
    claims = [v["name"] for v in pod["volumes"] if "persistentVolumeClaim" in v]
    assert mounts[str(options.workdir.parent)] in claims
    (rule,) = job["template"]["spec"]["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert rule["onExitCodes"]["values"] == [75]


def test_the_image_is_built_by_the_steps_of_the_readme():
    path = LAUNCH / "kubernetes" / "Dockerfile"
    checked = run([tool("hadolint"), path])
    assert checked.returncode == 0, checked.stdout
    text = path.read_text()
    steps = re.search(r"^RUN (.*?[^\\])\n", text, re.M | re.S)[1]
    steps = [step.strip(" \\\n") for step in steps.split("&&")]
    steps[-1] = steps[-1].replace('--no-cache-dir ".[$EXTRA]"', ".")
    assert "```sh\n" + "\n".join(steps) + "\n" in (ROOT / "README.md").read_text()
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"]
    assert re.search(r"^ARG EXTRA=(\S+)", text, re.M)[1] in extras and "tpu" in extras


# --- TPU

GCLOUD = """#!/usr/bin/env bash
# Notes its words; what it shall run on the hosts, it runs here.
{ printf '%s\\037' "$@"; printf '\\036'; } >>"$NOTES"
case "$*" in
*describe*) sed -n 1p "$STATES"; sed -i 1d "$STATES" ;;
*'tpu-vm ssh'*) for word in "$@"; do
    if [[ $word == --command=* ]]; then cd "$HOST" && exec bash -c "${word#*=}"; fi
done ;;
esac
"""


@pytest.fixture
def tpu_vm(tmp_path):
    """Runs a verb with a gcloud that is none; returns what came, and gcloud's words."""
    (tmp_path / "bin").mkdir()
    host = tmp_path / "host"
    (host / ".venv" / "bin").mkdir(parents=True)
    (host / ".venv" / "bin" / "activate").touch()
    for name, text in {"gcloud": GCLOUD, "sudo": "#!/bin/sh\necho sudo $*\n"}.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    notes, states = tmp_path / "notes", tmp_path / "states"
    environment = ENVIRONMENT | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "NOTES": str(notes),
        "STATES": str(states),
        "HOST": str(host),
        "POLL_S": "0",
        "NAME": "slice",
        "ZONE": "us-west4-a",
    }

    def tpu(*words, queue=(), **settings):
        notes.write_text("")
        states.write_text("".join(f"{state}\n" for state in queue))
        done = run([LAUNCH / "tpu_vm.sh", *words], env=environment | settings)
        called = notes.read_text().split("\036")[:-1]
        return done, [words.split("\037")[:-1] for words in called]

    tpu.host = host
    return tpu


def test_tpu_waits_in_the_queue(tpu_vm):
    queue = ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    done, (first, *rest) = tpu_vm("create", queue=queue, SPOT="1")
    assert done.returncode == 0 and len(rest) == 3
    assert first[:5] == ["compute", "tpus", "queued-resources", "create", "slice"]
    assert {"--node-id=slice", "--accelerator-type=v5litepod-16", "--spot"} <= set(
        first
    )
    assert "--runtime-version=v2-alpha-tpuv5-lite" in first
    done, _ = tpu_vm("create", queue=["FAILED"])
    assert done.returncode == 2 and "the queue says FAILED" in done.stderr


def test_tpu_starts_and_stops_on_all_hosts(tpu_vm):
    """Words with blanks arrive as they were; the process gets TERM and may save."""
    program = 'trap \'echo saved >>"$0"; exit 75\' TERM; echo $MPI_JAX_CLUSTER >"$0"; '
    out = tpu_vm.host / "a file"
    done, (words,) = tpu_vm("run", "bash", "-c", program + "sleep 300 & wait", "a file")
    assert done.returncode == 0 and {"ssh", "--worker=all"} <= set(words)
    wait_for(lambda: out.exists() and out.read_text(), 30, "start")
    done, (words,) = tpu_vm("stop")
    assert done.returncode == 0 and "--worker=all" in words
    wait_for(lambda: out.read_text() == "tpu\nsaved\n", 30, "end")
    done, (words,) = tpu_vm("log")
    assert done.returncode == 0 and "--worker=0" in words


def test_tpu_installs_this_repository_with_a_shared_disk(tpu_vm):
    pip = tpu_vm.host.parent / "bin" / "pip"
    pip.write_text("#!/bin/sh\necho pip $*; test -e mpi_jax/setup.cfg\n")
    pip.chmod(0o755)
    # The hosts' archive comes by scp, which gcloud here doesn't do.
    archive = ["git", "archive", "--prefix=mpi_jax/", "HEAD", "setup.cfg"]
    if run(archive).returncode:
        pytest.skip("not a git checkout")
    run([*archive, "-o", tpu_vm.host / "mpi_jax.tar"])
    (tpu_vm.host.parent / "bin" / "python3").symlink_to("/bin/true")
    (tpu_vm.host.parent / "bin" / "mountpoint").symlink_to("/bin/false")
    done, (copy_words, _) = tpu_vm("install", SHARE="10.0.0.2:/my runs")
    assert done.returncode == 0, done.stderr
    assert copy_words[-3:] == ["slice:", "--zone=us-west4-a", "--worker=all"]
    assert "pip install --quiet ./mpi_jax[tpu]" in done.stdout
    assert "sudo mount -t nfs 10.0.0.2:/my runs /mnt/runs" in done.stdout


@pytest.mark.parametrize(
    ("words", "settings", "message"),
    [
        (["fly"], {}, "expected create, install"),
        (["create"], {"ZONE": ""}, "the variables NAME and ZONE"),
        (["run"], {}, "run: expected a command"),
        (["stop", "now"], {}, "stop: expected no more words"),
        (["install"], {}, "expected SHARE"),
    ],
)
def test_tpu_says_what_it_expects(tpu_vm, words, settings, message):
    done, called = tpu_vm(*words, **settings)
    assert done.returncode == 2 and message in done.stderr and not called


XPK = {
    "NAME": "tg128",
    "CLUSTER": "pod",
    "PROJECT": "project",
    "ZONE": "us-west4-a",
    "IMAGE": "registry.example.com/mpi_jax:tpu",
    "STORAGE": "runs",
}


def test_xpk_command():
    """The exact command; xpk itself checks it where it is installed."""
    train = ["mpi-jax", "train", "--config", "paper", "--workdir", "/mnt/runs/a b"]
    done = run([LAUNCH / "xpk.sh", "--dry-run", *train], env=ENVIRONMENT | XPK)
    assert done.returncode == 0, done.stdout + done.stderr
    assert shlex.split(done.stdout.splitlines()[0]) == [
        *("xpk", "workload", "create", "--workload=tg128", "--cluster=pod"),
        *("--project=project", "--zone=us-west4-a"),
        "--docker-image=registry.example.com/mpi_jax:tpu",
        *("--tpu-type=v5litepod-16", "--num-slices=1", "--storage=runs"),
        *("--env=MPI_JAX_CLUSTER=tpu", "--max-restarts=100"),
        *("--restart-on-exit-codes=75", "--termination-grace-period-seconds=120"),
        r"--command=mpi-jax train --config paper --workdir /mnt/runs/a\ b",
    ]
    if shutil.which("xpk"):
        assert "Exiting XPK cleanly" in done.stdout


def test_xpk_says_what_it_expects():
    environment = ENVIRONMENT | XPK | {"IMAGE": ""}
    done = run([LAUNCH / "xpk.sh", "--dry-run", "mpi-jax"], env=environment)
    assert done.returncode == 2 and "expected the variable IMAGE" in done.stderr
    assert run([LAUNCH / "xpk.sh"]).returncode == 2
