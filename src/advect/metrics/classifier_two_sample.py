"""Whether a classifier can tell samples from data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.random import CounterRng, Stream, stream_seed
from advect.core.registry import register
from advect.metrics.base import PAIRS, FeatureMetric
from advect.metrics.statistics import check_pair


@dataclass(frozen=True)
class TwoSampleTest:
    """How often a classifier tells from which of two sets a row is that it has not been fitted to.

    Attributes:
        accuracy: 1/2 where the sets are alike, 1 where they can always be told apart.
        standard_error: of the accuracy, ``sqrt(a (1 - a) / rows)``.
        p_value: the chance of such an accuracy or a higher one if both laws were equal.
        rows: how many were asked about, as many of each set; as many or more were fitted to.
    """

    accuracy: float
    standard_error: float
    p_value: float
    rows: int


def two_sample_test(
    x: Tensor, y: Tensor, *, classifier: Any = None, test_share: float = 0.5, seed: int = 0
) -> TwoSampleTest:
    """The classifier two-sample test (Lopez-Paz & Oquab 2017, sec. 3) of x (N, *S) and y (M, *S), N and M >= 20.

    The larger set is subsampled to the size of the other; a share of either is put aside, and the classifier fitted
    to the rest. The p-value is that of a fair coin. An accuracy near 1/2 tells of this classifier alone.

    Args:
        x, y: in any units, as trees ask only for the order of values.
        classifier: with scikit-learn's ``fit(X, y)`` and ``predict(X)``; it is cloned. By default
            ``HistGradientBoostingClassifier``, which sees single columns, their variances and combinations; of pixels
            a convolutional network would see more.
        test_share: of the rows to ask about, in (0, 1).
        seed: of the choice of rows, and of the default classifier.

    Raises:
        UserError: too few samples, dimensions that differ, values that are not finite, ``test_share`` out of range.
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
class TwoSampleMetric(FeatureMetric):
    """How often a classifier tells samples from data; 1/2 is best."""

    at_least = 20
    rows = PAIRS

    def distance(self, x: Tensor, y: Tensor) -> float:
        return two_sample_test(x, y).accuracy
