"""How far methods fall where data differ from what they were trained and tuned on.

Every method (networks with their own operator, classical ones as tuned on validation
images, the all-zero image) meets the same signals; what is told is PSNR and its drop
from the in-distribution test images, with a bootstrap interval over images:

    families       a family that a run was trained without, against the run with all
    shapes         phantoms_ood.SHAPES
    vessels        vessels grown by space colonisation
    snr            white noise at 60 ... 10 dB, 1/f noise, a narrow-band disturbance
    operator       data of another scanner than the reconstruction assumes
    linearity      other concentrations; f(u1 + u2) against f(u1) + f(u2)
    hallucination  what images hold that the signal cannot tell; pure noise; no signal

All cases share one realisation of the noise, and those that keep the images are compared
image by image.

    work folder -> generalisation/metrics.jsonl  a line per (suite, case, method)
                   generalisation/values.npz     values of each image, and examples
                   generalisation/table.json     the table: what report draws and prints
                   generalisation.parts/         finished suites, to go on from

Several processes share the suites (`parts`).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mpi_jax import (
    _progress,
    bootstrap,
    cluster,
    configs,
    data,
    methods,
    metrics,
    results,
)
from mpi_jax.configs import Config
from mpi_jax.evaluation import parts
from mpi_jax.evaluation.cases import (
    BUILD,
    CHUNK,
    CUT,
    QUANTITIES,
    SEED,
    SUITES,
    USUAL,
    ZERO,
    Case,
    Context,
    against_truth,
    drop,
    reference,
    test_images,
    with_all_families,
)
from mpi_jax.evaluation.lines import device, method_info
from mpi_jax.evaluation.table import check_num, choose
from mpi_jax.methods.networks import Network, of_workdir, weights_file
from mpi_jax.noise import add_noise
from mpi_jax.reconstruct import spectral
from mpi_jax.runs import read_config

# --- Measuring


def _in_chunks(method: methods.Ready, size: int) -> methods.Ready:
    """The method on any number of voltages [n, C, V], in chunks of one size."""

    def solve(u):
        n = len(u)
        u = jnp.pad(u, ((0, -n % size), (0, 0), (0, 0)))
        parts = [method.solve(u[i : i + size]) for i in range(0, len(u), size)]
        image = jnp.concatenate([part.image for part in parts])[:n]
        logits = [p.mask_logit for p in parts if p.mask_logit is not None]
        logit = jnp.concatenate(logits)[:n] if logits else None
        return methods.Reconstruction(image, logit)

    return dataclasses.replace(method, solve=solve)


def _score(
    context: Context, case: Case, method: methods.Ready
) -> dict[str, np.ndarray]:
    scores = (case.score or against_truth)(context, case, method)
    return {k: np.asarray(v) for k, v in scores.items()}


RETUNED = "tuned on such data"


def _measure_suite(
    context: Context, suite: str, size: int, tell: _progress.Tell
) -> dict[str, np.ndarray]:
    """Values of a suite by "case|method|metric", and its cases' properties."""
    values: dict[str, np.ndarray] = {}
    about = []
    suite_cases = list(BUILD[suite](context))
    for done, case in enumerate(suite_cases):
        tell(suite, done, len(suite_cases), {})
        rows = [(case.name, context.methods)]
        if case.tuned_on is not None:
            name = f"{case.name}; {RETUNED}"
            rows.append((name, _tuned_again(context, case.tuned_on, size)))
        for name, rows_methods in rows:
            if rows_methods:
                values |= _values(context, case, name, rows_methods)
                about.append(_about(case, name, rows_methods))
        if suite in ("shapes", "vessels") and case.image is not None:
            values[f"{case.name}|truth|example"] = np.asarray(case.image[0])
            for method in context.methods.values():
                image = method.solve(case.voltage[:1]).image[0]
                picture = np.clip(np.asarray(image), 0, 1)
                values[f"{case.name}|{method.method.name}|example"] = picture
    tell(suite, len(suite_cases), len(suite_cases), {})
    return {**values, "about": np.array(json.dumps(about))}


