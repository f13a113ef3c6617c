"""Held-out loss during training: with the same noise and times at each call, where the best weights are kept, and when
to stop.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advect.checkpoint.manifest import HELD_OUT_LOSS, Best, checkpoint_name, checkpoint_step, read_best, write_best
from advect.core.random import CounterRng, Stream, stream_seed
from advect.core.types import DataSpec
from advect.data import Split
from advect.distributed.comm import all_sum, broadcast_object, current, sync_errors
from advect.losses import Loss
from advect.training.callbacks import CheckpointCallback, MetricsFile, PeriodicCallback
from advect.training.guards import STOPPED_EARLY
from advect.training.loggers import Logger
from advect.training.trainer import Trainer

logger = logging.getLogger(__name__)

PATIENCE = 10
"""Measurements without a lower loss that end a training, by default."""

FEW_ELEMENTS = 256
"""Elements of a sample above which its own elements average the loss."""


@torch.no_grad()
def held_out_loss(
    net: Callable[..., Tensor], loss_fn: Loss, split: Split, seed: int, *, device: torch.device, draws: int = 2048
) -> float:
    """Mean loss of ``net`` over ``draws`` of noise and time, the same at each call; collective.

    They are spread over the rows of ``split``: each in turn, or evenly chosen ones where there are more. By default at
    most one a row.
    """
    me, total, rows = current(), torch.zeros((), dtype=torch.float64), len(split)
    block = 2048 if math.prod(split.fetch(np.arange(1)).x1.shape) <= FEW_ELEMENTS else 256
    for first in range(0, draws, block):
        size = min(block, draws - first)
        mine = me.share(size)
        span = mine or range(1)  # a process without a row computes one uncounted
        order = np.arange(first + span.start, first + span.stop)
        batch = split.fetch(order % rows if draws >= rows else order * rows // draws).to(device)
        rng = CounterRng(stream_seed(seed, Stream.HELD_OUT_LOSS), first, len(span), start=span.start, total=size)
        total += loss_fn(net, batch, rng).double().sum().cpu() * bool(mine)
    return all_sum(total).item() / draws


def watched_draws(spec: DataSpec, rows: int) -> int:
    """Draws for a loss that is watched: of few rows all equally often, fewer where a sample's elements average."""
    most = 8192 if math.prod(spec.shape) <= FEW_ELEMENTS else 512
    return most if rows >= most else math.ceil(most / rows) * rows


class Store(ABC):
    """Where measurements, one row each, and the best weights are kept."""

    @abstractmethod
    def rows(self) -> list[dict]:
        """Measurements in turn; on the first process."""

    @abstractmethod
    def write(self, row: dict) -> None:
        """Add a measurement."""

    @abstractmethod
    def save(self, trainer: Trainer, best: Best) -> None:
        """Keep the current weights as the best."""

    def recall(self, trainer: Trainer, keep: str, rows: Sequence[dict], name: str) -> Best | None:
        """The best weights of an earlier start, by ``rows`` of a measure ``name``; on the first process."""
        return None

    @abstractmethod
    def wait(self) -> None:
        """Finish writing."""

    @abstractmethod
    def tell(self, words: str) -> None:
        """Log a line, once for all processes."""


@dataclass
class MemoryStore(Store):
    """In memory, for one start.

    Attributes:
        weights: the best, on the CPU.
    """

    measured: list[dict] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)

    def rows(self) -> list[dict]:
        return self.measured

    def write(self, row: dict) -> None:
        self.measured.append(row)

    def save(self, trainer: Trainer, best: Best) -> None:
        self.weights = copied(trainer.state.net.state_dict())

    def wait(self) -> None:
        pass

    def tell(self, words: str) -> None:
        pass


@dataclass
class RunStore(Store):
    """In ``metrics`` (None on other processes than the first), ``loggers``, and the checkpoint that ``best`` names.

    The best follows from the rows, so it survives kills.
    """

    checkpoints: CheckpointCallback
    metrics: MetricsFile | None
    loggers: Sequence[Logger] = ()

    def rows(self) -> list[dict]:
        return [] if self.metrics is None else self.metrics.rows()

    def write(self, row: dict) -> None:
        if self.metrics is not None:
            self.metrics.write(row)
        values = {name.replace("_", "/", 1): v for name, v in row.items() if name != "step" and isinstance(v, float)}
        for tracker in self.loggers:
            tracker.scalars(values, row["step"])

    def save(self, trainer: Trainer, best: Best) -> None:
        self.checkpoints.save(trainer)
        self.checkpoints.writer.mark(best)

    def recall(self, trainer: Trainer, keep: str, rows: Sequence[dict], name: str) -> Best | None:
        folder, best = self.checkpoints.writer.folder, None
        if self.metrics is None:
            return None
        rows = [row for row in rows if math.isfinite(row[name]) and (folder / checkpoint_name(row["step"])).is_dir()]
        if rows:
            row = min(rows, key=lambda row: row[name])
            best = Best(checkpoint_name(row["step"]), keep, row[name])
        there = read_best(folder)
        later = there is not None and checkpoint_step(Path(there.name)) > trainer.state.progress.step
        if best != there and (best is not None or later):
            write_best(folder, best)
        return best

    def wait(self) -> None:
        with sync_errors():
            self.checkpoints.writer.wait()

    def tell(self, words: str) -> None:
        if self.metrics is not None:
            logger.info(words)


