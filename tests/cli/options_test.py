"""Options: what --help says, what may be written, what is refused and how."""

import dataclasses
import importlib
import math
import pathlib
import re
import typing

import pytest

from mpi_jax import configs
from mpi_jax.cli import options
from mpi_jax.cli.main import VERBS, main, read
from mpi_jax.methods.settings import Settings

ROOT = pathlib.Path(__file__).resolve().parents[2]
NEEDED = {
    "simulate": "--config test --out a.npz",
    "reconstruct": "--measurement a.mdf --out b.npz",
    "check": "a.mdf",
    "train": "--config test --workdir w",
    "evaluate": "--workdir w",
    "generalise": "--workdir w",
    "figure3": "--runs w --measurements a.mdf --out f",
    "report": "--workdir w",
}


def given(verb, words=""):
    """The options of a verb with what it can't do without, and more words."""
    needed = NEEDED.get(verb, "").split()
    more = words.split()
    names = {word.partition("=")[0] for word in more if word.startswith("--")}
    pairs = [needed] if verb == "check" else zip(needed[::2], needed[1::2], strict=True)
    kept = [word for pair in pairs if pair[0] not in names for word in pair]
    return read(verb, kept + more)


def preprocessing(words):
    return given("reconstruct", words).preprocessing


def described(verb):
    return dict(options.listed(importlib.import_module(f"mpi_jax.cli.{verb}").Options))


def plain(text):
    """Words of a help text without the box around it."""
    return " ".join(re.sub("[╭╮╰╯│─]", " ", text).split())


def help_of(capsys, *words):
    assert main([*words, "--help"]) == 0
    return plain(capsys.readouterr().out)


# --- Help


@pytest.mark.parametrize("verb", VERBS)
def test_help_holds_text_and_default_of_every_option(verb, capsys):
    said = help_of(capsys, verb)
    for name, field in described(verb).items():
        assert f"{name} " in said, name
        assert len(field.text) > 5 and field.text in said, name
        plain_default = isinstance(field.default, (bool, int, str))
        if plain_default and verb != "train":  # whose defaults are a config's
            entry = said[said.index(field.text) :]
            assert entry.startswith(f"{field.text} (default: {field.default})"), name
        if field.default is dataclasses.MISSING and verb != "train":
            assert said[said.index(field.text) :].startswith(f"{field.text} (required)")


@pytest.mark.parametrize(
    "verb, cls", [("reconstruct", configs.Preprocessing), ("reconstruct", Settings)]
)
def test_fields_of_the_library_are_options_without_a_prefix(verb, cls):
    names = described(verb)
    for field in options.fields(cls):
        assert names[f"--{field.name.replace('_', '-')}"] == field


def test_help_of_train_shows_the_named_config(capsys):
    name = "data.batch-size INT Images a step, over all devices."
    assert f"{name} (default: 12)" in help_of(capsys, "train")
    assert f"{name} (default: 16)" in help_of(capsys, "train", "--config", "test")
    said = help_of(capsys, "train", "--config=small64")
    assert "--scanner.pixels INT" in said and "preset's. (default: 64)" in said
    assert main(["train", "--config", "smal", "--help"]) == 2
    assert "did you mean small?" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["reconstruct", "simulate", "train", "demo"])
def test_help_points_to_the_list_of_configs(verb, capsys):
    said = help_of(capsys, verb)
    assert "mpi-jax configs" in said
    assert "open_mpi64_single" not in said and "table64_" not in said


def test_flags_are_shown_with_both_ways():
    flags = {n: f for verb in VERBS for n, f in described(verb).items()}
    flags = {n: f for n, f in flags.items() if f.kind in (bool, bool | None)}
    assert {"--row-norm", "--transfer-function", "--resume", "--remat"} <= set(flags)
    assert not [name for name in flags if "." in name]  # their --no- would be another


# --- Values


