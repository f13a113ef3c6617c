"""Base classes of metrics: samples against a reference, or a property of the flow.

Registered classes serve ``advect eval --metrics``, the report and evaluation during training; the first sentence of
the docstring is the help.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from advect.core import registry
from advect.core.errors import UserError, did_you_mean
from advect.core.random import Stream, stream_seed
from advect.core.types import Category
from advect.metrics.statistics import FEATURES, ROWS, SampleStatistics

T = TypeVar("T")

PAIRS = 5000
"""Most rows of a set for all-pairs distances."""

Z = 1.96
"""Standard errors on either side of a 95% interval."""

COLUMNS, LABELS = "columns", "labels"
"""Needs beyond the rows: columns of a table, a categorical condition."""

TOKENS, JUMPS, ODE = "tokens", "jumps", "an ODE"
"""Needs of rows of tokens, of a flow that jumps between them, and of one along an ODE."""

QUANTITIES, CALIBRATED_ROWS = "quantities", "rows to calibrate"
"""More of them: a real-valued condition, and few columns of many held-out rows."""


@dataclass(frozen=True)
class EvalContext:
    """Data shared by the metrics of one evaluation.

    Attributes:
        train, held_out: rows of either split, one of them the reference.
        categories: categorical conditions of the data.
        categorical: of a table, whether each column is categorical; else empty.
        column_names: of a table, the columns' names.
        target: column or condition that classifiers predict; default the last condition, category or column.
        standardise: whether features have different units.
        labels_seen: whether features were learned from the labels of training rows, which then judge nothing.
        train_samples, held_out_samples: whole rows (N, *S), if a metric needs SAMPLES.
        cache: results computed once.
        left_out: why, by name, for numbers that the data do not allow.
    """

    train: SampleStatistics
    held_out: SampleStatistics
    categories: Mapping[str, Category] = field(default_factory=dict)
    categorical: Sequence[bool] = ()
    standardise: bool = False
    labels_seen: bool = False
    train_samples: Tensor | None = None
    held_out_samples: Tensor | None = None
    cache: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    column_names: Sequence[str] = ()
    target: str | None = None

    def once(self, name: str, make: Callable[[], T]) -> T:
        """Cached result of ``make``."""
        if name not in self.cache:
            self.cache[name] = make()
        return self.cache[name]


class Metric(ABC):
    """Numbers of samples x against a reference y.

    Attributes:
        needs: inputs beside features: VALUES, SAMPLES, COLUMNS, LABELS, TOKENS.
        at_least: fewest rows of either set.
        rows: most rows used of either set; None for all.
        better: direction of improvement.
        bounds: least and greatest possible number.
        resamples: for standard errors; 0 if :meth:`compare` gives them.
        resampled_rows: most rows of a resample.
    """

    part_kind: ClassVar[str] = "metric"
    needs: ClassVar[frozenset[str]] = frozenset()
    at_least: ClassVar[int] = 2
    rows: ClassVar[int | None] = ROWS
    better: ClassVar[Literal["lower", "higher"]] = "lower"
    bounds: ClassVar[tuple[float, float]] = (0, math.inf)
    resamples: ClassVar[int] = 25
    resampled_rows: ClassVar[int] = 1000

    @abstractmethod
    def compare(self, x: SampleStatistics, y: SampleStatistics, context: EvalContext) -> dict[str, float]:
        """Numbers of samples x by name, without undefined ones; NAME_se is the standard error of NAME."""

    def errors(self, x: SampleStatistics, y: SampleStatistics, context: EvalContext) -> dict[str, float]:
        """Standard errors NAME_se over the rows of both sets, by the bootstrap (Efron 1979).

        Of at most ``resampled_rows`` rows of each, scaled to all (m out of n; Bickel, Goetze & van Zwet 1997).
        """
        rng = torch.Generator().manual_seed(stream_seed(0, Stream.BOOTSTRAP) >> 1)
        used = [min(len(s.rows[FEATURES]), self.rows or s.count) for s in (x, y)]
        drawn = [min(n, self.resampled_rows) for n in used]
        found: dict[str, list[float]] = {}
        for _ in range(self.resamples):
            places = (torch.randint(n, (m,), generator=rng) for n, m in zip(used, drawn, strict=True))
            a, b = (s.at(some) for s, some in zip((x, y), places, strict=True))
            for name, value in self.compare(a, b, context).items():
                found.setdefault(name, []).append(value)
        scale = max(m / n for m, n in zip(drawn, used, strict=True)) ** 0.5
        return {f"{name}_se": scale * float(torch.tensor(v).double().std()) for name, v in found.items() if len(v) > 1}

    def bounded(self, found: Mapping[str, float]) -> dict[str, float]:
        """Numbers with the ends NAME_low and NAME_high of their 95% intervals instead of standard errors."""
        values = {name: value for name, value in found.items() if not name.endswith("_se")}
        ends = {}
        for name in [name for name in values if math.isfinite(found.get(f"{name}_se", math.nan))]:
            reach = Z * found[f"{name}_se"]
            ends[f"{name}_low"] = max(min(self.bounds[0], values[name]), values[name] - reach)
            ends[f"{name}_high"] = min(max(self.bounds[1], values[name]), values[name] + reach)
        return values | ends

    def floor(self, x: SampleStatistics, y: SampleStatistics, context: EvalContext) -> dict[str, float]:
        """The same numbers for real rows x: those of a perfect flow."""
        return self.compare(x, y, context)


class FeatureMetric(Metric):
    """One distance between the features (N, D) of both sets, named after the metric."""

    rows = PAIRS

    def compare(self, x: SampleStatistics, y: SampleStatistics, context: EvalContext) -> dict[str, float]:
        limit = self.rows or ROWS
        return {registry.name_of(self): self.distance(x.take(FEATURES, limit), y.take(FEATURES, limit))}

    @abstractmethod
    def distance(self, x: Tensor, y: Tensor) -> float:
        """Distance of x (N, D) and y (M, D)."""


class FlowMetric(ABC):
    """A property of the flow itself, measured once, whatever the number of samplers.

    Attributes:
        key: name in results.
        samples: most samples used.
        held_out: whether held-out rows are used instead of samples.
        held_out_rows: most of them; None for --likelihood-samples.
        density: whether held-out rows must have a density.
        needs: QUANTITIES, CALIBRATED_ROWS, TOKENS.
    """

    part_kind: ClassVar[str] = "metric"
    key: ClassVar[str]
    samples: ClassVar[int] = 256
    held_out: ClassVar[bool] = False
    held_out_rows: ClassVar[int | None] = None
    density: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def measure(self, flow: Any, n: int, rows: range, data: Callable[[range], Any], options: Any) -> dict[str, Tensor]:
        """Tensors of ``rows`` of n samples, or of the held-out rows and conditions ``data(rows)``.

        ``flow`` is an advect.model.flow.Flow, ``options`` the advect.evaluation.evaluator.SampleRequest of the first
        sampler and seed.
        """

    @abstractmethod
    def reduce(self, parts: Iterator[dict[str, Tensor]], flow: Any) -> dict[str, Any]:
        """Result, as JSON, of all parts in order."""


def find_metrics(
    names: Sequence[str], usual: Sequence[str], offers: Iterable[str], kind: str
) -> tuple[dict[str, Any], dict[str, str]]:
    """Metrics by name, by default those of ``usual``, and why others are left out.

    Usual metrics of classes are passed over where there are none.

    ``offers`` is what the data provide of the metrics' needs, ``kind`` their name in messages. Raises UserError for an
    unknown name, and if the data allow none of them.
    """
    offers, known = frozenset(offers), tuple(dict.fromkeys((*usual, *registry.choices("metric"))))
    for name in names:
        if name not in known:
            raise UserError(f"--metrics {name} is not known{did_you_mean(name, known)}")
    metrics = {name: registry.get("metric", name)() for name in known if name in (names or usual)}
    left_out = {}
    lacking = {name: getattr(metric, "needs", frozenset()) - offers for name, metric in metrics.items()}
    if not names:
        metrics = {name: metric for name, metric in metrics.items() if LABELS not in lacking[name]}
    for name in metrics:
        lacks = lacking[name]
        if COLUMNS in lacks:
            left_out[name] = f"is for table data, and these are {kind} data"
        elif LABELS in lacks:
            left_out[name] = "needs data with a categorical condition, and these have none"
        elif TOKENS in lacks:
            left_out[name] = f"is for tokens, and these are {kind} data"
        elif JUMPS in lacks:
            left_out[name] = "is of --objective discrete-flow-matching, and this flow has another"
        elif ODE in lacks:
            left_out[name] = "is of a flow along an ODE, and tokens jump"
        elif QUANTITIES in lacks:
            left_out[name] = "needs data with a real-valued condition, and these have none"
        elif CALIBRATED_ROWS in lacks:
            left_out[name] = "needs vectors or tables of 1 to 32 columns of numbers, and 100 held-out rows or more"
        elif lacks:
            left_out[name] = f"looks at {' and '.join(sorted(lacks))}, which {kind} data have not"
    return _kept(metrics, left_out), left_out


def with_rows(metrics: Mapping[str, Any], sets: Mapping[str, int]) -> tuple[dict[str, Any], dict[str, str]]:
    """Metrics that need no more rows than each set, named by its argument, has, and why others are left out.

    Raises UserError if none remains.
    """
    what, count = min(sets.items(), key=lambda each: each[1])
    needs = {name: metric.at_least for name, metric in metrics.items() if isinstance(metric, Metric)}
    needy = {name: n for name, n in needs.items() if n > count}
    left_out = {name: f"needs {n} rows or more, and {what} is {count}" for name, n in needy.items()}
    return _kept(metrics, left_out), left_out


def _kept(metrics: Mapping[str, Any], left_out: Mapping[str, str]) -> dict[str, Any]:
    """Metrics that are not left out. Raises UserError if none remains."""
    kept = {name: metric for name, metric in metrics.items() if name not in left_out}
    if not kept:
        name, why = next(iter(left_out.items()))
        raise UserError(f"--metrics {name} {why}; give more rows, or name other --metrics")
    return kept


def finite(numbers: Mapping[str, float]) -> dict[str, float]:
    """The finite numbers."""
    return {name: value for name, value in numbers.items() if math.isfinite(value)}
