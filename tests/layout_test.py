"""The house: who may import whom, read from the source."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mpi_jax"
BELOW_DATA = {"scanner", "physics", "phantoms", "system_matrix", "configs"}
# Module -> modules of ours that it may import. configs holds plain settings.
ALLOWED = {
    "scanner": set(),
    "physics": {"scanner"},
    "phantoms": {"scanner"},
    "system_matrix": {"scanner", "physics"},
    "open_mpi": {"scanner", "physics", "system_matrix", "mdf"},
    "phantoms_ood": {"scanner", "open_mpi"},
    "reconstruct": {"reconstruct"},
    "models": {"models"},
    "mdf": {"scanner"},
    "losses": set(),
    "metrics": set(),
    "bootstrap": set(),
    "controls": set(),
    "configs": {"configs"},
    "pipeline": {"configs", "mdf", "reconstruct", "scanner"},
    "calibrated": {"configs", "mdf", "pipeline", "scanner"},
    "checkpoint": {"configs"},
    # The classical images that the network is given are part of its input.
    "data": BELOW_DATA | {"reconstruct", "calibrated"},
    "train": {"models", "losses", "metrics", "data", "checkpoint", "configs"},
    "evaluate": BELOW_DATA
    | {"reconstruct", "models", "losses", "metrics", "data", "checkpoint", "train"}
    | {"bootstrap", "controls"},
    "figure3": {
        "calibrated",
        "data",
        "evaluate",
        "mdf",
        "open_mpi",
        "train",
        "configs",
    },
    "generalise": BELOW_DATA
    | {"reconstruct", "models", "metrics", "data", "train", "evaluate", "phantoms_ood"}
    | {"bootstrap"},
    "report": {"bootstrap"},
}
# Library -> the only modules that may import it.
RESERVED = {
    "matplotlib": {"report"},
    "h5py": {"mdf"},
    "tensorflow_datasets": {"data"},
    "argparse": {"cli"},
}


def imports(path):
    """(module, is it at the top level) of every import in a file."""
    tree = ast.parse(path.read_text())
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "mpi_jax":
                names = (f"mpi_jax.{alias.name}" for alias in node.names)
                yield from ((name, id(node) in top) for name in names)
            else:
                yield node.module, id(node) in top


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if name not in ("__init__", "__main__"):
            yield name, path


@pytest.mark.parametrize(
    "name, path", list(modules()), ids=lambda x: str(getattr(x, "name", x))
)
def test_imports_flow_one_way(name, path):
    for module, _ in imports(path):
        parts = module.split(".")
        if parts[0] == "mpi_jax" and len(parts) > 1 and name != "cli":
            assert parts[1] in ALLOWED[name], f"{path.name} imports {module}"
        assert name in RESERVED.get(parts[0], {name}), f"{path.name} imports {module}"
        assert parts[0] not in ("launch", "datasets", "tests")


def test_help_costs_no_jax():
    code = "import sys, mpi_jax.cli.main as c; c.main(['--help']); assert 'jax' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_data_sets_and_launches_stay_outside_the_package():
    assert not (ROOT / "datasets" / "__init__.py").exists()
    assert "mpi_jax.*" in (ROOT / "setup.cfg").read_text()
