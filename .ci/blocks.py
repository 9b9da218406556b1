"""The code blocks of the pages: found, listed, run.

    blocks.py list            every block, and why some are not run
    blocks.py show NAME       the text of a named block
    blocks.py run FOLDER      run all others, a folder for each page; --workers N pages at
                              once, --only PAGE [PAGE ...] some of the pages

A block fenced as `sh` or `python` is run, in the order of its page, in a folder of the
page that holds the repository but for the package itself, which is the installed one. A
comment in the line before the fence changes that:

    <!-- ci: NAME -->           a name, by which SHORT may make a long command short
    <!-- ci: skip, REASON -->   not run: it needs what no test machine has

Blocks of other languages (text, json, yaml) are shown, not run; a fence without one is an
error. The blocks named in CHECKOUT are run by `.ci/run` itself.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUN = {"sh": ["bash", "-euo", "pipefail", "-s"], "python": [sys.executable, "-"]}
SHOWN = ("text", "json", "yaml")
CHECKOUT = ("tests", "setup", "style", "site")  # run by .ci/run, in the repository
# Name -> (what, by what) of the short form that is run. The installed wheel stands for
# `pip install .`, and few images and steps for many.
SHORT = {
    "demo": (
        (r"python3 -m venv .venv\n\. .*\npip install \.\n", ""),
        (
            r"mpi-jax demo",
            "mpi-jax demo --config test --num 60 --workdir demo\n"
            "test -s demo/report/report.html",
        ),
    ),
    "table": ((r"--num 2000 --methods .*", "--num 60 --methods tikhonov small64"),),
}
SECONDS = 1200  # of one block


@dataclasses.dataclass(frozen=True)
class Block:
    """A code block of a page; line: of its fence, from 1; skip: why it isn't run."""

    page: str
    line: int
    language: str
    text: str
    name: str = ""
    skip: str = ""

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """README and CONTRIBUTING, then the documentation."""
    return [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *sorted((ROOT / "docs").rglob("*.md")),
    ]


def blocks(page: str, text: str) -> Iterator[Block]:
    """The code blocks of a page's text.

    Raises ValueError for a fence that is not closed, or that does not say whether it is a
    command, and for a mark that no block follows.
    """
    fence, mark, inside = None, "", []
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if fence is not None:
            indent, at, language = fence
            if stripped == "```":
                name, _, reason = mark.partition(",")
                skipped = name.strip() == "skip"
                if skipped and not reason.strip():
                    raise ValueError(f"{page}:{at}: expected `ci: skip, REASON`")
                yield Block(
                    page,
                    at,
                    language,
                    "\n".join(inside) + "\n",
                    "" if skipped else name.strip(),
                    reason.strip() if skipped else "",
                )
                fence, mark, inside = None, "", []
            else:
                inside.append(line[indent:] if not line[:indent].strip() else line)
        elif stripped.startswith("```"):
            language = stripped.strip("`").split(" ")[0]
            if language not in (*RUN, *SHOWN):
                raise ValueError(
                    f"{page}:{number}: expected a block of {', '.join((*RUN, *SHOWN))}; "
                    f"got {language or 'none'}"
                )
            fence = len(line) - len(line.lstrip()), number, language
        elif found := re.fullmatch(r"<!-- ci: (.*?) -->", stripped):
            mark = found[1]
        elif mark and stripped:
            raise ValueError(f"{page}:{number}: expected a code block after its mark")
    if fence is not None or mark:
        raise ValueError(f"{page}: expected an end of the block or mark, found none")


def commands(paths: list[Path] | None = None) -> list[Block]:
    """The blocks of sh and python of the pages. ValueError where two have one name."""
    found = []
    for path in paths or pages():
        page = str(path.relative_to(ROOT))
        of_page = blocks(page, path.read_text(encoding="utf-8"))
        found += [block for block in of_page if block.language in RUN]
    names = [block.name for block in found if block.name]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"ci: {name}: expected one block of that name")
    return found


def short(block: Block) -> str:
    """The text that is run. ValueError where a short form no longer fits its block."""
    text = block.text
    for pattern, replacement in SHORT.get(block.name, ()):
        text, count = re.subn(pattern, replacement, text)
        if count != 1:
            raise ValueError(
                f"{block.where}: expected one {pattern!r} in the block {block.name}, "
                f"got {count}"
            )
    return text


def run_page(page_blocks: list[Block], folder: Path) -> list[str]:
    """Run the blocks of a page in a new folder; returns what went wrong.

    Behind a block that fails the page's others are left out.
    """
    ignored = shutil.ignore_patterns(
        *("mpi_jax", ".git", ".venv", "build", "runs", "*cache*")
    )
    shutil.copytree(ROOT, folder, ignore=ignored)
    for block in page_blocks:
        text, start = short(block), time.perf_counter()
        try:
            done = subprocess.run(
                RUN[block.language],
                input=text,
                text=True,
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=SECONDS,
            )
            output, code = done.stdout, done.returncode
        except subprocess.TimeoutExpired as stop:
            output, code = str(stop.stdout or ""), f"stopped after {SECONDS} s"
        seconds = time.perf_counter() - start
        ended = "" if code == 0 else f"; FAILED, {code}"
        print(f"--- {block.where}, {seconds:.0f} s{ended}\n{text}{output}", flush=True)
        if code != 0:
            return [f"{block.where}: {code}"]
    return []


def run(folder: Path, workers: int, only: list[str]) -> int:
    """Run every block that is run here; the number of pages that failed."""
    by_page: dict[str, list[Block]] = {}
    for block in commands():
        if not block.skip and block.name not in CHECKOUT:
            by_page.setdefault(block.page, []).append(block)
    if unknown := set(only) - set(by_page):
        raise ValueError(f"--only: expected pages with blocks, got {sorted(unknown)}")
    for page in only and set(by_page) - set(only):
        del by_page[page]
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        jobs = [
            pool.submit(run_page, found, folder / page.replace("/", "_"))
            for page, found in by_page.items()
        ]
        failed = [text for job in jobs for text in job.result()]
    print("\n".join(failed) or f"{len(by_page)} pages: every block ran")
    return len(failed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("list")
    verbs.add_parser("show").add_argument("name")
    runner = verbs.add_parser("run")
    runner.add_argument("folder", type=Path)
    runner.add_argument("--workers", type=int, default=2)
    runner.add_argument("--only", nargs="*", default=[])
    options = parser.parse_args()
    if options.verb == "run":
        return min(run(options.folder, options.workers, options.only), 1)
    for block in commands():
        if options.verb == "list":
            how = block.skip and f"not run: {block.skip}"
            print(f"{block.where} {block.language} {block.name} {how}".rstrip())
        elif block.name == options.name:
            print(block.text, end="")
            return 0
    return 0 if options.verb == "list" else 1


if __name__ == "__main__":
    sys.exit(main())
