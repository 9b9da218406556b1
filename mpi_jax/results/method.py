"""Methods as tables name them, and the groups they stand in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeVar

from mpi_jax.results.record import UNKNOWN

Kind = Literal["control", "classical", "learned"]
GROUPS = ("control", "classical", "voltage alone", "physics")


@dataclass(frozen=True, kw_only=True)
class MethodInfo:
    """A method, as tables name it."""

    method: str  # of a network: the name of its run
    label: str
    kind: Kind
    # Of a network: whether it starts from classical images of the signal and a singular
    # basis of the system matrix, or sees the voltage and nothing else.
    physics: bool = False

    @property
    def group(self) -> str:
        """One of GROUPS: networks by what they are given, all others by their kind."""
        if self.kind != "learned":
            return self.kind
        return "physics" if self.physics else "voltage alone"


Named = TypeVar("Named", bound=MethodInfo)


def in_groups(lines: Iterable[Named]) -> list[Named]:
    """Controls, classical methods, networks of the voltage, networks with physics; in
    each group as they came.
    """
    return sorted(lines, key=lambda line: GROUPS.index(line.group))


@dataclass(frozen=True, kw_only=True)
class Network:
    """What tells one trained network from another."""

    variant: str  # dual, single, matched, or the baseline's name: cnn, unet, ...
    config: str
    generator: str
    adversarial: float  # weights of the loss terms
    bce: float
    dice: float
    rank: int  # singular vectors in use; 0: none, the network sees the voltage alone
    seed: int
    budget: int | None = None  # images of the whole training
    images_seen: int | None = None  # at its best validation, whose weights it has
    commit: str = UNKNOWN
    trained_on: str = UNKNOWN
    group: str  # the same for networks that differ by their seed only
