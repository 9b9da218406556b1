"""Train learned rows of Table 1 with one budget, and measure them all in one table.

    python tools/table.py --table table32 --workdir runs/table32 [--rows dual physics ...]
        [--seeds 0 1 2] [--budgets 10000 100000 ...] [--num 600]
        [--methods xspace kaczmarz ...] [--steps 700 ...]

One run after the other, each in a process of its own, in WORKDIR/ROW_SEED. Stopped at any
time, the same command goes on from the last checkpoint. --budgets: each row is trained on
so many images, too, in WORKDIR/ROW_SEED_IMAGES, for the page's curves. Options that are not named here
go to `mpi-jax train`, the same for every row. At the end `mpi-jax evaluate` and `report`
put all rows, and the classical methods, into WORKDIR/ROW_SEED of the first of them.
"""

import argparse
import pathlib
import subprocess
import sys

from mpi_jax import configs


def mpi_jax(*words):
    """Run the command line in a process of its own; ends this one where it fails."""
    completed = subprocess.run([sys.executable, "-m", "mpi_jax", *map(str, words)])
    if completed.returncode:
        sys.exit(completed.returncode)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", choices=configs.TABLES, required=True)
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--rows", nargs="+", choices=configs.LEARNED)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    words = "images of further trainings of each row, in its config's batches"
    parser.add_argument("--budgets", nargs="+", type=int, default=[], help=words)
    parser.add_argument("--num", type=int, default=600, help="test images")
    parser.add_argument("--methods", nargs="+", help="see mpi-jax evaluate --help")
    options, rest = parser.parse_known_args()
    # The first row is the one that figures show; paper itself is its dual-task row.
    rows = options.rows or sorted(configs.LEARNED, key=lambda row: row != "physics")
    names = {row: f"{options.table}_{row}" for row in rows}
    if options.table == "paper" and "dual" in names:
        names["dual"] = "paper"
    runs = []
    for seed in options.seeds:
        for row, name in names.items():
            size = configs.get(name).data.batch_size
            folder = options.workdir / f"{row}_{seed}"
            for images in (None, *options.budgets):
                runs.append(folder if images is None else f"{folder}_{images}")
                place = ["--workdir", runs[-1], "--resume", "--seed", seed]
                fewer = [] if images is None else ["--steps", -(-images // size)]
                mpi_jax("train", "--config", name, *place, *rest, *fewer)
    words = ["--workdir", runs[0], "--num", options.num]
    words += ["--runs", *runs[1:]] if runs[1:] else []
    words += ["--methods", *options.methods] if options.methods else []
    mpi_jax("evaluate", *words)
    mpi_jax("report", "--workdir", runs[0])


if __name__ == "__main__":
    main()
