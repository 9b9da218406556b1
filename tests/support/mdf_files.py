"""MDF files of every kind, built dataset by dataset with plain h5py."""

import dataclasses

import h5py
import numpy as np

N, J, C, V = 5, 2, 2, 12
K = V // 2 + 1
BACKGROUND = np.array([0, 1, 0, 0, 1], np.int8)
FACTOR = np.array([[0.5, -3.0], [0.25, 7.0]])


def fields(**changes):
    """A valid measurement, dataset by dataset; keys in changes use __ for /."""
    base = {
        "/version": "2.1.0",
        "/uuid": "0c254785-9b0f-4736-8c36-fc8c7f0a00bb",
        "/time": "2024-02-03T04:05:06.789",
        "/study/name": "study",
        "/study/number": np.int64(3),
        "/study/uuid": "fa608979-2f1e-402a-a722-aa96d06434ca",
        "/study/description": "Gräser",
        "/experiment/name": "experiment",
        "/experiment/number": np.int64(4),
        "/experiment/uuid": "6168df7c-30e3-4efb-aa27-6fd39d84cc66",
        "/experiment/description": "none",
        "/experiment/subject": "phantom",
        "/experiment/isSimulation": np.int8(0),
        "/scanner/facility": "f",
        "/scanner/manufacturer": "m",
        "/scanner/name": "n",
        "/scanner/operator": "o",
        "/scanner/topology": "FFP",
        "/scanner/boreSize": 0.1,
        "/tracer/name": ["Perimag", "Synomag"],
        "/tracer/batch": ["1", "2"],
        "/tracer/vendor": ["a", "b"],
        "/tracer/solute": ["Fe", "Fe"],
        "/tracer/concentration": np.array([0.1, 0.2]),
        "/tracer/volume": np.array([4e-6, 5e-6]),
        "/acquisition/numAverages": np.int64(10),
        "/acquisition/numFrames": np.int64(N),
        "/acquisition/numPeriodsPerFrame": np.int64(J),
        "/acquisition/startTime": "2024-02-03T04:05:06.000",
        "/acquisition/gradient": np.tile(np.diag([-1.0, -1, 2]), (J, 1, 1, 1)),
        "/acquisition/offsetField": np.arange(J * 3.0).reshape(J, 1, 3),
        "/acquisition/drivefield/baseFrequency": 12e3,
        "/acquisition/drivefield/cycle": 1e-3,
        "/acquisition/drivefield/numChannels": np.int64(2),
        "/acquisition/drivefield/divider": np.array([[4], [3]]),
        "/acquisition/drivefield/phase": np.full((J, 2, 1), 0.5),
        "/acquisition/drivefield/strength": np.full((J, 2, 1), 0.012),
        "/acquisition/drivefield/waveform": [["sine"], ["sine"]],
        "/acquisition/receiver/bandwidth": 6e3,
        "/acquisition/receiver/numChannels": np.int64(C),
        "/acquisition/receiver/numSamplingPoints": np.int64(V),
        "/acquisition/receiver/unit": "V",
        "/measurement/isBackgroundFrame": BACKGROUND,
        "/measurement/data": samples().astype(np.float32),
    }
    for flag in ("BackgroundCorrected", "FastFrameAxis", "FourierTransformed"):
        base[f"/measurement/is{flag}"] = np.int8(0)
    for flag in ("FramePermutation", "FrequencySelection", "SparsityTransformed"):
        base[f"/measurement/is{flag}"] = np.int8(0)
    for flag in ("SpectralLeakageCorrected", "TransferFunctionCorrected"):
        base[f"/measurement/is{flag}"] = np.int8(0)
    for name, value in changes.items():
        name = "/" + name.replace("__", "/")
        if value is None:
            base.pop(name)
        else:
            base[name] = value
    return base


def calibration(size=(3, 2, 2), order="xyz", background=4, double=False, **changes):
    """A valid calibration: J x C x K x N rows, background frames last."""
    count = int(np.prod(size))
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(J, C, K, count + background, 2)) @ [1, 1j]
    rows[..., :count] *= 6
    return fields(
        **{
            "measurement__data": rows.astype(np.complex128 if double else np.complex64),
            "measurement__isFastFrameAxis": np.int8(1),
            "measurement__isFourierTransformed": np.int8(1),
            "measurement__isBackgroundFrame": np.repeat(
                np.array([0, 1], np.int8), [count, background]
            ),
            "acquisition__numFrames": np.int64(count + background),
            "calibration__method": "robot",
            "calibration__size": np.array(size),
            "calibration__fieldOfView": np.array([6e-3, 4e-3, 2e-3]),
            "calibration__fieldOfViewCenter": np.array([1e-3, 0, -1e-3]),
            "calibration__order": order,
        }
        | changes
    )


def samples(seed=0):
    """Integers, which all types hold exactly."""
    return np.random.default_rng(seed).integers(-99, 99, size=(N, J, C, V))


def build(path, content):
    path.unlink(missing_ok=True)
    with h5py.File(path, "w") as file:
        for name, value in content.items():
            text = isinstance(value, (str, list))
            kind = h5py.string_dtype() if text else None
            file.create_dataset(name, data=value, dtype=kind)
    return path


def same(one, two, skip=("version", "uuid", "time", "path", "notes", "data")):
    """Every field of two headers, at all depths."""
    assert type(one) is type(two)
    if dataclasses.is_dataclass(one):
        for field in dataclasses.fields(one):
            if field.name not in skip:
                inner = () if field.name not in ("data", "image_data") else skip
                same(getattr(one, field.name), getattr(two, field.name), inner)
    elif isinstance(one, dict):
        assert one.keys() == two.keys()
        for name in one:
            same(one[name], two[name])
    else:
        np.testing.assert_array_equal(one, two)
        assert np.asarray(one).dtype == np.asarray(two).dtype


def version_1(**changes):
    drop = ("/experiment/", "/measurement/", "/time")
    content = {k: v for k, v in fields().items() if not k.startswith(drop)}
    for name in ("/study/number", "/study/uuid", "/study/description", "/scanner/name"):
        del content[name]
    for name in ("phase", "waveform", "cycle"):
        del content[f"/acquisition/drivefield/{name}"]
    for name in ("numAverages", "numPeriodsPerFrame", "startTime", "offsetField"):
        del content[f"/acquisition/{name}"]
    content |= {
        "/version": "1.0.5",
        "/date": "2016-01-02",
        "/study/experiment": "18",
        "/study/subject": "mouse",
        "/study/simulation": np.int64(1),
        "/study/description": "what was done",
        "/scanner/model": "a model",
        "/acquisition/time": "2016-01-02T03:04:05",
        "/acquisition/numPatches": np.int64(J),
        "/acquisition/gradient": np.array([-1.0, -1, 2]),
        "/acquisition/drivefield/averages": np.int64(7),
        "/acquisition/drivefield/period": 1e-3,
        "/acquisition/drivefield/divider": np.array([4, 3]),
        "/acquisition/drivefield/strength": np.array([[0.01, 0.02]]),
        "/measurement/dataTD": samples().astype("f4"),
    }
    for name, value in changes.items():
        name = "/" + name.replace("__", "/")
        if value is None:
            del content[name]
        else:
            content[name] = value
    return content


SPARSE = dict(
    measurement__isSparsityTransformed=np.int8(1),
    measurement__sparsityTransformation="DCT-II",
    measurement__subsamplingIndices=np.ones((J, C, K, 12), np.int64),
)
