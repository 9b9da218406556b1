"""Reconstruction by trained networks: methods under the names of their runs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mpi_jax import configs, data, phantoms, pretrained, train
from mpi_jax.configs import Config
from mpi_jax.methods.problem import Problem, Reconstruction, Solve
from mpi_jax.methods.table import METHODS, Method
from mpi_jax.runs import WEIGHTS, has_weights


def weights_file(place: Path) -> Path:
    """The weights of a work folder, or the weights file that it is."""
    place = Path(place)
    return place / WEIGHTS if place.is_dir() else place


def load_network(place: Path) -> tuple[Config, nn.Module, Any]:
    """Config, generator and what train.predict needs, of a work folder or weights file."""
    weights, metadata = pretrained.load_weights(weights_file(place))
    config = configs.from_dict(metadata["config"])
    generator = train.make_networks(config).generator
    return config, generator, jax.tree.map(jnp.asarray, weights)


def label(config: Config, generator: Any) -> str:
    """Name of a network in tables, from its row: its kind, and where physics went in."""
    row_label = getattr(generator.config, "label", None)
    if row_label is not None:  # the baselines say it themselves
        return row_label
    single = generator.config.tasks == ("recon",)
    name = "Single-task TransGAN" if single else "Dual-task TransGAN"
    matched = ", matched" if config.generator.endswith("_matched") else ""
    return f"{name}{matched}{' + physics' if config.physics.rank else ''}"


def kind(config: Config, generator: Any) -> str:
    """dual, single, matched, or the baseline's name: cnn, resnet, dcgan, unet."""
    if hasattr(generator.config, "label"):
        word = re.match("[a-z]+", config.generator)
        return word[0] if word else config.generator
    if generator.config.tasks != ("recon",):
        return "dual"
    return "matched" if config.generator.endswith("_matched") else "single"


def about(folder: Path, config: Config, generator: Any) -> dict[str, Any]:
    """What tells one run from another."""
    metadata = pretrained.load_weights(weights_file(folder))[1]
    settings = json.dumps(
        {**configs.to_dict(config), "seed": None, "name": None}, sort_keys=True
    )
    return {
        "kind": kind(config, generator),
        "config": config.name,
        "generator": config.generator,
        "adversarial": config.loss.adversarial,
        "bce": config.loss.bce,
        "dice": config.loss.dice,
        "physics": config.physics.rank,
        "seed": config.seed,
        "budget": config.steps * config.data.batch_size,
        "images_seen": metadata.get("images"),
        "commit": metadata.get("commit"),
        "trained_on": metadata.get("device"),
        # The same for runs that differ by their seed only.
        "group": hashlib.sha256(settings.encode()).hexdigest()[:12],
    }


@dataclasses.dataclass(frozen=True)
class Network:
    """A trained network: a method of the table, and what it was trained on."""

    method: Method
    folder: Path
    config: Config
    about: dict[str, Any]

    @property
    def lacks(self) -> tuple[str, ...]:
        """Families of phantoms that it was trained without."""
        trained_on = self.config.data.families
        return tuple(f for f in phantoms.FAMILIES if f not in trained_on)


def of_runs(
    places: Sequence[Path], calibration: Path | None = None
) -> dict[str, Network]:
    """The networks of work folders (or weights files), by name.

    The name is that of the config; further runs of one config have those of their folders.
    calibration: where the MDF calibration of the runs is now, if not where they know.
    Raises ValueError for a folder without weights, and for two of one name.
    """
    loaded = []
    for place in map(Path, places):
        if not weights_file(place).exists():
            raise ValueError(
                f"{place}: has no weights yet; finish its training with --resume, or "
                "leave it out"
            )
        config, generator, weights = load_network(place)
        loaded.append((place, _at(config, calibration), generator, weights))
    names = [config.name for _, config, _, _ in loaded]
    names = [
        place.resolve().name if name in names[:n] or name in METHODS else name
        for n, (name, (place, _, _, _)) in enumerate(zip(names, loaded, strict=True))
    ]
    twice = [name for name in names if names.count(name) > 1 or name in METHODS]
    if twice:
        raise ValueError(
            f"runs: expected folders of different names, got {', '.join(twice)}"
        )
    abouts = [about(place, config, g) for place, config, g, _ in loaded]
    labels = distinct([label(config, g) for _, config, g, _ in loaded], abouts)
    return {
        name: Network(
            Method(
                name,
                title,
                "learned",
                _settings(config),
                partial(_solver, config, generator, weights),
                physics=bool(config.physics.rank),
            ),
            place,
            config,
            facts,
        )
        for name, title, facts, (place, config, generator, weights) in zip(
            names, labels, abouts, loaded, strict=True
        )
    }


