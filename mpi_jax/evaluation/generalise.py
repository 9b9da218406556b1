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

from mpi_jax import _files, _progress, bootstrap, data, metrics, phantoms, train
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
    return Method(name, label, solve, {}, lacks)


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
) -> list[dict]:
    """Measure the suites on `num` images a case; returns the rows of metrics.jsonl.

    runs: further work folders whose networks take part, on the same scanner. methods:
    names of METHODS, by default USUAL (transgan where the run has weights); the all-zero
    image always joins. A suite that is finished is kept in generalisation/parts, and
    not measured again while nothing that it depends on has changed.
    Raises ValueError for unknown names, num < 6 and missing weights.
    """
    workdir = Path(workdir)
    main = runs.read_config(workdir)
    trained = (workdir / "weights.safetensors").exists()
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
        if not (folder / "weights.safetensors").exists():
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
                values["labels"] = np.array(
                    json.dumps({m.name: m.label for m in context.methods.values()})
                )
            else:
                values = _measure_suite(context, suite, size, tell)
            values["fingerprint"] = np.array(fingerprint)
            _files.save_npz(folder / "parts" / f"{suite}.npz", values)
            found[suite] = values
    labels = json.loads(str(found["reference"]["labels"]))
    rows = _rows(found, labels)
    _write(folder, whole, found, rows, labels, num)
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


def _rows(found: dict, labels: dict[str, str]) -> list[dict]:
    """A line per (suite, case, method), with the drop where there is one, and its
    excess over the drop of the first network.
    """
    networks = [name for name in labels if "transgan" in name] or [ZERO]
    reference = found["reference"]
    first = json.loads(str(reference["about"]))[0]["case"]
    rows = []
    for suite, values in found.items():
        for about in json.loads(str(values["about"])):
            for name in labels:
                prefix = f"{about['case']}|{name}|"
                own = {
                    k.removeprefix(prefix): v
                    for k, v in values.items()
                    if k.startswith(prefix) and not k.endswith("|example")
                }
                if not own:
                    continue
                row = {
                    "suite": suite,
                    "case": about["case"],
                    "method": name,
                    "label": labels[name],
                    "shows": list(about["shows"]),
                    "num": len(next(iter(own.values()))),
                    **{k: metrics.summary(v) for k, v in own.items()},
                    "settings": about["settings"].get(name, {}),
                }
                other, paired = None, bool(about["paired"])
                if about["against"] is not None:
                    against = about["against"].get(name)
                    if against:
                        other = values[f"{about['case']}|{against}|psnr"]
                        row["against"], paired = against, True
                elif about["paired"] is not None and suite != "reference":
                    other = reference[f"{first}|{name}|psnr"]
                    row["against"] = "in distribution"
                if other is not None and "psnr" in own:
                    row["drop"] = drop(other, own["psnr"], paired=paired)
                    row["paired"] = paired
                base = values.get(f"{about['case']}|{networks[0]}|psnr")
                if row.get("against") == "in distribution" and base is not None:
                    # The same images met both methods: differences, then their drop.
                    before = other - reference[f"{first}|{networks[0]}|psnr"]
                    row["excess"] = drop(before, own["psnr"] - base, paired=paired)
                rows.append(row)
    return rows


def _table(rows: list[dict], labels: dict[str, str]) -> list[dict]:
    """Lines of the one table: suite, case, quantity, and a cell for each method."""
    lines: dict[tuple, dict] = {}
    for row in rows:
        for metric in row["shows"]:
            key = row["suite"], row["case"], QUANTITIES[metric]
            line = lines.setdefault(
                key, dict(zip(("suite", "case", "quantity"), key, strict=True))
            )
            cell = {"mean": row[metric]["mean"]}
            if metric == "psnr" and "drop" in row:
                cell |= {k: row[k] for k in ("drop", "excess") if k in row}
            line.setdefault("cells", {})[row["method"]] = cell
    return list(lines.values())


def _write(folder, config, found, rows, labels, num) -> None:
    device = jax.local_devices()[0]
    table = {
        "methods": labels,
        "rows": _table(rows, labels),
        "num": num,
        "snr_db": config.data.test_snr_db,
        "grid": [config.scanner.pixels] * 2,
        "model": config.scanner.model,
        "bootstrap": f"{bootstrap.DRAWS} draws of images, 95 % percentile interval",
        "device": f"{device.device_kind}, {os.cpu_count()} CPU cores",
        "notes": []
        if "families" not in found or len(json.loads(str(found["families"]["about"])))
        else [
            "families: none of the runs was trained without a family (data.families)."
        ],
    }
    arrays = {
        f"{suite}|{name}": v
        for suite, values in found.items()
        for name, v in values.items()
        if name not in ("about", "fingerprint", "labels")
    }
    _files.save_npz(folder / "values.npz", arrays)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    _files.write_atomically(folder / "metrics.jsonl", lines)
    _files.write_atomically(folder / "table.json", json.dumps(table, indent=1))
