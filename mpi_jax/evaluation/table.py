"""Every method on the same test signals: tuned on validation images, measured, written.

A method turns voltages [B, C, V] into images [B, ny, nx]. Classical ones have settings,
chosen by mean PSNR on validation images and then left alone. Masks are the network's, or
the image above a fraction of its maximum, a fraction chosen by Dice on validation images.

    work folder -> evaluation/metrics.jsonl  a line per (SNR, method, family)
                   evaluation/values.npz     every number of every image
                   evaluation/summary.json   the main lines, small enough to commit
                   evaluation/arrays.npz     one example of each family, every method
                   evaluation/info.json      what was measured, and how
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mpi_jax import (
    _progress,
    bootstrap,
    data,
    metrics,
    phantoms,
    pretrained,
    results,
    system_matrix,
    train,
)
from mpi_jax.methods.classical import CLASSICAL
from mpi_jax.methods.controls import CONTROLS, Training
from mpi_jax.methods.networks import _about, check_same, distinct, label, load_network
from mpi_jax.methods.problem import CHUNK, LABELS, METHODS, ORDER, USUAL, problem
from mpi_jax.methods.tuning import threshold, tune, tune_threshold
from mpi_jax.runs import has_weights, read_config, read_info

# --- The whole table


class Row(NamedTuple):
    """A line of the table. prepare: validation examples -> what reconstructs, its
    settings. Voltages become images in [0, 1] and segmentation logits, or None.
    """

    method: str
    label: str
    about: dict
    prepare: Callable[[data.Examples], tuple[Callable, dict]]


def run(
    workdir: Path,
    *,
    methods: list[str] | None = None,
    runs: list[Path] | None = None,
    num: int = 600,
    snr: list[float] | None = None,
    tell: _progress.Tell = _progress.silent,
) -> list[results.Line]:
    """Evaluate methods on the first `num` test images; returns the rows of the table.

    methods: names of METHODS or CONTROLS; by default USUAL, transgan where the run has
    weights. runs: further work folders, whose networks are evaluated beside. snr [dB]:
    levels of the test signals, each with methods tuned for it; by default the config's,
    which is also the main one where it is among them, else the first.
    Images are clipped to [0, 1] for every method. Raises ValueError for unknown methods,
    where weights are asked for that aren't there, and for runs of another scanner or
    other test signals.
    """
    workdir, folders = Path(workdir), [Path(r) for r in runs or ()]
    config = read_config(workdir)
    trained = has_weights(workdir)
    if methods is None:
        methods = [m for m in USUAL if m != "transgan" or trained]
        if config.calibration.path:  # tells nothing of fields
            methods.remove("xspace")
    unknown = [m for m in methods if m not in (*METHODS, *CONTROLS)]
    if unknown or not (methods or folders):
        raise ValueError(
            f"methods: expected some of {', '.join((*METHODS, *CONTROLS))}; got "
            f"{unknown or 'none'}"
        )
    methods = list(dict.fromkeys(methods))
    if num < len(phantoms.FAMILIES):
        raise ValueError(
            f"num: expected at least {len(phantoms.FAMILIES)}, one image of each "
            f"family, got {num}"
        )
    if "transgan" in methods and not trained:
        raise ValueError(
            f"{workdir}: has no weights yet; finish its training with --resume, or "
            "leave transgan out of --methods"
        )
    levels = [float(s) for s in dict.fromkeys(snr or [config.data.test_snr_db])]
    if any(math.isnan(s) or s == -math.inf for s in levels):
        raise ValueError(f"snr: expected numbers of dB or inf, got {levels}")
    main = config.data.test_snr_db
    main = main if main in levels else levels[0]
    networks = {}
    for name, folder in [("transgan", workdir)] * ("transgan" in methods) + [
        (f"run{n}", folder) for n, folder in enumerate(folders, start=1)
    ]:
        other = read_config(folder)
        check_same(workdir, config, folder, other)
        if not has_weights(folder):
            raise ValueError(f"{folder}: has no weights yet; finish its training")
        networks[name] = (folder, *load_network(folder))
    began = time.monotonic()
    tell("build", 0, 1, {})
    forward = data.build(config)
    rows = _rows(config, forward, methods, networks)

    measured, shown, first, family = {}, {}, None, None
    steps, done = len(levels) * len(rows), 0
    chunk = -(-CHUNK // config.data.batch_size) * config.data.batch_size
    for level in levels:
        examples = partial(_examples, forward, config, level)
        validation = examples("validation", 0, config.validation_images)
        ready = {}
        for row in rows:
            tell("tune", done, steps, {})
            ready[row.method] = row.prepare(validation)
            done += 1
        tell("tune", done, steps, {})
        values = {row.method: [] for row in rows}
        seconds = {row.method: [] for row in rows}
        families = []
        for start in range(0, num, chunk):
            made = examples("test", start, min(chunk, num - start))
            families.append(np.asarray(made.family))
            for method, (solver, settings) in ready.items():
                if num <= chunk:
                    jax.block_until_ready(solver(made.voltage))  # compiles
                clock = time.perf_counter()
                image, logit = jax.block_until_ready(solver(made.voltage))
                taken = time.perf_counter() - clock
                if start or num <= chunk:  # the first of many chunks compiles
                    seconds[method].append(taken / len(made.voltage))
                mask = threshold(image, settings["threshold"])
                found = _measure(forward, made, level, image, logit, mask)
                values[method].append(jax.device_get(found))
                if level == main and start == 0:
                    mask = mask if logit is None else logit > 0
                    shown[method] = np.asarray(image), np.asarray(mask, np.uint8)
            if level == main:
                first = first or jax.device_get(made)
            tell("test", min(start + chunk, num), num, {})
        family = np.concatenate(families)[:num]
        for row in rows:
            parts = values[row.method]
            found = {k: np.concatenate([v[k] for v in parts])[:num] for k in parts[0]}
            took = float(np.median(seconds[row.method]))
            measured[level, row.method] = found, took, ready[row.method][1]
    lines = _lines(rows, measured, family, levels)
    _write(workdir, config, rows, lines, measured, first, shown, main, family,
           time.monotonic() - began)  # fmt: skip
    return [line for line in lines if line.snr_db == main]


def _rows(config, forward, methods, networks) -> list[Row]:
    """The lines of the table, in its order: controls, classical, learned."""
    p = problem(config, forward)
    seen = [pretrained.load_weights(n[0] / "weights.safetensors")[1].get("images")
            for n in networks.values()]  # fmt: skip
    seen = max([s for s in seen if s], default=config.steps * config.data.batch_size)
    training = Training(config, forward, seen)
    operators = {(config.physics, config.data.batch_size): forward}

    def control(method, made):
        solver, chosen = CONTROLS[method](p, training, made)
        solver = partial(_clipped, solver)
        return solver, {**chosen, "threshold": _threshold_of(solver, made)}

    def classical(method, made):
        chosen, image = tune(p, method, made)
        solver = partial(_clipped, CLASSICAL[method](p, **chosen))
        return solver, {**chosen, "threshold": tune_threshold(image, made)}

    def network(solver, own, made):
        chosen = {"refine": own.refine} if own.refine else {}
        return solver, {**chosen, "threshold": _threshold_of(solver, made)}

    rows = []
    for method in sorted(methods, key=ORDER.index):
        if method != "transgan":
            prepare = control if method in CONTROLS else classical
            rows.append(Row(method, LABELS[method], {}, partial(prepare, method)))
    abouts = [_about(folder, c, g) for folder, c, g, _ in networks.values()]
    labels = distinct([label(c, g) for _, c, g, _ in networks.values()], abouts)
    for name, title, about in zip(networks, labels, abouts, strict=True):
        _, own_config, generator, params = networks[name]
        # Signals are scaled by a run's own first training batches.
        key = own_config.physics, own_config.data.batch_size
        if key not in operators:
            operators[key] = data.build(own_config)
        own = operators[key]
        solver = partial(_network, generator, params, own)
        rows.append(Row(name, title, about, partial(network, solver, own)))
    return rows


def _threshold_of(solver, made):
    return tune_threshold(solver(made.voltage)[0], made)


def _examples(forward, config, snr_db, split, start, count) -> data.Examples:
    """At least `count` examples, in the batches that training has compiled already."""
    size = config.data.batch_size
    parts = [
        data.draw(forward, split, i, size, snr_db)
        for i in range(start, start + count, size)
    ]
    return jax.tree.map(lambda *a: jnp.concatenate(a), *parts)


def _measure(forward, made, snr_db, image, logit, thresholded) -> dict[str, Array]:
    """Every metric of each image, [B]. residual: |S x - u| / |n|, 1 where all that is
    left is noise; NaN without noise.
    """
    mask = thresholded if logit is None else logit > 0
    found = metrics.scores(image, made.image, mask, made.mask, 1.0)
    found["foreground_ssim"] = metrics.foreground_ssim(
        image, made.image, made.mask, 1.0
    )
    found["dice_thresholded"] = metrics.dice(thresholded, made.mask)
    found["iou_thresholded"] = metrics.iou(thresholded, made.mask)
    found["amount"] = jnp.sum(image, axis=(-2, -1))
    found["true_amount"] = jnp.sum(made.image, axis=(-2, -1))
    # In one unit for all channels, in which squares don't leave float32.
    unit = jnp.mean(forward.scale)

    def left(c):
        difference = system_matrix.forward(forward.matrix, c) - made.voltage
        return jnp.linalg.norm((difference / unit).reshape(len(c), -1), axis=-1)

    noise = left(made.image) if math.isfinite(snr_db) else jnp.nan
    found["residual"] = left(image) / noise
    return found


_AMOUNTS = ("amount", "true_amount")


def _lines(rows, measured, family, levels) -> list[results.Line]:
    """A line of numbers for each level, method and family, with 95 % intervals."""
    lines = []
    for level in levels:
        for name in ("all", *phantoms.FAMILIES):
            shown = family >= 0
            if name != "all":
                shown = family == phantoms.FAMILIES.index(name)
            values = {
                (row.method, metric): v[shown]
                for row in rows
                for metric, v in measured[level, row.method][0].items()
            }
            # The same resampled images for all of them.
            drawn = bootstrap.means(*values.values())
            ends = {k: bootstrap.ends(d) for k, d in zip(values, drawn, strict=True)}
            for row in rows:
                _, taken, settings = measured[level, row.method]
                each = {k: v for (m, k), v in values.items() if m == row.method}
                scores = {}
                for metric, v in each.items():
                    low, high = ends[row.method, metric]
                    if metric not in _AMOUNTS:
                        scores[metric] = results.Statistics(
                            **metrics.summary(v), low=low, high=high
                        )
                amounts = metrics.amounts(*(each[k] for k in _AMOUNTS))
                lines.append(
                    results.Line(
                        **_method(row),
                        network=_network_of(row),
                        snr_db=level,
                        family=name,
                        num=int(shown.sum()),
                        **scores,
                        pooled_psnr=metrics.pooled_psnr(each["mse"], 1.0),
                        amount=results.Amounts(**amounts),
                        seconds_per_image=taken,
                        settings=settings,
                        segmentation=(
                            "predicted"
                            if row.about.get("kind") == "dual"
                            else "thresholded"
                        ),
                    )
                )
    order = {row.method: n for n, row in enumerate(rows)}
    lines.sort(key=lambda n: order[n.method])
    return sorted(results.in_groups(lines), key=lambda n: levels.index(n.snr_db))


def _method(row) -> dict:
    """Fields of results.MethodInfo."""
    kind = "control" if row.method in CONTROLS else "classical"
    return {
        "method": row.method,
        "label": row.label,
        "kind": "learned" if row.about else kind,
        "physics": bool(row.about.get("physics")),
    }


def _network_of(row) -> results.Network | None:
    names = {"kind": "variant", "physics": "rank"}
    about = {names.get(n, n): v for n, v in row.about.items() if v is not None}
    return results.Network(**about) if about else None


def _network(generator, params, forward, u):
    out = train.predict(generator, params, forward, u)
    return out.reconstruction, out.segmentation


def _clipped(solver, u):
    return jnp.clip(solver(u), 0, 1), None


def _write(
    workdir, config, rows, lines, measured, examples, shown, main, family, seconds
) -> None:
    folder = workdir / "evaluation"
    folder.mkdir(exist_ok=True)
    first = [
        int(np.argmax(examples.family == f)) for f in range(len(phantoms.FAMILIES))
    ]
    grid = data.make_scanner(config).grid
    x, y = np.asarray(grid.pitch)[:2]
    device = jax.local_devices()[0]
    about = read_info(workdir)
    info = {
        "num": len(family),
        "snr_db": main,
        "noise": "white, power SNR of each signal; data and reconstruction share one "
        "system matrix (an inverse crime: every row is better than on a real scanner)",
        "model": config.calibration.path or config.scanner.model,
        "seed": config.seed,
        "seconds": round(seconds, 1),
        "device": f"{device.device_kind}, {os.cpu_count()} CPU cores",
        "ssim": "Gaussian 11x11, sigma 1.5, range 1",
        "intervals": f"95 %, percentile bootstrap over images, {bootstrap.DRAWS} draws, "
        f"NumPy seed {bootstrap.SEED}",
        "grid": grid.shape,
    }
    results.Examples(
        truth=examples.image[first],
        mask=np.asarray(examples.mask[first], np.uint8),
        family=phantoms.FAMILIES,
        pixel_size=(float(x), float(y)),
        labels={row.method: row.label for row in rows},
        images={method: image[first] for method, (image, _) in shown.items()},
        masks={method: mask[first] for method, (_, mask) in shown.items()},
    ).write(folder / "arrays.npz")
    results.Values(
        main_snr_db=main,
        family=np.array(phantoms.FAMILIES)[family],
        numbers={
            (level, method, metric): np.asarray(v)
            for (level, method), (found, _, _) in measured.items()
            for metric, v in found.items()
        },
    ).write(folder / "values.npz")
    results.write_lines(folder / "metrics.jsonl", lines)
    results.Info(**info).write(folder / "info.json")
    results.Summary(
        **info,
        config=config.name,
        run="transgan" if "transgan" in shown else "",
        commit=about.commit,
        version=about.version,
        trained_on=about.device,
        rows=tuple(n for n in lines if n.family == "all" and n.snr_db == main),
    ).write(folder / "summary.json")
