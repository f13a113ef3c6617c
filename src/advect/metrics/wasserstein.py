"""Wasserstein distances: exact, and sliced."""

from __future__ import annotations

import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.random import CounterRng, Stream, stream_seed
from advect.core.registry import register
from advect.metrics.base import EvalContext, FeatureMetric, Metric
from advect.metrics.statistics import FEATURES, ROWS, SampleStatistics, check_pair

EXACT = "donot_use_mm_for_euclid_dist"
"""Mode of cdist without matrix products, which lose digits of small distances."""


PAIRED = 2000
"""Most rows for exact transport."""


def wasserstein(x: Tensor, y: Tensor, *, order: int = 1) -> float:
    """Exact Wasserstein distance of x (N, *S) and y (N, *S), in data units.

    ``(min over pairings of the mean of |x_i - y_j|^p)^(1/p)``, order p 1 or 2. N^2 memory, up to N^3 time (seconds at
    2,000); depends on N. Raises UserError for another order, different sizes or dimensions, and non-finite values.
    """
    from scipy.optimize import linear_sum_assignment

    a, b = check_pair(x, y)
    _check_order(order)
    if len(a) != len(b):
        raise UserError(f"x and y must have as many rows, got {len(a)} and {len(b)}; give equal numbers of samples")
    cost = torch.cdist(a, b, compute_mode=EXACT) ** order
    rows, columns = linear_sum_assignment(cost.cpu().numpy())
    return float(cost[torch.from_numpy(rows), torch.from_numpy(columns)].mean()) ** (1 / order)


def sliced_wasserstein(x: Tensor, y: Tensor, *, order: int = 2, lines: int = 512, seed: int = 0) -> float:
    """Sliced Wasserstein distance (Bonneel et al. 2015) of x (N, *S) and y (M, *S), in data units.

    ``(mean over lines of W_p^p of the projections)^(1/p)`` over random directions, exact along each. Raises UserError
    for an order other than 1 or 2, fewer than one line, different dimensions, and non-finite values.
    """
    a, b = check_pair(x, y)
    _check_order(order)
    if lines < 1:
        raise UserError(f"lines must be at least 1, got {lines}; 512 is usual")
    directions = (
        CounterRng(stream_seed(seed, Stream.WASSERSTEIN), 0, lines)
        .normal((lines, a.shape[1]), dtype=torch.float64)
        .to(a)
    )
    directions = directions / directions.norm(dim=1, keepdim=True)
    p, q = ((v @ directions.T).sort(dim=0).values for v in (a, b))
    # Between two neighbouring levels of either distribution function both quantile functions are constant.
    levels = torch.cat([torch.arange(1, n + 1, dtype=torch.float64) / n for n in (len(p), len(q))]).unique()
    widths = torch.diff(levels, prepend=levels.new_zeros(1))
    middles = levels - widths / 2
    p, q = (v[(middles * len(v)).long().clamp(max=len(v) - 1)] for v in (p, q))
    return float((widths.to(p) @ (p - q).abs() ** order).mean()) ** (1 / order)


def _check_order(order: int) -> None:
    if order not in (1, 2):
        raise UserError(f"order must be 1 or 2, got {order}; 1 weighs all distances alike, 2 large ones more")


@register("sliced_wasserstein")
class SlicedWassersteinMetric(FeatureMetric):
    """Sliced Wasserstein distance."""

    rows = ROWS

    def distance(self, x: Tensor, y: Tensor) -> float:
        return sliced_wasserstein(x, y)


@register("wasserstein")
class WassersteinMetric(Metric):
    """Exact Wasserstein distance of equally many rows."""

    rows = PAIRED
    resampled_rows = 500

    def compare(self, x: SampleStatistics, y: SampleStatistics, context: EvalContext) -> dict[str, float]:
        k = min(PAIRED, x.count, y.count)  # transport pairs each row with one
        return {"wasserstein": wasserstein(x.take(FEATURES, k), y.take(FEATURES, k))}
