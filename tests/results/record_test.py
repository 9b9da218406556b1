"""Every kind of file: written, read, the same again; and what is said of a broken one."""

import dataclasses
import json
import math
import pathlib

import numpy as np
import pytest

from mpi_jax import results

ROOT = pathlib.Path(__file__).resolve().parents[2]
FIVE = results.Statistics(mean=30.5, sd=math.nan, median=31.0, p5=20.0)
METHOD = {"method": "run_a", "label": "A | b", "kind": "learned", "physics": True}
NETWORK = results.Network(
    variant="dual",
    config="test",
    generator="demo32_dual",
    adversarial=0.01,
    bce=5.0,
    dice=5.0,
    rank=64,
    seed=0,
    images_seen=96,
    group="0123",
)
LINE = results.Line(
    **METHOD,
    snr_db=math.inf,
    family="all",
    num=12,
    settings={"lam": 1e-3, "iterations": 200, "width": None, "rule": "fixed"},
    at_edge=("iterations",),
    segmentation="predicted",
    network=NETWORK,
    psnr=FIVE,
    dice=results.Statistics(mean=0.5, low=0.4, high=0.6),
    amount=results.Amounts(slope=1.0, bias=-0.01),
    pooled_psnr=math.inf,
    seconds_per_image=0.002,
)
INFO = {
    "num": 12,
    "snr_db": 40.0,
    "noise": "white",
    "model": "tensor",
    "seed": 0,
    "seconds": 3.5,
    "device": "cpu",
    "ssim": "Gaussian",
    "grid": (4, 5),
}
CHANGE = results.Change(mean=1.0, low=0.5, high=1.5)
CELL = results.GeneralisationCell(mean=29.5, drop=CHANGE)
RECORDS = [
    results.RunInfo(
        config={"data": {"snr_db": [20, 60]}},
        name="test",
        step=5,
        images=80,
        validation_psnr=30.0,
        test=results.TestNumbers(
            num=600, snr_db=40.0, device="cpu", model="tensor", psnr=FIVE
        ),
    ),
    results.LogLine(step=3, images=48, mae=0.25, seconds=1.0),
    LINE,
    results.Info(**INFO),
    results.Summary(**INFO, config="test", run="run_a", rows=(LINE, LINE)),
    results.GeneralisationLine(
        **METHOD,
        suite="vessels",
        case="space colonisation",
        num=4,
        shows=("psnr",),
        against="in distribution",
        paired=False,
        drop=CHANGE,
        psnr=FIVE,
    ),
    results.GeneralisationTable(
        methods=(results.MethodInfo(**METHOD),),
        rows=(
            results.GeneralisationRow(
                suite="snr",
                case="10 dB",
                quantity="PSNR [dB]",
                in_db=True,
                cells={"run_a": CELL},
            ),
        ),
        first_network=None,
        num=4,
        snr_db=40.0,
        grid=(4, 5),
        model="tensor",
        bootstrap="2000 draws",
        device="cpu",
        notes=("none",),
    ),
    results.Figure3Line(
        **METHOD,
        phantom="shape",
        mask="predicted",
        nrmse=0.5,
        psnr=12.0,
        correlation=0.9,
        dice=0.8,
        mask_dice=0.7,
        iron=3.0,
        true_iron=2.0,
        factor=0.7,
        scaled_nrmse=0.4,
        scaled_psnr=14.0,
        residual=0.3,
    ),
    results.Tables(
        tables=(
            results.Table(
                title="T",
                columns=("Method", "PSNR"),
                rows=(("a", "1"), ("b", "2")),
                notes=("n",),
                best=((1, 1),),
            ),
        )
    ),
]


def name(record):
    return type(record).__name__


@pytest.mark.parametrize("record", RECORDS, ids=name)
def test_records_come_back_as_they_were(record, tmp_path):
    path = tmp_path / "a.json"
    record.write(path)
    assert json.loads(path.read_text())["schema"] == results.SCHEMA
    # Texts, so that NaN is like NaN.
    assert repr(type(record).read(path)) == repr(record)
    results.write_lines(path, [record, record])
    read = results.read_lines(type(record), path)
    assert [repr(r) for r in read] == [repr(record)] * 2
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