@pytest.mark.parametrize(
    "words, field, value",
    [
        ("--channels 0,1", "channels", (0, 1)),
        ("--channels 0 1", "channels", (0, 1)),
        ("--channels 0, 1", "channels", (0, 1)),
        ("--channels=2", "channels", (2,)),
        ("--channels 0:2", "channels", (0, 1)),
        ("--frames 0:10", "frames", tuple(range(10))),
        ("--frames 0,3,7", "frames", (0, 3, 7)),
        ("--frames 0:3 7", "frames", (0, 1, 2, 7)),
        ("--periods 900 1000", "periods", (900, 1000)),
        ("--periods 900,1000", "periods", (900, 1000)),
        ("--periods 900:1000", "periods", (900, 1000)),
        ("--periods None", "periods", None),
        ("--stop-bands 1e3 2e3", "stop_bands", ((1e3, 2e3),)),
        ("--stop-bands 1,2 3,4", "stop_bands", ((1.0, 2.0), (3.0, 4.0))),
        ("--shape 20 19", "shape", (20, 19)),
        ("--shape 5,20,19", "shape", (5, 20, 19)),
        ("--channel-weights 1 0.5", "channel_weights", (1.0, 0.5)),
        ("--tolerate tracer,receiver", "tolerate", ("tracer", "receiver")),
        ("--min-frequency 80e3", "min_frequency", 80e3),
        ("--min_frequency=80e3", "min_frequency", 80e3),
        ("--max-frequency inf", "max_frequency", math.inf),
        ("--plane 9", "plane", 9),
        ("--background mean", "background", "mean"),
        ("--transfer-function", "transfer_function", True),
        ("--no-transfer-function", "transfer_function", False),
        ("--no_transfer_function", "transfer_function", False),
        ("--transfer-function True", "transfer_function", True),
        ("--transfer-function False", "transfer_function", False),
        ("--transfer-function=False", "transfer_function", False),
        ("", "transfer_function", None),
        ("--row-norm", "row_norm", True),
        ("--row-norm True", "row_norm", True),
        ("--row-norm False", "row_norm", False),
        ("--row-norm --no-row-norm", "row_norm", False),
        ("--whitening --row-norm", "whitening", True),
    ],
)
def test_values_as_people_write_them(words, field, value):
    found = vars(preprocessing(words))
    assert found[field] == value and type(found[field]) is type(value)
    changed = {name for name, v in vars(preprocessing("")).items() if v != found[name]}
    assert changed <= {field, "row_norm"}


def test_field_of_view_goes_with_a_shape():
    both = preprocessing("--shape 4,4 --field-of-view 0.02,0.02,0.001")
    assert both.field_of_view == (0.02, 0.02, 0.001)


@pytest.mark.parametrize(
    "words, field, value",
    [
        ("--lam 1e-3", "lam", 1e-3),
        ("--lam l_curve", "lam", "l_curve"),
        ("--lam-unit sigma1", "lam_unit", "sigma1"),
        ("--iterations 5", "iterations", 5),
        ("--lam None", "lam", None),
    ],
)
def test_settings(words, field, value):
    found = getattr(given("reconstruct", words).settings, field)
    assert found == value and type(found) is type(value)


def test_overrides_of_a_config():
    words = (
        "--data.batch-size 8 --optimiser.ema=0.5 --data.snr_db -2000 -2000 --remat "
        "--loss.adversarial 0 --data.families bars,vessels --checkpoint_every 125"
    )
    config = given("train", words).overrides
    usual = configs.get("test")
    assert config.data.batch_size == 8 and config.optimiser.ema == 0.5
    assert config.data.snr_db == (-2000.0, -2000.0) and config.remat
    assert config.data.families == ("bars", "vessels")
    assert config.loss.adversarial == 0 and config.checkpoint_every == 125
    assert config.physics == usual.physics and config.name == "test"
    assert given("train").overrides == usual


# --- What is refused


