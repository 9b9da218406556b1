"""The code blocks of README and docs: each is run by CI, or says why it isn't."""

import importlib.util
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def ci():
    spec = importlib.util.spec_from_file_location("blocks", ROOT / ".ci" / "blocks.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["blocks"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


PAGE = """text
<!-- ci: first -->
```sh
echo a
```

- indented

  ```python
  if True:
      print("b")
  ```

<!-- ci: skip, needs a scanner -->

```sh
scan
```
```text
output
```
"""


def test_blocks_of_a_page(ci):
    first, second, third, shown = ci.blocks("page.md", PAGE)
    assert (first.name, first.text, first.line) == ("first", "echo a\n", 3)
    assert second.text == 'if True:\n    print("b")\n' and not second.name
    assert third.skip == "needs a scanner" and not third.name
    assert shown.language == "text"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```\nls\n```\n", "page.md:1: expected a block of sh, python.*got none"),
        ("```bash\nls\n```\n", "got bash"),
        ("```sh\nls\n", "expected an end"),
        ("<!-- ci: a -->\ntext\n```sh\nls\n```\n", "page.md:2: expected a code block"),
        ("<!-- ci: skip -->\n```sh\nls\n```\n", "expected `ci: skip, REASON`"),
    ],
)
def test_what_a_page_must_not_hold(ci, text, message):
    with pytest.raises(ValueError, match=message):
        list(ci.blocks("page.md", text))


def test_names_stand_for_one_block(ci, tmp_path, monkeypatch):
    monkeypatch.setattr(ci, "ROOT", tmp_path)
    (tmp_path / "a.md").write_text("<!-- ci: x -->\n```sh\nls\n```\n" * 2)
    with pytest.raises(ValueError, match="ci: x: expected one block"):
        ci.commands([tmp_path / "a.md"])


def test_short_forms_fit_and_leave_other_blocks_alone(ci):
    demo = ci.Block("a.md", 1, "sh", "mpi-jax simulate\n", "demo")
    with pytest.raises(ValueError, match="a.md:1: expected one .* got 0"):
        ci.short(demo)
    plain = ci.Block("a.md", 1, "sh", "mpi-jax demo\n")
    assert ci.short(plain) == plain.text


def test_a_page_runs_in_a_folder_without_the_package(ci, tmp_path, capsys):
    here = [
        ci.Block("a.md", 1, "sh", "test ! -e mpi_jax; echo 5 > number\n"),
        ci.Block("a.md", 5, "python", "print(2 * int(open('number').read()))\n"),
    ]
    assert ci.run_page(here, tmp_path / "one") == []
    assert "--- a.md:5" in (out := capsys.readouterr().out) and "10\n" in out
    failing = [ci.Block("a.md", 1, "sh", "exit 3\n"), here[1]]
    assert ci.run_page(failing, tmp_path / "two") == ["a.md:1: 3"]
    assert "a.md:5" not in capsys.readouterr().out


def test_our_pages(ci):
    """Short forms fit, the blocks of .ci/run exist, and what is skipped is known."""
    found = ci.commands()
    for block in found:
        ci.short(block)
    names = {block.name for block in found}
    assert {*ci.CHECKOUT, *ci.SHORT} <= names
    run = (ROOT / ".ci" / "run").read_text()
    assert all(f"block {name}" in run for name in ci.CHECKOUT)
    skipped = [f"{block.page}: {block.skip}" for block in found if block.skip]
    assert sorted(skipped) == SKIPPED


SKIPPED = [
    "docs/coming-from-mpireco.md: needs files of Open MPI Data; real-scanner.md runs it on "
    "simulated ones",
    "docs/index.md: the first block of README.md, which is run",
    "docs/launching.md: tests/launch_test.py runs such a training",
    "docs/paper.md: 656,370 images take hours; the tests build small configs",
    "docs/paper.md: hours of training; the tests run this program without its trainings",
    "docs/paper.md: minutes each and files of 1 GB; the tests run these verbs on smaller "
    "files",
    "docs/results.md: an hour of training at an earlier commit",
    "docs/results.md: hours of training; the tests run this program without its trainings",
]
