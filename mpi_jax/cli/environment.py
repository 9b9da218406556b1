"""What is set before JAX starts: memory, compiled programs, what XLA says of itself."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
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

    Kept in a folder of `programs_folder`, or where JAX_COMPILATION_CACHE_DIR says. XLA's
    full CPU optimisation takes several times longer to compile a network and doesn't
    make it faster; it is left alone on accelerators and where XLA_FLAGS is set. XLA's
    own log is left out, which tells of every program that it loads again; where
    TF_CPP_MIN_LOG_LEVEL is set to more or less than JAX's own 1, it is as that says.
    """
    # 1 is what JAX sets, and what the processes that a Python program starts inherit.
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    accelerators = (
        "jax_cuda12_plugin",
        "jax_cuda13_plugin",
        "libtpu",
        "jax_rocm7_plugin",
    )
    if not any(importlib.util.find_spec(name) for name in accelerators):
        os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1")
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    with contextlib.suppress(OSError, RuntimeError):  # no home, or not ours to write
        folder = programs_folder()
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)


def programs_folder() -> Path:
    """Where compiled programs are kept: ~/.cache/mpi_jax, in a folder for this jaxlib
    and this processor, for other ones can't run them.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "mpi_jax" / f"jaxlib-{_jaxlib()}-{_processor()}"


def _jaxlib() -> str:
    try:
        return importlib.metadata.version("jaxlib")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _processor() -> str:
    """Eight letters for the instructions that the processor has."""
    flags = platform.machine() + platform.processor()
    with contextlib.suppress(OSError):  # Linux alone tells them as a file
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        listed = [n for n in lines if n.startswith(("flags", "Features"))]
        flags += " ".join(sorted(set(" ".join(listed[:1]).split())))
    return hashlib.sha256(flags.encode()).hexdigest()[:8]
