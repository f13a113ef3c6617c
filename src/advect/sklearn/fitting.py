"""Training of an estimator, on data in memory, without a run folder."""

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
)
from advect.config.build_trainer import check_method, new_state, new_trainer
from advect.config.config import TrainingConfig
from advect.core.errors import UserError
from advect.core.random import CounterRng, Stream, stream_seed
from advect.core.types import Batch, Condition, DataSpec
from advect.data import Dataset, Transform
from advect.data.base import ArraySplit, array_modality, random_split
from advect.distributed.comm import current
from advect.distributed.context import RunContext, pick_device
from advect.losses import Loss
from advect.losses.flow_matching import Kind
from advect.model.flow import Flow
from advect.sklearn.adapters import LABEL, DataAdapter, Labels
from advect.sklearn.settings import Settings
from advect.training import Callback, LearningRate, StopCriteria, Trainer, TrainState
from advect.training.callbacks import PeriodicCallback, ProgressBar
from advect.training.state import EMA_FILE, Progress

_EVALUATIONS = 40
"""Points of a loss curve."""

_HELD_OUT_DRAWS = 2048
"""Least number of draws of noise and time for a held-out loss."""


@dataclass(frozen=True, kw_only=True)
class FittedFlow:
    """Result of training, on the CPU, picklable.

    Attributes:
        spec: of the data in model units, with the conditions of the first call.
        source: fitted parameters of the source distribution.
        state: state for further training.
        weights: EMA, or the best by early stopping.
        losses, held_out_losses: of this call.
        step: training steps of ``weights``.
        stop_reason: reason of the trainer.
    """

    adapter: DataAdapter
    labels: Labels | None
    seed: int
    settings: Settings
    spec: DataSpec
    source: dict[str, Any]
    state: SavedState
    weights: dict[str, Tensor]
    losses: list[float]
    held_out_losses: list[float]
    step: int
    stop_reason: str

    def flow(self, device: str) -> Flow:
        """Flow on a device, by name."""
        place, method = pick_device(device), self.settings.method
        with torch.random.fork_rng():
            net = build_network(self.settings.network, self.spec)
        net.load_state_dict(self.weights)
        return Flow(
            net.to(place).eval(),
            self.spec,
            self.adapter.transform,
            path=build_path(method),
            source=build_source_distribution(self.source),
            prediction=method.prediction,
            t_eps=method.t_eps,
            null=label_dropout(method, self.spec) > 0,
            device=place,
        )