@pytest.mark.parametrize(
    "verb, words, complaint",
    [
        ("reconstruct", "--bakground mean", "did you mean --background?"),
        ("reconstruct", "--no-row-nrm", "did you mean --no-row-norm?"),
        ("reconstruct", "--background men", "did you mean mean?"),
        ("reconstruct", "--background men", "--background: expected none|mean|"),
        (
            "reconstruct",
            "--channels 0 x",
            "--channels: expected [INT ...]|FIRST:BEHIND",
        ),
        ("reconstruct", "--channels 1:0", "got 1:0"),
        ("reconstruct", "--frames 1:2:3", "got 1:2:3"),
        ("reconstruct", "--channels -1", "channels: expected numbers >= 0"),
        ("reconstruct", "--periods 9", "--periods: expected INT INT, got 9"),
        ("reconstruct", "--stop-bands 1 2 3", "--stop-bands: expected"),
        ("reconstruct", "--field-of-view 1 2", "expected FLOAT FLOAT FLOAT, got 1 2"),
        ("reconstruct", "--lam x", "--lam: expected FLOAT|l_curve|discrepancy, got x"),
        ("reconstruct", "--plane", "--plane"),
        ("reconstruct", "--plane 1 2", "2"),
        ("reconstruct", "--row-norm=maybe", "--row-norm"),
        ("reconstruct", "--no-plane", "not an option"),
        ("train", "--data.batch 8", "did you mean --data.batch-size?"),
        ("train", "--steps many", "--steps: expected INT, got many"),
        ("report", "here", "here"),
    ],
)
def test_complaints_are_one_line(verb, words, complaint):
    with pytest.raises(ValueError) as raised:
        given(verb, words)
    said = str(raised.value)
    assert complaint in said and "\n" not in said and "│" not in said
    assert len(said) < 300


@pytest.mark.parametrize("verb", NEEDED)
def test_missing_options_are_named(verb):
    with pytest.raises(ValueError, match="--help") as raised:
        read(verb, [])
    for name in re.findall("--[a-z-]+|^a.mdf", NEEDED[verb]):
        assert name.replace("a.mdf", "FILE") in str(raised.value)


# --- What the pages say


def pages():
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def table_options():
    """(page, option) of every option in a table row of a page."""
    for page in pages():
        for line in page.read_text().splitlines():
            if line.startswith("|"):
                for name in re.findall(r"`(--[a-z][a-z0-9.-]*)", line):
                    yield page.name, name


def value_for(field):
    """Words that a field takes."""
    if field.name == "shape":
        return "2 2"
    value = field.default if isinstance(field.default, (int, float, str)) else None
    if bool in options._choices(field.kind):
        return ""
    if value is not None and value != "":
        return str(value)
    names = [n for c in options._choices(field.kind) for n in typing.get_args(c)]
    if names and isinstance(names[0], str):
        return names[0]
    for words in ("1", "1 2", "1 2 3"):
        try:
            options._reading(field.kind).instance_from_str(words.split())
        except ValueError:
            continue
        return words
    return ""


# Options of which one alone is no sense.
TOGETHER = {
    "--field-of-view": "--shape 2 2",
    "--sidebands": "--period-grouping 2",
}


@pytest.mark.parametrize("page, name", sorted(set(table_options())))
def test_options_in_tables_of_the_pages_are_options(page, name):
    verbs = [verb for verb in VERBS if name in described(verb)]
    positive = name.replace("--no-", "--", 1)
    verbs += [verb for verb in VERBS if positive in described(verb)]
    assert verbs, f"{page}: {name}"
    verb = "reconstruct" if "reconstruct" in verbs else verbs[0]
    field = described(verb)[name if name in described(verb) else positive]
    words = f"{TOGETHER.get(name, '')} {name} {value_for(field)}"
    given(verb, words)


def test_the_tables_were_found():
    names = {name for _, name in table_options()}
    assert {"--channels", "--no-transfer-function", "--lam", "--frames"} <= names


def commands():
    for page in pages():
        text = page.read_text().replace("\\\n", " ")
        for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
            for line in block.splitlines():
                if line.startswith("mpi-jax "):
                    yield line.partition("#")[0].strip()


@pytest.mark.parametrize("line", sorted(set(commands())))
def test_commands_of_the_pages_parse(line):
    _, verb, *words = line.split()
    read(verb, words)
