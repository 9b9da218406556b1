"""Tables of committed summaries, filled into a page."""

import re
from collections.abc import Iterable
from pathlib import Path

from mpi_jax.report.cells import markdown
from mpi_jax.report.tables import README_COLUMNS, results_table, snr_name
from mpi_jax.results import Summary, Tables, in_groups


def readme_table(paths: Iterable[Path]) -> str:
    """Markdown of committed summaries, one table with its conditions for each file.

    A summary of version 1 gives the table that was published of it; written anew
    (`Summary.read(path).write(path)`), it says what networks are given, like later ones.
    """
    parts = []
    for path in paths:
        summary = Summary.read(path)
        networks = [line.network for line in summary.rows if line.network]
        images_seen = sorted({n.images_seen for n in networks if n.images_seen})
        words = [
            f"`{summary.config}` at commit {summary.commit}, seed {summary.seed}",
            f"{summary.num:,} test images of {' x '.join(map(str, summary.grid))} pixels",
            f"{summary.model} model",
            f"power SNR {snr_name(summary.snr_db)}",
            f"timed on {summary.device}",
        ]
        if images_seen:
            counts = " or ".join(f"{n:,}" for n in images_seen)
            words.append(f"networks trained on {counts} images ({summary.trained_on})")
        grouped = summary.schema > 1
        table = results_table(
            in_groups(summary.rows) if grouped else summary.rows,
            README_COLUMNS,
            "",
            (f"SSIM: {summary.ssim}; intervals: {summary.intervals}.",),
            given=grouped,
        )
        _, body = markdown(table).split("\n\n", 1)
        parts += ["; ".join(words) + ".", body]
    return "\n\n".join(parts)


def fill(text: str, folder: Path) -> str:
    """The text with the tables between its marks made anew from the files of a folder:
    the main tables of evaluations (their summary.json), and others by their titles (out
    of report/table.json).

    <!-- results: small.json small64.json --> ... <!-- end of results -->
    <!-- tables: table32.json: Several seeds; Settings --> ... <!-- end of results -->
    """

    def filled(mark: re.Match[str]) -> str:
        if mark[1] == "results":
            body = readme_table([Path(folder) / name for name in mark[2].split()])
        else:
            name, titles = mark[2].split(": ")
            body = _tables_of(Path(folder) / name, titles.split("; "))
        return f"<!-- {mark[1]}: {mark[2]} -->\n\n{body}\n\n{END}"

    marks = rf"<!-- (results|tables): (.*?) -->\n.*?{END}"
    return re.sub(marks, filled, text, flags=re.DOTALL)


def _tables_of(path: Path, titles: list[str]) -> str:
    """Markdown of some of the tables that `write` kept in report/table.json."""
    tables = {table.title: table for table in Tables.read(path).tables}
    parts = []
    for title in titles:
        if title not in tables:
            raise ValueError(f"{path}: expected a table {title!r}, got {list(tables)}")
        _, body = markdown(tables[title]).split("\n\n", 1)
        parts.append(f"**{title}**\n\n{body}")
    return "\n\n".join(parts)


END = "<!-- end of results -->"
