"""tensorflow-datasets builder of the phantoms: no TensorFlow, nothing downloaded.

Image i of a split is image i of mpi_jax.phantoms, and record i of the files.
"""

from pathlib import Path

import numpy as np
import phantom_parts
import tensorflow_datasets as tfds

from mpi_jax import phantoms

_HERE = Path(__file__).parent

# name -> (what it is for, what is drawn)
VARIANTS = {
    "full": (
        "the paper's numbers of images, 128 x 128",
        phantom_parts.Variant(128, 638_137, 18_233),
    ),
    "full_signals": (
        "the same with noise-free signals",
        phantom_parts.Variant(128, 638_137, 18_233, signals=True),
    ),
    "small": ("6,000 images of 128 x 128", phantom_parts.Variant(128, 5_400, 600)),
    "small_signals": (
        "the same with noise-free signals",
        phantom_parts.Variant(128, 5_400, 600, signals=True),
    ),
    "side64": (
        "64 x 64, one epoch of the training config small64",
        phantom_parts.Variant(64, 76_800, 6_000),
    ),
    "side32": (
        "32 x 32, one epoch of the training config small",
        phantom_parts.Variant(32, 10_800, 600),
    ),
    "test": (
        "60 images of 32 x 32, for tests",
        phantom_parts.Variant(32, 48, 12, part=12),
    ),
    "test_signals": (
        "the same with noise-free signals",
        phantom_parts.Variant(32, 48, 12, signals=True, part=12),
    ),
}


class MpiPhantoms(tfds.core.GeneratorBasedBuilder):
    """Phantoms of magnetic particle imaging, with masks and, if wanted, signals."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name=name, description=words)
        for name, (words, _) in VARIANTS.items()
    ]

    def __init__(self, *, file_format="array_record", **kwargs):
        # The default format, tfrecord, needs TensorFlow.
        super().__init__(file_format=file_format, **kwargs)

    @property
    def variant(self) -> phantom_parts.Variant:
        return VARIANTS[self.builder_config.name][1]

    @property
    def parts(self) -> Path:
        """Folder of the parts while the data set is being built."""
        root, config = Path(self._data_dir_root), self.builder_config.name
        return root / self.name / f".parts-{config}-{self.version}"

    def _info(self):
        raw, side = tfds.features.Encoding.BYTES, self.variant.side
        features = {
            "image": tfds.features.Tensor(
                shape=(side, side),
                dtype=np.uint8,
                encoding=raw,
                doc="concentration in steps of 1/255, row 0 at the largest y",
            ),
            "mask": tfds.features.Tensor(
                shape=(side * side // 8,),
                dtype=np.uint8,
                encoding=raw,
                doc="numpy.packbits of the pixels that the phantom covers, row by row",
            ),
            "family": tfds.features.ClassLabel(names=list(phantoms.FAMILIES)),
            "index": tfds.features.Scalar(
                dtype=np.int32, doc="of the image in its split"
            ),
        }
        if self.variant.signals:
            features["signal"] = tfds.features.Tensor(
                shape=(2, 1632),
                dtype=np.float32,
                encoding=raw,
                doc="noise-free voltage of scanner.paper, tensor model: receive channels "
                "x, y by samples of one period [A m^2 / s per unit sensitivity: the "
                "time derivative of the moment, a pixel of concentration 1 having the "
                "tracer's moment once]",
            )
        return tfds.core.DatasetInfo(
            builder=self,
            description=(_HERE / "README.md").read_text(),
            citation=(_HERE / "CITATIONS.bib").read_text(),
            license="MIT",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,  # record i is image i
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in ("train", "test")}

    def _generate_examples(self, split):
        phantom_parts.prepare(self.variant, self.parts)
        total = getattr(self.variant, split)
        # Keys order the records, and their high bits choose one of the buckets in which
        # 12 GB are sorted: small numbers would all meet in the first.
        step = 2**128 // total
        for part in self.variant.parts:
            if part[0] != split:
                continue
            arrays = phantom_parts.load(self.variant, self.parts, *part)
            for i in range(part[2]):
                index = part[1] + i
                record = {field: array[i] for field, array in arrays.items()}
                yield index * step, {**record, "index": index}


def shared_images(folder: str | Path) -> dict[str, int]:
    """How many images of a built data set have a twin, by hash: of the image itself and
    of its 32 x 32 means, each within a split and across the two.
    """
    import hashlib

    builder = tfds.builder_from_directory(folder)
    side = builder.info.features["image"].shape[0]
    window = max(1, side // 32)
    by_kind = {"image": {}, "means": {}}
    for split in ("train", "test"):
        source = builder.as_data_source(split)
        digests = {kind: [] for kind in by_kind}
        for start in range(0, len(source), 512):
            stop = min(start + 512, len(source))
            records = source.__getitems__(list(range(start, stop)))
            images = np.stack([record["image"] for record in records])
            cells = images.reshape(len(images), side // window, window, -1, window)
            means = np.rint(cells.mean(axis=(2, 4))).astype(np.uint8)
            for kind, arrays in (("image", images), ("means", means)):
                digests[kind] += [
                    hashlib.blake2b(a.tobytes(), digest_size=12).digest()
                    for a in arrays
                ]
        for kind, hashes in digests.items():
            by_kind[kind][split] = hashes
    report = {}
    for kind, splits in by_kind.items():
        for split, hashes in splits.items():
            report[f"{kind} twice in {split}"] = len(hashes) - len(set(hashes))
        shared = set(splits["train"]) & set(splits["test"])
        report[f"{kind} in train and test"] = len(shared)
    return report
