"""The package's door: rooms by name, imported when they are used and no sooner."""

import ast
import pathlib
import pkgutil
import subprocess
import sys

import pytest

import mpi_jax


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_door_costs_no_jax():
    run(
        "import sys, mpi_jax as mj; dir(mj); mj.__version__; "
        "assert not {'jax', 'numpy', 'flax'} & set(sys.modules)"
    )


def test_a_room_needs_no_further_import():
    run("import mpi_jax as mj; assert mj.scanner.paper(8).grid.shape == (8, 8)")


def test_every_public_room_is_listed_and_opens():
    rooms = {m.name for m in pkgutil.iter_modules(mpi_jax.__path__)}
    public = {name for name in rooms if not name.startswith("_")} - {"cli"}
    assert set(mpi_jax.__all__) == public
    assert dir(mpi_jax) == sorted([*public, "__version__"])
    for name in mpi_jax.__all__:
        assert getattr(mpi_jax, name).__name__ == f"mpi_jax.{name}"


def test_type_checkers_see_the_same_rooms():
    tree = ast.parse(pathlib.Path(mpi_jax.__file__).read_text())
    seen = [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "mpi_jax"
        for alias in node.names
    ]
    assert seen == mpi_jax.__all__


def test_other_names_say_what_there_is():
    with pytest.raises(AttributeError, match="'scaner'; its rooms are .*scanner"):
        _ = mpi_jax.scaner