def fit_flow(
    adapter: DataAdapter,
    labels: Labels | None,
    settings: Settings,
    x: Tensor,
    y: np.ndarray | None,
    *,
    seed: int,
    validation: float,
    patience: int,
    verbose: int,
    previous: FittedFlow | None = None,
) -> FittedFlow:
    """Train ``settings.steps`` steps on x (N, *S), in data units, with labels y (N,), from ``previous`` or anew.

    ``validation`` > 0 holds out that share; training ends after ``patience`` evaluations without improvement, with the
    best weights. Raises UserError as the configuration does.
    """
    dataset = _dataset(adapter, labels, x, y, validation, seed, previous.spec.conditions if previous else None)
    source = previous.source if previous else fit_source(settings.method, dataset)
    training = replace(settings.training, seed=seed)
    check_method(settings.method, training)
    loss = build_loss(settings.method, dataset.spec, source)
    context = RunContext(pick_device(training.device), current(), seed=seed)
    state = new_state(context, settings.network, training, dataset.spec, loss)
    if previous:
        previous.state.restore(state)
    start, every = state.progress.step, max(1, settings.steps // _EVALUATIONS)
    curve, stopping = LossCurve(), None
    if len(dataset.held_out):
        held_out = dataset.held_out.fetch(np.arange(len(dataset.held_out)))
        stopping = EarlyStopping(held_out, loss, every=every, patience=patience, seed=seed)
    callbacks: list[Callback] = [curve, *([stopping] if stopping else []), *([ProgressBar()] if verbose else [])]
    trainer = new_trainer(
        context,
        training,
        state,
        loss,
        dataset.train,
        rate=_rate(training, settings.steps, start),
        limits=StopCriteria(
            steps=start + settings.steps, max_steps=training.max_steps, max_minutes=training.max_minutes
        ),
        log_every=every,
        callbacks=callbacks,
    )
    reason = trainer.run()
    weights, step = _copied({**state.net.state_dict(), **(state.ema.shadow if state.ema else {})}), state.progress.step
    if stopping:
        weights, step = stopping.best, stopping.best_step
    return FittedFlow(
        adapter=adapter,
        labels=labels,
        seed=seed,
        settings=settings,
        spec=dataset.spec,
        source=source,
        state=SavedState.from_state(state),
        weights=weights,
        losses=curve.losses,
        held_out_losses=stopping.losses if stopping else [],
        step=step,
        stop_reason=reason,
    )


def _dataset(
    adapter: DataAdapter,
    labels: Labels | None,
    x: Tensor,
    y: np.ndarray | None,
    validation: float,
    seed: int,
    conditions: dict[str, Condition] | None,
) -> Dataset:
    """x and y as a data set, with the ``conditions`` of an earlier one."""
    rows = adapter.transform.forward(x).numpy()
    cond: dict[str, np.ndarray] = {}
    if labels is not None and y is not None:
        cond[LABEL] = labels.codes(y)
    if conditions is None:
        conditions = {LABEL: labels.category(cond[LABEL])} if labels is not None and cond else {}
    train, held_out = random_split(len(rows), validation, seed=seed)
    if validation and not len(held_out):
        raise UserError(f"early_stopping needs at least 2 rows, n_samples = {len(rows)}; leave it out")
    splits = [ArraySplit(rows, cond, rows=i) for i in (train, held_out)]
    return Dataset(
        name="the data",
        spec=DataSpec(rows.shape[1:], array_modality(rows.shape[1:]), conditions),
        transform=adapter.transform,
        train=splits[0],
        held_out=splits[1],
        fingerprint="",
    )


@dataclass
class SavedState:
    """CPU copy of a :class:`TrainState`."""

    net: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    ema: tuple[dict[str, Tensor], int] | None
    progress: Progress
    extra: dict[str, list[float]]

    @classmethod
    def from_state(cls, state: TrainState) -> SavedState:
        return cls(
            net=_copied(state.net.state_dict()),
            optimizer=_copied(state.optimizer.tensors()),
            ema=None if state.ema is None else (_copied(state.ema.shadow), state.ema.updates),
            progress=copy.deepcopy(state.progress),
            extra=state.extra.state_dict() if state.extra else {},
        )

    def restore(self, state: TrainState) -> None:
        """Copy into ``state``."""
        state.net.load_state_dict(self.net)
        state.progress = copy.deepcopy(self.progress)
        state.optimizer.load(self.optimizer, self.progress.step)
        if state.ema is not None and self.ema is not None:
            shadow, updates = self.ema
            state.ema.load({EMA_FILE: shadow}, updates)
        if state.extra is not None:
            state.extra.load_state_dict(self.extra)


def _rate(training: TrainingConfig, steps: int, start: int) -> LearningRate:
    """The schedule over ``steps`` steps from ``start`` on."""
    return _DelayedLearningRate(
        peak=training.learning_rate,
        warmup=training.lr_warmup_steps or 0,
        total=steps,
        schedule=training.build("lr_schedule"),
        start=start,
    )


@dataclass(frozen=True, kw_only=True)
class _DelayedLearningRate(LearningRate):
    """A schedule that begins at step ``start``."""

    start: int = 0

    def __call__(self, step: int) -> float:
        return super().__call__(step - self.start)


@dataclass
class LossCurve(Callback):
    """Collects the logged losses."""

    losses: list[float] = field(default_factory=list)

    def on_log(self, trainer: Trainer, row: dict) -> None:
        self.losses.append(row["loss"])


class EarlyStopping(PeriodicCallback):
    """Evaluate the held-out loss every ``every`` steps; stop after ``patience`` evaluations without improvement.

    Attributes:
        losses: all held-out losses.
        best, best_step: weights of the lowest, and their step.
    """

    def __init__(self, held_out: Batch, loss: Loss, *, every: int, patience: int, seed: int) -> None:
        super().__init__(every)
        self.batch = _repeated(held_out, -(-_HELD_OUT_DRAWS // len(held_out)))
        self.loss = loss
        self.patience = patience
        self.seed = seed
        self.losses: list[float] = []
        self.best: dict[str, Tensor] = {}
        self.best_step = 0

    def on_start(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self.batch = self.batch.to(trainer.device)
        super().on_start(trainer)

    def has_run(self, step: int) -> bool:
        return True  # the step that training starts from belongs to the call before

    def on_end(self, trainer: Trainer, reason: str) -> None:
        if trainer.state.progress.step != self._seen:
            self.run_now(trainer)

    @torch.no_grad()
    def run(self, step: int) -> None:
        net = self._trainer.state.net
        rng = CounterRng(stream_seed(self.seed, Stream.HELD_OUT_LOSS), 0, len(self.batch))
        loss = self.loss(net, self.batch, rng).mean().item()
        if not self.losses or loss < min(self.losses):
            self.best, self.best_step = _copied(net.state_dict()), step
        self.losses.append(loss)
        if len(self.losses) - 1 - int(np.argmin(self.losses)) >= self.patience:
            self._trainer.limits = replace(self._trainer.limits, max_steps=step)


def _repeated(batch: Batch, times: int) -> Batch:
    cond = {name: torch.cat([value] * times) for name, value in (batch.cond or {}).items()}
    return Batch(torch.cat([batch.x1] * times), cond or None)


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in tensors.items()}


def double_precision(flow: Flow) -> Flow:
    """``flow`` in float64, as float32 sums depend on the number of rows by more than scikit-learn's checks allow."""
    return Flow(
        copy.deepcopy(flow.net).double(),
        flow.spec,
        cast(Transform, _Float64Transform(flow.transform)),
        path=flow.path,
        source=flow.source,
        prediction=cast(Kind, flow.prediction),
        t_eps=flow.t_eps,
        null=flow.null,
        device=flow.device,
    )


class _Float64Transform:
    """A transform whose model units are float64."""

    def __init__(self, inner: Transform) -> None:
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner.forward(x).double()

    def inverse(self, x: Tensor) -> Tensor:
        return self.inner.inverse(x)

    def log_det(self, elements: int) -> float:
        return self.inner.log_det(elements)
