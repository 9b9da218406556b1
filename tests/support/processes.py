"""Work folders copied, and command lines run in all processes of a cluster."""

import os
import shutil

from mpi_jax.cluster import local_places


def copy_run(trained, folder):
    """What an evaluation takes of a run."""
    folder.mkdir()
    for name in ("config.json", "weights.safetensors"):
        shutil.copy(trained / name, folder)
    return folder


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
            for words, place in zip(each, local_places(len(each)), strict=True)
        ]
    )
