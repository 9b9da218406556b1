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


def places(count):
    """Variables of each of some processes on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "MPI_JAX_COORDINATOR": f"127.0.0.1:{port}",
        "MPI_JAX_NUM_PROCESSES": str(count),
    }
    return [common | {"MPI_JAX_PROCESS_ID": str(index)} for index in range(count)]


def finish(processes):
    """(exit code, stdout, stderr) of each."""
    try:
        said = [process.communicate(timeout=500) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, *words) for p, words in zip(processes, said, strict=True)]


def together(command, *each):
    """Run a command line in each process; returns (exit code, stdout, stderr) of each.

    command: the fixture.
    """
    here = dict(os.environ, JAX_NUM_CPU_DEVICES="1")
    return finish(
        [
            command(*words, background=True, env=here | place)
            for words, place in zip(each, places(len(each)), strict=True)
        ]
    )
