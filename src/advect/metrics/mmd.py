"""Energy distance and maximum mean discrepancy, also within groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.registry import register
from advect.core.types import NULL
from advect.metrics.base import LABELS, PAIRS, EvalContext, FeatureMetric, Metric
from advect.metrics.statistics import CONDITION, FEATURES, SampleStatistics, check_pair

BLOCK = 2048
"""Rows whose distances to all others are held at once."""

WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Usual kernel widths, in units of the median distance."""


def energy_distance(x: Tensor, y: Tensor, *, unbiased: bool = False) -> float:
    """``2 E|X - Y| - E|X - X'| - E|Y - Y'|`` (Szekely & Rizzo 2013) of x (N, *S) and y (M, *S), in data units.

    V-statistic, >= 0; with ``unbiased`` the U-statistic (N, M >= 2). Raises UserError for different dimensions and
    non-finite values.
    """
    a, b = check_pair(x, y, at_least=2 if unbiased else 1)
    across, own, other = (_mean(lambda d: d, p, q) for p, q in ((a, b), (a, a), (b, b)))
    if unbiased:
        own, other = (mean * n / (n - 1) for n, mean in ((len(a), own), (len(b), other)))
        return 2 * across - own - other
    return max(0.0, 2 * across - own - other)


def rbf_mmd(
    x: Tensor, y: Tensor, *, widths: Sequence[float] = WIDTHS, scale: float | None = None, unbiased: bool = False
) -> float:
    """Squared MMD of x (N, *S) and y (M, *S) under a mixture of Gaussian kernels.

    ``k(a, b)`` is the mean of ``exp(-|a - b|^2 / (2 (w scale)^2))`` over the ``widths`` w (Gretton et al. 2012),
    the estimate >= 0, or without bias if ``unbiased``.

    Args:
        x, y: N, M >= 1, or >= 2 with ``unbiased``.
        widths: > 0, in units of ``scale``.
        scale: > 0, in data units; default :func:`median_distance` of y. Set it to compare values.
        unbiased: leave out pairs of a sample with itself.

    Raises:
        UserError: different dimensions, non-finite values, a width or scale <= 0.
    """
    a, b = check_pair(x, y, at_least=2 if unbiased else 1)
    if not widths or not all(w > 0 for w in widths):
        raise UserError(f"widths must be one or more numbers > 0, got {tuple(widths)}; {WIDTHS} is usual")
    scale = (median_distance(y) or median_distance(x) or 1.0) if scale is None else scale
    if not scale > 0:
        raise UserError(f"scale must be > 0, got {scale}; give a distance between samples")

    def kernel(d: Tensor) -> Tensor:
        return torch.stack([torch.exp(-0.5 * (d / (w * scale)).square()) for w in widths]).mean(0)

    across, own, other = (_mean(kernel, p, q) for p, q in ((a, b), (a, a), (b, b)))
    if unbiased:
        own, other = ((n * mean - 1) / (n - 1) for n, mean in ((len(a), own), (len(b), other)))
        return own + other - 2 * across
    return max(0.0, own + other - 2 * across)


def median_distance(x: Tensor) -> float:
    """Median Euclidean distance between rows of x (N, *S), N >= 2, of the first 2,048."""
    a = check_pair(x, x, at_least=2)[0][:BLOCK]
    distances = torch.pdist(a)
    median = distances.median()
    if median == 0 and distances.any():  # most rows are equal, as of rare events
        median = distances[distances > 0].median()
    return float(median)


def _mean(of: Callable[[Tensor], Tensor], a: Tensor, b: Tensor) -> float:
    """Mean of a function of the distances between all rows of a (N, D) and b (M, D)."""
    exact = "donot_use_mm_for_euclid_dist"  # the short cut by products would lose digits of small distances
    total = sum(float(of(torch.cdist(part, b, compute_mode=exact)).sum()) for part in a.split(BLOCK))
    return total / (len(a) * len(b))


def within(
    measure: Callable[[Tensor, Tensor], float],
    x: Tensor,
    y: Tensor,
    x_groups: Tensor,
    y_groups: Tensor,
    *,
    at_least: int = 2,
) -> dict[int, float]:
    """``measure(x, y)`` of the rows of x (N, *S) and y (M, *S) in each group, int64 (N,) and (M,).

    Leaves out groups with fewer than ``at_least`` rows in either set, and NULL. Raises UserError for lengths that do
    not match, and if no group is left.
    """
    for name, rows, groups in (("x", x, x_groups), ("y", y, y_groups)):
        if groups.shape != rows.shape[:1]:
            raise UserError(
                f"{name}_groups must hold {len(rows)} whole numbers, one a row of {name}, got {tuple(groups.shape)}"
            )
    shared = sorted(set(x_groups.tolist()) & set(y_groups.tolist()) - {NULL})
    parts = {group: (x[x_groups == group], y[y_groups == group]) for group in shared}
    kept = {group: pair for group, pair in parts.items() if min(map(len, pair)) >= at_least}
    if not kept:
        raise UserError(f"no group has {at_least} rows in both x and y; give more samples or a smaller at_least")
    return {group: measure(*pair) for group, pair in kept.items()}


@register("energy")
class EnergyMetric(FeatureMetric):
    """Unbiased energy distance."""

    def distance(self, x: Tensor, y: Tensor) -> float:
        return energy_distance(x, y, unbiased=True)


@register("mmd")
class MmdMetric(FeatureMetric):
    """Unbiased squared maximum mean discrepancy under Gaussian kernels of several widths."""

    def distance(self, x: Tensor, y: Tensor) -> float:
        return rbf_mmd(x, y, unbiased=True)


@register("energy_within")
class EnergyWithinMetric(Metric):
    """Mean energy distance within the categories of a condition that have 20 rows."""

    needs = frozenset({LABELS})
    rows = PAIRS

    def compare(self, x: SampleStatistics, y: SampleStatistics, context: EvalContext) -> dict[str, float]:
        found = {}
        for name in context.categories:
            sets = [s.take(kept, PAIRS) for kept in (FEATURES, CONDITION + name) for s in (x, y)]
            try:
                inside = within(lambda a, b: energy_distance(a, b, unbiased=True), *sets, at_least=20)
            except UserError:  # no category has so many rows
                continue
            found[f"energy_within_{name}"] = sum(inside.values()) / len(inside)
        return found
