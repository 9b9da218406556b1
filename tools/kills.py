"""Kill a training again and again, and see that nothing is lost.

    python tools/kills.py --workdir runs/kills [--kills 100] [--devices 1 2]
        [--stages train evaluate build] [--seed 0]

A small network is trained, evaluated and its data set built once undisturbed. Then the
same is done under signals at random moments: SIGKILL or SIGTERM, to all processes or to
one of them, while it starts, trains, validates or saves; each start goes on with
--resume, with the devices in one process or in two. Trainings follow each other until
there were that many kills of them. Says one JSON line for each that came to its end: the
kills, the step of each start, and whether the last bytes are those of the undisturbed
one. Ends with 1 where they are not, or where a start went on from less than the newest
checkpoint.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

from mpi_jax import cluster

ROOT = pathlib.Path(__file__).resolve().parent.parent
TRAIN = (
    *("train", "--config", "table32_single", "--loss.adversarial", "0", "--resume"),
    *("--generator", "tiny32_single", "--data.signal-norm", "channel"),
    *("--data.batch-size", "16", "--data.images", "0", "--validation-images", "16"),
    *("--optimiser.warmup", "1"),
    *("--steps", "64", "--checkpoint-every", "4", "--validate-every", "16"),
    *("--log-every", "4"),
)
EVALUATE = (
    "evaluate",
    "--num",
    "60",
    "--methods",
    "zero",
    "tikhonov",
    "table32_single",
)
BUILD = ("mpi_phantoms", "--config", "side32", "--workers", "2")


def launch(words, processes=1, devices=1):
    """The processes of one command, quiet; devices: of each."""
    env = dict(os.environ, JAX_NUM_CPU_DEVICES=str(devices), NPROC="16")
    return [
        subprocess.Popen(
            [sys.executable, *map(str, words)],
            env=env | place,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for place in cluster.local_places(processes)
    ]


def finish(processes):
    """Exit codes, and what was said last."""
    outputs = [process.communicate()[1].splitlines() for process in processes]
    return [p.returncode for p in processes], [lines[-1:] for lines in outputs]


def undisturbed(words, layout=(1, 1)):
    """Run to the end; how long it took [s]."""
    began = time.monotonic()
    codes, last_lines = finish(launch(words, *layout))
    if any(codes):
        sys.exit(f"{' '.join(map(str, words))}: ended with {codes}: {last_lines}")
    return time.monotonic() - began


class Disturbed:
    """A command that is killed at random moments until it has come to its end."""

    def __init__(self, words, chance, layouts=((1, 1),), progress=lambda: 0):
        self.words, self.chance, self.progress = words, chance, progress
        self.layouts = layouts
        self.kills, self.begun = 0, []  # begun: the progress at each start

    def run(self, most, longest):
        """Until the end, with at most so many kills; longest: of a start [s]."""
        while True:
            progress = self.progress()
            self.begun.append(progress)
            running = launch(self.words, *self.chance.choice(self.layouts))
            if self.kills < most and self._kill(running, progress, longest):
                self.kills += 1
                finish(running)
                continue
            codes, last_lines = finish(running)
            if not any(codes):
                return
            if set(codes) != {75}:
                sys.exit(f"{' '.join(map(str, self.words))}: {codes}: {last_lines}")

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
            delay = self.chance.random() * longest / 2
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


def trainings(options, devices, chance):
    """Trainings under kills, until there were enough of them."""
    top = options.workdir / f"devices_{devices}"
    words = ("-m", "mpi_jax", *TRAIN, "--workdir")
    layouts = [(n, devices // n) for n in (1, 2) if devices % n == 0]
    ends = [top / f"processes_{n}" for n, _ in layouts]
    longest = 0.0
    for layout, folder in zip(layouts, ends, strict=True):
        longest = max(longest, undisturbed((*words, folder), layout))
    expected, *others = [(end / "weights.safetensors").read_bytes() for end in ends]
    passed = all(report(stage="layouts", same=other == expected) for other in others)
    kills, number = 0, 0
    while kills < options.kills:
        folder = top / f"killed_{number}"
        progress = partial(newest, folder)
        one = Disturbed((*words, folder), chance, layouts, progress)
        one.run(options.kills - kills, longest)
        kills, number = kills + one.kills, number + 1
        starts = json.loads((folder / "config.json").read_text())["starts"]
        steps = [start["step"] for start in starts]
        passed &= report(
            stage="train",
            devices=devices,
            kills=one.kills,
            starts=steps,
            same=(folder / "weights.safetensors").read_bytes() == expected,
        )
        # A start may be killed before it is in the list.
        begun = iter(one.begun)
        passed &= all(step in begun for step in steps)
    return passed


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
    words = "in all; in one process, and in two where they divide it"
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2], help=words)
    stages = ("train", "evaluate", "build")
    parser.add_argument("--stages", nargs="+", choices=stages, default=stages)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance, passed = random.Random(options.seed), True
    if "train" in options.stages:
        for devices in options.devices:
            passed &= trainings(options, devices, chance)
    if "evaluate" in options.stages:
        passed &= evaluations(options, chance)
    if "build" in options.stages:
        passed &= builds(options, chance)
    sys.exit(not passed)


if __name__ == "__main__":
    main()
