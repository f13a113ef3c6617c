"""Evaluator of ``advect eval``, ``advect report`` and training."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from advect.config.resume import versions
from advect.core.errors import UserError
from advect.data import Dataset, Split
from advect.distributed.context import progress_bar
from advect.evaluation.features import FeatureSpace
from advect.evaluation.learned_network import LearnedNetwork
from advect.evaluation.workspace import Fill, ReferenceCache, Tensors, Workspace, on_rank_zero
from advect.metrics.base import EvalContext, FlowMetric, Metric, finite
from advect.metrics.statistics import ROWS, SAMPLES, SampleStatistics, subsample
from advect.model.conditions import ConditionValue, encoded
from advect.model.flow import Flow
from advect.model.sampler_config import SamplerConfig

NEIGHBOURS = 20_000
"""Default number of training rows for nearest neighbours, evenly spaced."""

_COST = "cost"


@dataclass(frozen=True)
class EvalRows:
    """Indices ``reference`` into one split and ``floor`` into the other; ``where`` describes their categories."""

    split: Literal["held-out", "train"]
    reference: Tensor
    floor: Tensor
    where: str = ""

    @classmethod
    def choose(cls, dataset: Dataset, samples: int, *, reference: int | None = None) -> EvalRows:
        """At most ``reference`` held-out rows, and as many training rows as samples."""
        n = len(dataset.held_out)
        chosen = lambda count, limit: subsample(count, limit, 0).sort().values
        return cls("held-out", chosen(n, reference or n), chosen(len(dataset.train), samples))


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """``n`` samples of a sampler, with seed and conditions."""

    n: int
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    seed: int = 0
    cond: Mapping[str, ConditionValue] | None = None
    batch_size: int = 256


@dataclass(frozen=True)
class Evaluator:
    """``metrics`` of a flow's samples against ``rows`` of its data, in the features of ``space``.

    Methods and properties are collective; the first process gets the results, others None. Samples do not depend on
    the number of processes. ``work`` stores samples, so memory is bounded; ``cache`` stores results on data.
    """

    space: FeatureSpace
    metrics: Mapping[str, Metric | FlowMetric]
    rows: EvalRows
    work: Workspace
    cache: ReferenceCache
    neighbours: int = NEIGHBOURS
    """Most training rows among which nearest neighbours are searched."""
    held_out: int = ROWS
    """Most held-out rows that are compared whole."""
    target: str | None = None
    """Column or condition that is predicted; default the last."""

    @property
    def flow(self) -> Flow:
        """The flow."""
        return self.space.flow

    @property
    def compared(self) -> dict[str, Metric]:
        """Metrics that compare samples with data."""
        return {name: metric for name, metric in self.metrics.items() if isinstance(metric, Metric)}

    @property
    def _splits(self) -> tuple[Split, Split]:
        """Split of the reference, and the other one."""
        train, held_out = self.space.dataset.train, self.space.dataset.held_out
        return (held_out, train) if self.rows.split == "held-out" else (train, held_out)

    @cached_property
    def context(self) -> EvalContext | None:
        """Data shared by all metrics."""
        split, other = self._splits
        reference = self._statistics("reference", split, self.rows.reference)
        real = self._statistics("floor", other, self.rows.floor) if len(self.rows.floor) else reference
        whole = any(SAMPLES in metric.needs for metric in self.compared.values())
        train = self._whole("training rows", self.space.dataset.train, self.neighbours) if whole else None
        held_out = self._whole("held-out rows", self.space.dataset.held_out, self.held_out) if whole else None
        if reference is None or real is None:
            return None
        sides = (real, reference) if self.rows.split == "held-out" else (reference, real)
        space = self.space
        seen = isinstance(space.network, LearnedNetwork)
        scale = space.features.standardise
        about = {"column_names": space.modality.entry_names, "target": self.target}
        return EvalContext(*sides, space.categories, space.modality.categorical, scale, seen, train, held_out, **about)

    @cached_property
    def floor(self) -> dict[str, float] | None:
        """Metrics of real rows of the other split: those of a perfect flow."""
        context = self.context
        return on_rank_zero(lambda: self._floor(context) if context is not None else {})

    def measure(
        self,
        request: SampleRequest,
        *,
        full: bool = False,
        name: str = "samples",
        title: str = "sample",
    ) -> dict[str, Any] | None:
        """Metrics and cost of samples, stored as ``name`` in the workspace; ``full`` as in :meth:`compare`."""
        context = self.context

        def reduce(parts: Iterator[Tensors]) -> dict[str, Any]:
            assert context is not None
            samples, seconds, calls = _with_cost(parts, request.n)
            nfe = calls / request.n
            metrics = self.compare(samples, context, full=full)
            cost = {"seconds": seconds, "nfe": int(nfe) if nfe.is_integer() else nfe}
            return {"metrics": metrics, "left_out": dict(context.left_out), **cost}

        return self.work.cached_json(name, request.n, self._sampler(request), reduce, title=title)

    def sample(self, request: SampleRequest, *, title: str = "sample") -> SampleStatistics | None:
        """Statistics of samples."""
        reduce = lambda parts: _with_cost(parts, request.n)[0]
        return self.work.map_rows("samples", request.n, self._sampler(request), reduce, title=title)

    def compare(
        self, x: SampleStatistics, context: EvalContext, names: Sequence[str] | None = None, *, full: bool = False
    ) -> dict[str, float]:
        """Finite metrics of samples x against the reference; on the first process.

        ``full``: with 95% intervals, and metrics that fail are named in ``context.left_out``.
        """
        reference, values = self._reference(context), {}
        chosen = [name for name in self.compared if names is None or name in names]
        with progress_bar(len(chosen), "measure", "metric", leave=False) as bar:
            for name in chosen:
                metric = self.compared[name]
                try:
                    found = metric.compare(x, reference, context)
                    if full:
                        found = metric.bounded(found | metric.errors(x, reference, context))
                    values |= found
                except UserError as error:
                    if not full:
                        raise
                    context.left_out[name] = str(error)
                bar.update()
        return finite(values)

    def measure_flow(self, request: SampleRequest, likelihood_samples: int) -> dict[str, Any]:
        """Metrics of the flow itself, by key, from at most ``request.n`` samples."""
        return {
            metric.key: self._measure_flow(name, metric, request, likelihood_samples)
            for name, metric in self.metrics.items()
            if isinstance(metric, FlowMetric)
        }

    def _measure_flow(self, name: str, metric: FlowMetric, request: SampleRequest, likelihood_samples: int) -> Any:
        held_out = self.space.dataset.held_out
        limit = metric.held_out_rows or likelihood_samples if metric.held_out else 0
        places = subsample(len(held_out), limit, 0)
        n = len(places) if metric.held_out else min(metric.samples, request.n)

        def data(rows: range) -> tuple[Tensor, dict[str, ConditionValue]]:
            batch = held_out.fetch(places[rows.start : rows.stop].numpy())
            return self.flow.transform.inverse(batch.x1), encoded(batch.cond)

        def fill(rows: range, bar: tqdm) -> Tensors:
            sums = metric.measure(self.flow, n, rows, data, request)
            bar.update(len(rows))
            return sums

        return self.work.cached_json(name, n, fill, lambda parts: metric.reduce(parts, self.flow), title=name)

    def _reference(self, context: EvalContext) -> SampleStatistics:
        return context.held_out if self.rows.split == "held-out" else context.train

    def _sampler(self, request: SampleRequest) -> Fill:
        """Function from a range of rows to the stored tensors of these samples, and the cost."""
        how = {**request.sampler.arguments(), "seed": request.seed, "batch_size": request.batch_size}

        def fill(rows: range, bar: tqdm) -> Tensors:
            began, left = time.perf_counter(), request.n - rows.start
            n = max(rows.stop, request.n)
            made = self.flow.sample(n, **how, cond=request.cond, rows=rows, progress=bar)
            took = time.perf_counter() - began
            stored = self.space.samples(made.x, made.encoded, first=rows.start, seed=request.seed)
            if left <= 0:
                return {}
            cost = torch.tensor([took, made.nfe * min(left, len(rows))], dtype=torch.float64)
            return {name: value[:left] for name, value in stored.items()} | {_COST: cost}

        return fill

    def _statistics(self, name: str, split: Split, places: Tensor) -> SampleStatistics | None:
        """Cached statistics of rows of a split."""
        key = {
            "fingerprint": self.space.dataset.fingerprint,
            "split": "train" if split is self.space.dataset.train else "held-out",
            "rows": self._described(split, places),
            "features": self.space.features.exact,
            "values": " ".join(sorted(self.space.keep - {SAMPLES})) or "none",
            "what": f"statistics of at most {ROWS} rows",
        }

        def load() -> SampleStatistics | None:
            found = self.cache.load(key)
            return None if found is None else SampleStatistics.from_tensors(found)

        def reduce(parts: Iterator[Tensors]) -> SampleStatistics:
            found = SampleStatistics.from_parts(parts, len(places))
            self.cache.save(key, found.to_tensors())
            return found

        fill = lambda rows, bar: self.space.data(split, places[rows.start : rows.stop])
        return self.work.map_rows(
            name, len(places), _within(fill, len(places)), reduce, title=f"{name} rows", load=load
        )

    def _whole(self, name: str, split: Split, limit: int) -> Tensor | None:
        """Whole rows of a split, evenly spaced."""
        places = torch.from_numpy(np.linspace(0, len(split) - 1, min(len(split), limit)).round().astype(np.int64))
        fill = lambda rows, bar: {SAMPLES: self.space.whole(split, places[rows.start : rows.stop])}
        reduce = lambda parts: torch.cat([part[SAMPLES] for part in parts])
        return self.work.map_rows(name.replace(" ", "-"), len(places), _within(fill, len(places)), reduce, title=name)

    def _described(self, split: Split, places: Tensor) -> str:
        """Number and categories of rows of a split."""
        return f"{len(places)} of {len(split)}" + (f" where {self.rows.where}" if self.rows.where else "")

    def _whole_rows(self, metric: Metric) -> str:
        """Numbers of whole rows, if the metric looks at fewer than usual."""
        fewer = SAMPLES in metric.needs and (self.neighbours, self.held_out) != (NEIGHBOURS, ROWS)
        return f", {self.held_out} held-out rows among {self.neighbours}" if fewer else ""

    def _predicted(self, name: str) -> str:
        return f", of {self.target}" if self.target is not None and name == "ml_efficacy" else ""

    def _floor(self, context: EvalContext) -> dict[str, float]:
        reference = self._reference(context)
        other = context.train if reference is context.held_out else context.held_out
        if not len(self.rows.floor):
            return {}
        values: dict[str, float] = {}
        for name, metric in self.compared.items():
            described = zip(self._splits, (self.rows.reference, self.rows.floor), strict=True)
            key = {
                "fingerprint": self.space.dataset.fingerprint,
                "split": self.rows.split,
                "rows": " and ".join(self._described(*pair) for pair in described),
                "features": self.space.features.exact,
                "what": f"floor of {name} with intervals" + self._whole_rows(metric) + self._predicted(name),
                "version": versions().get("advect", "unknown"),
            }

            def take(metric: Metric = metric) -> dict[str, Tensor]:
                try:
                    found = metric.errors(other, reference, context) | metric.floor(other, reference, context)
                except UserError:  # compare says why
                    return {}
                numbers = finite(metric.bounded(found))
                return {what: torch.tensor(value, dtype=torch.float64) for what, value in numbers.items()}

            values |= {what: float(value) for what, value in sorted(self.cache.get(key, take).items())}
        return values


def _within(fill: Any, n: int) -> Any:
    """``fill`` restricted to rows below n; updates the bar."""

    def inside(rows: range, bar: tqdm) -> Tensors:
        rows = range(rows.start, min(rows.stop, n))
        tensors = fill(rows, bar) if rows else {}
        bar.update(len(rows))
        return tensors

    return inside


def _with_cost(parts: Iterator[Tensors], n: int) -> tuple[SampleStatistics, float, float]:
    """Statistics of n samples, seconds, and number of velocity evaluations."""
    cost = torch.zeros(2, dtype=torch.float64)

    def without_cost() -> Iterator[Tensors]:
        for part in parts:
            cost.add_(part.pop(_COST))
            yield part

    return SampleStatistics.from_parts(without_cost(), n), float(cost[0]), float(cost[1])
