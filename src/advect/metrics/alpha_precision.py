"""Alpha-precision and beta-recall: samples among typical data, data among typical samples."""

from __future__ import annotations

import torch
from torch import Tensor

from advect.core.registry import register
from advect.metrics.base import PAIRS, EvalContext, Metric
from advect.metrics.precision_recall import nearest_neighbours
from advect.metrics.statistics import FEATURES, SampleStatistics, check_pair

LEVELS = 30
"""Levels from 0 to 1 at which the curves are compared with the diagonal."""


def alpha_precision(x: Tensor, y: Tensor) -> float:
    """Integrated alpha-precision of samples x (N, *S) for data y (M, *S): 1 is best, 0 worst.

    P(a) is the share of samples within the ball about the mean of y that holds the share a of y; the result is
    ``1 - sum |P(a) - a| / sum a`` over levels a (Alaa et al. 2022, "How faithful is your synthetic data?", without its
    learned embedding). Raises UserError for non-finite values, different shapes and fewer than 2 rows.
    """
    a, b = check_pair(x, y, at_least=2)
    centre = b.mean(0)
    radii = (b - centre).norm(dim=1).quantile(_levels(b))
    inside = (a - centre).norm(dim=1)[:, None] <= radii
    return _agreement(inside.double().mean(0))


def beta_recall(x: Tensor, y: Tensor) -> float:
    """Integrated beta-recall of samples x (N, *S) for data y (M, *S): 1 is best, 0 worst.

    R(b) is the share of data whose nearest sample is no farther than their nearest other row and lies within the ball
    about the mean of x that holds the share b of x; integrated, and raising, as :func:`alpha_precision`.
    """
    a, b = check_pair(x, y, at_least=2)
    near = nearest_neighbours(b, a)
    own = nearest_neighbours(b, b, k=2).distances[:, 1]
    out = (a - a.mean(0)).norm(dim=1)[near.indices[:, 0]]
    inside = out[:, None] <= out.quantile(_levels(b))
    return _agreement((inside & (near.distances[:, 0] <= own)[:, None]).double().mean(0))


def _levels(like: Tensor) -> Tensor:
    return torch.linspace(0, 1, LEVELS, dtype=torch.float64, device=like.device)


def _agreement(curve: Tensor) -> float:
    levels = _levels(curve)
    return float(1 - (curve - levels).abs().sum() / levels.sum())


@register("alpha_precision")
class AlphaPrecisionMetric(Metric):
    """Integrated alpha-precision and beta-recall of the features; 1 is best."""

    rows = PAIRS
    better = "higher"
    bounds = (0, 1)
    resamples = 0

    def compare(self, x: SampleStatistics, y: SampleStatistics, context: EvalContext) -> dict[str, float]:
        a, b = x.take(FEATURES, PAIRS), y.take(FEATURES, PAIRS)
        if context.standardise:
            spread = b.double().std(0)
            scale = torch.where(spread > 1e-6 * b.double().abs().amax(0), spread, 1.0)  # constants stay
            a, b = a / scale, b / scale
        return {"alpha_precision": alpha_precision(a, b), "beta_recall": beta_recall(a, b)}
