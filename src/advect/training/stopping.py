"""What all processes of a run decide together between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType, TracebackType

import torch

from advect.core.errors import UserError
from advect.distributed.comm import control_group
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

    def meet(self, words: Sequence[int]) -> list[int]:
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


def code_of(reason: str | None) -> int:
    """A number for a reason to stop that not all processes know of: a signal's name, or the minutes; 0 for none."""
    if reason is None:
        return 0
    return _MINUTES_CODE if reason == MINUTES else int(signal.Signals[reason])


def reason_of(code: int) -> str | None:
    """The reason with that number."""
    if code == 0:
        return None
    return MINUTES if code == _MINUTES_CODE else signal.Signals(code).name
