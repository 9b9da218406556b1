"""What a report reads of a work folder."""

import json
from pathlib import Path

import numpy as np

from mpi_jax.report.cells import Run

# --- reading -------------------------------------------------------------------------


def read(workdir: Path) -> Run:
    evaluation = workdir / "evaluation"
    remarks = []
    config = read_json(workdir / "config.json")
    log = read_lines(workdir, "metrics.jsonl", remarks)
    results = read_lines(workdir, "evaluation/metrics.jsonl", remarks)
    if not (config or log or results):
        raise ValueError(
            f"workdir: expected a work folder with config.json, metrics.jsonl or "
            f"evaluation/, found none of them in {workdir}"
        )
    if not config:
        remarks.append("No config.json: the settings of this run are not known.")
    if not log:
        remarks.append("No training yet (metrics.jsonl): run mpi-jax train.")
    if not results:
        remarks.append("No evaluation yet (evaluation/): run mpi-jax evaluate.")
    arrays = _read_arrays(evaluation / "arrays.npz")
    if results and not arrays:
        remarks.append("No example images (evaluation/arrays.npz): no figure.")
    # A resumed run repeats steps, a repeated evaluation its rows: the later ones count.
    try:
        training = {line["step"]: line for line in log if "images" in line}
        validation = {line["step"]: line for line in log if "validation_psnr" in line}
        info = read_json(evaluation / "info.json")
        main = info.get("snr_db")
        rows = {
            (line["method"], line["family"]): line
            for line in results
            if line.get("snr_db", main) == main
        }
        levels = {
            (float(line["snr_db"]), line["method"]): line
            for line in results
            if line["family"] == "all" and line.get("snr_db") is not None
        }
    except KeyError as missing:
        raise ValueError(
            f"{workdir}: a line of metrics.jsonl lacks {missing}"
        ) from None
    return Run(
        name=str(config.get("name", workdir.resolve().name)),
        config=config,
        training=[training[step] for step in sorted(training)],
        validation=[validation[step] for step in sorted(validation)],
        rows=rows,
        info=info,
        arrays=arrays,
        levels=levels,
        values=_read_values(evaluation / "values.npz"),
        samples=_read_samples(workdir / "samples"),
        remarks=remarks,
    )


def read_json(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, got {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def read_lines(workdir: Path, name: str, remarks: list[str]) -> list[dict]:
    """Objects of a JSON-lines file. A line cut short by a kill is left out and told."""
    path = workdir / name
    if not path.is_file():
        return []
    values, broken = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            value = json.loads(line) if line.strip() else None
        except ValueError:
            value, broken = None, broken + 1
        if isinstance(value, dict):
            values.append(value)
    if broken:
        remarks.append(f"{name}: {broken} unreadable line(s) left out.")
    return values


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        shape = arrays["truth"].shape
        names = [f"{kind}_{m}" for m in arrays["methods"] for kind in ("image", "mask")]
        wrong = [n for n in ("mask", *names) if arrays[n].shape != shape]
        missing = {"family", "pixel_size", "labels"} - arrays.keys()
    except Exception as error:  # a cut zip file raises one of many
        raise ValueError(f"{path}: cannot be read: {error!r}") from None
    if wrong or missing or len(shape) != 3:
        raise ValueError(
            f"{path}: expected arrays of shape {shape}, wrong: {wrong}, "
            f"missing: {sorted(missing)}"
        )
    return arrays


def _read_values(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # a cut zip file raises one of many
        raise ValueError(f"{path}: cannot be read: {error!r}") from None


SAMPLES_SHOWN = 5  # validations, from the first to the newest


def _read_samples(folder: Path) -> list[dict[str, np.ndarray]]:
    paths = sorted(folder.glob("*.npz"))
    places = np.linspace(0, len(paths) - 1, min(SAMPLES_SHOWN, len(paths)))
    samples = []
    for path in (paths[round(place)] for place in places):
        try:
            with np.load(path, allow_pickle=False) as file:
                found = {name: file[name] for name in file.files}
            shape = found["truth"].shape
            fine = (
                found["step"].shape == ()
                and len(found["family"]) == shape[0]
                and all(
                    found[name].shape == shape
                    for name in ("true_mask", "image", "mask")
                )
            )
        except Exception as error:  # a cut zip file raises one of many
            raise ValueError(f"{path}: cannot be read: {error!r}") from None
        if len(shape) != 3 or not fine:
            raise ValueError(f"{path}: expected images and masks of one shape")
        samples.append(found)
    return samples
