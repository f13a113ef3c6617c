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

from torch import Tensor

from advect.core import registry
from advect.core.errors import UserError, did_you_mean
from advect.core.types import Category
from advect.metrics.statistics import FEATURES, ROWS, SampleStatistics

T = TypeVar("T")

PAIRS = 5000
"""Most rows of a set for all-pairs distances."""

COLUMNS, LABELS = "columns", "labels"
"""Needs beyond the rows: columns of a table, a categorical condition."""


@dataclass(frozen=True)
class EvalContext:
    """Data shared by the metrics of one evaluation.

    Attributes:
        train, held_out: rows of either split, one of them the reference.
        categories: categorical conditions of the data.
        categorical: of a table, whether each column is categorical; else empty.
        standardise: whether features have different units.
        train_samples, held_out_samples: whole rows (N, *S), if a metric needs SAMPLES.
        cache: results computed once.
    """

    train: SampleStatistics
    held_out: SampleStatistics
    categories: Mapping[str, Category] = field(default_factory=dict)
    categorical: Sequence[bool] = ()
    standardise: bool = False
    train_samples: Tensor | None = None
    held_out_samples: Tensor | None = None
    cache: dict[str, Any] = field(default_factory=dict)

    def once(self, name: str, make: Callable[[], T]) -> T:
        """Cached result of ``make``."""
        if name not in self.cache:
            self.cache[name] = make()
        return self.cache[name]


class Metric(ABC):
    """Numbers of samples x against a reference y.

    Attributes:
        needs: inputs beside features: VALUES, SAMPLES, COLUMNS, LABELS.
        at_least: fewest rows of either set.
        rows: most rows used of either set; None for all.
        better: direction of improvement.
    """

    part_kind: ClassVar[str] = "metric"
    needs: ClassVar[frozenset[str]] = frozenset()
    at_least: ClassVar[int] = 2
    rows: ClassVar[int | None] = ROWS
    better: ClassVar[Literal["lower", "higher"]] = "lower"

    @abstractmethod
    def compare(self, x: SampleStatistics, y: SampleStatistics, context: EvalContext) -> dict[str, float]:
        """Numbers of samples x by name, without undefined ones."""

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
    """A property of the flow itself, independent of the solver.

    Attributes:
        key: name in results.
        samples: most samples used.
        held_out: whether held-out rows are used instead of samples.
    """

    part_kind: ClassVar[str] = "metric"
    key: ClassVar[str]
    samples: ClassVar[int] = 256
    held_out: ClassVar[bool] = False

    @abstractmethod
    def measure(self, flow: Any, n: int, rows: range, data: Callable[[range], Any], options: Any) -> dict[str, Tensor]:
        """Tensors of ``rows`` of n samples, or of the held-out rows and conditions ``data(rows)``.

        ``flow`` is an advect.model.flow.Flow, ``options`` an advect.evaluation.protocol.EvalConfig.
        """

    @abstractmethod
    def reduce(self, parts: Iterator[dict[str, Tensor]], flow: Any) -> dict[str, Any]:
        """Result, as JSON, of all parts in order."""


def find_metrics(names: Sequence[str], usual: Sequence[str], offers: Iterable[str], kind: str) -> dict[str, Any]:
    """Metrics by name; by default those of ``usual`` that the data allow.

    ``offers`` is what the data provide of the metrics' needs, ``kind`` their name in messages. Raises UserError for an
    unknown name, and a metric that the data do not allow.
    """
    offers, known = frozenset(offers), tuple(dict.fromkeys((*usual, *registry.choices("metric"))))
    for name in names:
        if name not in known:
            raise UserError(f"--metrics {name} is not known{did_you_mean(name, known)}")
    metrics = {name: registry.get("metric", name)() for name in known if not names or name in names}
    lacking = {name: getattr(metric, "needs", frozenset()) - offers for name, metric in metrics.items()}
    if not names:
        return {name: metrics[name] for name in usual if not lacking[name]}
    for name, lacks in lacking.items():
        if COLUMNS in lacks:
            raise UserError(f"--metrics {name} is for table data, and these are {kind} data")
        if LABELS in lacks:
            raise UserError(f"--metrics {name} needs data with a categorical condition, and these have none")
        if lacks:
            raise UserError(f"--metrics {name} looks at {' and '.join(sorted(lacks))}, which {kind} data have not")
    return metrics


def check_rows(metrics: Mapping[str, Any], sets: Mapping[str, int]) -> None:
    """Raise UserError if a metric needs more rows than a set, named by its argument, has."""
    for name, metric in metrics.items():
        for what, count in sets.items():
            if isinstance(metric, Metric) and count < metric.at_least:
                raise UserError(
                    f"{what} is {count}, and {name} needs {metric.at_least} rows or more; give more, or name other"
                    " --metrics"
                )


def finite(numbers: Mapping[str, float]) -> dict[str, float]:
    """The finite numbers."""
    return {name: value for name, value in numbers.items() if math.isfinite(value)}
