"""An evaluation as files: lines of numbers, values, examples, what was measured."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from mpi_jax import bootstrap, data, methods, metrics, phantoms, results
from mpi_jax.configs import Config
from mpi_jax.evaluation.parts import Chosen
from mpi_jax.methods.networks import Network
from mpi_jax.runs import read_config, read_info

Numbers = dict[str, np.ndarray]  # metric -> [N]


@dataclasses.dataclass(frozen=True)
class Measured:
    """A method at one SNR: every number of every test image, seconds for one image."""

    method: methods.Method
    chosen: Chosen
    numbers: Numbers
    seconds: float


def lines_of(
    measured: dict[float, list[Measured]],
    family: np.ndarray,
    networks: dict[str, Network],
) -> list[results.Line]:
    """A line of numbers for each level, method and family, with 95 % intervals."""
    lines = []
    for level, rows in measured.items():
        for name in ("all", *phantoms.FAMILIES):
            selected = family >= 0
            if name != "all":
                selected = family == phantoms.FAMILIES.index(name)
            about = {"snr_db": level, "family": name, "num": int(selected.sum())}
            lines += _of_images(rows, selected, about, networks)
    levels = list(measured)
    order = {row.method.name: n for n, row in enumerate(measured[levels[0]])}
    lines.sort(key=lambda n: order[n.method])
    return sorted(results.in_groups(lines), key=lambda n: levels.index(n.snr_db))


def _of_images(
    rows: list[Measured],
    selected: np.ndarray,
    about: dict[str, Any],
    networks: dict[str, Network],
) -> list[results.Line]:
    """Lines of the selected images, whose resampling is the same for all methods."""
    values = {
        (n, k): v[selected]
        for n, row in enumerate(rows)
        for k, v in row.numbers.items()
    }
    drawn = bootstrap.means(*values.values())
    ends = {k: bootstrap.ends(d) for k, d in zip(values, drawn, strict=True)}
    return [
        _line(
            row,
            {metric: v for (m, metric), v in values.items() if m == n},
            {metric: v for (m, metric), v in ends.items() if m == n},
            about,
            networks.get(row.method.name),
        )
        for n, row in enumerate(rows)
    ]


def _line(
    row: Measured,
    values: Numbers,
    ends: dict[str, tuple[float, float]],
    about: dict[str, Any],
    network: Network | None,
) -> results.Line:
    """A line of values and the ends of their intervals. about: snr_db, family, num."""

    def statistics(metric: str) -> results.Statistics:
        low, high = ends[metric]
        return results.Statistics(**metrics.summary(values[metric]), low=low, high=high)

    amounts = metrics.amounts(values["amount"], values["true_amount"])
    return results.Line(
        **dataclasses.asdict(method_info(row.method)),
        **about,
        settings=row.chosen.all_settings,
        at_edge=row.chosen.at_edge,
        segmentation=_segmentation(network),
        network=_network_of(network),
        mse=statistics("mse"),
        rmse=statistics("rmse"),
        nrmse=statistics("nrmse"),
        psnr=statistics("psnr"),
        ssim=statistics("ssim"),
        foreground_ssim=statistics("foreground_ssim"),
        dice=statistics("dice"),
        iou=statistics("iou"),
        dice_thresholded=statistics("dice_thresholded"),
        iou_thresholded=statistics("iou_thresholded"),
        residual=statistics("residual"),
        amount=results.Amounts(**amounts),
        pooled_psnr=metrics.pooled_psnr(values["mse"], 1.0),
        seconds_per_image=row.seconds,
    )


def method_info(method: methods.Method) -> results.MethodInfo:
    """The method, as results name it."""
    return results.MethodInfo(
        method=method.name,
        label=method.label,
        kind=method.kind,
        physics=method.physics,
    )


def device() -> str:
    """What all was measured on, in words."""
    return f"{jax.local_devices()[0].device_kind}, {os.cpu_count()} CPU cores"


def _segmentation(network: Network | None) -> Literal["predicted", "thresholded"]:
    dual = network is not None and network.about["kind"] == "dual"
    return "predicted" if dual else "thresholded"


def _network_of(network: Network | None) -> results.Network | None:
    if network is None:
        return None
    names = {"kind": "variant", "physics": "rank"}
    about = {names.get(n, n): v for n, v in network.about.items() if v is not None}
    return results.Network(**about)


def write(
    folder: Path,
    workdir: Path,
    lines: list[results.Line],
    measured: dict[float, list[Measured]],
    main: float,
    family: np.ndarray,
    examples: results.Examples,
    began: float,
) -> None:
    """All files of an evaluation into a folder. workdir: of the run; main: the main SNR
    [dB]; family: the number of each image's; began: by time.monotonic [s].
    """
    about, config = read_info(workdir), read_config(workdir)
    info = _info(config, len(family), main, began)
    results.Values(
        main_snr_db=main,
        family=np.array(phantoms.FAMILIES)[family],
        numbers={
            (level, row.method.name, metric): values
            for level, rows in measured.items()
            for row in rows
            for metric, values in row.numbers.items()
        },
    ).write(folder / "values.npz")
    results.write_lines(folder / "metrics.jsonl", lines)
    examples.write(folder / "arrays.npz")
    info.write(folder / "info.json")
    names = {row.method.name for rows in measured.values() for row in rows}
    results.Summary(
        **dataclasses.asdict(info),
        config=config.name,
        run=config.name if config.name in names else "",
        commit=about.commit,
        version=about.version,
        trained_on=about.device,
        rows=tuple(n for n in lines if n.family == "all" and n.snr_db == main),
    ).write(folder / "summary.json")


def _info(config: Config, num: int, main: float, began: float) -> results.Info:
    ny, nx = data.make_scanner(config).grid.shape
    return results.Info(
        num=num,
        snr_db=main,
        noise="white, power SNR of each signal; data and reconstruction share one "
        "system matrix (an inverse crime: every row is better than on a real scanner)",
        model=config.calibration.path or config.scanner.model,
        seed=config.seed,
        seconds=round(time.monotonic() - began, 1),
        device=device(),
        ssim="Gaussian 11x11, sigma 1.5, range 1",
        intervals=f"95 %, percentile bootstrap over images, {bootstrap.DRAWS} draws, "
        f"NumPy seed {bootstrap.SEED}",
        grid=(ny, nx),
    )
