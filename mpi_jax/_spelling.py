"""What a misspelt name may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """The words "; did you mean NAME?" for the name most like a word; "" where none is."""
    names = list(names)
    close = difflib.get_close_matches(word, names, n=1) or [
        name for name in names if word and name.startswith(word)
    ]
    return f"; did you mean {close[0]}?" if close else ""


def expect_one_of(what: str, word: str, names: Iterable[str]) -> None:
    """ValueError unless the word is one of the names."""
    names = list(names)
    if word not in names:
        raise ValueError(
            f"{what}: expected one of {', '.join(names)}; got {word!r}"
            f"{did_you_mean(word, names)}"
        )
