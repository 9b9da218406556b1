"""Pictures of a data set that tensorflow-datasets built."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Int

from mpi_jax.data.examples import Pictures


class Reader:
    """A split of a built data set, which reads pictures by their index.

    Takes the folder that `datasets/build.py mpi_phantoms` names, or one above it where
    it is the only data set. Raises ValueError where there is none, for another data set
    or other sizes than `shape` (ny, nx), and where tensorflow-datasets is absent.
    """

    def __init__(self, folder: str | Path, split: str, shape: tuple[int, ...]):
        top = Path(folder).expanduser()
        if not folder or not top.is_dir():
            raise ValueError(
                f"data.folder: expected the folder of a data set built by "
                f"datasets/build.py mpi_phantoms, got {folder or 'none'}"
            )
        built = sorted(path.parent for path in top.rglob("dataset_info.json"))
        if len(built) != 1:
            folders = ", ".join(str(path.relative_to(top)) for path in built)
            raise ValueError(
                f"data.folder: expected one data set in {top}, found {folders or 'none'}"
            )
        try:
            import tensorflow_datasets as tfds
        except ImportError:
            raise ValueError(
                "data.source: tfds needs tensorflow-datasets: pip install mpi_jax[data]"
            ) from None
        builder = tfds.builder_from_directory(built[0])
        if builder.name != "mpi_phantoms" or split not in builder.info.splits:
            raise ValueError(
                f"data.folder: expected mpi_phantoms with a split {split}, found "
                f"{builder.name} with {', '.join(builder.info.splits) or 'none'}"
            )
        have = builder.info.features["image"].shape
        if tuple(shape) != have:
            raise ValueError(
                f"data.folder: expected images of {shape[0]} x {shape[1]} pixels, those "
                f"of {top} have {have[0]} x {have[1]}"
            )
        self._folder, self._shape = top, have
        self._records = builder.as_data_source(split)

    def __len__(self) -> int:
        return len(self._records)

    def __call__(self, index: Int[np.ndarray, "*n"]) -> Pictures:
        """Pictures [*n, ...]; ValueError where a record isn't the image it should be."""
        numbers = index.ravel().tolist()
        if min(numbers) < 0 or max(numbers) >= len(self):
            raise ValueError(
                f"index: expected 0 to {len(self) - 1}, the images in {self._folder}; got "
                f"{min(numbers)} to {max(numbers)}"
            )
        records = self._records.__getitems__(numbers)
        for i, record in zip(numbers, records, strict=True):
            if record["index"] != i:
                raise ValueError(
                    f"{self._folder}: expected image {i} in record {i}, found "
                    f"{record['index']}"
                )
        pixels = self._shape[0] * self._shape[1]
        packed = np.stack([record["mask"] for record in records])
        mask = np.unpackbits(packed, axis=-1, count=pixels).astype(bool)
        shape = *index.shape, *self._shape
        return Pictures(
            np.stack([record["image"] for record in records]).reshape(shape),
            mask.reshape(shape),
            np.array([record["family"] for record in records], np.int32).reshape(
                index.shape
            ),
        )
