"""What all processes of a run decide together between two steps."""

from __future__ import annotations

import signal
from collections.abc import Sequence

import torch

from advect.core.group import control_group

MINUTES = "max-minutes"
_MINUTES_CODE = 1000


class Boundary:
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