IMAGES = np.arange(40, dtype=np.float32).reshape(2, 4, 5)
MASKS = (IMAGES > 3).astype(np.uint8)
ARRAYS = [
    results.Samples(
        step=7,
        truth=IMAGES,
        true_mask=MASKS,
        image=IMAGES + 1,
        mask=MASKS,
        family=np.array(["bars", "numbers"]),
    ),
    results.Values(
        main_snr_db=40.0,
        family=np.array(["bars", "numbers"]),
        numbers={
            (40.0, "run/a", "psnr"): np.float32([1, 2]),
            (40.0000001, "run/a", "psnr"): np.float32([3, 4]),
            (math.inf, "zero", "dice"): np.float32([0, math.nan]),
        },
    ),
    results.Examples(
        truth=IMAGES,
        mask=MASKS,
        family=("bars", "numbers"),
        pixel_size=(1e-3, 2e-3),
        labels={"zero": "Zero", "run_a": "A"},
        images={"zero": 0 * IMAGES, "run_a": IMAGES},
        masks={"zero": 0 * MASKS, "run_a": MASKS},
    ),
    results.GeneralisationValues(
        numbers={("snr", "10 dB; tuned", "run a", "psnr"): np.float32([1, 2])},
        truths={("shapes", "spirals"): IMAGES[0]},
        images={("shapes", "spirals", "run a"): IMAGES[1]},
    ),
    results.Figure3Images(
        truth=IMAGES,
        phantoms=("shape", "resolution"),
        pixel_size=(1e-3, 2e-3),
        images={"runs/a": IMAGES},
        masks={"runs/a": MASKS},
        about={"periods": [4, 8], "background": "mean"},
    ),
]


def plain(value):
    """Arrays as lists, so that all of a record can be compared by its text."""
    if dataclasses.is_dataclass(value):
        return [
            (f.name, plain(getattr(value, f.name))) for f in dataclasses.fields(value)
        ]
    if isinstance(value, dict):
        return [(k, plain(v)) for k, v in value.items()]
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.tolist()
    return value


@pytest.mark.parametrize("record", ARRAYS, ids=name)
def test_arrays_come_back_as_they_were(record, tmp_path):
    path = tmp_path / "a.npz"
    record.write(path)
    with np.load(path, allow_pickle=False) as file:
        assert file["schema"] == results.SCHEMA
    assert repr(plain(type(record).read(path))) == repr(plain(record))


def broken_line(**changes):
    return json.dumps({k: v for k, v in {**LINE.as_json(), **changes}.items() if v})


@pytest.mark.parametrize(
    "text, said",
    [
        ("{", "line 1: expected JSON"),
        ("3", "line 1: expected a JSON object, got 3"),
        (broken_line(psrn=1), "expected the fields .*psnr.*; unknown psrn$"),
        (broken_line(label=None), "missing label$"),
        (broken_line(kind="magic"), "kind: expected one of control, .*, got .magic"),
        (broken_line(psnr={"maen": 1}), "psnr: expected the fields mean.*unknown maen"),
        (broken_line(psnr={"mean": "a"}), 'psnr: mean: expected a number, got "a"'),
        (broken_line(num=1.5), "num: expected a whole number, got 1.5"),
        (broken_line(at_edge="lam"), r"at_edge: expected a list of \(a text\)"),
        (broken_line(settings=[1]), r"settings: expected an object, got \[1\]"),
        (broken_line(schema=9), "expected schema 1 or 2, got 9"),
    ],
)
def test_a_broken_line_is_told_in_one(tmp_path, text, said):
    path = tmp_path / "metrics.jsonl"
    path.write_text(text + "\n")
    with pytest.raises(ValueError, match=said) as error:
        results.read_lines(results.Line, path)
    assert str(error.value).startswith(f"{path}, line 1: ")
    assert "\n" not in str(error.value)


