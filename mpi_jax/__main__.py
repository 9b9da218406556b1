"""``python -m mpi_jax``: the same as the console script ``mpi-jax``."""

import sys

from mpi_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
