"""Held-out loss of an estimator, and when to stop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from advect.core.random import CounterRng, Stream, stream_seed
from advect.core.types import Batch
from advect.losses import Loss
from advect.training import Callback, Trainer
from advect.training.callbacks import PeriodicCallback
from advect.training.guards import STOPPED_EARLY

_HELD_OUT_DRAWS = 8192
"""Least number of draws of noise and time for a held-out loss of vectors; 2048 of images."""

_LEAST = 500
"""Steps before which training never stops: a network may need them to do better than its start."""


@dataclass
class LossCurve(Callback):
    """Collects the logged losses."""

    losses: list[float] = field(default_factory=list)

    def on_log(self, trainer: Trainer, row: dict) -> None:
        self.losses.append(row["loss"])


class EarlyStopping(PeriodicCallback):
    """Evaluate the held-out loss of the EMA at the start and after ever more steps, each time a tenth more and at
    least 20; stop after ``patience`` evaluations without improvement, and at least 500 steps. Noise and times are the
    same at all.

    Attributes:
        losses, steps: all held-out losses, and the steps at which they were measured.
        best, best_step: weights of the lowest, and their step.
    """

    def __init__(self, held_out: Batch, loss: Loss, patience: int, seed: int) -> None:
        super().__init__(every=1)
        draws = _HELD_OUT_DRAWS if held_out.x1.ndim == 2 else _HELD_OUT_DRAWS // 4
        self.batch = _repeated(held_out, -(-draws // len(held_out)))
        self.loss = loss
        self.patience = patience
        self.seed = seed
        self.losses: list[float] = []
        self.steps: list[int] = []
        self.best: dict[str, Tensor] = {}
        self.best_step = 0

    def on_start(self, trainer: Trainer) -> None:
        self._trainer, self._start = trainer, trainer.state.progress.step
        self.batch = self.batch.to(trainer.device)
        super().on_start(trainer)
        self.run_now(trainer)

    def has_run(self, step: int) -> bool:
        return True

    def on_step(self, trainer: Trainer) -> None:
        if trainer.state.progress.step >= self._next:
            self.run_now(trainer)

    def on_end(self, trainer: Trainer, reason: str) -> None:
        if trainer.state.progress.step != self._seen:
            self.run_now(trainer)

    @torch.no_grad()
    def run(self, step: int) -> None:
        done = step - self._start
        self._next = step + max(20, done // 10)
        net = self._trainer.state.net
        loss = self.held_out_loss(net)
        if not self.losses or loss < min(self.losses):
            self.best, self.best_step = copied(net.state_dict()), step
        self.losses.append(loss)
        self.steps.append(step)
        if len(self.losses) - 1 - int(np.argmin(self.losses)) >= self.patience and done >= _LEAST:
            self._trainer.stop(STOPPED_EARLY)

    def held_out_loss(self, net: torch.nn.Module) -> float:
        """Mean loss of ``net`` on the held-out rows."""
        rng = CounterRng(stream_seed(self.seed, Stream.HELD_OUT_LOSS), 0, len(self.batch))
        return self.loss(net, self.batch, rng).mean().item()


def _repeated(batch: Batch, times: int) -> Batch:
    cond = {name: torch.cat([value] * times) for name, value in (batch.cond or {}).items()}
    return Batch(torch.cat([batch.x1] * times), cond or None)


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in tensors.items()}