def test_broken_arrays_are_told_in_one_line(tmp_path):
    path = tmp_path / "arrays.npz"
    examples = ARRAYS[2]
    examples.write(path)
    with np.load(path) as file:
        whole = {n: file[n] for n in file.files}
    for changes, said in (
        ({"mask_zero": None}, "expected the arrays .*; missing mask_zero, it holds"),
        ({"mask": whole["mask"][:1]}, r"of one shape \[2, ny, nx\].*others for mask$"),
        ({"labels": np.array(["Zero"])}, "a label for each method"),
        ({"pixel_size": np.zeros(2)}, "pixel_size .x, y. > 0"),
        ({"schema": np.array(3)}, "expected schema 1 or 2"),
    ):
        np.savez(path, **{k: v for k, v in (whole | changes).items() if v is not None})
        with pytest.raises(ValueError, match=said) as error:
            results.Examples.read(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    path.write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(ValueError, match="arrays.npz: expected an .npz file of arrays"):
        results.Examples.read(path)
    np.save(tmp_path / "one.npy", np.ones(2))
    with pytest.raises(ValueError, match="a single array"):
        results.Values.read(tmp_path / "one.npy")
    values = dataclasses.replace(ARRAYS[1], family=np.array(["bars"]))
    values.write(path)
    with pytest.raises(ValueError, match=r"expected numbers \[1\], one for each image"):
        results.Values.read(path)


def test_names_with_a_bar_are_refused(tmp_path):
    values = results.GeneralisationValues(
        numbers={("snr", "c", "run|a", "psnr"): np.ones(2)}, truths={}, images={}
    )
    with pytest.raises(ValueError, match="expected names without"):
        values.write(tmp_path / "values.npz")
    assert not list(tmp_path.iterdir())


def test_groups_have_an_order():
    def method(name, kind, physics=False):
        return results.MethodInfo(method=name, label=name, kind=kind, physics=physics)

    methods = [
        method("with", "learned", True),
        method("tv", "classical"),
        method("cnn", "learned"),
        method("zero", "control"),
        method("xspace", "classical"),
    ]
    found = results.in_groups(methods)
    assert [m.method for m in found] == ["zero", "tv", "xspace", "cnn", "with"]
    assert [m.group for m in found] == [
        *("control", "classical", "classical", "voltage alone", "physics"),
    ]


# --- Version 1, of which files are committed


@pytest.mark.parametrize("name", ["small", "small64", "table64"])
def test_committed_summaries_are_read_and_can_be_written_anew(name, tmp_path):
    path = ROOT / "results" / f"{name}.json"
    old = json.loads(path.read_text())
    if "schema" in old:
        pytest.skip("not of version 1 any more")
    summary = results.Summary.read(path)
    assert summary.schema == 1 and summary.run == "transgan"
    assert (summary.config, summary.num) == (old["config"], old["num"])
    for line, before in zip(summary.rows, old["rows"], strict=True):
        assert (line.method, line.label) == (before["method"], before["label"])
        assert line.psnr.mean == before["psnr"]["mean"]
        assert line.settings == before["settings"]
        assert line.physics == bool(before["about"].get("physics"))
        learned = bool(before["about"])
        assert (line.kind == "learned") == learned == (line.network is not None)
        if learned:
            assert line.network.variant == before["about"]["kind"]
    kinds = {line.method: line.kind for line in summary.rows}
    assert kinds["kaczmarz"] == "classical"
    if name == "table64":
        assert kinds["ridge"] == "control"
        groups = {line.group for line in summary.rows}
        assert groups == set(results.GROUPS)
    summary.write(tmp_path / "new.json")
    again = results.Summary.read(tmp_path / "new.json")
    assert again == dataclasses.replace(summary, schema=results.SCHEMA)


def test_committed_tables_are_read():
    path = ROOT / "results" / "table32_report.json"
    tables = {t.title: t for t in results.Tables.read(path).tables}
    assert tables["Several seeds"].columns[:2] == ("Method", "seeds")


def test_a_log_of_version_1_that_was_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 3, "images": 48, "mae": 1}\n\n{"step": 4, "ima')
    lines, cut = results.LogLine.read_all(path)
    assert cut == 1 and lines == [results.LogLine(step=3, images=48, mae=1.0)]


def test_other_files_of_version_1_say_how_to_come_by_new_ones(tmp_path):
    (tmp_path / "table.json").write_text('{"methods": {}}')
    with pytest.raises(ValueError, match="got version 1.*run mpi-jax generalise again"):
        results.GeneralisationTable.read(tmp_path / "table.json")
    np.savez(tmp_path / "values.npz", **{"snr|10 dB|zero|psnr": np.ones(2)})
    with pytest.raises(ValueError, match="run mpi-jax generalise again"):
        results.GeneralisationValues.read(tmp_path / "values.npz")
    (tmp_path / "metrics.jsonl").write_text('{"phantom": "shape"}\n')
    with pytest.raises(ValueError, match="run mpi-jax figure3 again"):
        results.read_lines(results.Figure3Line, tmp_path / "metrics.jsonl")


def test_null_is_no_number():
    psnr = {"mean": math.inf, "sd": None, "median": 30.0, "p5": None}
    line = results.Line.of(
        {"method": "a", "family": "all", "snr_db": 40, "psnr": psnr}, "line"
    )
    assert line.psnr.mean == math.inf and math.isnan(line.psnr.p5)
    assert line.label == "a" and line.kind == "learned"
