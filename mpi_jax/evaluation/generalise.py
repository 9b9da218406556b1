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
                   generalisation/parts/         finished suites, to go on from
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mpi_jax import (
    _files,
    _progress,
    bootstrap,
    data,
    metrics,
    phantoms,
    results,
    train,
)
from mpi_jax.configs import Config
from mpi_jax.evaluation import cases
from mpi_jax.evaluation.cases import (
    BUILD,
    CHUNK,
    CUT,
    METHODS,
    QUANTITIES,
    SEED,
    SUITES,
    USUAL,
    ZERO,
    Case,
    Context,
    Method,
    _reference,
    against_truth,
    drop,
    everything,
    test_images,
)
from mpi_jax.methods import classical, networks, problem, tuning
from mpi_jax.noise import add_noise
from mpi_jax.reconstruct import spectral
from mpi_jax.runs import has_weights, read_config

# Finished suites hold as long as the code of methods and cases is what it was.
_MODULES = (cases, classical, networks, problem, tuning, phantoms.unseen)
_SOURCES = (*(module.__file__ for module in _MODULES), __file__)

# --- Measuring


def _solver(method: Method, size: int):
    """voltages [n, C, V] -> (image, logit, threshold), in chunks of one size."""

    def solve(u):
        n = len(u)
        u = jnp.pad(u, ((0, -n % size), (0, 0), (0, 0)))
        parts = [method.solve(u[i : i + size]) for i in range(0, len(u), size)]
        image, logit = (
            None if a[0] is None else jnp.concatenate(a)[:n]
            for a in zip(*parts, strict=True)
        )
        return image, logit, method.settings.get("threshold")

    return solve


def _classical(context_problem, name: str, validation: data.Examples) -> Method:
    """A classical method, tuned on these examples."""
    chosen, image = tuning.tune(context_problem, name, validation)
    fraction = tuning.tune_threshold(jnp.clip(image, 0, 1), validation)
    run = classical.CLASSICAL[name](context_problem, **chosen)
    settings = {**chosen, "threshold": fraction}
    return Method(name, problem.LABELS[name], lambda u: (run(u), None), settings)


def _network(folder: Path, name: str, main: Config, built: dict) -> Method:
    """The network of a work folder with its own operator."""
    config, generator, params = networks.load_network(folder)
    if config.scanner != main.scanner:
        raise ValueError(
            f"--runs {folder}: expected a run with the scanner of the first, "
            f"{main.scanner}, got {config.scanner}"
        )
    wanted = json.dumps(
        [dataclasses.asdict(config.physics), dataclasses.asdict(config.data)]
    )
    if wanted not in built:
        built[wanted] = data.build(config)
    forward = built[wanted]

    def solve(u):
        out = train.predict(generator, params, forward, u, largest=math.inf)
        return out.reconstruction, out.segmentation

    label = networks.label(config, generator)
    label = label if name == "transgan" else f"{label} ({Path(folder).name})"
    lacks = tuple(f for f in phantoms.FAMILIES if f not in config.data.families)
    return Method(name, label, solve, {}, lacks, physics=config.physics.rank > 0)


def _zero(grid) -> Method:
    def solve(u):
        return jnp.zeros((len(u), *grid.shape), u.dtype), None

    return Method(ZERO, "All-zero image", solve, {"threshold": 0.5})


def _score(context: Context, case: Case, method: Method, size: int):
    score = case.score or against_truth
    found = score(context, case, _solver(method, size))
    return {k: np.asarray(v) for k, v in found.items()}


RETUNED = "tuned on such data"


def _measure_suite(context: Context, suite: str, size: int, tell) -> dict:
    """{(case, method, metric): values [n]} of a suite, and its case's properties."""
    values, about = {}, []
    cases = list(BUILD[suite](context))
    methods = context.methods
    for done, case in enumerate(cases):
        tell(suite, done, len(cases), {})
        rows = [(case.name, methods)]
        if case.tuned_on is not None:
            rows.append(
                (
                    f"{case.name}; {RETUNED}",
                    {
                        name: _classical(context.problem, name, case.tuned_on)
                        for name in methods
                        if name in classical.CLASSICAL
                    },
                )
            )
        for name, own in rows:
            if not own:
                continue
            for method in own.values():
                for metric, v in _score(context, case, method, size).items():
                    values[f"{name}|{method.name}|{metric}"] = v
            about.append(
                {
                    "case": name,
                    "shows": case.shows,
                    "paired": case.paired,
                    "against": case.against,
                    "settings": {m.name: m.settings for m in own.values()},
                }
            )
        if suite in ("shapes", "vessels"):
            values[f"{case.name}|truth|example"] = np.asarray(case.image[0])
            for method in methods.values():
                image = _solver(method, size)(case.voltage[:1])[0][0]
                image = np.clip(np.asarray(image), 0, 1)
                values[f"{case.name}|{method.name}|example"] = image
    tell(suite, len(cases), len(cases), {})
    return {**values, "about": np.array(json.dumps(about))}


