"""Data sets: built, stopped, built again, read back; the stream and the files agree."""

import dataclasses
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpi_jax import configs, data, mdf, open_mpi, phantoms, scanner, system_matrix

tfds = pytest.importorskip(
    "tensorflow_datasets", reason="needs tensorflow-datasets: pip install mpi_jax[data]"
)
pytest.importorskip(
    "array_record", reason="needs array_record: pip install array_record"
)
DATASETS = Path(__file__).resolve().parent.parent / "datasets"


@pytest.fixture(scope="module", autouse=True)
def builders():
    with pytest.MonkeyPatch.context() as patch:
        for folder in ("", "mpi_phantoms", "open_mpi"):
            patch.syspath_prepend(str(DATASETS / folder))
        tfds.disable_progress_bar()
        yield


def digests(folder):
    """SHA-1 of every file below a folder, by name."""
    return {
        str(path.relative_to(folder)): hashlib.sha1(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def build_command(tmp_path_factory):
    """Start datasets/build.py as a user does; what one compiled the next need not."""
    cache = tmp_path_factory.mktemp("compiled")
    environment = dict(
        os.environ,
        JAX_NUM_CPU_DEVICES="1",
        PYTHONPATH=os.pathsep.join([str(DATASETS.parent), *filter(None, sys.path)]),
        JAX_COMPILATION_CACHE_DIR=str(cache),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1",
    )
    words = [sys.executable, str(DATASETS / "build.py"), "mpi_phantoms"]
    words += ["--config", "test_signals", "--workers", "1", "--data-dir"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return lambda root: subprocess.Popen([*words, str(root)], env=environment, **pipes)


def finished(process):
    """The folder that a build names."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return Path(out.splitlines()[-1])


@pytest.fixture(scope="module")
def built(build_command, tmp_path_factory):
    """Folder of the data set `test_signals`."""
    return finished(build_command(tmp_path_factory.mktemp("built")))


def test_killed_and_built_again(built, build_command, tmp_path):
    """kill -9 after the first part, and then the same bytes."""
    process = build_command(tmp_path)
    home = tmp_path / "mpi_phantoms"
    parts = home / ".parts-test_signals-1.0.0"
    ends = time.monotonic() + 200
    while not list(parts.glob("train-*.npz")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < ends
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert not (home / "test_signals/1.0.0").exists()
    # What a stop may leave: half a file under either name, and half a data set.
    (parts / ".train-0000012.npz.1").write_bytes(b"PK")
    (parts / "train-0000036.npz").write_bytes(b"PK")
    (home / "test_signals/1.0.0.incompleteABC").mkdir(parents=True)
    folder = finished(build_command(tmp_path))
    assert digests(folder) == digests(built)
    assert [path.name for path in folder.parent.iterdir()] == ["1.0.0"]
    assert not parts.exists()


def test_records(built):
    """Balanced, in order, with signals by the physics; TensorFlow stays away."""
    matrix = system_matrix.simulate(scanner.paper(32))
    for split, count in (("train", 48), ("test", 12)):
        builder = tfds.builder_from_directory(built)
        source, names = (
            builder.as_data_source(split),
            builder.info.features["family"].names,
        )
        assert len(source) == count and names == list(phantoms.FAMILIES)
        assert [record["index"] for record in source] == list(range(count))
        assert [record["family"] for record in source] == [i % 6 for i in range(count)]
        levels = np.stack([record["image"] for record in source])
        assert levels.dtype == np.uint8 and levels.shape == (count, 32, 32)
        bits = np.unpackbits(np.stack([record["mask"] for record in source]), axis=-1)
        inside = bits.reshape(levels.shape) > 0
        assert levels[inside].min() > 0 and inside.any(axis=(1, 2)).all()
        # Half covered: at least .2 / 2 in an object, nothing far from one.
        assert np.median(levels[inside]) > 5 * np.median(levels[~inside])
        stored = np.stack([record["signal"] for record in source])
        image = jnp.asarray(levels / np.float32(255))
        expected = system_matrix.forward(matrix, image)
        limit = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(stored, expected, rtol=0, atol=limit)
    assert "tensorflow" not in sys.modules


def config_of(source, **settings):
    config = configs.get("test")
    batch = dataclasses.replace(config.data, source=source, batch_size=16, **settings)
    return dataclasses.replace(config, data=batch)


def test_files_and_stream_give_the_same_batches(built):
    """Bits of pictures and of noisy voltages, past the end of the data set."""
    grid = scanner.paper(32).grid
    files = data.training_pictures(config_of("tfds", folder=str(built)), grid)
    stream = data.training_pictures(config_of("stream", images=48), grid)
    for step in (4, 0, 3):  # 48 images are three steps
        (start, ours), (other, theirs) = files(step), stream(step)
        np.testing.assert_array_equal(start, other)
        np.testing.assert_array_equal(start, 16 * step + 2 * np.arange(8))
        for a, b in zip(ours, theirs, strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
    # Shares of two processes with two devices each: the same pictures, in this order.
    _, whole = files(1)
    shares = [
        data.training_pictures(
            config_of("tfds", folder=str(built)), grid, (process, 2), devices=2
        )(1)[1].image
        for process in (0, 1)
    ]
    shares = np.concatenate(shares).reshape(16, 32, 32)
    np.testing.assert_array_equal(shares, whole.image.reshape(16, 32, 32))

    config = configs.get("test")
    forward = data.simulator(config)
    observe = jax.jit(data.observe)
    levels, key = jnp.array([20.0, 60.0]), jax.random.key(3)
    ours, theirs = (
        observe(
            forward, jax.tree.map(lambda a: jnp.asarray(a[3]), made), 70, levels, key
        )
        for made in (files(4)[1], stream(4)[1])
    )
    np.testing.assert_array_equal(ours.voltage, theirs.voltage)
    assert ours.voltage.shape == (2, 2, 1632) and np.isfinite(ours.voltage).all()


def test_left_out_family_and_wrapped_positions(built):
    """Of 25 images five are bars and four vessels: each family starts again by itself."""
    few = ("vessels", "bars")
    bars, vessels = [0, 6, 12, 18, 24], [5, 11, 17, 23]  # of 25 images
    expected = np.stack([bars + bars[:3], 2 * vessels], axis=-1).ravel()
    got = phantoms.indices(np.arange(16), few, 25)
    np.testing.assert_array_equal(got, expected)
    made = data.training_pictures(
        config_of("tfds", folder=str(built), families=few, images=25),
        scanner.paper(32).grid,
    )(0)[1]
    source = tfds.builder_from_directory(built).as_data_source("train")
    for image, family, index in zip(
        made.image.reshape(16, 32, 32), made.family.ravel(), expected, strict=True
    ):
        np.testing.assert_array_equal(image, source[index]["image"])
        assert family == index % 6


def test_twins_are_found(built, monkeypatch):
    import mpi_phantoms_dataset_builder as builder

    assert set(builder.shared_images(built).values()) == {0}

    class Same:
        """Every image once more in the other split, one of them in another grey."""

        def __init__(self, split):
            self.split = split

        def __len__(self):
            return 3

        def __getitems__(self, wanted):
            images = np.zeros((3, 64, 64), np.uint8)
            images[1, :2, :2] = 200
            images[2, :2, :2] = [[90, 110], [100, 100]]  # same means as 100
            if self.split == "test":
                images[2, :2, :2] = 100
            return [{"image": images[i]} for i in wanted]

    class Builder:
        class info:
            features = {"image": np.zeros((64, 64))}

        def as_data_source(self, split):
            return Same(split)

    monkeypatch.setattr(builder.tfds, "builder_from_directory", lambda _: Builder())
    found = builder.shared_images("anywhere")
    assert found["image in train and test"] == 2
    assert found["means in train and test"] == 3
    assert found["means twice in train"] == 0


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"folder": ""}, "data.folder: expected the folder of a data set.*got none"),
        ({"folder": "/nowhere"}, "data.folder: .*got /nowhere"),
        ({"folder": str(DATASETS)}, "expected one data set in .*found none"),
        ({"images": 49}, "data.images: expected at most the 48 training images"),
        ({"images": 5}, "images: expected an integer >= 6, got 5"),
        ({"batch_size": 12}, "data.batch_size: expected a multiple of the 8 devices"),
        ({"families": ("bars", "bars")}, "families: expected different names"),
        ({"families": ("dots",)}, "family: expected one of bars"),
        ({"source": "disk"}, "data.source: expected stream or tfds, got 'disk'"),
        ({"source": "stream"}, "data.folder: only with data.source tfds"),
    ],
)
def test_settings_that_do_not_fit(built, settings, words):
    config = config_of("tfds", folder=str(built))
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, **settings)
    )
    with pytest.raises(ValueError, match=words):
        data.training_pictures(config, scanner.paper(32).grid)


def test_other_sizes_and_other_data_sets(built):
    with pytest.raises(ValueError, match="images of 64 x 64 pixels, those .* 32 x 32"):
        data.Reader(built, "train", (64, 64))
    with pytest.raises(ValueError, match="with a split validation"):
        data.Reader(built, "validation", (32, 32))
    with pytest.raises(ValueError, match="index: expected 0 to 11, .*got 3 to 12"):
        data.Reader(built, "test", (32, 32))(np.array([3, 12]))
    # A folder above the data set serves as well.
    assert len(data.Reader(built.parent.parent, "test", (32, 32))) == 12


def test_metadata():
    valid = Path(tfds.core.__file__).parent / "valid_tags.txt"
    tags = {line.split(" ")[0] for line in valid.read_text().splitlines()}
    for name in ("mpi_phantoms", "open_mpi"):
        folder = DATASETS / name
        assert set((folder / "TAGS.txt").read_text().split()) <= tags
        assert (folder / "CITATIONS.bib").read_text().startswith("@")
        assert (folder / "README.md").read_text().startswith("# ")
    # With one it would shadow a library of that name.
    assert not (DATASETS / "__init__.py").exists()


def test_paper_counts():
    import mpi_phantoms_dataset_builder as builder

    full = builder.VARIANTS["full"][1]
    assert (full.side, full.train, full.test) == (128, 638137, 18233)
    for _, variant in builder.VARIANTS.values():
        for split in ("train", "test"):
            covered = [
                i
                for name, start, count in variant.parts
                if name == split
                for i in (start, start + count)
            ]
            assert covered[0] == 0 and covered[-1] == getattr(variant, split)
            assert covered[1:-1:2] == covered[2::2]


# --- Open MPI Data


@pytest.fixture(scope="module")
def mdf_folder(tmp_path_factory):
    """The 1D files of one phantom with three positions, in Open MPI Data's folders."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "measurements/shapePhantom").mkdir(parents=True)
    (folder / "calibrations").mkdir()
    centres = 1e-3 * np.array([(0.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, -2.0, 1.0)])
    full = open_mpi.SEQUENCES["open_mpi_1d"]
    short = dataclasses.replace(full, patches=centres)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(open_mpi.SEQUENCES, "open_mpi_1d", short)
        open_mpi.write_measurement(
            folder / "measurements/shapePhantom/1.mdf",
            "open_mpi_1d",
            "shape",
            periods=4,
            frames=2,
            snr_db=30.0,
        )
    open_mpi.write_calibration(
        folder / "calibrations/1.mdf", "open_mpi_1d", supersampling=1
    )
    return folder


def build_open_mpi(folder, config, root):
    import open_mpi_dataset_builder as builder

    made = builder.OpenMpi(config=config, data_dir=str(root))
    made.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=str(folder))
    )
    (split,) = made.info.splits
    return list(made.as_data_source(split))


def test_open_mpi_measurements(mdf_folder, tmp_path):
    """Records against means over the arrays that h5py reads."""
    import h5py

    with h5py.File(mdf_folder / "measurements/shapePhantom/1.mdf") as file:
        stored = file["/measurement/data"][()]  # [4 frames, 12 periods, 3, 102]
        factor = file["/acquisition/receiver/dataConversionFactor"][()]
        empty = file["/measurement/isBackgroundFrame"][()].astype(bool)
        offset = file["/acquisition/offsetField"][()].reshape(12, 3)
    u = stored * factor[:, :1] + factor[:, 1:]
    np.testing.assert_array_equal(empty, [False, False, True, True])
    means = build_open_mpi(mdf_folder, "measurement_1d", tmp_path)
    assert len(means) == 3
    for i, record in enumerate(means):
        own = u[:, 4 * i : 4 * i + 4]
        assert record["patch"] == i and record["averages"] == 8
        for name, frames in (("signal", own[:2]), ("background", own[2:])):
            expected = frames.mean(axis=(0, 1))
            limit = 1e-6 * np.abs(expected).max()
            np.testing.assert_allclose(record[name], expected, rtol=0, atol=limit)
        np.testing.assert_allclose(record["offset_field"], offset[4 * i], rtol=1e-6)
    raw = build_open_mpi(mdf_folder, "measurement_1d_raw", tmp_path)
    assert len(raw) == 4 * 12
    for record in raw[::7]:
        frame, period = record["frame"], record["period"]
        np.testing.assert_allclose(record["signal"], u[frame, period], rtol=1e-5)
        assert record["is_background"] == empty[frame]
        assert record["patch"] == period // 4


def test_open_mpi_calibration(mdf_folder, tmp_path):
    """Planes against the whole corrected matrix, put in place by its positions."""
    planes = build_open_mpi(mdf_folder, "calibration_1d_19", tmp_path)
    assert [(r["plane"], r["channel"]) for r in planes[:4]] == [
        (0, 0),
        (0, 1),
        (0, 2),
        (1, 0),
    ]
    assert len(planes) == 19 * 3
    np.testing.assert_allclose([planes[0]["z"], planes[-1]["z"]], [-9e-3, 9e-3])
    file = mdf.read(mdf_folder / "calibrations/1.mdf")
    rows = mdf.system_matrix(file)[0]
    clean = mdf.correct_background(file, rows).reshape(3, 52, 19, 19, 19)
    background = rows[:, 19**3 :].mean(-1).reshape(3, 52)
    for record in planes[::5]:
        channel = record["channel"]
        expected = clean[channel, :, record["plane"], ::-1]  # x fastest, y upwards
        np.testing.assert_array_equal(record["system_matrix"], expected)
        np.testing.assert_allclose(record["background"], background[channel], rtol=1e-5)


def test_open_mpi_complaints(mdf_folder, tmp_path):
    with pytest.raises(
        ValueError, match="measurements/shapePhantom/2.mdf.*Download from"
    ):
        build_open_mpi(mdf_folder, "measurement_2d", tmp_path)
    with pytest.raises(ValueError, match="calibrations/4.mdf: expected this file"):
        build_open_mpi(mdf_folder, "calibration_1d_37", tmp_path)
    (tmp_path / "calibrations").mkdir()
    name = "calibrations/2.mdf"
    (tmp_path / name).write_bytes((mdf_folder / "calibrations/1.mdf").read_bytes())
    with pytest.raises(
        ValueError, match="1632 samples of the 2d sequence, found 3 x 102"
    ):
        build_open_mpi(tmp_path, "calibration_2d_19", tmp_path)


def test_command_complains_in_one_line(tmp_path, capsys):
    import build

    words = ["mpi_phantoms", "--data-dir", str(tmp_path), "--config"]
    assert build.main([*words, "huge"]) == 2
    assert "--config: expected one of full, full_signals" in capsys.readouterr().err
    assert build.main([*words, "test", "--workers", "0"]) == 2
    assert "--workers: expected a number >= 1, got 0" in capsys.readouterr().err
    words[0] = "open_mpi"
    assert build.main([*words, "measurement_1d"]) == 2
    err = capsys.readouterr().err
    assert (
        err.startswith("build.py: --from: expected a folder") and err.count("\n") == 1
    )
