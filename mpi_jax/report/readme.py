"""Fill the tables of a page: python -m mpi_jax.report.readme docs/results.md results"""

import sys
from pathlib import Path

from mpi_jax._files import write_atomically
from mpi_jax.report.pages import fill

if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m mpi_jax.report.readme docs/results.md results")
    page, folder = map(Path, sys.argv[1:])
    write_atomically(page, fill(page.read_text(encoding="utf-8"), folder))
