"""Training of an estimator, on data in memory, without a run folder."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from advect.config.build import (
    build_head,
    build_loss,
    build_network,
    build_path,
    build_source_distribution,
    fit_source,
    label_dropout,
)
from advect.config.build_trainer import check_method, new_state, new_trainer
from advect.config.plan import recipe_of, short_run
from advect.config.threads import choose_threads, trial_step
from advect.core.errors import UserError
from advect.core.threads import kept_threads
from advect.core.types import Condition, DataSpec
from advect.data import Dataset, Transform, find_copies
from advect.data.base import ArraySplit, array_modality
from advect.data.transforms import fit_codes
from advect.data.whiten import Whiten
from advect.distributed.comm import current
from advect.distributed.context import RunContext, pick_device
from advect.evaluation.held_out import HeldOutLoss, MemoryStore, copied, held_out_loss, watched_draws
from advect.model.conditions import Encoded
from advect.model.flow import Flow
from advect.networks.encoders import Encoder
from advect.networks.mixture_base import Gaussians, WithMixture
from advect.sklearn.adapters import DataAdapter
from advect.sklearn.conditioning import taken
from advect.sklearn.held_out_rows import Budget, mean_curve, split_rows
from advect.sklearn.mixture import mixed_log_prob
from advect.sklearn.mixture_base import FOLDED, MixtureKind, choose_mixture, fit_mixture, improves
from advect.sklearn.settings import Settings, warn
from advect.sklearn.training_state import LossCurve, SavedState, learning_rate
from advect.training import Callback, StopCriteria
from advect.training.callbacks import ProgressBar

_EVALUATIONS = 40
"""Points of a loss curve."""

REFITTED = 2000
"""Most rows that are trained on once more, all of them, for the steps that held-out rows chose."""

_LEAST = 500
"""Steps before which held-out rows never end training: a network may need them to do better than its start."""

_SCORED, _SCORE_STEPS, _WIDEST = 128, 16, 128
"""Rows, Runge-Kutta steps and most elements of the densities that tell whether a model memorises."""


@dataclass(frozen=True, kw_only=True)
class FittedFlow:
    """Result of training, on the CPU, picklable.

    Attributes:
        transform: of the adapter, with decorrelation if any.
        spec: of the data in model units, with the conditions of the first call.
        source: fitted parameters of the source distribution.
        state: state for further training.
        weights: EMA, or the best by early stopping.
        rows: number of rows of the first call.
        losses, held_out_losses: of this call.
        evaluated: steps of the held-out losses.
        step: training steps of ``weights``.
        planned: length of the schedule in steps, as many as asked for or as the minutes allowed.
        stop_reason: reason of the trainer.
        train_score: median log density of at most 128 training rows, None if there is none or it costs too much.
        gap: by how much it exceeds that of held-out rows, of the training that left them out.
        others: transform and weights of each training that left out a fold.
        base: the mixture that the network corrects, in model units, if any.
        alone: whether the network adds nothing to it.
        copies: rows that repeat an earlier one and were left out; None unless asked for.
        encoders: of conditions by name, untrained.
    """

    adapter: DataAdapter
    transform: Transform
    seed: int
    settings: Settings
    spec: DataSpec
    source: dict[str, Any]
    state: SavedState
    weights: dict[str, Tensor]
    rows: int
    losses: list[float]
    held_out_losses: list[float]
    evaluated: list[int]
    step: int
    planned: int
    stop_reason: str
    train_score: float | None = None
    gap: float | None = None
    others: tuple[tuple[Transform, dict[str, Tensor]], ...] = ()
    base: Gaussians | None = None
    alone: bool = False
    copies: np.ndarray | None = None
    encoders: Mapping[str, Encoder] = field(default_factory=dict)

    def score(self, x: Tensor, cond: Mapping[str, Tensor], rows: np.ndarray) -> float | None:
        """Median log density of at most 128 of the ``rows`` of x (N, *S), given ``cond``; None without one."""
        rows = rows[~x[rows].flatten(1).isnan().any(1).numpy()]  # those that are complete
        rows = rows[:: -(-len(rows) // _SCORED)] if len(rows) else rows
        if not len(rows) or x[0].numel() > _WIDEST:
            return None
        given = {name: Encoded(value) for name, value in taken(cond, rows).items()}
        try:
            flows = self.flows("cpu")
            scores = [flow.log_prob(x[rows], cond=given or None, steps=_SCORE_STEPS) for flow in flows]
            return mixed_log_prob(scores).median().item()
        except UserError:
            return None

    def flows(self, device: str) -> list[Flow]:
        """The flow and those that left out a fold, an equal mixture of which is the density."""
        others = [replace(self, transform=transform, weights=weights) for transform, weights in self.others]
        return [fitted.flow(device) for fitted in (self, *others)]

    def flow(self, device: str) -> Flow:
        """Flow on a device, by name."""
        place, method = pick_device(device), self.settings.method
        net = build_network(self.settings.network, self.spec, encoders=self.encoders, **method.form)
        net, path = with_base(net, self.base, self.settings), build_path(method)
        net.load_state_dict(self.weights)
        if isinstance(net, WithMixture):
            net.alone = self.alone
        return Flow(
            net.to(place).eval(),
            self.spec,
            self.transform,
            path=path,
            source=build_source_distribution(self.source),
            prediction=method.prediction,
            head=build_head(method, self.spec, path),
            t_eps=method.t_eps,
            null=label_dropout(method, self.spec) > 0,
            masked=method.masked,
            learns_steps=method.learns_steps,
            device=place,
        )


def with_base(net: nn.Module, base: Gaussians | None, settings: Settings) -> nn.Module:
    """The network, or what it is as the correction of a mixture."""
    method = settings.method
    return net if base is None else WithMixture(net, base, build_path(method), method.prediction, method.t_eps)  # pyright: ignore[reportArgumentType]


def fit_flow(
    adapter: DataAdapter,
    settings: Settings,
    x: Tensor,
    cond: Mapping[str, Tensor],
    conditions: Mapping[str, Condition],
    *,
    seed: int,
    validation: float,
    patience: int,
    verbose: int,
    previous: FittedFlow | None = None,
    folded: int = FOLDED,
    encoders: Mapping[str, Encoder] | None = None,
    base: bool = False,
) -> FittedFlow:
    """Train ``settings.steps`` steps on x (N, *S), in data units, from ``previous`` or anew.

    ``cond`` (N, ...) has the rows of ``conditions``, as a network takes them; ``encoders``, by name, are trained too.

    ``validation`` > 0 holds out that share; training ends after ``patience`` evaluations without improvement, with the
    best weights. Few rows are then trained on anew, all of them, for as many steps; of up to ``folded`` rows each
    fifth is held out in turn. With ``base``, and rows held out that are not folded, the network corrects a Gaussian
    mixture that they choose, as far as that makes them likelier. Raises UserError as the configuration does.
    """
    told = seed, patience, verbose, previous, encoders or {}, base
    given = _Given(adapter, settings, x, dict(cond), dict(conditions), *told)
    rows, copies = np.arange(len(x)), None
    if settings.drop_copies:
        copies = find_copies(_dataset(given, rows, rows[:0])).places
        kept = np.delete(rows, copies)
        given = replace(given, x=x[kept], cond=taken(cond, kept))
    with kept_threads():
        _set_threads(given)
        return replace(_fit(given, validation, folded), copies=copies)


def _fit(given: _Given, validation: float, folded: int) -> FittedFlow:
    settings, x, cond, seed, previous = given.settings, given.x, given.cond, given.seed, given.previous
    everything, budget = np.arange(len(x)), Budget(settings.training.max_minutes)
    again = previous is None and len(x) <= max(REFITTED, folded)
    splits = split_rows(len(x), validation, seed, folded=again and len(x) <= folded) if validation else []
    _warn_of_time(given, budget, len(splits) + again if validation else 1)
    if not validation:
        fitted = _train(given, everything, everything[:0], settings.steps, budget.share())
        return replace(fitted, train_score=fitted.score(x, cond, everything))
    if given.base and previous is None and len(splits) == 1:
        rows = _dataset(given, *splits[0])
        parts = [split.fetch(np.arange(len(split))).x1 for split in (rows.train, rows.held_out)]
        given = replace(given, kind=choose_mixture(parts[0], parts[1], seed))
    runs, gaps = [], []
    for i, (train, held_out) in enumerate(splits):
        fitted = _train(given, train, held_out, given.settings.steps, budget.share(len(splits) - i + again))
        given = replace(given, settings=replace(settings, steps=fitted.planned))  # the other schedules are as long
        scores = fitted.score(x, cond, train), fitted.score(x, cond, held_out)
        gaps += [] if scores[0] is None or scores[1] is None else [scores[0] - scores[1]]
        runs.append(fitted)
        if fitted.stop_reason.startswith("SIG"):
            break
    gap, last = float(np.mean(gaps)) if gaps else None, runs[-1]
    if last.base is not None and previous is None and not improves(last.flow("cpu"), x[splits[0][1]]):
        fitted = _train(given, everything, everything[:0], 0)
        kept = {"losses": last.losses, "held_out_losses": last.held_out_losses, "evaluated": last.evaluated}
        fitted = replace(fitted, alone=True, planned=last.planned, stop_reason=last.stop_reason, **kept)
        return replace(fitted, train_score=fitted.score(x, cond, everything))
    if not again or last.stop_reason.startswith("SIG"):
        return replace(last, train_score=scores[0], gap=gap)
    curve, step = mean_curve([(run.evaluated, run.held_out_losses) for run in runs])
    fitted = _train(given, everything, everything[:0], max(step, 1), budget.share())
    evaluated = max((run.evaluated for run in runs), key=len)
    others = tuple((run.transform, run.weights) for run in runs) if len(runs) > 1 else ()
    fitted = replace(fitted, losses=last.losses, held_out_losses=curve, evaluated=evaluated, others=others)
    return replace(fitted, train_score=fitted.score(x, cond, everything), gap=gap)


@dataclass(frozen=True)
class _Given:
    """Arguments of :func:`fit_flow`."""

    adapter: DataAdapter
    settings: Settings
    x: Tensor
    cond: dict[str, Tensor]
    conditions: dict[str, Condition]
    seed: int
    patience: int
    verbose: int
    previous: FittedFlow | None
    encoders: Mapping[str, Encoder]
    base: bool = False
    kind: MixtureKind | None = None


def _set_threads(given: _Given) -> None:
    """The fastest number of PyTorch's threads for the steps of this fit, or options["threads"].

    Beside other threads of Python nothing is measured: the number is the caller's, and so are the bits.
    """
    main = threading.current_thread() is threading.main_thread()
    if main or given.settings.training.threads is not None:
        choose_threads(**_trial(given), steps=given.settings.steps)


def _warn_of_time(given: _Given, budget: Budget, trainings: int) -> None:
    """Warn if the minutes are too few for trainings from the start to learn, by some steps that are thrown away."""
    training, minutes = given.settings.training, given.settings.training.max_minutes
    if minutes is None or given.previous is not None:
        return
    trial = _trial(given)
    take, least = trial_step(**trial), recipe_of(trial["spec"].modality).least_steps
    steps = budget.steps(lambda: take(training.batch_size or 1), trainings)
    if steps < given.settings.steps and short_run(steps, least):
        more = f"about {float(minutes) * least / steps:.2g}" if steps else "more"
        warn(f"max_minutes={minutes} is time for about {steps:,} steps, too few to learn from; {least:,} take {more}")


def _trial(given: _Given) -> dict[str, Any]:
    """Arguments of trial steps."""
    rows, settings, training = np.arange(len(given.x)), given.settings, given.settings.training
    dataset = _dataset(given, rows, rows[:0])
    source = given.previous.source if given.previous else fit_source(settings.method, dataset)
    loss = build_loss(settings.method, dataset, source)
    context = RunContext(pick_device(training.device), current(), seed=given.seed)
    of_data = {"spec": dataset.spec, "loss_fn": loss, "split": dataset.train, "encoders": given.encoders}
    return {"context": context, "network": settings.network, "t": training, **of_data}


def _train(
    given: _Given, train: np.ndarray, held_out: np.ndarray, steps: int, minutes: float | None = None
) -> FittedFlow:
    """Train at most ``steps`` steps of the schedule, and ``minutes``, on the rows ``train``, watching ``held_out`` if
    any.
    """
    settings, previous, seed = given.settings, given.previous, given.seed
    dataset = _dataset(given, train, held_out)
    source = previous.source if previous else fit_source(settings.method, dataset)
    training = replace(settings.training, seed=seed)
    check_method(settings.method, training)
    loss = build_loss(settings.method, dataset, source)
    context = RunContext(pick_device(training.device), current(), seed=seed)
    base = previous.base if previous else None
    if given.kind is not None and previous is None:
        base = fit_mixture(dataset.train.fetch(np.arange(len(train))).x1, given.kind, seed)
    wrap = lambda net: with_base(net, base, settings)
    state = new_state(context, settings.network, training, dataset.spec, loss, wrap=wrap, encoders=given.encoders)
    inner: Any = state.net.net if isinstance(state.net, WithMixture) else state.net
    if isinstance(dataset.transform, Whiten) and getattr(inner, "input_map", None) is not None:
        inner.input_map.copy_(dataset.transform.root)
    if previous:
        previous.state.restore(state)
        state.progress.plans = []  # of an earlier call
    start, every = state.progress.step, max(1, settings.steps // _EVALUATIONS)
    curve, store, stopping = LossCurve(), MemoryStore(), None
    if len(held_out):
        draws, of = watched_draws(dataset.spec, len(held_out)), {"seed": seed, "device": context.device}
        watched = lambda: held_out_loss(state.net, loss, dataset.held_out, draws=draws, **of)
        stopping = HeldOutLoss(watched, store, every=None, patience=given.patience, least=_LEAST)
    bar: list[Callback] = [ProgressBar()] if given.verbose else []
    callbacks: list[Callback] = [curve, *([stopping] if stopping else []), *bar]
    trainer = new_trainer(
        context,
        training,
        state,
        loss,
        dataset.train,
        rate=learning_rate(training, settings.steps, start),
        limits=StopCriteria(steps=max(start + steps, 1), max_steps=training.max_steps, max_minutes=minutes),
        log_every=every,
        callbacks=callbacks,
    )
    reason = trainer.run() if steps else "finished"
    weights, step = copied({**state.net.state_dict(), **(state.ema.shadow if state.ema else {})}), state.progress.step
    if stopping and stopping.best is not None:
        weights, step = store.weights, stopping.best_step
    return FittedFlow(
        adapter=given.adapter,
        transform=dataset.transform,
        seed=seed,
        settings=settings,
        spec=dataset.spec,
        source=source,
        state=SavedState.from_state(state),
        weights=weights,
        rows=previous.rows if previous else len(given.x),
        losses=curve.losses,
        held_out_losses=[row["eval_held_out_loss"] for row in store.measured],
        evaluated=[row["step"] for row in store.measured],
        step=step,
        planned=trainer.limits.steps - start if minutes is not None else settings.steps,
        stop_reason=reason,
        encoders=given.encoders,
        base=base,
    )


def _dataset(given: _Given, train: np.ndarray, held_out: np.ndarray) -> Dataset:
    """The rows as a data set, with the conditions of an earlier call, if any."""
    transform, conditions = given.adapter.transform, given.conditions
    if given.previous is not None:
        transform = given.previous.transform
    elif given.adapter.whiten:  # held-out rows have no part in it, else they tell too late when to stop
        transform = Whiten.fit(transform, transform.forward(given.x[train]))
    rows = transform.forward(given.x).numpy()
    if given.previous is None:
        codes = fit_codes(transform.code_places, [torch.from_numpy(rows[train])])
    else:
        conditions, codes = given.previous.spec.conditions, given.previous.spec.codes
    cond = {name: value.numpy() for name, value in given.cond.items()}
    splits = [ArraySplit(rows, cond, rows=i) for i in (train, held_out)]
    return Dataset(
        name="the data",
        spec=DataSpec(rows.shape[1:], array_modality(rows.shape[1:]), conditions, codes=codes),
        transform=transform,
        train=splits[0],
        held_out=splits[1],
        fingerprint="",
    )
