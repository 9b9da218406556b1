"""The examples in docstrings: they run, and public functions have one."""

import ast
import doctest
import importlib
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / "mpi_jax"
ROOMS = (
    *("scanner", "physics", "noise", "system_matrix", "reconstruct", "phantoms"),
    *("mdf", "metrics"),
)
# Shared by the modules of a room, without a place in its documentation.
SHARED = {
    *("expect", "matmul", "parameter", "rows", "columns", "system"),
    "default_float",
}
CHECKS = ("check_", "need_")
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def files(room):
    path = PACKAGE / room
    return sorted(path.glob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


FILES = [path for room in ROOMS for path in files(room)]


def name(path):
    return str(path.relative_to(PACKAGE))


def documented(path):
    """(name, docstring, line) of a module, its functions, classes and their methods."""
    tree = ast.parse(path.read_text())
    for node in [tree, *ast.walk(tree)]:
        kinds = ast.Module, ast.FunctionDef, ast.ClassDef
        if isinstance(node, kinds) and ast.get_docstring(node):
            yield getattr(node, "name", path.stem), ast.get_docstring(node), node


# Read from the source: the type checker of the tests wraps functions, and doctest's own
# search would pass wrapped ones by.
@pytest.mark.parametrize("path", FILES, ids=name)
def test_examples_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write files
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner(optionflags=FLAGS)
    module = "mpi_jax." + name(path).removesuffix(".py").replace("/", ".")
    names = vars(importlib.import_module(module.removesuffix(".__init__")))
    for title, text, node in documented(path):
        line = getattr(node, "lineno", 1)
        example = parser.get_doctest(text, names.copy(), title, name(path), line)
        words = []
        if example.examples:
            runner.run(example, out=words.append)
        assert not runner.failures, "".join(words)


def public(room):
    """Functions that a room gives: those of its door, or of its modules without one."""
    door = ast.parse(files(room)[0].read_text())  # __init__.py comes first
    listed = [
        ast.literal_eval(node.value)
        for node in door.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "__all__"
    ]
    for path in files(room):
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
                continue
            if path.stem.startswith("_") or node.name in SHARED:
                continue
            if node.name.startswith(CHECKS):
                continue
            if not listed or node.name in listed[0]:
                yield f"{name(path)}:{node.name}", ast.get_docstring(node) or ""


@pytest.mark.parametrize("room", ROOMS)
def test_public_functions_have_an_example(room):
    found = dict(public(room))
    assert len(found) > 3
    assert not [where for where, text in found.items() if ">>> " not in text]
