"""The table of methods: its settings, its refusals, its price."""

import dataclasses
import subprocess
import sys

import pytest

from mpi_jax import methods
from mpi_jax.methods import classical, controls
from mpi_jax.methods.table import METHODS

FIELDS = {field.name for field in dataclasses.fields(methods.Settings)}


@pytest.mark.parametrize("name", METHODS)
def test_every_row_is_complete(name):
    method = METHODS[name]
    assert method.name == name and set(method.settings) <= FIELDS
    home = controls if method.kind == "control" else classical
    assert callable(getattr(home, f"{name}_solver"))
    assert method.complete() == method.settings


def test_every_setting_belongs_to_a_method():
    assert FIELDS == {name for method in METHODS.values() for name in method.settings}


def test_given_settings_take_the_place_of_defaults():
    kaczmarz = METHODS["kaczmarz"]
    defaults = {"lam": 1e-2, "lam_unit": "energy", "iterations": 10}
    assert kaczmarz.complete() == kaczmarz.complete(methods.Settings()) == defaults
    given = methods.Settings(lam=0.0, iterations=3)
    expected = {"lam": 0.0, "lam_unit": "energy", "iterations": 3}
    assert kaczmarz.complete(given) == expected
    assert kaczmarz.complete({"lam": 0.0, "iterations": 3}) == expected
    assert kaczmarz.complete() == defaults  # unchanged


@pytest.mark.parametrize(
    "name, settings, said",
    [
        ("kaczmarz", {"lam_tv": 1.0}, r"lam_tv \(--lam-tv\): not a setting of method"),
        ("kaczmarz", methods.Settings(rho=1.0), "some of lam, lam_unit, iterations"),
        ("zero", {"lam": 1.0}, "expected some of none at all"),
        ("tv", {"colour": 1}, r"colour \(--colour\)"),
    ],
)
def test_unknown_settings_are_refused_by_name(name, settings, said):
    with pytest.raises(ValueError, match=said):
        METHODS[name].complete(settings)


def test_names():
    assert methods.get("tv") is METHODS["tv"]
    further = {"mine": dataclasses.replace(METHODS["tv"], name="mine")}
    assert methods.get("mine", further).name == "mine"
    with pytest.raises(ValueError, match="method: .*; did you mean kaczmarz\\?"):
        methods.get("kaczmarcz")
    with pytest.raises(ValueError, match="method: expected one of zero"):
        methods.get("mine")


def test_the_table_costs_no_jax():
    code = (
        "import sys; from mpi_jax.methods import METHODS, Settings; "
        "METHODS['tv'].complete(Settings(factor=2.0)); "
        "assert not {'jax', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
