"""Kernel distance with its standard error."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.random import CounterRng, Stream, stream_seed
from advect.core.registry import register
from advect.metrics.base import EvalContext, Metric
from advect.metrics.statistics import FEATURES, SampleStatistics, check_samples


@dataclass(frozen=True)
class KernelDistance:
    """Squared maximum mean discrepancy with its uncertainty.

    Attributes:
        value: mean over subsets; unbiased, so possibly below 0.
        standard_error: from the spread between disjoint subsets.
        subsets, size: number of subsets, and rows of each set in one.
    """

    value: float
    standard_error: float
    subsets: int
    size: int


def kernel_distance(
    x: Tensor,
    y: Tensor,
    *,
    size: int | None = None,
    degree: int = 3,
    gamma: float | None = None,
    coef0: float = 1.0,
    seed: int = 0,
) -> KernelDistance:
    """Unbiased squared MMD of x (N, *S) and y (M, *S) under ``k(a, b) = (gamma a.b + coef0)^degree``.

    The KID for Inception features (Binkowski et al. 2018, sec. 4), with expectation independent of N and M. Averages
    disjoint random subsets (Gretton et al. 2012), whose spread gives the standard error.

    Args:
        x, y: N, M >= 4.
        size: rows of each set in a subset, 2 to half of the smaller set; default: ten subsets, of at most 1,000.
        degree: >= 1.
        gamma: > 0; default 1 / D.
        coef0: >= 0.
        seed: seed of the shuffles.

    Raises:
        UserError: too few samples, different dimensions, non-finite values, arguments out of range.
    """
    x, y = check_samples(x, "x", at_least=4), check_samples(y, "y", at_least=4)
    if x.shape[1] != y.shape[1]:
        raise UserError(f"x and y must have the same features, got {x.shape[1]} and {y.shape[1]}; compare one shape")
    fewest = min(len(x), len(y))
    size = max(2, min(1000, fewest // 10)) if size is None else size
    if not 2 <= size <= fewest // 2:
        raise UserError(
            f"size must be in 2 .. {fewest // 2}, half of the smaller set, for a standard error, got {size}; "
            "give more samples or smaller subsets"
        )
    gamma = 1 / x.shape[1] if gamma is None else gamma
    if degree < 1 or not gamma > 0 or not coef0 >= 0:
        raise UserError(
            f"degree must be >= 1, gamma > 0 and coef0 >= 0, got {degree}, {gamma} and {coef0}; "
            "degree 3, gamma 1 / D and coef0 1 are usual"
        )
    count = fewest // size
    order = [
        CounterRng(stream_seed(seed, Stream.KID), step, len(v)).permutation().to(v.device)
        for step, v in enumerate((x, y))
    ]

    def kernel(p: Tensor, q: Tensor) -> Tensor:
        return (gamma * (p @ q.T) + coef0) ** degree

    values = torch.zeros(count, dtype=torch.float64)
    for i in range(count):
        p, q = (v[o[i * size : (i + 1) * size]].double() for v, o in zip((x, y), order, strict=True))
        q = q.to(p)
        values[i] = _between(kernel(p, p), kernel(q, q), kernel(p, q))
    return KernelDistance(float(values.mean()), float(values.std()) / count**0.5, count, size)


def _between(own: Tensor, other: Tensor, across: Tensor) -> Tensor:
    """Unbiased squared MMD from kernel matrices (n, n)."""
    n = len(own)
    pairs = own.sum() - own.trace() + other.sum() - other.trace()
    return pairs / (n * (n - 1)) - 2 * across.mean()


@register("kernel")
class KernelMetric(Metric):
    """Unbiased kernel distance, and its standard error."""

    at_least = 4
    bounds = (-math.inf, math.inf)
    resamples = 0

    def compare(self, x: SampleStatistics, y: SampleStatistics, context: EvalContext) -> dict[str, float]:
        found = kernel_distance(x.rows[FEATURES], y.rows[FEATURES])
        return {"kernel": found.value, "kernel_se": found.standard_error}