def run(
    workdir: Path,
    *,
    runs: list[Path] | tuple[Path, ...] = (),
    methods: list[str] | None = None,
    num: int = 60,
    suites: list[str] | None = None,
    tell: _progress.Tell = _progress.silent,
) -> list[results.GeneralisationLine]:
    """Measure the suites on `num` images a case; returns the rows of metrics.jsonl.

    runs: further work folders whose networks take part, on the same scanner. methods:
    names of METHODS, by default USUAL (transgan where the run has weights); the all-zero
    image always joins. A suite that is finished is kept in generalisation/parts, and
    not measured again while nothing that it depends on has changed.
    Raises ValueError for unknown names, num < 6 and missing weights.
    """
    workdir = Path(workdir)
    main = read_config(workdir)
    trained = has_weights(workdir)
    if methods is None:
        methods = [m for m in USUAL if m != "transgan" or trained]
    suites = list(SUITES) if suites is None else suites
    for name, given, known in (
        ("methods", methods, METHODS),
        ("suites", suites, SUITES),
    ):
        unknown = [g for g in given if g not in known]
        if unknown or not given:
            raise ValueError(
                f"{name}: expected some of {', '.join(known)}; got {unknown or 'none'}"
            )
    if num < len(phantoms.FAMILIES):
        raise ValueError(
            f"num: expected at least {len(phantoms.FAMILIES)}, one image of each "
            f"family, got {num}"
        )
    folders = {"transgan": workdir} if "transgan" in methods else {}
    for folder in map(Path, runs):
        name = f"transgan {folder.resolve().name}"
        if name in folders:
            raise ValueError(
                f"--runs: expected folders of different names, got {folder}"
            )
        folders[name] = folder
    for folder in folders.values():
        if not has_weights(folder):
            raise ValueError(
                f"{folder}: has no weights yet; finish its training with --resume, or "
                "leave it out"
            )

    folder = workdir / "generalisation"
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    whole = everything(main)
    fingerprint = _fingerprint(whole, methods, num, folders)
    found = {
        suite: _read_part(folder / "parts" / f"{suite}.npz", fingerprint)
        for suite in ("reference", *suites)
    }
    if not all(found.values()):
        context = _context(whole, methods, num, folders, tell)
        size = min(num, CHUNK)
        for suite in found:
            if found[suite]:
                continue
            if suite == "reference":
                case = _reference(context)
                values = {
                    f"{case.name}|{m.name}|{metric}": v
                    for m in context.methods.values()
                    for metric, v in _score(context, case, m, size).items()
                }
                about = {
                    "case": case.name,
                    "shows": case.shows,
                    "paired": True,
                    "against": None,
                    "settings": {m.name: m.settings for m in context.methods.values()},
                }
                values["about"] = np.array(json.dumps([about]))
                values["methods"] = np.array(
                    json.dumps([_method_info(m) for m in context.methods.values()])
                )
            else:
                values = _measure_suite(context, suite, size, tell)
            values["fingerprint"] = np.array(fingerprint)
            _files.save_npz(folder / "parts" / f"{suite}.npz", values)
            found[suite] = values
    methods = json.loads(str(found["reference"]["methods"]))
    methods = [results.MethodInfo(**each) for each in methods]
    rows = _rows(found, methods)
    _write(folder, whole, found, rows, methods, num)
    return rows