def _tuned_again(
    context: Context, examples: data.Examples, size: int
) -> dict[str, methods.Ready]:
    """The classical methods, tuned on other examples."""
    return {
        name: _in_chunks(methods.ready(context.problem, one.method, examples), size)
        for name, one in context.methods.items()
        if one.method.kind == "classical"
    }


def _values(
    context: Context, case: Case, name: str, row: dict[str, methods.Ready]
) -> dict[str, np.ndarray]:
    return {
        f"{name}|{method}|{metric}": v
        for method, ready in row.items()
        for metric, v in _score(context, case, ready).items()
    }


def _about(case: Case, name: str, row: dict[str, methods.Ready]) -> dict[str, Any]:
    return {
        "case": name,
        "shows": case.shows,
        "paired": case.paired,
        "against": case.against,
        "settings": {
            method: parts.Chosen.of(ready).all_settings for method, ready in row.items()
        },
        "at_edge": {method: ready.at_edge for method, ready in row.items()},
    }


def _measure_reference(context: Context) -> dict[str, np.ndarray]:
    case = reference(context)
    row = context.methods
    return {
        **_values(context, case, case.name, row),
        "about": np.array(json.dumps([_about(case, case.name, row)])),
    }


def run(
    workdir: Path,
    *,
    runs: Sequence[Path] = (),
    names: Sequence[str] | None = None,
    num: int = 60,
    suites: Sequence[str] | None = None,
    tell: _progress.Tell = _progress.silent,
) -> list[results.GeneralisationLine]:
    """Measure the suites on `num` images a case; returns the rows of metrics.jsonl.

    runs: further work folders whose networks take part, on the same scanner. names:
    classical methods, and the run's own network by its name; by default USUAL and the
    network, where the run has weights; the all-zero image always joins. A suite that is
    finished is kept in generalisation.parts, and not measured again while nothing that
    it depends on has changed. Of several processes, the lead alone has rows to return.

    Raises ValueError for unknown names, num < 6, missing weights and runs of a scanner
    that is known by its calibration alone.
    """
    workdir = Path(workdir)
    cluster.check_shared(workdir)
    config = read_config(workdir)
    suites = list(SUITES) if suites is None else list(suites)
    _check(config, suites, num)
    networks = _networks(workdir, config, runs)
    chosen = choose(workdir, config, networks, names, USUAL)
    if ZERO not in [method.name for method in chosen]:
        chosen.append(methods.METHODS[ZERO])
    full_config = with_all_families(config)
    key = _key(full_config, chosen, num, networks)
    kept = parts.Parts(workdir / "generalisation.parts", key)
    tunings = {f"tuned-{n}": method for n, method in enumerate(chosen)}
    rounds = ["reference", *suites]
    kept.tell_kept([*tunings, *rounds], tell)
    if kept.left(rounds):
        size = min(num, CHUNK)
        context = _context(full_config, tunings, num, size, networks, kept, tell)
        for suite in kept.share(rounds):
            if suite == "reference":
                values = _measure_reference(context)
            else:
                values = _measure_suite(context, suite, size, tell)
            kept.write(suite, values)
        cluster.barrier()
    rows: list[results.GeneralisationLine] = []

    def write_files() -> None:
        measured = {name: kept.read(name) for name in rounds}
        infos = [method_info(method) for method in chosen]
        rows.extend(_rows(measured, infos))
        with parts.replaced(workdir / "generalisation") as folder:
            _write(folder, full_config, measured, rows, infos, num)

    cluster.on_lead(write_files)
    return rows


def _check(config: Config, suites: list[str], num: int) -> None:
    unknown = [suite for suite in suites if suite not in SUITES]
    if unknown or not suites:
        raise ValueError(
            f"suites: expected some of {', '.join(SUITES)}; got {unknown or 'none'}"
        )
    check_num(num)
    if config.calibration.path:
        raise ValueError(
            "generalise: expected a run of a simulated scanner, whose physics can be "
            f"changed; this run's is known by its calibration {config.calibration.path}"
        )


