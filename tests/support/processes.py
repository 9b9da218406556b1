"""Work folders copied, and command lines run in all processes of a cluster."""

import os
import shutil
import socket


def copy_run(trained, folder):
    """What an evaluation takes of a run."""
    folder.mkdir()
    for name in ("config.json", "weights.safetensors"):
        shutil.copy(trained / name, folder)
    return folder


def together(command, *each):
    """Run a command line in each process; returns (exit code, stdout, stderr) of each.

    command: the fixture.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = dict(os.environ, JAX_NUM_CPU_DEVICES="1")
    cluster = {
        "MPI_JAX_COORDINATOR": f"127.0.0.1:{port}",
        "MPI_JAX_NUM_PROCESSES": str(len(each)),
    }
    processes = [
        command(
            *words,
            background=True,
            env={**here, **cluster, "MPI_JAX_PROCESS_ID": str(n)},
        )
        for n, words in enumerate(each)
    ]
    try:
        said = [process.communicate(timeout=400) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, *words) for p, words in zip(processes, said, strict=True)]
