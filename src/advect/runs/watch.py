"""Pictures and the held-out loss while a run trains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from advect.core.random import CounterRng, mix
from advect.core.types import Batch, Category
from advect.data import Split
from advect.objectives import Objective
from advect.reports.grid import save_png
from advect.runs.flow import Flow
from advect.runs.pictures import draw, held_out_batch
from advect.training.boards import Board
from advect.training.hooks import EverySteps, MetricsFile
from advect.training.trainer import Hook, Trainer


@torch.no_grad()
def held_out_loss(flow: Flow, objective: Objective, split: Split, seed: int, limit: int = 2048) -> float:
    """The objective's mean over the first ``limit`` held-out examples, with the same noise and times each time."""
    total, count = 0.0, 0
    for first in range(0, min(limit, len(split)), 256):
        indices = np.arange(first, min(first + 256, limit, len(split)))
        batch = split.fetch(indices).to(flow.device)
        rng = CounterRng(mix(seed, 5), first, len(batch))
        total += objective(flow.net, batch, rng).sum().item()
        count += len(batch)
    return total / count


class Watch(Hook):
    """Every ``every`` steps, with EMA weights: a sample grid, and the held-out loss beside the training loss."""

    def __init__(
        self,
        flow: Flow,
        objective: Objective,
        held_out: Split,
        folder: Path,
        *,
        every: int,
        samples: int,
        seed: int,
        metrics: MetricsFile,
        boards: Sequence[Board],
    ) -> None:
        self.flow, self.objective, self.held_out, self.folder = flow, objective, held_out, folder
        self.samples, self.seed, self.metrics, self.boards = samples, seed, metrics, boards
        self._timer = EverySteps(every, self._look)
        self._reference: Batch | None = None
        categories = [name for name, kind in flow.spec.conditions.items() if isinstance(kind, Category)]
        self._cond = dict.fromkeys(categories[:1], "cycle")

    def on_start(self, trainer: Trainer) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    def on_step(self, trainer: Trainer) -> None:
        self._timer.on_step(trainer)

    def on_end(self, trainer: Trainer, reason: str) -> None:
        if self._timer.every and not reason.startswith("SIG") and trainer.state.progress.step % self._timer.every:
            self._timer.run(trainer)

    def _look(self, step: int) -> None:
        if self._reference is None:
            self._reference = held_out_batch(self.flow, self.held_out)
        conditions = self.flow.conditions(self.samples, self._cond, self.seed)
        samples = self.flow.sample(self.samples, seed=self.seed, cond=conditions)
        image = draw(self.flow, samples, conditions, self._reference)
        save_png(image, self.folder / f"step-{step:08d}.png")
        for board in self.boards:
            board.picture("samples", image, step)
        if len(self.held_out) == 0:
            return
        loss = held_out_loss(self.flow, self.objective, self.held_out, self.seed)
        self.metrics.write({"step": step, "held_out_loss": loss})
        for board in self.boards:
            board.scalars({"held_out/loss": loss}, step)
