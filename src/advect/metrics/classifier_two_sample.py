"""Classifier two-sample test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.random import CounterRng, Stream, stream_seed
from advect.core.registry import register
from advect.metrics.base import PAIRS, EvalContext, Metric
from advect.metrics.statistics import FEATURES, SampleStatistics, check_pair


@dataclass(frozen=True)
class TwoSampleTest:
    """Accuracy of a classifier at telling two sets apart, on rows it was not fitted to.

    Attributes:
        accuracy: 1/2 for indistinguishable sets, 1 for separable ones.
        standard_error: ``sqrt(a (1 - a) / rows)``.
        p_value: probability of at least this accuracy for equal laws.
        rows: number of test rows, half of each set.
    """

    accuracy: float
    standard_error: float
    p_value: float
    rows: int


def two_sample_test(
    x: Tensor, y: Tensor, *, classifier: Any = None, test_share: float = 0.5, seed: int = 0
) -> TwoSampleTest:
    """Classifier two-sample test (Lopez-Paz & Oquab 2017, sec. 3) of x (N, *S) and y (M, *S), N and M >= 20.

    The larger set is subsampled to the size of the other. The p-value is binomial. An accuracy near 1/2 holds for this
    classifier only.

    Args:
        x, y: samples in any units, as trees are invariant to scale.
        classifier: scikit-learn classifier, cloned; default ``HistGradientBoostingClassifier``, unsuited to
            pixels.
        test_share: share of test rows, in (0, 1).
        seed: seed of the split and of the default classifier.

    Raises:
        UserError: too few samples, different dimensions, non-finite values, ``test_share`` out of range.
    """
    from scipy.stats import binomtest
    from sklearn.base import clone
    from sklearn.ensemble import HistGradientBoostingClassifier  # takes a second to import

    a, b = check_pair(x, y, at_least=20)
    n = min(len(a), len(b))
    held = round(test_share * n) if 0 < test_share < 1 else 0
    if not 1 <= held <= n - 2:
        raise UserError(f"test_share must leave rows to fit and to ask about, got {test_share}; 0.5 is usual")
    a, b = (
        v[CounterRng(stream_seed(seed, Stream.CLASSIFIER_TWO_SAMPLE), step, len(v)).permutation()[:n].to(v.device)]
        for step, v in enumerate((a, b))
    )
    judge: Any = HistGradientBoostingClassifier(random_state=seed % 2**32) if classifier is None else clone(classifier)
    kind = lambda count: torch.arange(2).repeat_interleave(count).numpy()
    judge.fit(torch.cat([a[held:], b[held:]]).cpu().numpy(), kind(n - held))
    right = int((judge.predict(torch.cat([a[:held], b[:held]]).cpu().numpy()) == kind(held)).sum())
    accuracy = right / (2 * held)
    p_value = float(binomtest(right, 2 * held, 0.5, alternative="greater").pvalue)
    return TwoSampleTest(accuracy, (accuracy * (1 - accuracy) / (2 * held)) ** 0.5, p_value, 2 * held)


@register("two_sample")
class TwoSampleMetric(Metric):
    """Accuracy of a classifier at telling samples from data; 1/2 is best."""

    at_least = 20
    rows = PAIRS
    bounds = (0, 1)
    resamples = 0

    def compare(self, x: SampleStatistics, y: SampleStatistics, context: EvalContext) -> dict[str, float]:
        found = two_sample_test(x.take(FEATURES, PAIRS), y.take(FEATURES, PAIRS))
        return {"two_sample": found.accuracy, "two_sample_se": found.standard_error}
