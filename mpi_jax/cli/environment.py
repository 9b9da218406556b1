"""What is set before JAX starts: memory, compiled programs."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
from pathlib import Path


def keep_memory() -> None:
    """Let glibc keep freed blocks instead of handing them back to the system.

    XLA allocates its buffers anew in every step; fetching their pages again costs a
    fifth of a training step on CPU.
    """
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-8, 1)  # M_ARENA_MAX: one arena, which can grow without bound
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD [bytes]
        mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD [bytes]


def quick_compilation() -> None:
    """Compile for short waits: programs are kept for the next time, and optimised less
    where only the CPU is there.

    Kept in ~/.cache/mpi_jax, or where JAX_COMPILATION_CACHE_DIR says. XLA's full CPU
    optimisation takes several times longer to compile a network and doesn't make it
    faster; it is left alone on accelerators and where XLA_FLAGS is set.
    """
    accelerators = (
        "jax_cuda12_plugin",
        "jax_cuda13_plugin",
        "libtpu",
        "jax_rocm7_plugin",
    )
    if not any(importlib.util.find_spec(name) for name in accelerators):
        os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1")
    with contextlib.suppress(OSError, RuntimeError):  # no home, or not ours to write
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        programs = Path(cache) / "mpi_jax"
        programs.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(programs))
