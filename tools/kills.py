"""Kill a training again and again, and see that nothing is lost.

    python tools/kills.py --workdir runs/kills [--kills 100] [--processes 1 2] [--devices 1]
        [--stages train evaluate build] [--seed 0]

A small network is trained, evaluated and its data set built once undisturbed. Then the
same is done under signals at random moments: SIGKILL or SIGTERM, to all processes or to
one of them, while it starts, trains, validates or saves; each start goes on with
--resume. Trainings follow each other until there were that many kills of them. Says one
JSON line for each that came to its end: the kills, the steps done twice, and whether the
last bytes are those of the undisturbed one. Ends with 1 where they are not, or where a
start went on from less than the newest checkpoint.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
TRAIN = (
    *("train", "--config", "table32_cnn", "--loss.adversarial", "0", "--resume"),
    *(
        "--data.batch-size",
        "16",
        "--optimiser.warmup",
        "1",
        "--validation-images",
        "16",
    ),
    *("--steps", "60", "--checkpoint-every", "4", "--validate-every", "12"),
    *("--log-every", "4"),
)
EVALUATE = ("evaluate", "--num", "60", "--methods", "zero", "tikhonov", "table32_cnn")
BUILD = ("mpi_phantoms", "--config", "side32", "--workers", "2")


def launch(words, processes, devices):
    """The processes of one command, quiet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = dict(os.environ, JAX_NUM_CPU_DEVICES=str(devices), NPROC="16")
    if processes > 1:
        env |= {
            "MPI_JAX_NUM_PROCESSES": str(processes),
            "MPI_JAX_COORDINATOR": f"127.0.0.1:{port}",
        }
    return [
        subprocess.Popen(
            [sys.executable, *map(str, words)],
            env=env | {"MPI_JAX_PROCESS_ID": str(index)} if processes > 1 else env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(processes)
    ]


def finish(processes):
    """Exit codes, and what was said last."""
    said = [process.communicate()[1].splitlines() for process in processes]
    return [p.returncode for p in processes], [lines[-1:] for lines in said]


def undisturbed(words, processes=1, devices=1):
    """Run to the end; how long it took [s]."""
    began = time.monotonic()
    codes, said = finish(launch(words, processes, devices))
    if any(codes):
        sys.exit(f"{' '.join(map(str, words))}: ended with {codes}: {said}")
    return time.monotonic() - began


class Disturbed:
    """A command that is killed at random moments until it has come to its end."""

    def __init__(self, words, chance, processes=1, devices=1, progress=lambda: 0):
        self.words, self.chance, self.progress = words, chance, progress
        self.processes, self.devices = processes, devices
        self.kills = 0

    def run(self, most, longest):
        """Until the end, with at most so many kills; longest: of a start [s]."""
        while True:
            here = self.progress()
            running = launch(self.words, self.processes, self.devices)
            if self.kills < most and self._kill(running, here, longest):
                self.kills += 1
                finish(running)
                continue
            codes, said = finish(running)
            if not any(codes):
                return
            if set(codes) != {75}:
                sys.exit(f"{' '.join(map(str, self.words))}: {codes}: {said}")

    def _kill(self, running, before, longest):
        """Whether a signal was sent before the end."""
        now = time.monotonic()
        if self.chance.random() < 0.75:  # later than at its start
            while self.progress() <= before and _alive(running):
                if time.monotonic() - now > longest:
                    break
                time.sleep(0.01)
            delay = self.chance.random() * 1.5
        else:
            delay = self.chance.random() * longest
        until = time.monotonic() + delay
        while time.monotonic() < until and _alive(running):
            time.sleep(0.01)
        if not _alive(running):
            return False
        number = self.chance.choice([signal.SIGKILL, signal.SIGTERM])
        one = self.chance.randrange(len(running))
        whom = running if self.chance.random() < 0.5 else [running[one]]
        for process in whom:
            process.send_signal(number)
        return True


def _alive(running):
    return all(process.poll() is None for process in running)


def newest(folder):
    """The newest checkpoint that is whole."""
    steps = (folder / "checkpoints").glob("*/commit_success.txt")
    return max(
        (int(p.parent.name) for p in steps if p.parent.name.isdecimal()), default=0
    )


def numbers(folder):
    """What an evaluation measured, without how long it took."""
    lines = (folder / "evaluation" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(n) | {"seconds_per_image": None} for n in lines]


def content(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def report(**line):
    print(json.dumps(line), flush=True)
    return line["same"]


def trainings(options, processes, chance):
    """Trainings under kills, until there were enough of them."""
    top = options.workdir / f"processes_{processes}"
    words = ("-m", "mpi_jax", *TRAIN, "--workdir")
    whole = top / "whole"
    longest = undisturbed((*words, whole), processes, options.devices)
    longest = min(longest, undisturbed((*words, top / "again"), processes))
    expected = (whole / "weights.safetensors").read_bytes()
    kills, fine, number = 0, True, 0
    while kills < options.kills:
        folder = top / f"killed_{number}"
        one = Disturbed(
            (*words, folder),
            chance,
            processes,
            options.devices,
            lambda folder=folder: newest(folder),
        )
        one.run(options.kills - kills, longest)
        kills, number = kills + one.kills, number + 1
        starts = json.loads((folder / "config.json").read_text())["starts"]
        steps = [start["step"] for start in starts]
        fine &= report(
            stage="train",
            processes=processes,
            kills=one.kills,
            starts=steps,
            back=steps != sorted(steps),
            same=(folder / "weights.safetensors").read_bytes() == expected,
        )
        fine &= steps == sorted(steps)
    return fine


def evaluations(options, chance):
    folder = options.workdir / "evaluated"
    undisturbed(("-m", "mpi_jax", *TRAIN, "--workdir", folder))
    words = ("-m", "mpi_jax", *EVALUATE, "--workdir", folder)
    longest = undisturbed(words)
    expected = numbers(folder)
    shutil.rmtree(folder / "evaluation")
    parts = folder / "evaluation.parts"
    one = Disturbed(words, chance, progress=lambda: len(list(parts.rglob("*.*"))))
    one.run(max(1, options.kills // 10), longest)
    same = numbers(folder) == expected
    return report(stage="evaluate", kills=one.kills, same=same)


def builds(options, chance):
    words = (ROOT / "datasets" / "build.py", *BUILD, "--data-dir")
    longest = undisturbed((*words, options.workdir / "built"))
    one = Disturbed((*words, options.workdir / "killed"), chance)
    one.run(max(1, options.kills // 10), longest)
    same = content(options.workdir / "killed") == content(options.workdir / "built")
    return report(stage="build", kills=one.kills, same=same)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--devices", type=int, default=1, help="of each process")
    stages = ("train", "evaluate", "build")
    parser.add_argument("--stages", nargs="+", choices=stages, default=stages)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance, fine = random.Random(options.seed), True
    if "train" in options.stages:
        for processes in options.processes:
            fine &= trainings(options, processes, chance)
    if "evaluate" in options.stages:
        fine &= evaluations(options, chance)
    if "build" in options.stages:
        fine &= builds(options, chance)
    sys.exit(not fine)


if __name__ == "__main__":
    main()
