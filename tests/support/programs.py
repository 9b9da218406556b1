"""Programs beside the package, loaded as modules."""

import importlib.util
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]


def script(name):
    """The file of an example, a tool or a benchmark."""
    folders = (ROOT / folder for folder in ("examples", "tools", "benchmarks"))
    (path,) = (path for folder in folders for path in folder.glob(f"{name}.py"))
    return path


def load(name):
    spec = importlib.util.spec_from_file_location(name, script(name))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