def of_workdir(workdir: Path, further: Sequence[Path]) -> dict[str, Network]:
    """The network of a work folder, where it has weights, and those of further runs."""
    this_run = [workdir] if has_weights(workdir) else []
    return of_runs([*this_run, *further])


def _at(config: Config, calibration: Path | None) -> Config:
    """The config with its calibration where it is now."""
    if calibration is None:
        return config
    moved = dataclasses.replace(config.calibration, path=str(calibration))
    return dataclasses.replace(config, calibration=moved)


def shipped(name: str) -> Network:
    """The network of the weights that ship for a config; ValueError for other names."""
    (network,) = of_runs([pretrained.shipped(name)]).values()
    return network


def _settings(config: Config) -> dict[str, Any]:
    """largest: images are cut there; refine: steps towards the measured signal."""
    refine = {"refine": config.physics.refine} if config.physics.refine else {}
    return {"largest": 1.0, **refine}


def _solver(
    config: Config,
    generator: nn.Module,
    weights: Any,
    problem: Problem,
    *,
    largest: float,
    refine: int = 0,
) -> Solve:
    """Images in [0, largest], of voltages [B, C, V] of the scanner of a run."""
    if problem.unit is None or problem.config is None:
        raise ValueError(
            f"method {config.name}: expected the scanner that the network was trained "
            "for (--config or --run), got a system matrix"
        )
    forward = forward_model(problem, config)
    forward = dataclasses.replace(forward, refine=refine)

    def solve(u):
        out = train.predict(generator, weights, forward, u, largest=largest)
        return Reconstruction(out.reconstruction, out.segmentation)

    return solve


def forward_model(problem: Problem, config: Config) -> data.ForwardModel:
    """The forward model of a run: signals are scaled by its own first training batches,
    features are its own. That of the problem, where it is the same.
    """

    def inputs(c: Config) -> tuple:
        # What whitens hangs on the noise as well.
        norm = c.data.signal_norm, c.data.signal_norm == "pca" and min(c.data.snr_db)
        shown = c.data.batch_size, c.data.families
        return c.scanner, c.calibration, c.physics, shown, norm

    if problem.config is not None and problem.forward is not None:
        if inputs(problem.config) == inputs(config):
            return problem.forward
    return data.build(config)


def check_same(workdir, config, folder, other_config) -> None:
    """Runs of one table have the same scanner and test signals."""
    pairs = [
        (
            f"scanner.{f.name}",
            getattr(config.scanner, f.name),
            getattr(other_config.scanner, f.name),
        )
        for f in dataclasses.fields(config.scanner)
    ]
    pairs.append(
        ("data.test_snr_db", config.data.test_snr_db, other_config.data.test_snr_db)
    )
    differences = [
        f"{n} is {b!r} there and {a!r} in {workdir}" for n, a, b in pairs if a != b
    ]
    if differences:
        raise ValueError(
            f"{folder}: expected a run of the same scanner and test settings; "
            + "; ".join(differences)
        )


def distinct(labels: list[str], abouts: list[dict]) -> list[str]:
    """Labels that say what their runs differ in: adversarial weight, seed, number."""
    for words in (
        "adversarial weight {adversarial:g}",
        "mask terms {bce:g} BCE + {dice:g} Dice",
        "config {config}",
        "budget of {budget:,} images",
        "seed {seed}",
        "run {number}",
    ):
        for name in {n for n in labels if labels.count(n) > 1}:
            indices = [i for i, n in enumerate(labels) if n == name]
            texts = [
                words.format(**abouts[i], number=k + 1) for k, i in enumerate(indices)
            ]
            if len(set(texts)) > 1:
                for i, text in zip(indices, texts, strict=True):
                    labels[i] = f"{name}, {text}"
    return labels
