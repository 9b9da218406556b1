"""Progress for a person: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqdm import tqdm

_LINE_EVERY = 10.0  # [s] between lines of progress where there is no terminal
# Stages whose steps are all alike after the first; only they say how long they last.
_STEADY = ("train", "test", "simulate")
_NUMBERS = ("generator_loss", "mae", "images_per_second")


class Progress:
    """A Tell: a bar on a terminal, a line now and then elsewhere.

    Rates and times leave out the first step of a stage, which compiles. Of the processes
    of a cluster the lead alone is heard.
    """

    def __init__(self) -> None:
        self.bar: tqdm | None = None
        self.drawn: str | None = None  # the stage of the bar
        self.printed: tuple[str, float] = "", 0.0  # the last line: its stage, and when
        self.report: tuple[str, int, float] = (
            "",
            0,
            0.0,
        )  # the last one: stage, done, when
        self.reported: set[str] = set()  # stages that have reported
        self.pace: dict[str, tuple[int, float]] = {}  # of a stage: steps, seconds

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def __call__(
        self, stage: str, done: int, total: int, numbers: dict[str, float]
    ) -> None:
        from mpi_jax import cluster

        if not cluster.is_lead():
            return
        texts = {
            name.removeprefix("validation_"): f"{value:.4g}"
            for name, value in numbers.items()
            if name in _NUMBERS or name.startswith("validation_")
        }
        if stage not in self.reported:
            texts.pop("images_per_second", None)
        self._keep_pace(stage, done)
        left = self._left(stage, total - done)
        if sys.stderr.isatty():
            self._draw(stage, done, total, texts | left)
        else:
            self._print(stage, done, total, texts, left)

    def _keep_pace(self, stage: str, done: int) -> None:
        """Add the time since the last report, unless it went to another stage or to the
        first step of this one.
        """
        now = time.monotonic()
        last, before, when = self.report
        if last == stage and 0 < before < done:
            steps, seconds = self.pace.get(stage, (0, 0.0))
            self.pace[stage] = steps + done - before, seconds + now - when
        self.report = stage, done, now
        if done:
            self.reported.add(stage)

    def _left(self, stage: str, steps: int) -> dict[str, str]:
        """The time that the other steps of a stage will take, where it can be known."""
        passed, seconds = self.pace.get(stage, (0, 0.0))
        if stage not in _STEADY or not passed or not steps:
            return {}
        return {"left": f"{seconds / passed * steps:.0f} s"}

    def _print(
        self,
        stage: str,
        done: int,
        total: int,
        texts: dict[str, str],
        left: dict[str, str],
    ) -> None:
        now = time.monotonic()
        last, when = self.printed
        if stage == last and done < total and now - when < _LINE_EVERY:
            return
        self.printed = stage, now
        words = [f"{stage} {done} of {total}"]
        words += [f"{name} {value}" for name, value in texts.items()]
        words += [f"{time} left" for time in left.values()]
        print(", ".join(words), file=sys.stderr, flush=True)

    def _draw(self, stage: str, done: int, total: int, texts: dict[str, str]) -> None:
        from tqdm import tqdm

        if stage == "validate":  # a line above the training bar
            words = ", ".join(f"{n} {v}" for n, v in texts.items())
            tqdm.write(f"step {done}: validation {words}", file=sys.stderr)
            return
        if stage != self.drawn or self.bar is None:
            self._close()
            self.drawn = stage
            self.bar = tqdm(
                total=total,
                desc=stage,
                file=sys.stderr,
                bar_format="{desc} {n_fmt}/{total_fmt} |{bar}| {elapsed}{postfix}",
            )
        self.bar.set_postfix(texts, refresh=False)
        self.bar.n = done
        self.bar.refresh()
        if done >= total:
            self._close()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        self.bar = self.drawn = None
