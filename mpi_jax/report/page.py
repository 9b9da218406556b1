"""report.html: one file with all it shows."""

import base64
import dataclasses
import html
import json

from mpi_jax.report.cells import TEXT_COLUMNS
from mpi_jax.report.read import Run, mean_psnr
from mpi_jax.results import Table

# --- page ----------------------------------------------------------------------------

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5b6570; --paper: #fff;
  --box: #f4f6f8; --line: #d8dee4; --mark: #0b6e4f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #9aa5b1;
  --paper: #14171a; --box: #1e2226; --line: #363c43; --mark: #5fd3a8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem 1rem 3rem; max-width: 70rem; color: var(--ink);
  background: var(--paper); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p { max-width: 46rem; margin: .5rem 0; }
.soft { color: var(--soft); font-size: .88rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr));
  gap: .7rem; margin: 1.2rem 0; padding: 0; list-style: none; }
.cards li { background: var(--box); border-radius: .5rem; padding: .7rem .9rem; }
.cards b { display: block; font-size: 1.35rem; color: var(--mark); }
.remarks { border-left: .25rem solid #d08700; margin: 1rem 0; padding: .2rem 1rem;
  background: var(--box); }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: .5rem; }
table { border-collapse: collapse; width: 100%; font-size: .88rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .7rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); font-weight: 600; white-space: normal; min-width: 4.4rem; }
tbody tr:last-child > * { border-bottom: 0; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--paper);
  white-space: normal; min-width: 8rem; max-width: 13rem; }
