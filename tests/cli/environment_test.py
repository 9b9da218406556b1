"""What is set before JAX starts, and what is left as the user set it."""

import importlib.metadata
import os
import pathlib

import pytest

from mpi_jax.cli import environment

NAMES = ("JAX_COMPILATION_CACHE_DIR", "TF_CPP_MIN_LOG_LEVEL", "XLA_FLAGS")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home of its own, and nothing set; all of it as before at the end."""
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def processor(monkeypatch, text):
    """The folder on a processor that describes itself in this text."""
    read = pathlib.Path.read_text

    def told(path, *args, **kwargs):
        cpu = path == pathlib.Path("/proc/cpuinfo")
        return text if cpu else read(path, *args, **kwargs)

    monkeypatch.setattr(pathlib.Path, "read_text", told)
    return environment.programs_folder()


def test_programs_are_kept_for_this_jaxlib(home):
    environment.quick_compilation()
    folder = pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    assert folder.is_dir() and folder.parent == home / ".cache" / "mpi_jax"
    assert importlib.metadata.version("jaxlib") in folder.name
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "3"


def test_processors_with_other_instructions_have_another_folder(home, monkeypatch):
    one = processor(monkeypatch, "model name: a\nflags : fpu avx2\nflags : fpu avx2\n")
    same = processor(monkeypatch, "model name: b\nflags : avx2 fpu\n")
    other = processor(monkeypatch, "model name: a\nflags : fpu avx2 avx512f\n")
    assert one == same != other and one.parent == other.parent


def test_what_is_set_stays(home, monkeypatch):
    for name in NAMES:
        monkeypatch.setenv(name, "7")
    environment.quick_compilation()
    assert [os.environ[name] for name in NAMES] == ["7"] * 3
    assert not (home / ".cache").exists()


def test_the_level_that_jax_hands_to_its_children_is_no_wish(home, monkeypatch):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "1")
    environment.quick_compilation()
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "3"


def test_a_cache_that_cannot_be_written_is_done_without(home, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "file"))
    (home / "file").write_text("")
    environment.quick_compilation()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
