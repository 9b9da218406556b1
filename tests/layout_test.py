"""The house: who may import whom, read from the source."""

import ast
import configparser
import importlib.metadata
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mpi_jax"
LONGEST = 500  # lines of a file

SIGNALS = {"scanner", "phantoms", "physics", "noise", "system_matrix"}
LEARNING = {"data", "train", "models", "configs", "pretrained", "runs", "metrics"}
# Room -> rooms of ours that it may import, in the order of the data. A room is a module
# of mpi_jax or a package with all its modules. `_files`, `_checks`, `_linalg`,
# `_progress` and `_spelling` are tools, open to all and importing none of the rooms.
TOOLS = {"_files", "_checks", "_linalg", "_progress", "_spelling"}
ALLOWED = {
    "scanner": set(),
    "phantoms": {"scanner"},
    "physics": {"scanner"},
    "noise": {"scanner", "physics"},
    "system_matrix": {"scanner", "physics"},
    "mdf": {"scanner"},
    "open_mpi": SIGNALS | {"mdf"},
    "reconstruct": {"scanner"},
    "preprocess": {"mdf", "reconstruct", "configs", "scanner"},
    "models": set(),
    "configs": set(),
    "pretrained": {"configs"},
    "metrics": set(),
    "bootstrap": set(),
    "runs": {"configs", "pretrained", "results"},
    "cluster": set(),
    "results": set(),
    "data": SIGNALS | {"mdf", "reconstruct", "preprocess", "configs"},
    "train": {
        *("models", "data", "metrics", "phantoms", "runs", "configs", "pretrained"),
        "cluster",
    },
    "methods": SIGNALS | LEARNING | {"mdf", "reconstruct", "preprocess"},
    "evaluation": SIGNALS
    | LEARNING
    | {"mdf", "open_mpi", "reconstruct", "methods", "bootstrap", "results"}
    | {"cluster"},
    "report": {"bootstrap", "results"},
    "cli": {"*"},
}
# Library -> the only rooms that may import it.
RESERVED = {
    "matplotlib": {"report"},
    "h5py": {"mdf"},
    "tensorflow_datasets": {"data"},
    "tyro": {"cli"},
    "tqdm": {"cli"},
    "argparse": set(),
}
# Folders beside the package: programs that take mpi_jax as a user does.
PROGRAMS = ("datasets", "launch", "examples", "tools", "benchmarks")
# Tests of what is no single module: the house, its pages, programs, measured data and
# simulators of others.
BESIDE = {"layout", "init", "doctest", "blocks", "measured", "mpirf", *PROGRAMS}
BESIDE |= {"launch_cloud", "kills"}


