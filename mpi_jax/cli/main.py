"""The command line: verbs to library calls. The only place that parses and prints.

Exit codes: 0 done, 2 bad input (one line on stderr says what), 1 anything else, 75 training
stopped by a signal with everything saved, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import sys
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from types import ModuleType

import mpi_jax
from mpi_jax._progress import Stopped
from mpi_jax._spelling import expect_one_of
from mpi_jax.cli.environment import keep_memory, quick_compilation

STOPPED = 75  # exit code, which launchers take as a wish to be started again
# Verb -> module of that name, with its `Options`, `run` and, where the defaults of a verb
# hang on its arguments, `defaults`.
VERBS = (
    "demo",
    "simulate",
    "reconstruct",
    "check",
    "train",
    "evaluate",
    "generalise",
    "figure3",
    "report",
    "configs",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (default: sys.argv); returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        with _warnings_in_one_line():
            _run(arguments)
        return 0
    except SystemExit as stop:  # --help of a verb
        return int(stop.code or 0)
    except Stopped as stop:
        from mpi_jax import cluster

        if cluster.is_lead():
            print(f"mpi-jax: {stop}", file=sys.stderr)
        return STOPPED
    except KeyboardInterrupt:
        print("mpi-jax: interrupted; finished work is kept", file=sys.stderr)
        return 130
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("MPI_JAX_TRACEBACK"):
            raise
        print(f"mpi-jax: {_one_line(error)}", file=sys.stderr)
        return 1 if isinstance(error, FloatingPointError) else 2


def _run(arguments: Sequence[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return
    if arguments[0] == "--version":
        print(mpi_jax.__version__)
        return
    verb, *rest = arguments
    options = read(verb, rest)
    keep_memory()
    quick_compilation()
    _module(verb).run(options)


def read(verb: str, arguments: Sequence[str]) -> object:
    """The options of a verb out of its arguments, an instance of its `Options`.

    Raises ValueError in one line for unknown verbs and arguments that can't be read.
    """
    from mpi_jax.cli.options import parse

    expect_one_of("verb", verb, VERBS)
    module = _module(verb)
    defaults = module.defaults(arguments) if hasattr(module, "defaults") else {}
    return parse(module.Options, arguments, verb, defaults)


def _module(verb: str) -> ModuleType:
    return importlib.import_module(f"mpi_jax.cli.{verb}")


def _help() -> str:
    """The verbs, each with the first sentence of its options."""
    lines = [
        "usage: mpi-jax VERB [OPTIONS]",
        "",
        "Magnetic Particle Imaging in JAX: simulate, reconstruct, train, evaluate, report.",
        "(Not the message-passing interface.) mpi-jax VERB --help tells its options.",
        "",
    ]
    for verb in VERBS:
        words = " ".join((_module(verb).Options.__doc__ or "").split())
        first = words.partition(". ")[0].rstrip(".") + "."
        lines += textwrap.wrap(
            first, 79, initial_indent=f"  {verb:13}", subsequent_indent=15 * " "
        )
    return "\n".join(
        [
            *lines,
            "",
            "  --version    print the version",
            "",
            "Exit codes: 0 done, 2 bad input, 1 anything else, 75 training stopped by a",
            "signal with everything saved, 130 interrupted.",
            "MPI_JAX_TRACEBACK=1 shows where an error came from.",
        ]
    )


@contextlib.contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Warnings without the source code that raised them."""
    before = warnings.formatwarning

    def line(message: Warning | str, *_: object, **__: object) -> str:
        return f"mpi-jax: warning: {' '.join(str(message).split())}\n"

    warnings.formatwarning = line
    try:
        yield
    finally:
        warnings.formatwarning = before


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename else ""
        if error.errno == errno.ENOSPC and error.filename:
            return f"{where}no space left on the disk"
        return f"{where}{error.strerror}"
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main())
