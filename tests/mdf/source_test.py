"""Files that are damaged, cut or no MDF at all end in one clear line."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest
from support.mdf_files import fields

from mpi_jax import mdf


def test_damage_ends_in_one_clear_line(tmp_path):
    """In a process of its own with little memory and time: HDF5 itself may crash."""
    code = f"""
import resource, signal, sys, pathlib
sys.path.insert(0, {str(pathlib.Path(__file__).parents[1])!r})
from support import mdf_damage
folder = pathlib.Path({str(tmp_path)!r})
limit = 3 * 2**30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
paths = mdf_damage.seeds(folder)
for seed in range(150):
    print(seed, flush=True)
    signal.alarm(60)
    path = folder / "damaged.mdf"
    mdf_damage.damage(seed, paths, path)
    mdf_damage.exercise(path)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=540
    )
    seed = done.stdout.split()[-1:]
    assert done.returncode == 0, (seed, done.returncode, done.stderr[-2000:])


def test_what_is_no_mdf_file(tmp_path, new_file):
    cases = {
        "empty": b"",
        "text": b"not HDF5" * 100,
        "signature": b"\x89HDF\r\n\x1a\n",
    }
    for name, content in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ValueError, match=str(path)):
            mdf.read(path)
    with pytest.raises(FileNotFoundError, match="absent"):
        mdf.read(tmp_path / "absent.mdf")
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        mdf.read(tmp_path)
    with pytest.raises(ValueError, match="/version"):
        mdf.read(new_file({"/matrix": np.zeros(3)}))


def test_a_text_heap_larger_than_the_file_is_refused(new_file):
    path = new_file(fields())
    content = bytearray(path.read_bytes())
    place = content.index(b"GCOL") + 8
    content[place : place + 8] = (2**40).to_bytes(8, "little")
    path.write_bytes(content)
    with pytest.raises(ValueError, match="heap"):
        mdf.read(path)