def _networks(
    workdir: Path, config: Config, runs: Sequence[Path]
) -> dict[str, Network]:
    for folder in runs:
        run_config = read_config(folder)
        if run_config.scanner != config.scanner:
            raise ValueError(
                f"--runs {folder}: expected a run with the scanner of the first, "
                f"{config.scanner}, got {run_config.scanner}"
            )
    return of_workdir(workdir, runs)


def _context(
    config: Config,
    tunings: dict[str, methods.Method],
    num: int,
    size: int,
    networks: dict[str, Network],
    kept: parts.Parts,
    tell: _progress.Tell,
) -> Context:
    tell("build", 0, 1, {})
    forward = data.build(config)
    simulator = dataclasses.replace(forward, basis=None)
    problem = methods.from_forward(config, forward)
    count = config.validation_images
    validation = test_images(simulator, config, count, split="validation")
    noise = jax.random.key(SEED + 1)
    noisy = add_noise(noise, validation.voltage, config.data.test_snr_db)
    examples = validation._replace(voltage=noisy)

    def fixed_settings(method: methods.Method) -> dict[str, Any] | None:
        return {"largest": math.inf} if method.kind == "learned" else None

    def tuned(name: str) -> methods.Ready:
        method = tunings[name]
        return methods.ready(problem, method, examples, fixed_settings(method))

    parts.tune(kept, tunings, tuned, tell)
    cluster.barrier()
    prepared = {}
    for name, method in tunings.items():
        settings = parts.read_chosen(kept, name)
        ready = parts.as_chosen(problem, method, settings, fixed_settings(method))
        prepared[method.name] = _in_chunks(ready, size)
    lacks = {n: net.lacks for n, net in networks.items() if n in prepared}
    truth = test_images(simulator, config, num)
    V = _visible(problem)
    return Context(config, problem, truth, prepared, lacks, V, validation, simulator)


def _visible(problem: methods.Problem) -> Array:
    """Right singular vectors above CUT [P, k]: what the signal tells."""
    basis = problem.basis
    cut = float(basis.s[-1]) > CUT
    if cut and len(basis.s) < min(2 * problem.rows.shape[0], problem.rows.shape[1]):
        basis = spectral.spectral_basis(problem.rows)
    return basis.V[:, np.asarray(basis.s) > CUT]


def _key(
    config: Config,
    chosen: list[methods.Method],
    num: int,
    networks: dict[str, Network],
) -> str:
    """What the values of a suite depend on."""
    names = [method.name for method in chosen]
    used = [network for name, network in networks.items() if name in names]
    files = [weights_file(network.folder) for network in used]
    return parts.key([configs.to_dict(config), names, num], files)


# --- Rows and files


def _first_network(methods: list[results.MethodInfo]) -> str | None:
    """Excesses are over its drops."""
    return next((m.method for m in methods if m.kind == "learned"), None)


def _rows(
    measured: dict, methods: list[results.MethodInfo]
) -> list[results.GeneralisationLine]:
    """A line per (suite, case, method), with the drop where there is one, and its
    excess over the drop of the first network, or else of the all-zero image.
    """
    base_name = _first_network(methods) or ZERO
    reference = measured["reference"]
    first = json.loads(str(reference["about"]))[0]["case"]
    rows = []
    for suite, values in measured.items():
        for about in json.loads(str(values["about"])):
            base = values.get(f"{about['case']}|{base_name}|psnr")
            for method in methods:
                prefix = f"{about['case']}|{method.method}|"
                scores = {
                    k.removeprefix(prefix): v
                    for k, v in values.items()
                    if k.startswith(prefix) and not k.endswith("|example")
                }
                if not scores:
                    continue
                comparison, paired, against = None, bool(about["paired"]), None
                if about["against"] is not None:
                    against = about["against"].get(method.method)
                    if against:
                        comparison = values[f"{about['case']}|{against}|psnr"]
                        paired = True
                elif about["paired"] is not None and suite != "reference":
                    comparison = reference[f"{first}|{method.method}|psnr"]
                    against = "in distribution"
                change = excess = None
                if comparison is not None and "psnr" in scores:
                    change = results.Change(
                        **drop(comparison, scores["psnr"], paired=paired)
                    )
                if against == "in distribution" and base is not None:
                    # The same images met both methods: differences, then their drop.
                    before = comparison - reference[f"{first}|{base_name}|psnr"]
                    ahead = scores["psnr"] - base
                    excess = results.Change(**drop(before, ahead, paired=paired))
                line = dataclasses.replace(
                    _line(method, suite, about, scores),
                    against=against,
                    paired=None if change is None else paired,
                    drop=change,
                    excess=excess,
                )
                rows.append(line)
    return rows