tbody th { font-weight: 500; }
tbody tr.apart > * { border-top: 2px solid var(--soft); }
.text { text-align: left; white-space: normal; }
td strong { color: var(--mark); }
figure { margin: 0; }
figure .wide { background: #fff; max-width: 60rem; }
img { display: block; width: 100%; min-width: 40rem; height: auto; }
figcaption { margin-top: .5rem; }
pre { overflow-x: auto; background: var(--box); padding: .8rem; border-radius: .5rem;
  font-size: .8rem; }
summary { cursor: pointer; font-weight: 600; margin-top: 2.2rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
"""
CAPTIONS = {
    "figure2.png": (
        "Examples",
        "One test image of each family: the truth, and what each method makes of its "
        "signal; in brackets what a network is given. With each image its absolute error and its PSNR at peak 1. One "
        "colour scale for all images and one for all errors.",
    ),
    "snr.png": (
        "Noise",
        "Mean PSNR on the same test images against the SNR of their signals, with 95 % "
        "intervals. Points are set side by side.",
    ),
    "growth.png": (
        "More images",
        "Means on the same test images against the number of training images, with 95 % "
        "intervals; dotted: the power laws of the table; dashed: the classical method "
        "with the best PSNR.",
    ),
    "samples.png": (
        "Samples of the training",
        "The same validation images at some validations, the newest last, with the mask "
        "of the network; first the truth with the true mask.",
    ),
    "training.png": (
        "Training",
        "Losses as minimised, before weighting; PSNR on the validation images; speed.",
    ),
}


def page_of(run: Run, tables: list[Table], figures: dict[str, bytes]) -> str:
    """The report as one HTML text: styles and figures inside, nothing loaded."""
    title = f"Magnetic particle imaging: run {run.name}"
    remarks = "".join(f"<p>{html.escape(remark)}</p>" for remark in run.remarks)
    cards = "".join(
        f"<li><b>{html.escape(value)}</b>{html.escape(name)}</li>"
        for value, name in _headlines(run)
    )
    provenance = "".join(
        f"<dt>{html.escape(key)}</dt><dd>{html.escape(value)}</dd>"
        for key, value in _provenance(run)
    )
    config = run.info.config if run.info else {}
    settings = json.dumps(config, indent=2, ensure_ascii=False)
    images = {
        name: _html_figure(run, name, data)
        for name, data in figures.items()
        if name in CAPTIONS
    }
    sections = [_html_table(table) for table in tables]
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>",
            f"<h1>{html.escape(title)}</h1>",
            f'<div class="remarks" role="note">{remarks}</div>' if remarks else "",
            f'<ul class="cards">{cards}</ul>' if cards else "",
            *sections[:1],
            images.get("figure2.png", ""),
            *sections[1:],
            images.get("snr.png", ""),
            images.get("growth.png", ""),
            images.get("samples.png", ""),
            images.get("training.png", ""),
            f"<details><summary>Configuration</summary><pre>{html.escape(settings)}</pre>"
            "</details>",
            f"<h2>Provenance</h2><dl>{provenance}</dl>" if provenance else "",
            "</body>\n</html>\n",
        ]
    )


def _provenance(run: Run) -> list[tuple[str, str]]:
    """What made the numbers, by name."""
    facts: dict[str, object] = {}
    if run.info:
        names = ("name", "seed", "version", "commit", "python", "jax", "platform")
        facts = {name: getattr(run.info, name) for name in (*names, "device")}
    if run.measured:
        measured = dataclasses.asdict(run.measured)
        facts |= {f"evaluation: {name}": value for name, value in measured.items()}
    return [(name, _plain(value)) for name, value in facts.items()]


def _headlines(run: Run) -> list[tuple[str, str]]:
    cards = []
    if run.main:
        best = max(run.main, key=mean_psnr)
        num = run.measured.num if run.measured else best.num
        cards.append((f"{mean_psnr(best):.2f} dB", f"best mean PSNR: {best.label}"))
        for words, numbers in (("SSIM", best.ssim), ("Dice overlap", best.dice)):
            if numbers:
                cards.append((f"{numbers.mean:.3f}", f"its {words}"))
        cards.append((str(num), "test images"))
    if run.training:
        last = run.training[-1]
        cards.append((f"{last.step:,}", f"training steps, {last.images:,} images"))
    return cards


def _html_table(table: Table) -> str:
    title = html.escape(table.title)
    head = "".join(
        f'<th scope="col"{" class=text" if c in TEXT_COLUMNS else ""}>'
        f"{html.escape(c)}</th>"
        for c in table.columns
    )
    body: list[str] = []
    given = table.columns.index("Given") if "Given" in table.columns else None
    for i, (first, *rest) in enumerate(table.rows):
        cells = [f'<th scope="row">{html.escape(first)}</th>']
        for j, cell in enumerate(rest, start=1):
            text = html.escape(cell)
            text = f"<strong>{text}</strong>" if (i, j) in table.best else text
            kind = ' class="text"' if table.columns[j] in TEXT_COLUMNS else ""
            cells.append(f"<td{kind}>{text}</td>")
        # A line between groups of methods.
        apart = given is not None and i and table.rows[i - 1][given] != rest[given - 1]
        start = '<tr class="apart">' if apart else "<tr>"
        body.append(f"{start}{''.join(cells)}</tr>")
    notes = "".join(f'<p class="soft">{html.escape(note)}</p>' for note in table.notes)
    # The box scrolls, not the page; tabindex lets a keyboard scroll it too.
    return (
        f"<section><h2>{title}</h2>"
        f'<div class="wide" role="region" aria-label="{title}" tabindex="0"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
        f"{notes}</section>"
    )


def _html_figure(run: Run, name: str, content: bytes) -> str:
    title, caption = CAPTIONS[name]
    if name == "figure2.png":
        labels = ", ".join(run.examples.labels.values()) if run.examples else ""
        families = dict.fromkeys(run.examples.family if run.examples else ())
        rows = ", ".join(families)
        alt = f"Grid of images. Methods: ground truth, {labels}. Families: {rows}."
    elif name == "snr.png":
        alt = "Chart: mean PSNR of each method against the SNR of the test signals."
    elif name == "growth.png":
        alt = "Three charts: PSNR, SSIM and Dice against the number of training images."
    elif name == "samples.png":
        steps = ", ".join(f"step {sample.step}" for sample in run.samples)
        rows = ", ".join(str(f) for f in run.samples[-1].family)
        alt = f"Grid of images. Columns: ground truth, {steps}. Rows: {rows}."
    else:
        alt = "Four charts over training steps: losses, adversary, PSNR, images/s."
    data = base64.b64encode(content).decode()
    return (
        f'<section><h2>{title}</h2><figure><div class="wide" role="region" '
        f'aria-label="{title}" tabindex="0"><img alt="{html.escape(alt)}" '
        f'src="data:image/png;base64,{data}"></div>'
        f'<figcaption class="soft">{caption}</figcaption></figure></section>'
    )


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