def _context(config, methods, num, folders, tell) -> Context:
    tell("build", 0, 1, {})
    forward = data.build(config)
    simulator = dataclasses.replace(forward, basis=None)
    known = problem.problem(config, forward)
    validation = test_images(
        simulator, config, config.validation_images, split="validation"
    )
    level = config.data.test_snr_db
    noise = jax.random.key(SEED + 1)
    noisy = add_noise(noise, validation.voltage, level)
    key = json.dumps(
        [dataclasses.asdict(config.physics), dataclasses.asdict(config.data)]
    )
    built, made = {key: forward}, {}
    names = [m for m in methods if m != "transgan"]
    for n, name in enumerate(names):
        tell("tune", n, len(names), {})
        made[name] = _classical(known, name, validation._replace(voltage=noisy))
    tell("tune", len(names), len(names), {})
    for name, folder in folders.items():
        method = _network(folder, name, config, built)
        image, logit = method.solve(noisy)
        if logit is None:
            fraction = tuning.tune_threshold(jnp.clip(image, 0, 1), validation)
            method = dataclasses.replace(method, settings={"threshold": fraction})
        made[name] = method
    made[ZERO] = _zero(forward.scanner.grid)
    basis = known.basis
    if float(basis.s[-1]) > CUT and len(basis.s) < min(
        basis.U.shape[0], basis.V.shape[0]
    ):
        flat = forward.matrix.reshape(-1, forward.scanner.grid.size)
        basis = spectral.spectral_basis(flat)
    V = basis.V[:, np.asarray(basis.s) > CUT]
    truth = test_images(simulator, config, num)
    return Context(config, known, truth, made, V, validation, simulator)


def _fingerprint(config, methods, num, folders) -> str:
    """What the values of a suite depend on: settings, weights, the code of methods and
    cases (a change further down asks for an empty generalisation/parts).
    """
    about = [dataclasses.asdict(config), methods, num, list(folders)]
    digest = hashlib.sha256(json.dumps(about).encode())
    weights = (f / "weights.safetensors" for f in folders.values())
    for path in (*weights, *_SOURCES):
        digest.update(Path(path).read_bytes())
    return digest.hexdigest()


def _read_part(path: Path, fingerprint: str) -> dict | None:
    """A finished suite; None where there is none that belongs here."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["fingerprint"]) == fingerprint:
                return {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError, EOFError):
        pass
    return None


# --- Rows and files


def _method_info(method: Method) -> dict:
    """Fields of results.MethodInfo."""
    kind = "classical" if method.name in classical.CLASSICAL else "learned"
    return {
        "method": method.name,
        "label": method.label,
        "kind": "control" if method.name == ZERO else kind,
        "physics": method.physics,
    }


def _first_network(methods: list[results.MethodInfo]) -> str | None:
    """Excesses are over its drops."""
    return next((m.method for m in methods if m.kind == "learned"), None)


def _rows(
    found: dict, methods: list[results.MethodInfo]
) -> list[results.GeneralisationLine]:
    """A line per (suite, case, method), with the drop where there is one, and its
    excess over the drop of the first network, or else of the all-zero image.
    """
    base_name = _first_network(methods) or ZERO
    reference = found["reference"]
    first = json.loads(str(reference["about"]))[0]["case"]
    rows = []
    for suite, values in found.items():
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
                other, paired, against = None, bool(about["paired"]), None
                if about["against"] is not None:
                    against = about["against"].get(method.method)
                    if against:
                        other, paired = values[f"{about['case']}|{against}|psnr"], True
                elif about["paired"] is not None and suite != "reference":
                    other = reference[f"{first}|{method.method}|psnr"]
                    against = "in distribution"
                change = excess = None
                if other is not None and "psnr" in scores:
                    change = results.Change(
                        **drop(other, scores["psnr"], paired=paired)
                    )
                if against == "in distribution" and base is not None:
                    # The same images met both methods: differences, then their drop.
                    before = other - reference[f"{first}|{base_name}|psnr"]
                    ahead = scores["psnr"] - base
                    excess = results.Change(**drop(before, ahead, paired=paired))
                rows.append(
                    results.GeneralisationLine(
                        **dataclasses.asdict(method),
                        suite=suite,
                        case=about["case"],
                        shows=tuple(about["shows"]),
                        num=len(next(iter(scores.values()))),
                        **{
                            k: results.Statistics(**metrics.summary(v))
                            for k, v in scores.items()
                        },
                        settings=about["settings"].get(method.method, {}),
                        against=against,
                        paired=None if change is None else paired,
                        drop=change,
                        excess=excess,
                    )
                )
    return rows


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


def _write(folder, config, found, rows, methods, num) -> None:
    device = jax.local_devices()[0]
    lacking = "families" not in found or json.loads(str(found["families"]["about"]))
    note = "families: none of the runs was trained without a family (data.families)."
    numbers, truths, images = {}, {}, {}
    for suite, values in found.items():
        for name, v in values.items():
            if name in ("about", "fingerprint", "methods"):
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
        device=f"{device.device_kind}, {os.cpu_count()} CPU cores",
        notes=() if lacking else (note,),
    ).write(folder / "table.json")
