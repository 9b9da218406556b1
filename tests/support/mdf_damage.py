"""Damaged MDF files by a seed, and all that a user may do with one."""

import warnings

import h5py
import numpy as np
from support.mdf_files import SPARSE, C, J, K, build, calibration, fields, version_1

from mpi_jax import mdf


def exercise(path):
    """All that a user does with a file; only ValueError and OSError may come out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = None

        def read():
            nonlocal file
            file = mdf.read(path)

        for use in (
            lambda: mdf.check(path),
            read,
            lambda: mdf.signals(file),
            lambda: mdf.spectra(file, frames=0),
            lambda: mdf.correct_background(file, mdf.system_matrix(file)),
            lambda: mdf.snr(file),
            lambda: mdf.grid(file),
            lambda: mdf.images(file),
        ):
            try:
                use()
            except (ValueError, OSError) as error:
                words = str(error)
                assert str(path) in words and "\n" not in words, words
                if file is None and use is read:
                    break


def seeds(folder):
    """Small files of each kind, one of them in compressed chunks."""
    contents = [
        fields(),
        calibration(),
        calibration(
            measurement__data=np.ones((J, C, K, 7), "c8"),
            background=4,
            **SPARSE
            | dict(measurement__subsamplingIndices=np.ones((J, C, K, 3), np.int64)),
        ),
        version_1(),
        fields(
            reconstruction__data=np.ones((1, 6, 1), "f4"),
            reconstruction__size=np.array([3, 2, 1]),
            reconstruction___parameters__lam=0.1,
        ),
    ]
    paths = [build(folder / f"seed{i}.mdf", c) for i, c in enumerate(contents)]
    with h5py.File(paths[0], "a") as file:
        data = file["measurement/data"][()]
        del file["measurement/data"]
        options = dict(chunks=(2, 1, 2, 3), compression="gzip", fletcher32=True)
        file.create_dataset("measurement/data", data=data, **options)
    return paths


def flip_bytes(rng, path):
    content = bytearray(path.read_bytes())
    # Half of the damage where HDF5 keeps its own structures.
    end = len(content) if rng.random() < 0.5 else min(3000, len(content))
    for place in rng.integers(0, end, size=2 ** rng.integers(0, 8)):
        content[place] = rng.choice([0, 1, 127, 255, rng.integers(256)])
    path.write_bytes(content)


def truncate(rng, path):
    content = path.read_bytes()
    path.write_bytes(content[: rng.integers(len(content))])


def restructure(rng, path):
    """Drop, retype, reshape, link or declare something enormous."""
    with h5py.File(path, "a") as file:
        names = []
        file.visititems(
            lambda name, found: (
                names.append(name) if isinstance(found, h5py.Dataset) else None
            )
        )
        chosen = rng.choice(names, size=rng.integers(1, 4), replace=False)
        values = {name: file[name][()] for name in chosen}
        for name, value in values.items():
            parent = name.rpartition("/")[0] or "/"
            kind = rng.integers(14)
            if kind == 13:  # the whole group
                name = parent if parent != "/" else name
            if name not in file:
                continue
            del file[name]
            huge = (2**20, 2**20, 2**12)
            number = (
                isinstance(value, (np.ndarray, np.number)) and value.dtype != object
            )
            match kind:
                case 0:
                    file[name] = "text"
                case 1:
                    file[name] = np.float64(rng.choice([np.nan, np.inf, -1, 0, 1e300]))
                case 2:
                    file[name] = np.int64(rng.choice([-1, 0, 2**40, 2**62]))
                case 3:
                    file[name] = np.array(value)[None]
                case 4:
                    file[name] = np.array(value).ravel()[:-1]
                case 5:
                    file[name] = h5py.SoftLink("/" + name)
                case 6:
                    file[name] = h5py.ExternalLink(path.name, "/" + name)
                case 7:
                    file[name] = file["/"]  # a cycle
                case 8:
                    file.create_dataset(name, huge, "f8", chunks=(16, 16, 16))
                case 9:
                    file.create_dataset(name, data=file["/"].ref, dtype=h5py.ref_dtype)
                case 10:
                    file[name] = h5py.Empty("f8")
                case 11:
                    file[name] = np.array(value) * 1e12 if number else np.bytes_("x")
                case 12:
                    file.create_dataset(name, (2**22,) * 3, "i1")
                case _:
                    pass


def damage(seed, paths, path):
    rng = np.random.default_rng(seed)
    path.write_bytes(paths[seed % len(paths)].read_bytes())
    [flip_bytes, truncate, restructure][seed // len(paths) % 3](rng, path)
