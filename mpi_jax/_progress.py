"""How long work makes itself heard, and how it ends before its time."""

from __future__ import annotations

from collections.abc import Callable

# tell(stage, done, total, numbers): how long work makes itself heard.
Tell = Callable[[str, int, int, dict], None]


def silent(stage: str, done: int, total: int, numbers: dict) -> None:
    """A Tell that says nothing."""


class Stopped(Exception):
    """Work ended at a signal; what was done is saved."""
