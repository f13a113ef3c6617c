"""Comparisons by feature: means, variances, zeros, distributions and correlations."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.registry import register
from advect.metrics.base import EvalContext, Metric
from advect.metrics.statistics import FEATURES, VALUES, SampleStatistics, check_pair, check_samples


def mean_r2(x: Tensor, y: Tensor) -> float:
    """R^2 of the features' means of samples x (N, *S) against data y (M, *S), at most 1.

    ``1 - sum (m_x - m_y)^2 / sum (m_y - mean m_y)^2``; not a squared correlation, as shifts count. Raises UserError
    for different dimensions, non-finite values, and equal means of all features in y.
    """
    a, b = check_pair(x, y)
    return _r2(a.mean(0), b.mean(0), "means")


def variance_r2(x: Tensor, y: Tensor) -> float:
    """R^2 of the features' unbiased variances, as :func:`mean_r2`; N and M >= 2."""
    a, b = check_pair(x, y, at_least=2)
    return _r2(a.var(0), b.var(0), "variances")


def zero_share(x: Tensor) -> float:
    """Share in [0, 1] of exact zeros in x (N, *S)."""
    return float((check_samples(x, "x") == 0).double().mean())


def correlation_error(x: Tensor, y: Tensor) -> float:
    """Mean of |r_x - r_y| over pairs of features of x (N, *S) and y (M, *S), in [0, 2], for Pearson's r.

    Features constant in either set are left out. Raises UserError unless two features vary in both.
    """
    a, b = check_pair(x, y, at_least=2)
    varying = (a != a[:1]).any(0) & (b != b[:1]).any(0)
    count = int(varying.sum())
    if count < 2:
        raise UserError(f"correlation_error needs two features that vary in both sets, got {count}")
    off = torch.triu_indices(count, count, 1)
    difference = (_correlations(a[:, varying]) - _correlations(b[:, varying])).abs()
    return float(difference[off[0], off[1]].mean())


def kolmogorov_smirnov(x: Tensor, y: Tensor) -> Tensor:
    """Kolmogorov-Smirnov distance (D,) of each feature of x (N, *S) and y (M, *S), in [0, 1]."""
    return distribution_gaps(*check_pair(x, y))


def distribution_gaps(x: Tensor, y: Tensor) -> Tensor:
    """Kolmogorov-Smirnov distance (D,), float64, by column of x (N, D) and y (M, D); infinities are taken."""
    from scipy.stats import ks_2samp  # half a second to import

    with np.errstate(all="ignore"):  # of its p-value, for single rows
        statistic = ks_2samp(x.cpu().numpy(), y.cpu().numpy(), method="asymp")[0]
    return torch.as_tensor(statistic, dtype=torch.float64)


def _r2(found: Tensor, wanted: Tensor, what: str) -> float:
    total = (wanted - wanted.mean()).square().sum()
    if total == 0:
        raise UserError(f"the features' {what} in y are all equal, so that R^2 is not defined; compare them directly")
    return float(1 - (found - wanted).square().sum() / total)


def _correlations(x: Tensor) -> Tensor:
    z = x - x.mean(0)
    z = z / z.norm(dim=0)
    return z.T @ z


SPARSE = 0.01
"""Share of zeros in the reference from which zeros are compared."""

MEASURES: dict[str, Callable[[Tensor, Tensor], float]] = {
    "kolmogorov_smirnov": lambda x, y: float(kolmogorov_smirnov(x, y).mean()),
    "correlation_error": correlation_error,
    "mean_r2": mean_r2,
    "variance_r2": variance_r2,
}


@register("marginals")
class MarginalsMetric(Metric):
    """Each feature's distribution, mean, variance and zeros, and their correlations."""

    needs = frozenset({VALUES})
    bounds = (-math.inf, 1)

    def compare(self, x: SampleStatistics, y: SampleStatistics, context: EvalContext) -> dict[str, float]:
        kept = FEATURES if context.categorical else VALUES  # a table's own columns are codes, too
        a, b = x.rows[kept], y.rows[kept]
        found = {}
        for name, measure in MEASURES.items():
            try:
                found[name] = measure(a, b)
            except UserError:  # such as features that do not vary
                continue
        if zero_share(b) >= SPARSE:
            found["zero_error"] = float(((a == 0).double().mean(0) - (b == 0).double().mean(0)).abs().mean())
        return found
