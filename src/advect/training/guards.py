"""Guards of the loop: when it stops, and what it does about stalls, lack of memory and steps that are not finite."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType

import torch

from advect.core.errors import UserError
from advect.core.files import DiskFault
from advect.distributed.comm import control_group, current, sync_errors
from advect.distributed.env import Terminal, handled_signals
from advect.training.state import Progress, TrainState
from advect.training.step import BadStep

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StopCriteria:
    """End after ``steps``, or earlier after ``max_steps`` finished steps or ``max_minutes`` of this start.

    ``max_steps`` does not affect the learning-rate schedule; for the minutes see :class:`TimePlan`.
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
        """Number of finished steps at the end, minutes aside."""
        return self.steps if self.max_steps is None else min(self.steps, self.max_steps)


class StopSignals:
    """Context in which the first of :func:`handled_signals` sets :attr:`received`; a second one, SIGHUP apart,
    interrupts at once.

    No effect outside the main thread.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[signal.Signals, object] = {}
        self._terminal = Terminal()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._terminal.leave()
        name = signal.Signals(number).name
        if self.received is not None and name != "SIGHUP":  # a closed terminal and its shell both send that
            raise KeyboardInterrupt
        self.received = self.received or name

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in handled_signals():
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]


MINUTES, STOPPED_EARLY = "max-minutes", "early-stopping"
"""Reasons of a run's end: the minutes are over, or the held-out loss no longer falls."""


class StopConsensus:
    """Agree across processes on stopping after the same step, without waiting.

    Each call starts an asynchronous all-reduce (max) and returns the result of the previous one, so a signal takes
    effect one step later than in a single process, where the values are returned directly.
    """

    def __init__(self) -> None:
        self._sent: tuple[torch.Tensor, torch.distributed.Work] | None = None

    def all_max(self, words: Sequence[int]) -> list[int]:
        """Send ``words``; return the element-wise maximum over processes of the previous call, at first 0."""
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
        """Complete the pending exchange."""
        self._received()


class StopGuard:
    """Decide between steps, for all processes, whether the run ends. A context that handles signals.

    Attributes:
        clock: seconds since the start, the same on all processes.
    """

    def __init__(self) -> None:
        self._signals, self._consensus = StopSignals(), StopConsensus()
        self._began, self.clock = time.monotonic(), 0.0

    def __enter__(self) -> StopGuard:
        self._signals.__enter__()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._signals.__exit__(kind, error, trace)

    def reason(self, criteria: StopCriteria, step: int, trouble: UserError | None) -> str | None:
        """Reason to end after ``step`` steps, or None. Raises ``trouble``, or that of another process."""
        received, milliseconds = self._signals.received, int(1000 * (time.monotonic() - self._began))
        number = int(signal.Signals[received]) if received else 0
        code, failed, clock = self._consensus.all_max([number, int(trouble is not None), milliseconds])
        self.clock = clock / 1000
        if failed:
            self._consensus.close()
            with sync_errors():
                if trouble is not None:
                    raise trouble
        if code:
            return signal.Signals(code).name
        if step >= criteria.steps:
            return "finished"
        if criteria.max_minutes is not None and self.clock >= 60 * criteria.max_minutes:
            return MINUTES
        if criteria.max_steps is not None and step >= criteria.max_steps:
            return "max-steps"
        return None

    def close(self) -> None:
        """Complete the pending exchange."""
        self._consensus.close()


class TimePlan:
    """Choose the last step so that a run, its schedule and its end included, takes ``minutes`` of this start.

    The rate of the first seconds decides, and is checked again as the run goes on. Each decision is recorded in the
    state as (step, last step), so that a resumed run keeps to it; only a run that had reached its end gets new ones.

    Attributes:
        fixed: whether the state's last decision holds.
    """

    CHECKS = (0.04, 0.1, 0.3, 0.6, 0.85, 0.95)
    """Shares of the time, or of the steps chosen, at which the last step is chosen."""
    STEPS = 5
    """Steps that are not timed (allocation, caches, compilation), and least number that are."""

    def __init__(self, minutes: float | None, progress: Progress) -> None:
        self.seconds = None if minutes is None else 60 * minutes
        self.fixed = minutes is not None and bool(progress.plans) and progress.step < progress.plans[-1][1]
        self._checks = [] if minutes is None or self.fixed else list(self.CHECKS)
        self._first: tuple[int, float] | None = None
        self._chosen: int | None = None
        self._start, self._clock, self._longest = progress.step, 0.0, 0.0

    def last_step(self, step: int, clock: float) -> int | None:
        """The new last step if it is to be chosen now, after ``step`` steps and ``clock`` seconds of this start."""
        if self.seconds is None or not self._checks:
            return None
        self._longest, self._clock = max(self._longest, clock - self._clock), clock
        hurry = clock > 0.2 * self.seconds  # few steps are better than none
        if self._first is None:
            if step - self._start >= self.STEPS or hurry:
                self._first, self._longest = (step, clock), 0.0
            return None
        timed = step - self._first[0]
        if timed < (1 if hurry else self.STEPS) or not self._due(step, clock):
            return None
        while self._checks and self._due(step, clock):
            del self._checks[0]
        pace = (clock - self._first[1]) / timed
        spare = 1.5 * self._longest + 0.01 * self.seconds  # the longest pause so far was a picture or a checkpoint
        left = self.seconds - clock - spare
        self._chosen = step + max(1, int(left / max(pace, 1e-6)))
        return self._chosen

    def _due(self, step: int, clock: float) -> bool:
        share = self._checks[0]
        by_steps = self._chosen is not None and step - self._start >= share * (self._chosen - self._start)
        return clock >= share * (self.seconds or 0.0) or by_steps


