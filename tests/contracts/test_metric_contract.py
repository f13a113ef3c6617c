"""What every registered metric promises."""

from __future__ import annotations

import math

import pytest
import torch

from advect.core import registry
from advect.core.types import Category
from advect.metrics.base import EvalContext, Metric
from advect.metrics.statistics import SampleStatistics

REGISTERED = {name: registry.get("metric", name) for name in registry.choices("metric")}
METRICS = {name: cls for name, cls in REGISTERED.items() if issubclass(cls, Metric)}
KIND = Category(("a", "b", "c"), (0.5, 0.3, 0.2))


def rows(n: int, seed: int, shift: float = 0.0) -> SampleStatistics:
    """Three classes of vectors whose second value is a code, with all that is kept of a row; a bad one is shifted."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    x = torch.randn(n, 4, generator=generator) + 4 * torch.eye(3, 4)[labels] + shift
    x[:, 3] = torch.arange(n) % 2 if not shift else 0
    wrong = labels if not shift else (labels + 1) % 3
    return SampleStatistics.from_parts([{"features": x, "values": x.double(), "samples": x, "cond.kind": wrong}], n)


@pytest.fixture(scope="module")
def context() -> EvalContext:
    train, held_out = rows(600, 0), rows(500, 1)
    whole = (train.rows["samples"], held_out.rows["samples"])
    return EvalContext(train, held_out, {"kind": KIND}, (False, False, False, True), False, False, *whole)


@pytest.mark.parametrize("name", REGISTERED)
def test_it_is_made_without_arguments_and_says_what_it_is(name: str) -> None:
    assert REGISTERED[name]() is not None and 10 < len(registry.summary(REGISTERED[name])) < 110


def names(values: dict[str, float]) -> set[str]:
    """Names without those of errors, which a floor need not have."""
    return {name for name in values if not name.endswith("_se")}


@pytest.mark.parametrize("name", METRICS)
class TestMetric:
    def test_numbers_are_finite_named_after_the_metric_and_the_same_again(
        self, name: str, context: EvalContext
    ) -> None:
        metric, x = METRICS[name](), rows(300, 2)
        found = metric.compare(x, context.held_out, context)
        assert found and all(math.isfinite(value) for value in found.values())
        assert found == metric.compare(x, context.held_out, context)
        floor = metric.floor(context.train, context.held_out, context)
        assert names(floor) == names(found)

    def test_samples_of_the_law_are_better_than_shifted_ones(self, name: str, context: EvalContext) -> None:
        metric = METRICS[name]()
        good, bad = (metric.compare(rows(300, 2, shift), context.held_out, context) for shift in (0.0, 3.0))
        details = ("_se", "mean_r2", "variance_r2")
        names = [n for n in good if not n.endswith(details) and n in bad]
        better = (lambda a, b: a > b) if metric.better == "higher" else (lambda a, b: a < b)
        named = [n for n in names if n.startswith(name)]  # others are details, some of which may go either way
        wins = [better(good[n], bad[n]) for n in named or names]
        assert (all if named else any)(wins), (good, bad)
