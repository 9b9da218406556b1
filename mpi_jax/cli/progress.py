"""Progress for a person: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time

_LINE_EVERY = 10.0  # [s] between lines of progress where there is no terminal


class Progress:
    """A Tell: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self):
        self.bar, self.stage, self.last = None, None, 0.0
        self.first: dict[str, tuple[float, int]] = {}  # of a stage: when, and how far

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._close()

    def _close(self):
        if self.bar is not None:
            self.bar.close()
        self.bar = None

    def __call__(self, stage: str, done: int, total: int, numbers: dict) -> None:
        shown = {
            name.removeprefix("validation_"): f"{value:.4g}"
            for name, value in numbers.items()
            if name in ("generator_loss", "mae", "images_per_second")
            or name.startswith("validation_")
        }
        if sys.stderr.isatty():
            self._draw(stage, done, total, shown)
            return
        now = time.monotonic()
        if stage == self.stage and done < total and now - self.last < _LINE_EVERY:
            return
        self.stage, self.last = stage, now
        began, before = self.first.setdefault(stage, (now, done))
        left = ""
        if before < done < total:
            left = f", {(now - began) / (done - before) * (total - done):.0f} s left"
        words = "".join(f", {name} {value}" for name, value in shown.items())
        print(f"{stage} {done}/{total}{words}{left}", file=sys.stderr, flush=True)

    def _draw(self, stage, done, total, shown):
        from tqdm import tqdm

        if stage == "validate":  # a line above the training bar
            words = ", ".join(f"{n} {v}" for n, v in shown.items())
            tqdm.write(f"step {done}: validation {words}", file=sys.stderr)
            return
        if stage != self.stage:
            self._close()
            self.stage = stage
            self.bar = tqdm(total=total, desc=stage, unit="step", file=sys.stderr)
        self.bar.set_postfix(shown, refresh=False)
        self.bar.n = done
        self.bar.refresh()
        if done >= total:
            self._close()
            self.stage = None