def _line(
    method: results.MethodInfo,
    suite: str,
    about: dict[str, Any],
    scores: dict[str, np.ndarray],
) -> results.GeneralisationLine:
    """A line with the numbers that a case has, not compared with anything yet."""
    statistics = {
        k: results.Statistics(**metrics.summary(v)) for k, v in scores.items()
    }
    return results.GeneralisationLine(
        **dataclasses.asdict(method),
        suite=suite,
        case=about["case"],
        shows=tuple(about["shows"]),
        num=len(next(iter(scores.values()))),
        settings=about["settings"].get(method.method, {}),
        at_edge=tuple(about["at_edge"].get(method.method, ())),
        psnr=statistics.get("psnr"),
        ssim=statistics.get("ssim"),
        mse=statistics.get("mse"),
        rmse=statistics.get("rmse"),
        nrmse=statistics.get("nrmse"),
        dice=statistics.get("dice"),
        iou=statistics.get("iou"),
        superposition=statistics.get("superposition"),
        unseen_energy=statistics.get("unseen_energy"),
        unseen_error=statistics.get("unseen_error"),
        rms=statistics.get("rms"),
        largest=statistics.get("largest"),
    )


def _table(
    rows: list[results.GeneralisationLine],
) -> tuple[results.GeneralisationRow, ...]:
    """Rows of the one table: suite, case, quantity, and a cell for each method."""
    table: dict[tuple[str, str, str], results.GeneralisationRow] = {}
    for row in rows:
        for metric in row.shows:
            key = row.suite, row.case, metric
            if key not in table:
                table[key] = results.GeneralisationRow(
                    suite=row.suite,
                    case=row.case,
                    quantity=QUANTITIES[metric],
                    in_db=metric == "psnr",
                    cells={},
                )
            cell = results.GeneralisationCell(mean=getattr(row, metric).mean)
            if metric == "psnr":
                cell = dataclasses.replace(cell, drop=row.drop, excess=row.excess)
            table[key].cells[row.method] = cell
    return tuple(table.values())


def _write(folder, config, measured, rows, methods, num) -> None:
    lacking = "families" not in measured or json.loads(
        str(measured["families"]["about"])
    )
    note = "families: none of the runs was trained without a family (data.families)."
    numbers, truths, images = {}, {}, {}
    for suite, values in measured.items():
        for name, v in values.items():
            if name == "about":
                continue
            case, method, metric = name.split("|")
            if metric != "example":
                numbers[suite, case, method, metric] = v
            elif method == "truth":
                truths[suite, case] = v
            else:
                images[suite, case, method] = v
    results.GeneralisationValues(numbers=numbers, truths=truths, images=images).write(
        folder / "values.npz"
    )
    results.write_lines(folder / "metrics.jsonl", rows)
    results.GeneralisationTable(
        methods=tuple(results.in_groups(methods)),
        rows=_table(rows),
        first_network=_first_network(methods),
        num=num,
        snr_db=config.data.test_snr_db,
        grid=(config.scanner.pixels, config.scanner.pixels),
        model=config.scanner.model,
        bootstrap=f"{bootstrap.DRAWS} draws of images, 95 % percentile interval",
        device=device(),
        notes=() if lacking else (note,),
    ).write(folder / "table.json")
