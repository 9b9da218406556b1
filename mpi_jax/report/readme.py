"""Tables of committed summaries, filled into a page."""

import re
import sys
from pathlib import Path

from mpi_jax._files import replace
from mpi_jax.report.cells import Table, _cell, markdown
from mpi_jax.report.read import read_json
from mpi_jax.report.tables import README_COLUMNS, _best, snr_name


def readme_table(paths: list[Path]) -> str:
    """Markdown of committed summaries, one table with its conditions for each file."""
    parts = []
    for path in map(Path, paths):
        summary = read_json(path)
        if not summary.get("rows"):
            raise ValueError(f"{path}: expected a summary of mpi-jax evaluate")
        main = [(line["method"], line) for line in summary["rows"]]
        grid = " x ".join(str(n) for n in summary["grid"])
        seen = sorted(
            {
                line["about"]["images_seen"]
                for _, line in main
                if line.get("about", {}).get("images_seen")
            }
        )
        words = [
            f"`{summary['config']}` at commit {summary['commit']}, seed {summary['seed']}",
            f"{summary['num']:,} test images of {grid} pixels",
            f"{summary['model']} model",
            f"power SNR {snr_name(float(summary['snr_db']))}",
            f"timed on {summary['device']}",
        ]
        if seen:
            counts = " or ".join(f"{n:,}" for n in seen)
            words.append(
                f"networks trained on {counts} images ({summary['trained_on']})"
            )
        grouped = by_what_is_given(main)
        table = Table(
            "",
            ("Method", *(column[0] for column in README_COLUMNS)),
            [
                (
                    str(line["label"]),
                    *(
                        _cell(line, key, part) if "method" in line else ""
                        for _, key, part, _ in README_COLUMNS
                    ),
                )
                for _, line in grouped
            ],
            best=_best(grouped, README_COLUMNS),
        )
        body = markdown(table).split("\n\n")[1]
        note = f"SSIM: {summary['ssim']}; intervals: {summary['intervals']}."
        parts += ["; ".join(words) + ".", body, note]
    return "\n\n".join(parts)


# What the network of a line is given -> the heading of such lines.
GIVEN = {
    "voltage": "*Networks that are given the voltage alone*",
    "physics": "*Networks that are given classical images of the signal*",
}


def by_what_is_given(lines: list[tuple[str, dict]]) -> list[tuple[str, dict]]:
    """The lines of a table, classical ones first, then networks under two headings, so
    that those which know the scanner stand apart from those of the paper's kind. A
    heading is a line of a label alone.
    """
    groups: dict[str, list[tuple[str, dict]]] = {"": [], "voltage": [], "physics": []}
    for method, line in lines:
        about = line.get("about") or {}
        network = "physics" if about.get("physics") else "voltage"
        groups[network if about.get("generator") else ""].append((method, line))
    for given, heading in GIVEN.items():
        if groups[given]:
            groups[given].insert(0, ("", {"label": heading}))
    return [line for group in groups.values() for line in group]


def fill(text: str, folder: Path) -> str:
    """The text with the tables between its marks made anew from the files of a folder:
    the main tables of evaluations (their summary.json), and others by their titles (out
    of report/table.json).

    <!-- results: small.json small64.json --> ... <!-- end of results -->
    <!-- tables: table32.json: Several seeds; Settings --> ... <!-- end of results -->
    """

    def made(found):
        if found[1] == "results":
            body = readme_table([Path(folder) / name for name in found[2].split()])
        else:
            name, titles = found[2].split(": ")
            body = _tables_of(Path(folder) / name, titles.split("; "))
        return f"<!-- {found[1]}: {found[2]} -->\n\n{body}\n\n{END}"

    marks = rf"<!-- (results|tables): (.*?) -->\n.*?{END}"
    return re.sub(marks, made, text, flags=re.DOTALL)


def _tables_of(path: Path, titles: list[str]) -> str:
    """Markdown of some of the tables that `write` kept in report/table.json."""
    tables, parts = read_json(path), []
    for title in titles:
        if title not in tables:
            raise ValueError(f"{path}: expected a table {title!r}, got {list(tables)}")
        columns, rows, notes = (tables[title][k] for k in ("columns", "rows", "notes"))
        table = Table(title, tuple(columns), [tuple(r) for r in rows], tuple(notes))
        _, body = markdown(table).split("\n\n", 1)
        parts.append(f"**{title}**\n\n{body}")
    return "\n\n".join(parts)


END = "<!-- end of results -->"


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m mpi_jax.report.readme docs/results.md results")
    page, folder = map(Path, sys.argv[1:])
    replace(page, fill(page.read_text(encoding="utf-8"), folder).encode())
