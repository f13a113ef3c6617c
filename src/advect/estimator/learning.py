"""One stretch of training: the engine of ``advect train`` on data in memory, without a run folder."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advect.core.random import CounterRng, mix
from advect.core.types import Batch
from advect.data import Source
from advect.estimator.settings import Settings
from advect.objectives import Objective
from advect.runs.engine import check_method, new_state, new_trainer
from advect.runs.method import build_objective
from advect.training import Hook, LearningRate, Limits, Trainer, TrainState
from advect.training.hooks import EverySteps, ProgressBar
from advect.training.state import EMA, Progress

_LOOKS = 2048
"""Draws of noise and time of which a held-out loss is the mean, at least."""


@dataclass
class Kept:
    """What further training needs, on the CPU, to be pickled: weights, moments, averages and progress."""

    net: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    ema: tuple[dict[str, Tensor], int] | None
    progress: Progress
    extra: dict[str, list[float]]

    @classmethod
    def of(cls, state: TrainState) -> Kept:
        """A copy of what ``state`` is now."""
        ema = None if state.ema is None else (_copied(state.ema.shadow), state.ema.updates)
        extra = state.extra.state_dict() if state.extra else {}
        net, moments = _copied(state.net.state_dict()), _copied(state.optimizer.tensors())
        return cls(net, moments, ema, copy.deepcopy(state.progress), extra)

    def restore(self, state: TrainState) -> None:
        """Make ``state`` what was kept."""
        state.net.load_state_dict(self.net)
        state.progress = copy.deepcopy(self.progress)
        state.optimizer.load(self.optimizer, self.progress.step)
        if state.ema is not None and self.ema is not None:
            shadow, updates = self.ema
            state.ema.load({EMA: shadow}, updates)
        if state.extra is not None:
            state.extra.load_state_dict(self.extra)


@dataclass(frozen=True, kw_only=True)
class _Later(LearningRate):
    """A schedule that begins at step ``start``."""

    start: int = 0

    def __call__(self, step: int) -> float:
        return super().__call__(step - self.start)


@dataclass
class Curve(Hook):
    """The mean losses of each ``every`` steps."""

    losses: list[float] = field(default_factory=list)

    def on_log(self, trainer: Trainer, row: dict) -> None:
        self.losses.append(row["loss"])


class Patience(Hook):
    """Looks at the held-out loss every ``every`` steps, and ends the run after ``patience`` looks without a better.

    Attributes:
        losses: all that were seen.
        best: the weights of the best, and its step.
    """

    def __init__(self, held_out: Batch, objective: Objective, *, every: int, patience: int, seed: int) -> None:
        times = -(-_LOOKS // len(held_out))
        repeat = lambda x: x.repeat(times, *(1,) * (x.ndim - 1))
        cond = {name: repeat(value) for name, value in (held_out.cond or {}).items()} or None
        self.batch, self.objective, self.seed = Batch(repeat(held_out.x1), cond), objective, seed
        self.patience, self.losses, self.step = patience, [], 0
        self.best: dict[str, Tensor] = {}
        self._timer = EverySteps(every, lambda step: None)

    def on_start(self, trainer: Trainer) -> None:
        self._timer.action = lambda step: self._look(trainer)
        self.batch = self.batch.to(trainer.device)

    def on_step(self, trainer: Trainer) -> None:
        self._timer.on_step(trainer)

    def on_end(self, trainer: Trainer, reason: str) -> None:
        if not self.losses or trainer.state.progress.step % self._timer.every:
            self._timer.run(trainer)

    @torch.no_grad()
    def _look(self, trainer: Trainer) -> None:
        net = trainer.state.net
        rng = CounterRng(mix(self.seed, 5), 0, len(self.batch))
        loss = self.objective(net, self.batch, rng).mean().item()
        if not self.losses or loss < min(self.losses):
            self.best, self.step = _copied(net.state_dict()), trainer.state.progress.step
        self.losses.append(loss)
        if len(self.losses) - 1 - int(np.argmin(self.losses)) >= self.patience:
            trainer.limits = replace(trainer.limits, max_steps=trainer.state.progress.step)


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in tensors.items()}


@dataclass(frozen=True)
class Learned:
    """What a stretch of training leaves: weights to predict with, the state to go on from, losses, and its end."""

    weights: dict[str, Tensor]
    kept: Kept
    losses: list[float]
    held_out_losses: list[float]
    step: int
    reason: str


def learn(
    settings: Settings,
    source: Source,
    noise: dict[str, Any],
    *,
    steps: int,
    patience: int,
    seed: int,
    kept: Kept | None,
    verbose: int,
) -> Learned:
    """Train ``steps`` more steps from ``kept`` or from the start.

    Where the source holds rows out, the run ends early after ``patience`` looks at their loss without a better one,
    and the weights are those of the best look.
    """
    t = replace(settings.training, seed=seed)
    check_method(settings.method, t)
    objective = build_objective(settings.method, source.spec, noise)
    state = new_state(settings.network, t, source.spec, objective)
    if kept is not None:
        kept.restore(state)
    start = state.progress.step
    rate = _Later(peak=t.learning_rate, warmup=t.lr_warmup_steps, total=steps, shape=t.lr_schedule, start=start)
    every = max(1, steps // 40)
    curve, hooks = Curve(), list[Hook]()
    watch = None
    if len(source.held_out):
        held_out = source.held_out.fetch(np.arange(len(source.held_out)))
        watch = Patience(held_out, objective, every=every, patience=patience, seed=seed)
        hooks.append(watch)
    trainer = new_trainer(
        t,
        state,
        objective,
        source.train,
        rate=rate,
        limits=Limits(steps=start + steps, max_steps=t.max_steps, max_minutes=t.max_minutes),
        log_every=every,
        hooks=[curve, *hooks, *([ProgressBar()] if verbose else [])],
    )
    reason = trainer.run()
    if watch is not None:
        return Learned(watch.best, Kept.of(state), curve.losses, watch.losses, watch.step, reason)
    weights = _copied({**state.net.state_dict(), **(state.ema.shadow if state.ema else {})})
    return Learned(weights, Kept.of(state), curve.losses, [], state.progress.step, reason)