def imports(path, *, running=False):
    """The full name of every module that a file imports.

    running: without what only the type checker imports.
    """
    tree = ast.parse(path.read_text())
    if running:
        tree.body = [
            node
            for node in tree.body
            if not (
                isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            )
        ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module.split(".")[0] == "mpi_jax":
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            else:
                yield node.module


def reached(path):
    """(room, name) of every `room.name` where the file imports the room."""
    tree = ast.parse(path.read_text())
    rooms = {
        alias.asname or alias.name: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "mpi_jax"
        for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id in rooms:
                yield rooms[node.value.id], node.attr


def door_of(name):
    """The text of a room's door, which lists what it gives."""
    path = PACKAGE / name / "__init__.py"
    return path.read_text() if path.exists() else ""


def room(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


FILES = sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE) + sorted(
    p for p in PACKAGE.glob("*.py") if p.stem not in ("__init__", "__main__")
)


TESTS = sorted((ROOT / "tests").rglob("*.py"))


def mirrored(path):
    """The module that a test file tests, below mpi_jax; `init` is a room's door."""
    module = path.relative_to(ROOT / "tests")
    tested = module.name.replace("_test.py", ".py")
    return module.with_name("__init__.py" if tested == "init.py" else tested)


def name(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports_flow_one_way(path):
    here = room(path)
    allowed = ALLOWED.get(here, set()) | {here}
    for module in imports(path):
        parts = module.split(".")
        if parts[0] == "mpi_jax" and len(parts) > 1 and "*" not in allowed:
            door = parts[1] == "__version__" or parts[1] in TOOLS | allowed
            assert door, f"{name(path)} imports {module}"
        if parts[0] in RESERVED:
            assert here in RESERVED[parts[0]], f"{name(path)} imports {module}"
        assert parts[0] not in (*PROGRAMS, "tests"), f"{name(path)} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_circle_inside_a_package(path):
    """Modules of a package import its modules, never its door."""
    package = path.parent
    if package == PACKAGE or path.stem == "__init__":
        return
    seen, todo = set(), [path]
    while todo:
        for module in imports(todo.pop(), running=True):
            parts = module.split(".")
            if parts[:2] != ["mpi_jax", package.name] or len(parts) < 3:
                continue
            other = package / f"{parts[2]}.py"
            assert other.exists(), f"{name(path)} imports {module} through the door"
            assert other != path, f"{name(path)} imports itself in a circle"
            if other not in seen:
                seen.add(other)
                todo.append(other)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_nothing_is_reached_through_another_room(path):
    """`data.phantoms.x` needs the right to import phantoms, and then imports it."""
    rooms = {room(p) for p in FILES}
    for door, attribute in reached(path):
        door_gives = f'"{attribute}"' in door_of(door)
        through = attribute in rooms and not door_gives
        assert not through, f"{name(path)} reaches {attribute} through {door}"


@pytest.mark.parametrize("path", FILES + TESTS, ids=name)
def test_a_file_has_one_subject(path):
    assert len(path.read_text().splitlines()) <= LONGEST


def test_tests_mirror_the_package():
    """tests/<package>/<module>_test.py tests that module; what they share: tests/support."""
    astray = [
        name(path)
        for path in TESTS
        if path.stem.endswith("_test")
        and not (PACKAGE / mirrored(path)).is_file()
        and str(mirrored(path).with_suffix("")) not in BESIDE
    ]
    assert not astray, f"no such modules of mpi_jax: {', '.join(astray)}"
    helpers = {
        path.parent.relative_to(ROOT / "tests").as_posix()
        for path in TESTS
        if not path.stem.endswith("_test") and path.stem != "conftest"
    }
    assert helpers <= {"support"}, f"expected helpers in tests/support, found {helpers}"


@pytest.mark.parametrize(
    "path",
    sorted(p for folder in PROGRAMS for p in (ROOT / folder).rglob("*.py")),
    ids=name,
)
def test_programs_come_in_by_the_doors(path):
    """No private names of the package, nothing of other programs."""
    for module in imports(path):
        parts = module.split(".")
        assert parts[0] not in (*PROGRAMS, "tests"), f"{name(path)} imports {module}"
        if parts[0] == "mpi_jax":
            private = [p for p in parts if p.startswith("_") and p != "__version__"]
            assert not private, f"{name(path)} imports {module}"


def test_every_room_has_its_rule():
    assert {room(p) for p in FILES} - TOOLS == set(ALLOWED)


def declared(*extras):
    """Names of the libraries that setup.cfg asks for, as pip spells them."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    asked = setup["options"]["install_requires"].splitlines()
    for extra in extras:
        asked += setup["options.extras_require"][extra].splitlines()
    names = (re.match(r"[\w-]*", line.strip())[0] for line in asked)
    return {name.lower().replace("_", "-") for name in names if name}


def test_what_is_imported_is_declared_and_what_is_declared_is_imported():
    tops = {module.split(".")[0] for path in FILES for module in imports(path)}
    tops -= {"mpi_jax", "setuptools"} | set(sys.stdlib_module_names)
    providers = importlib.metadata.packages_distributions()
    # Of an optional library that isn't installed, the name as it is imported.
    libraries = {
        top: {d.lower().replace("_", "-") for d in providers.get(top, [top])}
        for top in tops
    }
    asked = declared("data", "tensorboard")
    for top, names in libraries.items():
        known = names | {top.lower().replace("_", "-")}
        assert known & asked, f"{top} is imported and not declared in setup.cfg"
    unused = declared() - set().union(*libraries.values())
    assert not unused, f"{unused} are declared and imported nowhere"


def test_help_costs_no_jax():
    code = (
        "import sys, mpi_jax.cli.main as c; c.main(['--help']); "
        "assert 'jax' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_data_sets_and_launches_stay_outside_the_package():
    assert not (ROOT / "datasets" / "__init__.py").exists()
    assert "mpi_jax.*" in (ROOT / "setup.cfg").read_text()
