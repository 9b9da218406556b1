"""The command line: verbs to library calls. The only place that parses and prints.

Exit codes: 0 done, 2 bad input (one line on stderr says what), 1 anything else.
"""

from __future__ import annotations

import errno
import os
import sys

from mpi_jax.cli.environment import keep_memory, quick_compilation
from mpi_jax.cli.parser import _parser


def main(arguments: list[str] | None = None) -> int:
    """Run a command line (default: sys.argv); returns the exit code."""
    keep_memory()
    quick_compilation()
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        options, rest = _parser().parse_known_args(arguments)
        if rest and options.verb not in ("train", "reconstruct"):
            raise ValueError(f"unknown arguments: {' '.join(rest)}")
        options.rest = rest
        options.run(options)
        return 0
    except SystemExit as stop:  # argparse: --help, --version, or bad usage
        return int(stop.code or 0)
    except KeyboardInterrupt:
        print("mpi-jax: interrupted; finished work is kept", file=sys.stderr)
        return 130
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("MPI_JAX_TRACEBACK"):
            raise
        print(f"mpi-jax: {_one_line(error)}", file=sys.stderr)
        return 1 if isinstance(error, FloatingPointError) else 2


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename else ""
        if error.errno == errno.ENOSPC and error.filename:
            return f"{where}no space left on the disk"
        return f"{where}{error.strerror}"
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main())
