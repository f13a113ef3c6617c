"""Similarity of the columns of tables, and of their pairs, as the Synthetic Data Vault defines it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.registry import register
from advect.metrics.base import COLUMNS, EvalContext, Metric
from advect.metrics.statistics import VALUES, SampleStatistics
from advect.metrics.tables import Table, check_table, table_of

BINS = 10
"""Bins of equal width of a number beside a category."""

HUGE = 2.0**1000
"""Numbers beyond are scaled down for their differences not to overflow."""


def column_shapes(x: Table, y: Table) -> Tensor:
    """Similarity of each column of tables x and y: (K,) in [0, 1]; 1 is best, NaN where a side has no value.

    One less the Kolmogorov-Smirnov distance for numbers, one less the total variation for categories, of the values
    that are there (Patki, Wedge & Veeramachaneni 2016, "The synthetic data vault"; column shapes of ``sdmetrics``).
    Raises UserError for tables of other columns.
    """
    check_table(x, y)
    pairs = zip(x.values.T, y.values.T, x.categorical, strict=True)
    return torch.tensor([_shape(a[~a.isnan()].numpy(), b[~b.isnan()].numpy(), c) for a, b, c in pairs])


def column_pair_trends(x: Table, y: Table) -> Tensor:
    """Similarity of each pair of columns of tables x and y: (K, K) in [0, 1], float64, symmetric; NaN on the diagonal.

    ``1 - |r_x - r_y| / 2`` of the correlations of two numbers, NaN where one is constant; else one less the total
    variation of the pairs' shares, numbers in ten bins of equal width between the least and greatest of their own
    table, missing values with the greatest (column pair trends of ``sdmetrics``). Raises UserError as
    :func:`column_shapes`.
    """
    check_table(x, y)
    count = len(x.categorical)
    found = torch.full((count, count), torch.nan, dtype=torch.float64)
    codes = [_codes(x.values[:, k], y.values[:, k], x.categorical[k]) for k in range(count)]
    for i in range(count):
        for j in range(i):
            if x.categorical[i] or x.categorical[j]:
                found[i, j] = _contingency(codes[i], codes[j])
            else:
                a, b = (_correlation(side.values[:, [i, j]]) for side in (x, y))
                found[i, j] = 1 - abs(a - b) / 2
            found[j, i] = found[i, j]
    return found


def _shape(a: np.ndarray, b: np.ndarray, categorical: bool) -> float:
    from scipy.stats import ks_2samp

    if not (len(a) and len(b)):
        return float("nan")
    if not categorical:
        found: Any = ks_2samp(a, b, method="asymp")
        return 1 - float(found.statistic)
    codes = np.unique(np.concatenate([a, b]), return_inverse=True)[1]
    return 1 - _total_variation(codes[: len(a)], codes[len(a) :])


def _codes(a: Tensor, b: Tensor, categorical: bool) -> tuple[np.ndarray, np.ndarray]:
    """Codes 0, 1, ... (N,) and (M,) of categories, or bins of numbers."""
    if categorical:
        both = np.unique(np.concatenate([a.numpy(), b.numpy()]), return_inverse=True)[1]
        return both[: len(a)], both[len(a) :]
    bins = (_bins(a.numpy()), _bins(b.numpy()))
    return bins[0], bins[1]


def _bins(x: np.ndarray) -> np.ndarray:
    known = x[~np.isnan(x)]
    if len(known) and np.abs(known).max() > HUGE:
        return _bins(x / HUGE)
    return np.digitize(x, np.histogram_bin_edges(known, BINS)) if len(known) else np.full(len(x), BINS + 1)


def _contingency(p: tuple[np.ndarray, np.ndarray], q: tuple[np.ndarray, np.ndarray]) -> float:
    width = 1 + max(int(side.max()) for side in q)
    joint = [a.astype(np.int64) * width + b for a, b in zip(p, q, strict=True)]
    codes = np.unique(np.concatenate(joint), return_inverse=True)[1]
    return 1 - _total_variation(codes[: len(joint[0])], codes[len(joint[0]) :])


def _total_variation(a: np.ndarray, b: np.ndarray) -> float:
    count = 1 + max(int(a.max()), int(b.max()))
    shares = [np.bincount(side, minlength=count) / len(side) for side in (a, b)]
    return float(np.abs(shares[0] - shares[1]).sum() / 2)


def _correlation(pair: Tensor) -> float:
    """Pearson's correlation of the rows (n, 2) without missing values; NaN for a constant."""
    a, b = pair[~pair.isnan().any(1)].numpy().T
    if len(a) < 2 or (a == a[0]).all() or (b == b[0]).all():
        return float("nan")
    a, b = (side / np.abs(side).max() for side in (a, b))  # squares of 1e200 overflow
    return float(np.corrcoef(a, b)[0, 1])


class _Similarity(Metric):
    needs = frozenset({VALUES, COLUMNS})
    better = "higher"
    bounds = (0, 1)


@register("column_shapes")
class ColumnShapesMetric(_Similarity):
    """Mean similarity of each column's distribution, as in sdmetrics; 1 is best."""

    def compare(self, x: SampleStatistics, y: SampleStatistics, context: EvalContext) -> dict[str, float]:
        found = column_shapes(table_of(x, context), table_of(y, context))
        return {"column_shapes": float(found.nanmean())}


@register("column_pair_trends")
class ColumnPairTrendsMetric(_Similarity):
    """Mean similarity of each pair of columns, as in sdmetrics; 1 is best."""

    def compare(self, x: SampleStatistics, y: SampleStatistics, context: EvalContext) -> dict[str, float]:
        sides = table_of(x, context), table_of(y, context)
        if len(sides[0].categorical) < 2:
            raise UserError("column_pair_trends needs two columns or more, and the table has one; leave it out")
        return {"column_pair_trends": float(column_pair_trends(*sides).nanmean())}
