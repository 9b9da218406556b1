"""tensorflow-datasets builder of Open MPI Data's MDF files: reads a folder, no network.

Knopp et al. 2020, Data in Brief 28:104971; CC BY 4.0.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from mpi_jax import mdf

_HERE = Path(__file__).parent
PHANTOMS = ("shape", "resolution", "concentration")
SAMPLES = {"1d": 102, "2d": 1632, "3d": 53856}  # of one period
_MEASUREMENTS = {"1d": 1, "2d": 2, "3d": 3}  # number of the file
_CALIBRATIONS = {("1d", 19): 1, ("2d", 19): 2, ("3d", 19): 3} | {
    ("1d", 37): 4,
    ("2d", 37): 5,
    ("3d", 37): 6,
}
INSTRUCTIONS = (
    "Download from http://media.tuhh.de/ibi/openMPIData/data/ what the config needs, "
    "keeping the names: measurements/{shapePhantom,resolutionPhantom,"
    "concentrationPhantom}/{1,2,3}.mdf (1D, 2D, 3D sequence), calibrations/1.mdf to "
    "3.mdf (19 voxels along an axis) and 4.mdf to 6.mdf (37)."
)
_BLOCK = 2**26  # numbers read at once

# name -> (kind, sequence, voxels along an axis)
CONFIGS = {
    f"measurement_{s}{more}": (f"measurement{more}", s, 0)
    for s in SAMPLES
    for more in ("", "_raw")
} | {f"calibration_{s}_{n}": ("calibration", s, n) for s, n in _CALIBRATIONS}


class OpenMpi(tfds.core.GeneratorBasedBuilder):
    """Measurements and calibrations of three phantoms by a preclinical MPI scanner."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = INSTRUCTIONS
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name=name, description=f"{kind}, {s} sequence")
        for name, (kind, s, _) in CONFIGS.items()
    ]

    def __init__(self, *, file_format="array_record", **kwargs):
        # The default format, tfrecord, needs TensorFlow.
        super().__init__(file_format=file_format, **kwargs)

    def _info(self):
        kind, sequence, voxels = CONFIGS[self.builder_config.name]
        samples = SAMPLES[sequence]

        def array(shape, dtype, doc):
            return tfds.features.Tensor(
                shape=shape,
                dtype=dtype,
                encoding=tfds.features.Encoding.BYTES,
                doc=doc,
            )

        def number(doc, dtype=np.int32):
            return tfds.features.Scalar(dtype=dtype, doc=doc)

        if kind == "calibration":
            rows = samples // 2 + 1
            features = {
                "system_matrix": array(
                    (rows, voxels, voxels),
                    np.complex64,
                    "[K, ny, nx] of one plane and receive channel, row 0 at the largest "
                    "y; unnormalised rfft of the signal [V * samples] per delta sample, "
                    "without the background as interpolated in time",
                ),
                "background": array(
                    (rows,), np.complex64, "mean of the background frames [V * samples]"
                ),
                "plane": number("from 0, along z"),
                "z": number("of the plane [m]", np.float32),
                "channel": number("receive channel, from 0"),
            }
        else:
            features = {
                "signal": array((3, samples), np.float32, "voltage [V], [C, V]"),
                "phantom": tfds.features.ClassLabel(names=list(PHANTOMS)),
                "patch": number("position in the order of acquisition, from 0"),
                "offset_field": array((3,), np.float32, "selection field's offset [T]"),
            }
            if kind == "measurement":
                features["signal"] = array(
                    (3, samples),
                    np.float32,
                    "voltage [V], [C, V]: mean of the position's periods and of the "
                    "foreground frames, background left in",
                )
                features["background"] = array(
                    (3, samples),
                    np.float32,
                    "the same mean of the background frames [V]",
                )
                features["averages"] = number("periods in the mean of the signal")
            else:
                features["frame"] = number("as stored, from 0")
                features["period"] = number("of the frame, from 0")
                features["is_background"] = number("1: without tracer", np.uint8)
        return tfds.core.DatasetInfo(
            builder=self,
            description=(_HERE / "README.md").read_text(),
            citation=(_HERE / "CITATIONS.bib").read_text(),
            homepage="https://magneticparticleimaging.github.io/OpenMPIData.jl/",
            license="CC BY 4.0",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        kind, sequence, voxels = CONFIGS[self.builder_config.name]
        folder = Path(dl_manager.manual_dir)
        if kind == "calibration":
            path = folder / "calibrations" / f"{_CALIBRATIONS[sequence, voxels]}.mdf"
            return {"train": self._generate_examples(_planes(path, sequence, voxels))}
        read = _means if kind == "measurement" else _periods
        number = _MEASUREMENTS[sequence]
        paths = {
            name: folder / "measurements" / f"{name}Phantom" / f"{number}.mdf"
            for name in PHANTOMS
        }
        existing = {name: path for name, path in paths.items() if path.exists()}
        if not existing:
            raise ValueError(
                f"{folder}: expected at least one of "
                f"{', '.join(str(p.relative_to(folder)) for p in paths.values())}. "
                f"{INSTRUCTIONS}"
            )
        return {
            "test": self._generate_examples(
                {**record, "phantom": name}
                for name, path in existing.items()
                for record in read(path, sequence)
            )
        }

    def _generate_examples(self, records) -> Iterator[tuple[int, dict]]:
        # Keys order the records; with 2^20 places they reach all of the 1000 buckets
        # in which tensorflow-datasets sorts what doesn't fit into memory.
        for i, record in enumerate(records):
            yield i * 2**108, record


def _read(path, sequence):
    """The header of a file; ValueError where it isn't what its name says."""
    if not path.exists():
        raise ValueError(f"{path}: expected this file, found none. {INSTRUCTIONS}")
    file = mdf.read(path)
    receiver = file.acquisition.receiver
    have = receiver.channels, receiver.samples
    if have != (3, SAMPLES[sequence]):
        raise ValueError(
            f"{path}: expected 3 receive channels x {SAMPLES[sequence]} samples of the "
            f"{sequence} sequence, found {have[0]} x {have[1]}"
        )
    return file


def _patches(file) -> tuple[np.ndarray, np.ndarray]:
    """First period of each run of one offset field [n + 1], its offset field [n, 3] T."""
    offset = file.acquisition.offset_field
    count = file.acquisition.periods
    if offset is None:
        return np.array([0, count]), np.zeros((1, 3), np.float32)
    if offset.shape[1] != 1:
        raise ValueError(
            f"{file.path}: expected one partition of the selection field, found "
            f"{offset.shape[1]}"
        )
    offset = np.asarray(offset[:, 0], np.float32)
    first = np.flatnonzero(np.any(offset[1:] != offset[:-1], axis=1)) + 1
    first = np.concatenate([[0], first])
    return np.append(first, count), offset[first]


def _mean(file, frames, periods) -> np.ndarray:
    """Mean signal [C, V], read a block of frames at a time, summed in float64."""
    a = file.acquisition
    total = np.zeros((a.receiver.channels, a.receiver.samples))
    step = max(1, _BLOCK // (len(periods) * total.size))
    for start in range(0, len(frames), step):
        u = mdf.signals(file, frames=frames[start : start + step], periods=periods)
        total += u.sum(axis=(0, 1), dtype=np.float64)
    return (total / (len(frames) * len(periods))).astype(np.float32)


def _means(path, sequence):
    file = _read(path, sequence)
    m = file.measurement
    if not len(m.foreground) or not len(m.background):
        raise ValueError(
            f"{path}: expected foreground and background frames, found "
            f"{len(m.foreground)} and {len(m.background)}"
        )
    edges, offsets = _patches(file)
    for i, offset in enumerate(offsets):
        periods = np.arange(edges[i], edges[i + 1])
        yield {
            "signal": _mean(file, m.foreground, periods),
            "background": _mean(file, m.background, periods),
            "patch": i,
            "offset_field": offset,
            "averages": len(periods) * len(m.foreground),
        }


def _periods(path, sequence):
    file = _read(path, sequence)
    a, empty = file.acquisition, file.measurement.is_background_frame
    edges, offsets = _patches(file)
    step = max(1, _BLOCK // (3 * a.receiver.samples))
    for frame in mdf.acquisition_order(file):
        for i, offset in enumerate(offsets):
            for start in range(edges[i], edges[i + 1], step):
                periods = np.arange(start, min(start + step, edges[i + 1]))
                u = mdf.signals(file, frames=np.array([frame]), periods=periods)
                for period, signal in zip(periods, u[0], strict=True):
                    yield {
                        "signal": signal.astype(np.float32),
                        "patch": i,
                        "offset_field": offset,
                        "frame": int(frame),
                        "period": int(period),
                        "is_background": int(empty[frame]),
                    }


def _planes(path, sequence, voxels):
    file = _read(path, sequence)
    order = mdf.voxel_order(file)
    if order.shape != (voxels,) * 3:
        raise ValueError(
            f"{path}: expected {voxels} voxels along each axis, found "
            f"{' x '.join(map(str, file.calibration.size))} (x, y, z)"
        )
    z = np.asarray(mdf.grid(file).axes()[2], np.float32)
    for plane, columns in enumerate(order):
        for channel in range(3):
            keep = np.zeros((3, SAMPLES[sequence] // 2 + 1), bool)
            keep[channel] = True
            rows = mdf.system_matrix(file, keep, voxels=columns.ravel())
            if len(rows) != 1:
                raise ValueError(f"{path}: expected one period, found {len(rows)}")
            matrix = mdf.correct_background(file, rows[0], voxels=columns.ravel())
            yield {
                "system_matrix": matrix.reshape(-1, voxels, voxels).astype(
                    np.complex64
                ),
                "background": rows[0, :, columns.size :].mean(-1).astype(np.complex64),
                "plane": plane,
                "z": z[plane],
                "channel": channel,
            }
