"""Kubernetes, TPU hosts and GKE: what can be checked without them."""

import configparser
import copy
import os
import re
import shlex
import shutil

import jsonschema
import pytest
import yaml
from support.jobset_schema import SCHEMA
from support.launching import ENVIRONMENT, LAUNCH, ROOT, run, tool, wait_for

from mpi_jax import cluster
from mpi_jax.cli.main import read

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
