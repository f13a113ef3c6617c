"""Energy distance and maximum mean discrepancy, also within groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.registry import register
from advect.core.types import NULL
from advect.metrics.base import LABELS, PAIRS, EvalContext, Metric
from advect.metrics.statistics import CONDITION, FEATURES, SampleStatistics, check_pair

T = TypeVar("T")

BLOCK = 2048
"""Rows whose distances to all others are held at once."""

WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Usual kernel widths, in units of the median distance."""


def energy_distance(x: Tensor, y: Tensor, *, unbiased: bool = False) -> float:
    """``2 E|X - Y| - E|X - X'| - E|Y - Y'|`` (Szekely & Rizzo 2013) of x (N, *S) and y (M, *S), in data units.

    V-statistic, >= 0; with ``unbiased`` the U-statistic (N, M >= 2). Raises UserError for different dimensions and
    non-finite values.
    """
    if unbiased:
        return energy_with_error(x, y)[0]
    a, b = check_pair(x, y)
    across, own, other = (float(_means(lambda d: d, p, q)[0].mean()) for p, q in ((a, b), (a, a), (b, b)))
    return max(0.0, 2 * across - own - other)


def energy_with_error(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Unbiased energy distance, and its standard error over the rows of both sets (:func:`_difference`)."""
    return _difference(lambda d: d, *check_pair(x, y, at_least=2))


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
    if unbiased:
        return rbf_mmd_with_error(x, y, widths=widths, scale=scale)[0]
    a, b = check_pair(x, y)
    kernel = _rbf(x, y, widths, scale)
    across, own, other = (float(_means(kernel, p, q)[0].mean()) for p, q in ((a, b), (a, a), (b, b)))
    return max(0.0, own + other - 2 * across)


def rbf_mmd_with_error(
    x: Tensor, y: Tensor, *, widths: Sequence[float] = WIDTHS, scale: float | None = None
) -> tuple[float, float]:
    """Unbiased squared MMD as :func:`rbf_mmd`, and its standard error over the rows of both sets."""
    a, b = check_pair(x, y, at_least=2)
    kernel = _rbf(x, y, widths, scale)
    return _difference(lambda d: -kernel(d), a, b)


def _rbf(x: Tensor, y: Tensor, widths: Sequence[float], scale: float | None) -> Callable[[Tensor], Tensor]:
    """Kernel of distances."""
    if not widths or not all(w > 0 for w in widths):
        raise UserError(f"widths must be one or more numbers > 0, got {tuple(widths)}; {WIDTHS} is usual")
    scale = (median_distance(y) or median_distance(x) or 1.0) if scale is None else scale
    if not scale > 0:
        raise UserError(f"scale must be > 0, got {scale}; give a distance between samples")

    return lambda d: torch.stack([torch.exp(-0.5 * (d / (w * scale)).square()) for w in widths]).mean(0)


def median_distance(x: Tensor) -> float:
    """Median Euclidean distance between rows of x (N, *S), N >= 2, of the first 2,048."""
    a = check_pair(x, x, at_least=2)[0][:BLOCK]
    distances = torch.pdist(a)
    median = distances.median()
    if median == 0 and distances.any():  # most rows are equal, as of rare events
        median = distances[distances > 0].median()
    return float(median)


def _means(of: Callable[[Tensor], Tensor], a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Means (N,) and (M,), by row of a (N, D) and of b (M, D), of a function of the distances to the other set."""
    exact = "donot_use_mm_for_euclid_dist"  # the short cut by products would lose digits of small distances
    rows, columns = [], a.new_zeros(len(b))
    for part in a.split(BLOCK):
        values = of(torch.cdist(part, b, compute_mode=exact))
        rows.append(values.mean(1))
        columns += values.sum(0)
    return torch.cat(rows), columns / len(a)


def _difference(of: Callable[[Tensor], Tensor], a: Tensor, b: Tensor) -> tuple[float, float]:
    """``2 E f(X, Y) - E f(X, X') - E f(Y, Y')`` of a (N, D) and b (M, D) without pairs of a row with itself.

    Its standard error is that of the means over rows (infinitesimal jackknife): the bootstrap to first order, up to
    1.5 times too large for equal laws.
    """
    to_b, to_a = _means(of, a, b)
    same = float(of(a.new_zeros(1, 1)))
    own, other = ((_means(of, v, v)[0] * len(v) - same) / (len(v) - 1) for v in (a, b))
    value = 2 * to_b.mean() - own.mean() - other.mean()
    effects = (2 * (to_b - own), 2 * (to_a - other))
    return float(value), sum(float(e.var()) / len(e) for e in effects) ** 0.5


def within(
    measure: Callable[[Tensor, Tensor], T],
    x: Tensor,
    y: Tensor,
    x_groups: Tensor,
    y_groups: Tensor,
    *,
    at_least: int = 2,
) -> dict[int, T]:
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
class EnergyMetric(Metric):
    """Unbiased energy distance."""

    rows = PAIRS
    bounds = (-math.inf, math.inf)
    resamples = 0

    def compare(self, x: SampleStatistics, y: SampleStatistics, context: EvalContext) -> dict[str, float]:
        value, error = energy_with_error(x.take(FEATURES, PAIRS), y.take(FEATURES, PAIRS))
        return {"energy": value, "energy_se": error}


@register("mmd")
class MmdMetric(Metric):
    """Unbiased squared maximum mean discrepancy under Gaussian kernels of several widths."""

    rows = PAIRS
    bounds = (-math.inf, math.inf)
    resamples = 0

    def compare(self, x: SampleStatistics, y: SampleStatistics, context: EvalContext) -> dict[str, float]:
        value, error = rbf_mmd_with_error(x.take(FEATURES, PAIRS), y.take(FEATURES, PAIRS))
        return {"mmd": value, "mmd_se": error}


@register("energy_within")
class EnergyWithinMetric(Metric):
    """Mean energy distance within the categories of a condition that have 20 rows."""

    needs = frozenset({LABELS})
    rows = PAIRS
    bounds = (-math.inf, math.inf)
    resamples = 0

    def compare(self, x: SampleStatistics, y: SampleStatistics, context: EvalContext) -> dict[str, float]:
        found = {}
        for name in context.categories:
            sets = [s.take(kept, PAIRS) for kept in (FEATURES, CONDITION + name) for s in (x, y)]
            try:
                inside = within(energy_with_error, *sets, at_least=20)
            except UserError:  # no category has so many rows
                continue
            values, errors = zip(*inside.values(), strict=True)
            found[f"energy_within_{name}"] = sum(values) / len(inside)
            found[f"energy_within_{name}_se"] = sum(e**2 for e in errors) ** 0.5 / len(inside)
        return found
