"""A work folder -> its tables, figures and one page that opens anywhere.

    config.json, metrics.jsonl                           what was run, how it trained
    samples/STEP.npz                                     validation images meanwhile
    evaluation/{info.json, metrics.jsonl, arrays.npz}    numbers and example images
    evaluation/values.npz                                every number of every image
        ->  report/{table.md, table.json, figure2.png, figure2.pdf, snr.png,
                    training.png, samples.png, report.html}
    generalisation/{table.json, values.npz}              of mpi-jax generalise
        ->  generalisation/{table.md, drops.png, drops.pdf, shapes.png}

Reads files and nothing else: no JAX, so a report costs no device and no compilation,
and a run still under way can be looked at. Whatever is missing is named on the page.
Lengths are in millimetres on the page and in metres in the files.

"""

import json
from pathlib import Path

from mpi_jax._files import replace
from mpi_jax.report.cells import markdown
from mpi_jax.report.charts import snr_figure, training_figure
from mpi_jax.report.images import _file, example_figure, samples_figure
from mpi_jax.report.page import _page
from mpi_jax.report.read import read
from mpi_jax.report.tables import _tables


def write(workdir: Path) -> Path:
    """Writes workdir/report from what workdir holds; returns the path of report.html.

    Each file appears whole or not at all. Raises ValueError if workdir is no work folder
    or one of its files cannot be understood.
    """
    workdir = Path(workdir)
    run = read(workdir)
    folder = workdir / "report"
    folder.mkdir(exist_ok=True)
    tables = _tables(run) if run.rows else []
    figures = {}
    if run.arrays:
        figure = example_figure(run.arrays)
        figures["figure2.png"] = _file(figure)
        figures["figure2.pdf"] = _file(figure, "pdf")
    if len({snr for snr, _ in run.levels}) > 1:
        figures["snr.png"] = _file(snr_figure(run))
    if run.training or run.validation:
        figures["training.png"] = _file(training_figure(run))
    if run.samples and not run.arrays:
        figures["samples.png"] = _file(samples_figure(run.samples))
    if tables:
        text = "\n\n".join(markdown(table) for table in tables)
        replace(folder / "table.md", f"{text}\n".encode())
        found = {
            t.title: {"columns": t.columns, "rows": t.rows, "notes": t.notes}
            for t in tables
        }
        text = json.dumps(found, indent=1, ensure_ascii=False)
        replace(folder / "table.json", f"{text}\n".encode())
    for name, content in figures.items():
        replace(folder / name, content)
    page = folder / "report.html"
    replace(page, _page(run, tables, figures).encode())
    return page
