"""One stretch of training: the engine of ``advect train`` on data in memory, without a run folder."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from advect.core.platform import use_tf32
from advect.core.random import CounterRng, mix
from advect.core.types import Batch, DataSpec
from advect.data import Source
from advect.estimator.settings import Settings
from advect.objectives import Objective
from advect.runs.build import build_network, pick_device, pick_precision
from advect.runs.method import build_objective
from advect.training import (
    AdamW,
    Ema,
    Hook,
    LearningRate,
    Limits,
    Loader,
    Muon,
    Trainer,
    TrainState,
    hidden_matrices,
    named_params,
)
from advect.training.hooks import EverySteps, ProgressBar
from advect.training.state import Progress

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
        copied = lambda tensors: {name: t.detach().cpu().clone() for name, t in tensors.items()}
        ema = None if state.ema is None else (copied(state.ema.shadow), state.ema.updates)
        extra = state.extra.state_dict() if state.extra else {}
        net, moments = copied(state.net.state_dict()), copied(state.optimizer.tensors())
        return cls(net, moments, ema, copy.deepcopy(state.progress), extra)

    def restore(self, state: TrainState) -> None:
        """Make ``state`` what was kept."""
        state.net.load_state_dict(self.net)
        state.progress = copy.deepcopy(self.progress)
        state.optimizer.load(self.optimizer, self.progress.step)
        if state.ema is not None and self.ema is not None:
            state.ema.load(*self.ema)
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
            self.best, self.step = _weights(net), trainer.state.progress.step
        self.losses.append(loss)
        if len(self.losses) - 1 - int(np.argmin(self.losses)) >= self.patience:
            trainer.limits = replace(trainer.limits, max_steps=trainer.state.progress.step)


def _weights(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in net.state_dict().items()}


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
    t, device = settings.training, pick_device(settings.training.device)
    use_tf32(device, t.tf32)
    objective = build_objective(settings.method, source.spec, noise)
    state = _new_state(settings, source.spec, objective, device, seed)
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
    trainer = Trainer(
        state,
        objective,
        Loader(source.train, t.batch_size, seed=seed, workers=t.num_workers),
        rate=rate,
        limits=Limits(steps=start + steps, max_steps=t.max_steps, max_minutes=t.max_minutes),
        grad_clip=t.grad_clip,
        autocast=pick_precision(t.mixed_precision, device, t.half),
        accumulate=t.accumulate,
        compile_model=t.compile_model,
        pair_ahead=t.pair_ahead,
        seed=seed,
        log_every=every,
        device=device,
        hooks=[curve, *hooks, *([ProgressBar()] if verbose else [])],
    )
    reason = trainer.run()
    if watch is not None:
        return Learned(watch.best, Kept.of(state), curve.losses, watch.losses, watch.step, reason)
    weights = _weights(state.net)
    if state.ema is not None:
        weights |= {name: value.detach().cpu().clone() for name, value in state.ema.shadow.items()}
    return Learned(weights, Kept.of(state), curve.losses, [], state.progress.step, reason)


def _new_state(
    settings: Settings, spec: DataSpec, objective: Objective, device: torch.device, seed: int
) -> TrainState:
    t = settings.training
    with torch.random.fork_rng():
        torch.manual_seed(mix(seed, 0))
        net = build_network(settings.network, spec, grad_checkpointing=t.grad_checkpointing).to(device)
    params = named_params(net)
    if t.optimizer == "muon":
        optimizer = Muon(params, hidden_matrices(net), weight_decay=t.weight_decay)
    else:
        optimizer = AdamW(params, weight_decay=t.weight_decay)
    return TrainState(net, optimizer, Ema(params, t.ema_decay) if t.use_ema else None, extra=objective)
