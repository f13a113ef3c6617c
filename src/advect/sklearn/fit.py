"""One stretch of training: the engine of ``advect train`` on data in memory, without a run folder."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from advect.config.build import (
    build_loss,
    build_network,
    build_path,
    build_source_distribution,
    fit_source,
    label_dropout,
    pick_device,
)
from advect.config.build_trainer import check_method, new_state, new_trainer
from advect.core.errors import UserError
from advect.core.random import CounterRng, mix
from advect.core.types import Batch, DataSpec
from advect.data import Dataset, Transform
from advect.data.base import random_split
from advect.data.splits import MemorySplit
from advect.losses import Loss
from advect.losses.flow_matching import Kind
from advect.model.flow import Flow
from advect.sklearn.adapters import LABEL, DataAdapter, Labels
from advect.sklearn.settings import Settings
from advect.training import Callback, LearningRate, StopCriteria, Trainer, TrainState
from advect.training.callbacks import EverySteps, ProgressBar
from advect.training.state import EMA_FILE, Progress


class _Wide:
    """A transform whose model units are float64."""

    def __init__(self, inner: Transform) -> None:
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner.forward(x).double()

    def inverse(self, x: Tensor) -> Tensor:
        return self.inner.inverse(x)

    def log_det(self, elements: int) -> float:
        return self.inner.log_det(elements)


def exact(flow: Flow) -> Flow:
    """``flow`` with weights in float64.

    In float32 the sums of a matrix product depend on the number of its rows, by more than scikit-learn allows the
    score of a row to depend on its neighbours.
    """
    return Flow(
        copy.deepcopy(flow.net).double(),
        flow.spec,
        cast(Transform, _Wide(flow.transform)),
        path=flow.path,
        source=flow.source,
        prediction=cast(Kind, flow.prediction),
        margin=flow.margin,
        null=flow.null,
        device=flow.device,
    )


class Fitted:
    """A form, labels and a seed, and after :meth:`train` a flow. It can be pickled, and lies on no device.

    Attributes:
        spec: of the data in model units; its conditions are those of the first stretch of training.
        learned: what the last stretch left; ``settings`` are the ones that it took.
    """

    learned: Learned
    settings: Settings
    spec: DataSpec

    def __init__(self, form: DataAdapter, labels: Labels | None, *, seed: int) -> None:
        self.form, self.labels, self.seed = form, labels, seed
        self._noise: dict[str, Any] = {}

    def train(
        self,
        settings: Settings,
        x: Tensor,
        y: np.ndarray | None,
        *,
        share: float,
        patience: int,
        verbose: int,
    ) -> None:
        """Train the steps of ``settings`` on x (N, *S) in data units, with labels y (N,) where there are some.

        A ``share`` > 0 of the rows is kept apart to stop early by, with ``patience``, see :func:`learn`.
        """
        source = self._source(x, y, share)
        first = not hasattr(self, "learned")
        if first:
            self._noise = fit_source(settings.method, source)
        self.learned = learn(
            settings,
            source,
            self._noise,
            steps=settings.steps,
            patience=patience,
            seed=self.seed,
            kept=None if first else self.learned.kept,
            verbose=verbose,
        )
        self.settings, self.spec = settings, source.spec

    def _source(self, x: Tensor, y: np.ndarray | None, share: float) -> Dataset:
        rows = self.form.transform.forward(x).numpy()
        cond, conditions = {}, {}
        if self.labels is not None and y is not None:
            cond[LABEL] = self.labels.codes(y)
            conditions[LABEL] = self.labels.category(cond[LABEL])
        if hasattr(self, "spec"):
            conditions = self.spec.conditions
        train, rest = random_split(len(rows), share, seed=self.seed)
        if share and not len(rest):
            raise UserError(f"early_stopping needs at least 2 rows, n_samples = {len(rows)}; leave it out")
        part = lambda indices: MemorySplit(rows[indices], {k: v[indices] for k, v in cond.items()})
        return Dataset(
            name="the data",
            spec=DataSpec(rows.shape[1:], "image" if rows.ndim == 4 else "vector", conditions),
            transform=self.form.transform,
            train=part(train),
            held_out=part(rest),
            fingerprint="",
        )

    @property
    def latents(self) -> int:
        """The numbers in a latent."""
        return int(np.prod(self.spec.shape))

    def flow(self, device: str) -> Flow:
        """The flow of the weights, on the device of that name."""
        place, method = pick_device(device), self.settings.method
        with torch.random.fork_rng():
            net = build_network(self.settings.network, self.spec)
        net.load_state_dict(self.learned.weights)
        return Flow(
            net.to(place).eval(),
            self.spec,
            self.form.transform,
            path=build_path(method),
            source=build_source_distribution(self._noise),
            prediction=method.prediction,
            margin=method.margin,
            null=label_dropout(method, self.spec) > 0,
            device=place,
        )


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
            state.ema.load({EMA_FILE: shadow}, updates)
        if state.extra is not None:
            state.extra.load_state_dict(self.extra)


@dataclass(frozen=True, kw_only=True)
class _Later(LearningRate):
    """A schedule that begins at step ``start``."""

    start: int = 0

    def __call__(self, step: int) -> float:
        return super().__call__(step - self.start)


@dataclass
class Curve(Callback):
    """The mean losses of each ``every`` steps."""

    losses: list[float] = field(default_factory=list)

    def on_log(self, trainer: Trainer, row: dict) -> None:
        self.losses.append(row["loss"])


class Patience(Callback):
    """Looks at the held-out loss every ``every`` steps, and ends the run after ``patience`` looks without a better.

    Attributes:
        losses: all that were seen.
        best: the weights of the best, and its step.
    """

    def __init__(self, held_out: Batch, objective: Loss, *, every: int, patience: int, seed: int) -> None:
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
    source: Dataset,
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
    objective = build_loss(settings.method, source.spec, noise)
    state = new_state(settings.network, t, source.spec, objective)
    if kept is not None:
        kept.restore(state)
    start = state.progress.step
    rate = _Later(peak=t.learning_rate, warmup=t.lr_warmup_steps, total=steps, shape=t.lr_schedule, start=start)
    every = max(1, steps // 40)
    curve, hooks = Curve(), list[Callback]()
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
        limits=StopCriteria(steps=start + steps, max_steps=t.max_steps, max_minutes=t.max_minutes),
        log_every=every,
        hooks=[curve, *hooks, *([ProgressBar()] if verbose else [])],
    )
    reason = trainer.run()
    if watch is not None:
        return Learned(watch.best, Kept.of(state), curve.losses, watch.losses, watch.step, reason)
    weights = _copied({**state.net.state_dict(), **(state.ema.shadow if state.ema else {})})
    return Learned(weights, Kept.of(state), curve.losses, [], state.progress.step, reason)
