"""Starting what launch/ holds, and waiting for it."""

import os
import pathlib
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
PYTHON = pathlib.Path(sys.executable)
# Two processor devices for each process; NPROC as conftest says.
ENVIRONMENT = dict(os.environ, JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES="2")

# A short training, soon compiled, with no checkpoint but where it stops or ends.
STEPS = 12
TRAIN = ["train", "--config", "table32_cnn", "--loss.adversarial", 0]
TRAIN += ["--data.images", 0, "--data.signal-norm", "channel"]
TRAIN += ["--data.batch-size", 16, "--validation-images", 16, "--optimiser.warmup", 1]
TRAIN += ["--steps", STEPS, "--checkpoint-every", 1000, "--log-every", 2]


def tool(name):
    """A program that the test extra installs beside Python."""
    beside = PYTHON.parent / name
    return str(beside) if beside.exists() else shutil.which(name)


def run(words, **options):
    options = {"env": ENVIRONMENT, "cwd": ROOT, "timeout": 540} | options
    words = [str(word) for word in words]
    return subprocess.run(words, text=True, capture_output=True, **options)


def local(*words, **options):
    return run([LAUNCH / "local.sh", *words], **options)


def wait_for(condition, seconds, what):
    until = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < until, f"no {what} within {seconds} s"
        time.sleep(0.1)
    return value