LOWER_RATE = 0.3
"""Factor of the learning rate after a rollback."""

_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


@contextmanager
def explain_oom() -> Iterator[None]:
    """Turn out-of-memory errors into a UserError naming the flags that help."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        text = str(error).lower()
        if isinstance(error, RuntimeError) and not any(words in text for words in _MEMORY):
            raise
        first = str(error).strip().splitlines()[0] if str(error).strip() else "no more to be had"
        raise UserError(
            f"out of memory ({first}); in this order try --mixed-precision, "
            "--accumulate 2 or more (the same step in parts), --grad-checkpointing, a smaller --batch-size, fewer "
            "channels, --parallel fsdp where there are several GPUs, and fewer --num-samples if it drew samples"
        ) from error


def divergence_error(bad: int, loss: float, norm: float, step: int, *, rolled_back: bool) -> UserError:
    """Error of a run with ``bad`` non-finite steps in a row, the last being ``step``."""
    tried = ", also after going back to a checkpoint with a lower rate" if rolled_back else ""
    error = UserError(
        f"the loss or its gradient was not finite in {bad} steps in a row, the last of them step {step:,} (loss "
        f"{loss:g}, gradient norm {norm:g}){tried}; lower --learning-rate, keep --grad-clip at 1, train with "
        "--no-mixed-precision, and look at the rows that metrics.jsonl names with advect doctor"
    )
    error.agreed = True  # as loss and norm are those of all processes
    return error


def check_learned(progress: Progress) -> None:
    """Raise UserError for a run none of whose steps was finite."""
    if progress.step and progress.bad >= progress.step:
        error = UserError(
            f"the loss or its gradient was not finite in any of the {progress.step} steps, so that nothing was"
            " learned; lower --learning-rate and what else scales the loss, and look at the data with advect doctor"
        )
        error.agreed = True
        raise error


class Spared:
    """A context for ``what`` only watches a run, such as its pictures: the first error is told, and the run goes on.

    Errors within ``collective`` work of several processes are raised, as the others wait for this one.
    """

    def __init__(self, what: str) -> None:
        self.what, self.failed = what, False

    @contextmanager
    def __call__(self, *, collective: bool = False) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if collective and current().world > 1:
                raise
            if not self.failed:
                logger.warning(f"{self.what} failed ({in_words(error)}); the run goes on, and tells this once")
            self.failed = True


def in_words(error: Exception) -> str:
    """An error in a line: what is wrong with the disk, a user's mistake, or its type and first line."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else ""
    if isinstance(error, UserError):
        return text
    fault = DiskFault.of(error)
    if fault is not None:
        place = getattr(error, "filename", None)
        return f"{place}: {fault.why}" if place else fault.why
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class Watchdog:
    """Call ``report(name, seconds)`` when an operation takes ``patience`` seconds, and at each doubling."""

    def __init__(self, report: Callable[[str, float], None], *, patience: float = 30.0) -> None:
        self._report, self._patience = report, patience
        self._doing: tuple[str, float] | None = None
        self._due = patience
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="advect-watchdog", daemon=True)
        self._thread.start()

    def begin(self, name: str) -> None:
        """Start the clock of ``name``."""
        self._doing = name, time.monotonic()

    def end(self) -> None:
        """Stop the clock."""
        self._doing = None

    def close(self) -> None:
        """Stop the thread."""
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        reported: tuple[str, float] | None = None
        while not self._end.wait(self._patience / 4):
            doing = self._doing
            if doing is None:
                continue
            if doing is not reported:
                reported, self._due = doing, self._patience
            seconds = time.monotonic() - doing[1]
            if seconds >= self._due:
                self._report(doing[0], seconds)
                self._due = 2 * seconds


def roll_back(state: TrainState, checkpoint: Path | None, bad: BadStep) -> dict:
    """Restore ``checkpoint`` with a lower rate; return the row to log.

    Raises UserError without a checkpoint, or after an earlier rollback.
    """
    progress = state.progress
    if progress.rate < 1 or checkpoint is None:
        raise divergence_error(progress.bad_row, bad.loss, bad.norm, bad.step, rolled_back=progress.rate < 1)
    state.load(checkpoint)
    restored = state.progress
    restored.rate = LOWER_RATE
    restored.bad = progress.bad
    restored.bad_row = 0
    return {"step": restored.step, "rolled_back_from": bad.step, "rate": restored.rate}
