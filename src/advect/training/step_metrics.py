"""The numbers of the steps: kept on the device, read now and then, summed up in rows."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from advect.distributed.comm import all_sum, current
from advect.training.state import Progress


@dataclass(frozen=True)
class BadStep:
    """A step that was skipped: its number, from 1, its loss and the norm of its gradient."""

    step: int
    loss: float
    norm: float


class StepMetrics:
    """Losses and gradient norms of the last steps, and the speed since the last row.

    Reading them waits for the device and for the other processes, so they wait for :meth:`read`.
    """

    def __init__(self, progress: Progress, *, scaled: bool) -> None:
        self.progress, self._scaled = progress, scaled
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._began = self._row_time = time.monotonic()
        self._seconds_before, self._row_step = progress.seconds, progress.step
        self.waited = self.blocked = 0.0

    def add(self, loss: Tensor, norm: Tensor) -> None:
        """Take in a step: this process's mean loss and the norm of the whole gradient."""
        self._pending.append((loss, norm))

    def read(self) -> list[BadStep]:
        """Take the steps since the last reading into the progress, and return those that were skipped, in order."""
        progress = self.progress
        progress.seconds = self._seconds_before + time.monotonic() - self._began
        pending, self._pending = self._pending, []
        if not pending:
            return []
        losses, norms = (torch.stack(values) for values in zip(*pending, strict=True))
        world = current().world
        means = losses if world == 1 else all_sum(losses.double()) / world
        bad = []
        for i, (loss, norm) in enumerate(zip(means.tolist(), norms.tolist(), strict=True)):
            if math.isfinite(loss) and math.isfinite(norm):
                progress.bad_row = 0
                progress.loss.add(loss)
                progress.grad_norm.add(norm)
                progress.epoch_loss.add(loss)
            elif self._scaled and math.isfinite(loss):
                continue  # an overflow in float16, which the scale takes care of
            else:
                progress.bad += 1
                progress.bad_row += 1
                bad.append(BadStep(progress.step - len(pending) + i + 1, loss, norm))
        return bad

    def speed(self, samples: int) -> dict[str, float]:
        """Samples a second, the share of time spent waiting for data and for checkpoints, since the last row."""
        now, progress = time.monotonic(), self.progress
        elapsed, steps = max(now - self._row_time, 1e-9), progress.step - self._row_step
        speed = {
            "samples_per_s": steps * samples / elapsed,
            "data_wait": self.waited / elapsed,
            "checkpoint_wait": self.blocked / elapsed,
            "seconds": progress.seconds,
            "steps_per_s": steps / elapsed,
        }
        self._row_time, self._row_step, self.waited, self.blocked = now, progress.step, 0.0, 0.0
        return speed
