"""The options of a verb: a frozen dataclass says all of them, and tyro reads it.

A field is an option: its docstring the text, with the unit and what None means, its type
what may be given, its default the default. A dataclass among a verb's fields gives its
own fields as options of the verb (`Preprocessing.plane` is --plane), and those below it
with their path (`Config.data.batch_size` is --data.batch-size). A field with the metadata
POSITIONAL is an argument without a name.

Values as people write them: several numbers or words apart by spaces or commas, frames
as a range FIRST:BEHIND; --flag, --no-flag or --flag True.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import inspect
import io
import itertools
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
from tyro import constructors

from mpi_jax._spelling import did_you_mean

POSITIONAL = {"positional": True}
T = TypeVar("T")


class Field(typing.NamedTuple):
    """A field of a dataclass."""

    name: str
    kind: Any  # its type
    text: str
    default: Any  # dataclasses.MISSING where it is required
    positional: bool


@functools.cache
def fields(cls: type) -> list[Field]:
    """The fields of a dataclass, with their docstrings in one line."""
    kinds, texts = typing.get_type_hints(cls), _texts(cls)
    options = []
    for f in dataclasses.fields(cls):
        default = f.default
        if f.default_factory is not dataclasses.MISSING:
            default = f.default_factory()
        named = kinds[f.name], texts.get(f.name, ""), default
        options.append(Field(f.name, *named, bool(f.metadata.get("positional"))))
    return options


def _is_dataclass(kind: Any) -> bool:
    return dataclasses.is_dataclass(kind)


def _texts(cls: type) -> dict[str, str]:
    """Name of a field -> the string behind it in the source."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(tree, ast.ClassDef)
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in itertools.pairwise(tree.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def listed(cls: type, path: str | None = None) -> Iterator[tuple[str, Field]]:
    """(--name, field) of every option of a verb; (NAME, field) of an argument."""
    for field in fields(cls):
        if _is_dataclass(field.kind):
            # Those of the verb itself add nothing to the names of their fields.
            below = f"{path}{_dashed(field)}."
            yield from listed(field.kind, "" if path is None else below)
        else:
            yield _name(field, path or ""), field


def _dashed(field: Field) -> str:
    return field.name.replace("_", "-")


def _name(field: Field, path: str = "") -> str:
    """--name of an option, NAME of an argument."""
    return _dashed(field).upper() if field.positional else f"--{path}{_dashed(field)}"


def parse(
    cls: type[T],
    arguments: Sequence[str],
    verb: str,
    defaults: dict[str, Any] | None = None,
) -> T:
    """The options of a verb out of its arguments.

    defaults: by name of a field of `cls`, in place of the dataclass's own. Raises
    ValueError in one line for arguments that can't be read, SystemExit(0) after --help.
    """
    words = io.StringIO()
    arguments = _spelt(arguments, dict(listed(cls)), verb)
    _check_complete(cls, arguments, verb)
    try:
        with contextlib.redirect_stderr(words):
            return tyro.cli(
                cls,
                prog=f"mpi-jax {verb}",
                args=arguments,
                registry=_registry(cls, defaults or {}),
                config=(tyro.conf.FlagConversionOff,),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(
            f"{_first(words.getvalue())} (see mpi-jax {verb} --help)"
        ) from None


def value_of(name: str, arguments: Sequence[str]) -> str | None:
    """The value of an option before the arguments are read, None where it has none."""
    for word, after in itertools.pairwise([*arguments, ""]):
        if word == name:
            return after or None
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return None


# --- Before tyro: names and flags


def _spelt(arguments: Sequence[str], options: dict[str, Field], verb: str) -> list[str]:
    """Arguments with the names of options as in --help, and flags as --flag True.

    Raises ValueError for options that the verb doesn't have.
    """
    flags = {name for name, field in options.items() if bool in _choices(field.kind)}
    spelt: list[str] = []
    for word, after in itertools.pairwise([*arguments, ""]):
        if not word.startswith("--") or word == "--help":
            spelt.append(word)
            continue
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")
        positive = name.replace("--no-", "--", 1)
        if name in flags and not equals and after not in ("True", "False", "None"):
            spelt += [name, "True"]
        elif name not in options and positive in flags and not equals:
            spelt += [positive, "False"]
        elif name in options:
            spelt += [name, value] if equals else [name]
        else:
            meant = did_you_mean(name, [*options, *(f"--no-{n[2:]}" for n in flags)])
            raise ValueError(
                f"{name}: not an option of mpi-jax {verb}{meant} "
                f"(see mpi-jax {verb} --help)"
            )
    return spelt


def _check_complete(cls: type, arguments: Sequence[str], verb: str) -> None:
    """ValueError where an option is missing that the verb can't do without."""
    missing = []
    for field in fields(cls):
        name = _name(field)
        if field.default is dataclasses.MISSING:
            is_there = bool(arguments) if field.positional else name in arguments
            missing += [] if is_there else [name]
    if missing and not {"-h", "--help"} & set(arguments):
        raise ValueError(
            f"{verb}: expected {' and '.join(missing)} (see mpi-jax {verb} --help)"
        )


# --- What tyro is told


def _registry(root: type, defaults: dict[str, Any]) -> constructors.ConstructorRegistry:
    """How dataclasses become options."""
    registry = constructors.ConstructorRegistry()

    @registry.struct_rule
    def _(info: constructors.StructTypeInfo) -> Any:
        if not dataclasses.is_dataclass(info.type):
            return None
        values = defaults if info.type is root else _values(info.default)
        specs = []
        for field in fields(info.type):
            default = values.get(field.name, field.default)
            if default is dataclasses.MISSING:
                default = tyro.MISSING
            kind: Any = field.kind
            if not _is_dataclass(kind):
                kind = _annotated(field, default)
            elif info.type is root:
                kind = Annotated[kind, tyro.conf.arg(name="")]
            specs.append(
                constructors.StructFieldSpec(
                    name=field.name, type=kind, default=default, helptext=field.text
                )
            )
        return constructors.StructConstructorSpec(info.type, tuple(specs))

    return registry


def _values(default: Any) -> dict[str, Any]:
    """Fields of an instance of a dataclass, none of what is missing."""
    if not dataclasses.is_dataclass(default) or isinstance(default, type):
        return {}
    return {f.name: getattr(default, f.name) for f in dataclasses.fields(default)}


def _annotated(field: Field, default: Any) -> Any:
    """The type of an option with what --help shows of it, and how it is read."""
    settings: dict[str, Any] = {}
    if default is None or default == ():
        says_default = "default" in field.text.lower()
        settings["help_behavior_hint"] = "" if says_default else "(default: none)"
    if bool in _choices(field.kind):
        settings["metavar"] = f"| --no-{_dashed(field)}"
    if field.positional:
        settings["metavar"] = _name(field)
    extras = [tyro.conf.arg(**settings), _reading(field.kind)]
    extras += [tyro.conf.Positional] if field.positional else []
    return Annotated[(field.kind, *extras)]


# --- How values are read


def _choices(kind: Any) -> list[Any]:
    """The types of a union without None."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return [one for one in typing.get_args(kind) if one is not type(None)]
    return [kind]


def _is_tuple(kind: Any) -> bool:
    return typing.get_origin(kind) is tuple


def _metavar(kind: Any) -> str:
    """What stands for a value in --help."""
    several = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        return "|".join(map(str, several))
    if not _is_tuple(kind):
        return {str: "STR", int: "INT", float: "FLOAT"}.get(kind, kind.__name__.upper())
    if several[-1] is not Ellipsis:
        return " ".join(map(_metavar, several))
    return f"[{_metavar(several[0])} ...]" + (
        "|FIRST:BEHIND" if several[0] is int else ""
    )


def _reading(kind: Any) -> constructors.PrimitiveConstructorSpec[Any]:
    """How the values of an option are read and shown."""
    choices = _choices(kind)
    metavar = "|".join(map(_metavar, choices))

    def read(words: list[str]) -> Any:
        if words == ["None"] and choices != [kind]:
            return None
        for choice in choices:
            with contextlib.suppress(ValueError):
                return (
                    _tuple(choice, words) if _is_tuple(choice) else _one(choice, *words)
                )
        names = [n for c in choices for n in typing.get_args(c) if isinstance(n, str)]
        raise ValueError(
            f"expected {metavar}, got {' '.join(words) or 'nothing'}"
            f"{did_you_mean(' '.join(words), names)}"
        )

    return constructors.PrimitiveConstructorSpec(
        nargs="*" if any(map(_is_tuple, choices)) else 1,
        metavar=metavar,
        instance_from_str=read,
        is_instance=lambda _: True,  # defaults are what their dataclass says
        str_from_instance=_written,
    )


def _written(value: Any) -> list[str]:
    """A value as the words that would give it."""
    if isinstance(value, tuple):
        return [word for one in value for word in _written(one)]
    return [str(value)]


def _one(kind: Any, word: str) -> Any:
    """A value of a type out of a word; ValueError where it is none."""
    if typing.get_origin(kind) is Literal or kind is bool:
        values = typing.get_args(kind) or (True, False)
        return values[[str(value) for value in values].index(word)]
    return kind(word)


def _tuple(kind: Any, words: list[str]) -> tuple[Any, ...]:
    """Values of a tuple's type, apart by spaces or commas; ValueError for wrong ones, or
    too few or many.
    """
    one, *rest = typing.get_args(kind)
    unlimited = rest == [Ellipsis]
    if one is Path:  # whose names may hold commas
        return tuple(map(Path, words))
    items = [item for word in words for item in word.replace(",", " ").split()]
    values: list[Any]
    if one is int:
        values = [n for item in items for n in _integers(item, unlimited)]
    elif _is_tuple(one):
        numbers = [float(item) for item in items]
        values = list(zip(numbers[::2], numbers[1::2], strict=True))
    else:
        values = [_one(one, item) for item in items]
    if not unlimited and len(values) != 1 + len(rest):
        raise ValueError
    return tuple(values)


def _integers(item: str, unlimited: bool) -> Sequence[int]:
    """A number, or FIRST:BEHIND: all numbers of that range, or these two alone where two
    are asked for.
    """
    if ":" not in item:
        return (int(item),)
    first, behind = (int(number) for number in item.split(":"))
    if not first < behind:
        raise ValueError
    return range(first, behind) if unlimited else (first, behind)


# --- After tyro: its complaints


def _first(box: str) -> str:
    """The first words of tyro's complaint, which it draws a box around."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [line.strip("│ ") for line in text.splitlines()]
    complaint = itertools.takewhile(
        lambda line: not re.match("[─╰]", line),
        (line for line in lines if not line.startswith("╭")),
    )
    words = " ".join(" ".join(complaint).split())
    return re.sub(r"^Error parsing (\w+: (?=\w+: ))?", "", words)
