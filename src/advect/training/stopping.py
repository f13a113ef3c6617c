"""What all processes of a run decide together between two steps."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType, TracebackType

import torch

from advect.core.errors import UserError
from advect.distributed.comm import control_group, sync_errors
from advect.distributed.env import STOPPING


@dataclass(frozen=True, kw_only=True)
class StopCriteria:
    """When a run ends: after ``steps``; earlier after ``max_steps`` finished steps or ``max_minutes`` of this start.

    The two maxima do not enter the schedule of the learning rate, so a run that they end and that is resumed
    equals one that was never stopped.
    """

    steps: int
    max_steps: int | None = None
    max_minutes: float | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"num_epochs leaves {self.steps} steps to train; raise --num-epochs or lower --batch-size")
        if self.max_steps is not None and self.max_steps < 1:
            raise UserError(f"max_steps must be at least 1, got {self.max_steps}; leave it out for no limit")
        if self.max_minutes is not None and not self.max_minutes > 0:
            raise UserError(f"max_minutes must be > 0, got {self.max_minutes}; leave it out for no limit")

    @property
    def last_step(self) -> int:
        """The number of finished steps at which the run ends, if its minutes suffice."""
        return self.steps if self.max_steps is None else min(self.steps, self.max_steps)


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


MINUTES = "max-minutes"
_MINUTES_CODE = 1000


class StopConsensus:
    """Lets every process stop at the same step, whichever of them was told to.

    Each boundary sends what this process knows while the step that follows computes, and answers with the largest of
    what all of them sent at the boundary before: nobody waits, and a signal takes effect one step later than in a
    process on its own, which gets its own word back at once.
    """

    def __init__(self) -> None:
        self._sent: tuple[torch.Tensor, torch.distributed.Work] | None = None

    def all_max(self, words: Sequence[int]) -> list[int]:
        """Send ``words`` and return, for each, the largest that any process sent at the last boundary, at first 0."""
        group = control_group()
        if group is None:
            return list(words)
        import torch.distributed as dist

        largest = self._received() or [0] * len(words)
        tensor = torch.tensor(list(words), dtype=torch.int64)
        work = dist.all_reduce(tensor, dist.ReduceOp.MAX, group=group, async_op=True)
        assert work is not None
        self._sent = tensor, work
        return largest

    def _received(self) -> list[int] | None:
        if self._sent is None:
            return None
        tensor, work = self._sent
        self._sent = None
        work.wait()
        return tensor.tolist()

    def close(self) -> None:
        """Take in what is still on its way."""
        self._received()


class StopGuard:
    """Decides between steps, for all processes at once, whether a run ends. Within the block it heeds signals."""

    def __init__(self) -> None:
        self._signals, self._consensus = StopSignals(), StopConsensus()
        self._began = time.monotonic()

    def __enter__(self) -> StopGuard:
        self._signals.__enter__()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._signals.__exit__(kind, error, trace)

    def reason(self, criteria: StopCriteria, step: int, trouble: UserError | None) -> str | None:
        """Why the run ends after ``step`` steps, if it does. Raises ``trouble``, or that of another process."""
        local = self._signals.received
        minutes = (time.monotonic() - self._began) / 60
        if local is None and criteria.max_minutes is not None and minutes >= criteria.max_minutes:
            local = MINUTES
        code, failed = self._consensus.all_max([_code_of(local), int(trouble is not None)])
        if failed:
            self._consensus.close()
            with sync_errors():
                if trouble is not None:
                    raise trouble
        if code:
            return _reason_of(code)
        if step >= criteria.steps:
            return "finished"
        if criteria.max_steps is not None and step >= criteria.max_steps:
            return "max-steps"
        return None

    def close(self) -> None:
        """Receive what other processes have sent."""
        self._consensus.close()


def _code_of(reason: str | None) -> int:
    """A number for a reason that one process may know alone: a signal's, or that of the minutes; 0 for none."""
    if reason is None:
        return 0
    return _MINUTES_CODE if reason == MINUTES else int(signal.Signals[reason])


def _reason_of(code: int) -> str:
    return MINUTES if code == _MINUTES_CODE else signal.Signals(code).name
