"""Progress of work that takes more than three seconds: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

DELAY, EVERY = 3.0, 15.0
"""Seconds before the first line or bar, and between lines."""


class Progress(tqdm):
    """``total`` units of work; :meth:`update` also takes fractions of one.

    Nothing is shown in the first three seconds, or unless ``show``. A log file gets a line every 15 seconds.
    """

    def __init__(self, total: int, title: str, unit: str, *, show: bool = True, leave: bool = True) -> None:
        self.terminal, self._show = sys.stderr.isatty(), show
        self._exact, self._began, self._told = 0.0, time.monotonic(), 0.0
        off = not (show and self.terminal)
        super().__init__(total=total, desc=title, unit=unit, disable=off, delay=DELAY, leave=leave, dynamic_ncols=True)
        self.of, self.title, self.units = total, title, unit

    def update(self, n: float | None = 1) -> bool | None:
        """Count ``n`` units."""
        self._exact += 1 if n is None else n
        whole = int(self._exact + 1e-6) - int(self.n)
        if not self.disable:
            return super().update(whole) if whole > 0 else None
        self.n += whole
        passed = time.monotonic() - self._began
        if self._show and not self.terminal and passed >= (self._told + EVERY if self._told else DELAY):
            self._told = passed
            self._line(f"{clock(passed)} passed, {clock(passed * (self.of / self._exact - 1))} left")
        return None

    def close(self) -> None:
        """Clear the bar, or tell the time taken, if anything was shown."""
        told, self._told = getattr(self, "_told", 0.0), 0.0
        if told and self.n >= self.of:
            self._line(f"took {clock(time.monotonic() - self._began)}")
        super().close()

    def _line(self, end: str) -> None:
        rate = self._exact / max(time.monotonic() - self._began, 1e-9)
        speed = f"{rate:,.0f} a second" if rate >= 10 else f"{rate:.2g} a second"
        units = self.units + "s" * (self.of != 1)
        self.write(f"{self.title}: {int(self.n):,} of {self.of:,} {units}, {speed}, {end}", file=sys.stderr)


class BatchProgress:
    """A batch of ``rows`` units of a bar in ``calls`` equal steps; with None, or a plain bar, all at its end."""

    def __init__(self, bar: tqdm, rows: int, calls: int | None) -> None:
        self.bar, self.rows, self.calls, self._done = bar, rows, calls if isinstance(bar, Progress) else None, 0.0

    def step(self, *_: Any) -> None:
        """One of the steps is done."""
        if self.calls and self._done < self.rows:
            part = min(self.rows / self.calls, self.rows - self._done)
            self._done += part
            self.bar.update(part)

    def finish(self) -> None:
        """The whole batch is done."""
        self.bar.update(self.rows - self._done)


def clock(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def rough_duration(seconds: float) -> str:
    """An estimated length of time in words, to two digits."""
    for limit, unit, size in ((90, "second", 1), (90 * 60, "minute", 60), (48 * 3600, "hour", 3600)):
        if seconds < limit:
            number = (
                f"{max(seconds, 1):.0f}" if size == 1 else f"{seconds / size:.{0 if seconds >= 10 * size else 1}f}"
            )
            return f"{number} {unit}" + "s" * (number != "1")
    return f"{seconds / 86400:.1f} days"
