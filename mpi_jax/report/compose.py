"""A work folder -> its tables, figures and one page that opens anywhere.

    config.json, metrics.jsonl                           what was run, how it trained
    samples/STEP.npz                                     validation images meanwhile
    evaluation/{info.json, metrics.jsonl, arrays.npz}    numbers and example images
    evaluation/values.npz                                every number of every image
        ->  report/{table.md, table.json, figure2.png, figure2.pdf, snr.png,
                    growth.png, training.png, samples.png, report.html}
    generalisation/{table.json, values.npz}              of mpi-jax generalise
        ->  generalisation/{table.md, drops.png, drops.pdf, shapes.png}

Reads files and nothing else: no JAX, so a report costs no device and no compilation,
and a run still under way can be looked at. Whatever is missing is named on the page.
Lengths are in millimetres on the page and in metres in the files.
"""

from pathlib import Path

from mpi_jax._files import write_atomically
from mpi_jax.report.cells import markdown
from mpi_jax.report.charts import snr_figure, training_figure
from mpi_jax.report.curves import growth_figure, growths
from mpi_jax.report.images import encoded, example_figure, samples_figure
from mpi_jax.report.page import page_of
from mpi_jax.report.read import read
from mpi_jax.report.tables import tables_of
from mpi_jax.results import Tables


def write(workdir: Path) -> Path:
    """Writes workdir/report from what workdir holds; returns the path of report.html.

    Each file appears whole or not at all. Raises ValueError if workdir is no work folder
    or one of its files cannot be understood.
    """
    workdir = Path(workdir)
    run = read(workdir)
    folder = workdir / "report"
    folder.mkdir(exist_ok=True)
    tables = tables_of(run) if run.lines else []
    figures = {}
    if run.examples:
        figure = example_figure(run.examples, run.main)
        figures["figure2.png"] = encoded(figure)
        figures["figure2.pdf"] = encoded(figure, "pdf")
    if len({snr for snr, _ in run.levels}) > 1:
        figures["snr.png"] = encoded(snr_figure(run))
    if growths(run):
        figures["growth.png"] = encoded(growth_figure(run))
    if run.training or run.validation:
        figures["training.png"] = encoded(training_figure(run))
    if run.samples and not run.examples:
        figures["samples.png"] = encoded(samples_figure(run.samples))
    if tables:
        text = "\n\n".join(markdown(table) for table in tables)
        write_atomically(folder / "table.md", f"{text}\n")
        Tables(tables=tuple(tables)).write(folder / "table.json")
    for name, content in figures.items():
        write_atomically(folder / name, content)
    page = folder / "report.html"
    write_atomically(page, page_of(run, tables, figures))
    return page
