"""Reconstruction by trained networks."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mpi_jax import configs, pretrained, train
from mpi_jax.configs import Config

# --- Networks


def load_network(place: Path) -> tuple[Config, nn.Module, Any]:
    """Config, generator and what train.predict needs, of a work folder or weights file."""
    place = Path(place)
    path = place / "weights.safetensors" if place.is_dir() else place
    weights, metadata = pretrained.load_weights(path)
    config = configs.from_dict(metadata["config"])
    generator = train.make_networks(config).generator
    return config, generator, jax.tree.map(jnp.asarray, weights)


def label(config: Config, generator: Any) -> str:
    """Name of a network in tables, from its row: its kind, and where physics went in."""
    own = getattr(generator.config, "label", None)
    if own is not None:  # the baselines say it themselves
        return own
    single = generator.config.tasks == ("recon",)
    name = "Single-task TransGAN" if single else "Dual-task TransGAN"
    matched = ", matched" if config.generator.endswith("_matched") else ""
    return f"{name}{matched}{' + physics' if config.physics.rank else ''}"


def kind(config: Config, generator: Any) -> str:
    """dual, single, matched, or the baseline's name: cnn, resnet, dcgan, unet."""
    if hasattr(generator.config, "label"):
        return re.match("[a-z]+", config.generator)[0]
    if generator.config.tasks != ("recon",):
        return "dual"
    return "matched" if config.generator.endswith("_matched") else "single"


def _about(folder: Path, config: Config, generator: Any) -> dict[str, Any]:
    """What tells one run from another."""
    weights = folder / "weights.safetensors"
    metadata = pretrained.load_weights(weights)[1]
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
        "images_seen": metadata.get("images"),
        "commit": metadata.get("commit"),
        "trained_on": metadata.get("device"),
        # The same for runs that differ by their seed only.
        "group": hashlib.sha256(settings.encode()).hexdigest()[:12],
    }


def check_same(workdir, config, folder, other) -> None:
    """Runs of one table have the same scanner and test signals."""
    pairs = [
        (
            f"scanner.{f.name}",
            getattr(config.scanner, f.name),
            getattr(other.scanner, f.name),
        )
        for f in dataclasses.fields(config.scanner)
    ]
    pairs.append(("data.test_snr_db", config.data.test_snr_db, other.data.test_snr_db))
    found = [
        f"{n} is {b!r} there and {a!r} in {workdir}" for n, a, b in pairs if a != b
    ]
    if found:
        raise ValueError(
            f"{folder}: expected a run of the same scanner and test settings; "
            + "; ".join(found)
        )


def distinct(labels: list[str], abouts: list[dict]) -> list[str]:
    """Labels that say what their runs differ in: adversarial weight, seed, number."""
    for words in (
        "adversarial weight {adversarial:g}",
        "mask terms {bce:g} BCE + {dice:g} Dice",
        "config {config}",
        "seed {seed}",
        "run {number}",
    ):
        for name in {n for n in labels if labels.count(n) > 1}:
            same = [i for i, n in enumerate(labels) if n == name]
            said = [words.format(**abouts[i], number=k + 1) for k, i in enumerate(same)]
            if len(set(said)) > 1:
                for i, text in zip(same, said, strict=True):
                    labels[i] = f"{name}, {text}"
    return labels
