"""Tables of mixed columns: distribution of each column, association of each pair.

Tables are float64 (N, K): numbers, codes of categories, and NaN for missing values, as in advect.data.Table. All
measures are invariant to increasing transforms of numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.registry import register
from advect.metrics.base import COLUMNS, EvalContext, Metric
from advect.metrics.marginals import distribution_gaps
from advect.metrics.statistics import VALUES, SampleStatistics


def column_gaps(x: Tensor, y: Tensor, *, categorical: Sequence[bool]) -> Tensor:
    """Distance of each column's distribution in x (N, K) and y (M, K): (K,) in [0, 1], float64.

    Kolmogorov-Smirnov for numbers, missing values being largest; total variation ``sum |p - q| / 2`` for categories,
    missing being one more. Raises UserError for shapes that do not match and infinite values.
    """
    x, y = _checked(x, "x", categorical), _checked(y, "y", categorical)
    pairs = zip(x.T, y.T, categorical, strict=True)
    return torch.stack([_total_variation(p, q) if kind else _gap(p, q) for p, q, kind in pairs])


def associations(x: Tensor, *, categorical: Sequence[bool]) -> Tensor:
    """Association of each pair of columns of x (N, K): (K, K) float64, symmetric, with unit diagonal.

    Numbers: Spearman's correlation, in [-1, 1]. Categories: Cramer's V. Mixed: correlation ratio of ranks, ``sqrt(SS
    between categories / SS in all)``; both in [0, 1] and biased upwards for few rows. Rows with missing numbers are
    left out; a missing category is one more. A constant column has 0. Raises UserError for shapes that do not match
    and infinite values.
    """
    x = _checked(x, "x", categorical)
    found = torch.eye(x.shape[1], dtype=torch.float64)
    for i in range(x.shape[1]):
        for j in range(i):
            found[i, j] = found[j, i] = _association(x[:, i], x[:, j], categorical[i], categorical[j])
    return found


def association_error(x: Tensor, y: Tensor, *, categorical: Sequence[bool]) -> float:
    """Mean of ``|a_x - a_y|`` over pairs of columns, for the :func:`associations` a of x (N, K) and y (M, K).

    Raises UserError as they do, and for a single column.
    """
    if len(categorical) < 2:
        raise UserError(f"association_error needs two columns or more, got {len(categorical)}")
    gap = (associations(x, categorical=categorical) - associations(y, categorical=categorical)).abs()
    i, j = torch.triu_indices(len(gap), len(gap), 1)
    return float(gap[i, j].mean())


def _checked(x: Tensor, argument: str, categorical: Sequence[bool]) -> Tensor:
    if x.ndim != 2 or not len(x) or x.shape[1] != len(categorical):
        raise UserError(
            f"{argument} must be (N, {len(categorical)}), a column for each entry of categorical, got {tuple(x.shape)}"
        )
    infinite = x.isinf().any(0)
    if infinite.any():
        raise UserError(f"{argument} has infinite values in column {int(infinite.int().argmax())}; leave those out")
    return x.detach().cpu().double()


def _gap(p: Tensor, q: Tensor) -> Tensor:
    last = lambda v: torch.where(v.isnan(), torch.inf, v)
    return distribution_gaps(last(p)[:, None], last(q)[:, None])[0]


def _total_variation(p: Tensor, q: Tensor) -> Tensor:
    codes = _codes(torch.cat([p, q]))
    count = int(codes.max()) + 1
    shares = [part.bincount(minlength=count).double() / len(part) for part in (codes[: len(p)], codes[len(p) :])]
    return (shares[0] - shares[1]).abs().sum() / 2


def _association(p: Tensor, q: Tensor, p_categorical: bool, q_categorical: bool) -> Tensor:
    if p_categorical and q_categorical:
        return _cramers_v(_codes(p), _codes(q))
    given = (p_categorical | ~p.isnan()) & (q_categorical | ~q.isnan())
    p, q = p[given], q[given]
    if len(p) < 2:
        return torch.zeros((), dtype=torch.float64)
    if p_categorical or q_categorical:
        return _correlation_ratio(*((_codes(p), _ranks(q)) if p_categorical else (_codes(q), _ranks(p))))
    a, b = _ranks(p), _ranks(q)
    return _share((a * b).sum(), a.norm() * b.norm())


def _codes(x: Tensor) -> Tensor:
    """Codes 0, 1, ... (N,) of the categories that occur, missing last."""
    return torch.where(x.isnan(), torch.inf, x).unique(return_inverse=True)[1]


def _ranks(x: Tensor) -> Tensor:
    """Centred ranks (N,); ties share their mean."""
    from scipy.stats import rankdata

    ranks = torch.from_numpy(rankdata(x.numpy()))
    return ranks - ranks.mean()


def _cramers_v(p: Tensor, q: Tensor) -> Tensor:
    from scipy.stats.contingency import association

    r, c = int(p.max()) + 1, int(q.max()) + 1
    counts = (p * c + q).bincount(minlength=r * c).reshape(r, c)
    return torch.tensor(association(counts.numpy(), method="cramer") if min(r, c) > 1 else 0.0, dtype=torch.float64)


def _correlation_ratio(codes: Tensor, values: Tensor) -> Tensor:
    """``sqrt(SS between / SS in all)`` of values (n,) of mean 0 in the groups of codes (n,)."""
    sums = values.new_zeros(int(codes.max()) + 1).index_add(0, codes, values)
    return _share((sums.square() / codes.bincount()).sum(), values.square().sum()).sqrt()


def _share(part: Tensor, whole: Tensor) -> Tensor:
    return part / whole if whole > 0 else torch.zeros_like(part)


@register("columns")
class ColumnsMetric(Metric):
    """Each column's distribution, and the association of each pair."""

    needs = frozenset({VALUES, COLUMNS})

    def compare(self, x: SampleStatistics, y: SampleStatistics, context: EvalContext) -> dict[str, float]:
        a, b, categorical = x.rows[VALUES], y.rows[VALUES], context.categorical
        gaps = column_gaps(a, b, categorical=categorical)
        found = {"column_gap": float(gaps.mean()), "largest_column_gap": float(gaps.max())}
        if len(categorical) > 1:
            found["association_error"] = association_error(a, b, categorical=categorical)
        return found