class BestWeights(PeriodicCallback):
    """Measure every ``every`` steps with EMA weights, and keep the weights of the smallest value of ``keep``.

    Rows hold ``eval_NAME``, and a protocol: rows of another are not compared.
    """

    def __init__(self, store: Store, *, every: int | None, keep: str | None) -> None:
        super().__init__(every)
        self.store, self.keep = store, keep
        self.metric = "eval_" + (keep or "frechet").replace("-", "_")
        self.best: Best | None = None
        self.row: dict = {}
        self.protocol: dict[str, int | str] = {}

    @abstractmethod
    def measure(self, trainer: Trainer) -> dict[str, float]:
        """Values by name; on the first process."""

    def measured(self, trainer: Trainer, better: bool) -> None:
        """Called after each measurement, on all processes; ``better``: it is the best up to now."""

    @property
    def best_step(self) -> int:
        """Step of the best weights; 0 if there are none."""
        return 0 if self.best is None else checkpoint_step(Path(self.best.name))

    def rows(self) -> list[dict]:
        """Comparable rows up to now; on the first process."""
        return [row for row in self.store.rows() if self._comparable(row)]

    def _comparable(self, row: dict) -> bool:
        alike = all(row.get(name) == value for name, value in self.protocol.items())
        return alike and isinstance(row.get(self.metric), float | int)

    def on_start(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._recall(trainer)
        super().on_start(trainer)

    def on_end(self, trainer: Trainer, reason: str) -> None:
        super().on_end(trainer, reason)
        self.store.wait()

    def on_rollback(self, trainer: Trainer, row: dict) -> None:
        super().on_rollback(trainer, row)
        self._recall(trainer)

    def has_run(self, step: int) -> bool:
        return any(row["step"] == step for row in self.rows())

    def run(self, step: int) -> None:
        values = {f"eval_{name}": value for name, value in self.measure(self._trainer).items()}
        self.row = broadcast_object({"step": step, **values, **self.protocol})
        self.store.write(self.row)

    def run_now(self, trainer: Trainer) -> None:
        """Measure, and keep the weights if they are the best; not within a series of bad steps."""
        super().run_now(trainer)
        progress = trainer.state.progress
        if self.row.get("step") != progress.step:
            return
        value = self.row[self.metric]
        better = math.isfinite(value) and (self.best is None or value < self.best.value) and not progress.bad_row
        if better and self.keep is not None:
            self.best = Best(checkpoint_name(progress.step), self.keep, value)
            self.store.save(trainer, self.best)
        self.measured(trainer, better and self.keep is not None)

    def _recall(self, trainer: Trainer) -> None:
        keep = self.keep
        self.best = broadcast_object(
            None if keep is None else self.store.recall(trainer, keep, self.rows(), self.metric)
        )


class HeldOutLoss(BestWeights):
    """Watch a held-out ``loss``; end training after ``patience`` measurements without a lower one.

    Args:
        every: steps between measurements; None measures at the start and after ever more steps, each time a tenth
            more and at least 20.
        least: steps of this start before which training never ends: a network may need them to do better than its
            start.
    """

    def __init__(
        self, loss: Callable[[], float], store: Store, *, every: int | None, patience: int = PATIENCE, least: int = 0
    ) -> None:
        super().__init__(store, every=every, keep=HELD_OUT_LOSS)
        self.loss, self.patience, self.least = loss, patience, least
        self._next = self._start = 0

    def measure(self, trainer: Trainer) -> dict[str, float]:
        return {"held_out_loss": self.loss()}

    def on_start(self, trainer: Trainer) -> None:
        self._start = trainer.state.progress.step
        super().on_start(trainer)
        if self.every is None and self._seen != self._start:
            self.run_now(trainer)

    def on_step(self, trainer: Trainer) -> None:
        if self.every is not None:
            super().on_step(trainer)
        elif trainer.state.progress.step >= self._next:
            self.run_now(trainer)

    def measured(self, trainer: Trainer, better: bool) -> None:
        step = trainer.state.progress.step
        self._next = step + max(20, (step - self._start) // 10)
        waited = broadcast_object(sum(row["step"] > self.best_step for row in self.rows()))
        if waited >= self.patience and step - self._start >= self.least:
            trainer.stop(STOPPED_EARLY)

    def on_end(self, trainer: Trainer, reason: str) -> None:
        super().on_end(trainer, reason)
        if self.best is not None and self.best_step < trainer.state.progress.step:
            last = self.row.get(self.metric, math.nan)
            self.store.tell(
                f"the held-out loss was lowest at step {self.best_step:,} ({self.best.value:.4g}; {last:.4g} at the "
                "end): the run's samples, densities and report use that checkpoint"
            )


def copied(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """Copies on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in tensors.items()}
