"""Ctrl+C, SIGTERM and SIGUSR1 end a run at the end of its step."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

from advect.core.processes import STOPPING


class StopSignals:
    """Within the block the first of STOPPING sets :attr:`received`; a second one interrupts at once.

    Outside the main thread, where Python allows no handlers, the block changes nothing.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[signal.Signals, object] = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
