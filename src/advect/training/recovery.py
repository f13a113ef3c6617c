"""Recovery from non-finite steps; messages for lack of memory and stalls."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from advect.core.errors import UserError
from advect.training.state import TrainState
from advect.training.step import BadStep

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
            f"out of memory ({first}); the last checkpoint is whole; in this order try --mixed-precision, "
            "--accumulate 2 or more (the same step in parts), --grad-checkpointing, a smaller --batch-size, fewer "
            "channels, --parallel fsdp where there are several GPUs, and fewer --num-samples if it drew samples"
        ) from error


def divergence_error(bad: int, loss: float, norm: float, step: int, *, rolled_back: bool) -> UserError:
    """Error of a run with ``bad`` non-finite steps in a row, the last being ``step``."""
    tried = "also after going back to a checkpoint with a lower rate" if rolled_back else "and there is no checkpoint"
    error = UserError(
        f"the loss or its gradient was not finite in {bad} steps in a row, the last of them step {step:,} (loss "
        f"{loss:g}, gradient norm {norm:g}), {tried}; lower --learning-rate, keep --grad-clip at 1, train with "
        "--no-mixed-precision, and look at the rows that metrics.jsonl names with advect doctor; checkpoints are whole"
    )
    error.agreed = True  # as loss and norm are those of all processes
    return error


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
