"""Trouble that a user can do something about, told as such."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from advect.core.errors import UserError

LOWER_RATE = 0.3
"""What the learning rate is multiplied with when a run is rolled back."""

_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


@contextmanager
def explain_oom() -> Iterator[None]:
    """Turn running out of memory into a UserError that names the flags that help."""
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


def not_finite(bad: int, loss: float, norm: float, step: int, *, rolled_back: bool) -> UserError:
    """The end of a run of which ``bad`` steps in a row, the last of them ``step``, were not finite."""
    tried = "also after going back to a checkpoint with a lower rate" if rolled_back else "and there is no checkpoint"
    error = UserError(
        f"the loss or its gradient was not finite in {bad} steps in a row, the last of them step {step:,} (loss "
        f"{loss:g}, gradient norm {norm:g}), {tried}; lower --learning-rate, keep --grad-clip at 1, train with "
        "--no-mixed-precision, and look at the rows that metrics.jsonl names with advect doctor; checkpoints are whole"
    )
    error.agreed = True  # as loss and norm are those of all processes
    return error


class Watchdog:
    """Tells when something takes long: ``say(name, seconds)`` after ``patience`` seconds, and at each doubling."""

    def __init__(self, say: Callable[[str, float], None], *, patience: float = 30.0) -> None:
        self._say, self._patience = say, patience
        self._doing: tuple[str, float] | None = None
        self._due = patience
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="advect-watchdog", daemon=True)
        self._thread.start()

    def begin(self, name: str) -> None:
        """From now on ``name`` is being done."""
        self._doing = name, time.monotonic()

    def end(self) -> None:
        """It is done."""
        self._doing = None

    def close(self) -> None:
        """Stop watching."""
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        told: tuple[str, float] | None = None
        while not self._end.wait(self._patience / 4):
            doing = self._doing
            if doing is None:
                continue
            if doing is not told:
                told, self._due = doing, self._patience
            seconds = time.monotonic() - doing[1]
            if seconds >= self._due:
                self._say(doing[0], seconds)
                self._due = 2 * seconds
