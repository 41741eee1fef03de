"""Progress of a run on the terminal: a bar with the time left where there is one, quiet plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import IO

EVERY = 30.0


@dataclass
class Lines:
    """A line when a stage begins and ends, and every half minute between; a redrawn line on a terminal."""

    stream: IO[str] = field(default_factory=lambda: sys.stderr)
    every: float = EVERY
    _stage: str = ""
    _began: float = 0.0
    _first: int = 0
    _said: float = 0.0
    _waiting: tuple[str, str] = ("", "")

    def __call__(self, stage: str, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        if total == 0:  # waiting for something: said once
            if (stage, note) != self._waiting:
                self._waiting = (stage, note)
                print(f"{stage:32s} {note}", file=self.stream, flush=True)
            return
        if stage != self._stage or (done <= self._first and done < total):
            self._stage, self._began, self._first, self._said = stage, now, max(done - 1, 0), 0.0
        live = self.stream.isatty()
        if now - self._said < (0.2 if live else self.every) and 0 < done < total:
            return
        self._said = now
        text = f"{stage:32s} {done}/{total}" + self._time(done, total, now) + (f"  {note}" if note else "")
        end = "\n" if not live or (total and done >= total) else ""
        print(("\r\x1b[K" if live else "") + text, end=end, file=self.stream, flush=True)

    def _time(self, done: int, total: int, now: float) -> str:
        elapsed, made = now - self._began, done - self._first
        if done >= total:
            return f"  {elapsed:.0f} s"
        return f"  {clock(elapsed * (total - done) / made)} left" if made > 0 and elapsed > 2 else ""


def clock(seconds: float) -> str:
    """A duration as people say it."""
    whole = round(seconds)
    return f"{whole} s" if whole < 90 else f"{whole // 60} min" if whole < 5400 else f"{whole / 3600:.1f} h"
