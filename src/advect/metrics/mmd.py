"""Distances between two sets of samples as whole distributions: energy distance and maximum mean discrepancy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.metrics.base import check_pair

BLOCK = 2048
"""Rows whose distances to all others are held at once."""

WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""The usual kernel widths, in units of the median distance."""


def energy_distance(x: Tensor, y: Tensor, *, unbiased: bool = False) -> float:
    """``2 E|X - Y| - E|X - X'| - E|Y - Y'|`` (Szekely & Rizzo 2013) of x (N, *S) and y (M, *S), Euclidean.

    Pairs of a sample with itself count (the V-statistic), so that it is >= 0, and 0 for equal sets; with ``unbiased``
    they do not (the U-statistic, N and M >= 2), so that its mean is 0 for equal laws at any N. In the data's units. In
    one dimension it is twice the square of Cramer's distance. Raises UserError for different dimensions and for values
    that are not finite.
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
    """The squared maximum mean discrepancy of x (N, *S) and y (M, *S) under a mixture of Gaussian kernels.

    ``k(a, b)`` is the mean of ``exp(-|a - b|^2 / (2 (w scale)^2))`` over the ``widths`` w. Gretton et al. (2012): the
    biased form of eq. 5, >= 0, or with ``unbiased`` that of eq. 3, of mean zero for equal laws.

    Args:
        x, y: N, M >= 1, or >= 2 with ``unbiased``.
        widths: > 0, in units of ``scale``.
        scale: > 0, in data units; by default the median distance between different rows of y, at most 2,048 of them.
            Give it where values are compared with each other.
        unbiased: leave out pairs of a sample with itself.

    Raises:
        UserError: the dimensions differ, values are not finite, or a width or the scale is not positive.
    """
    a, b = check_pair(x, y, at_least=2 if unbiased else 1)
    if not widths or not all(w > 0 for w in widths):
        raise UserError(f"widths must be one or more numbers > 0, got {tuple(widths)}; {WIDTHS} is usual")
    scale = median_distance(y) if scale is None else scale
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
    """The median Euclidean distance between different rows of x (N, *S), N >= 2, of the first 2,048."""
    a = check_pair(x, x, at_least=2)[0][:BLOCK]
    return float(torch.pdist(a).median())


def _mean(of: Callable[[Tensor], Tensor], a: Tensor, b: Tensor) -> float:
    """Mean of a function of the distances between all rows of a (N, D) and b (M, D)."""
    exact = "donot_use_mm_for_euclid_dist"  # the short cut by products would lose digits of small distances
    total = sum(float(of(torch.cdist(part, b, compute_mode=exact)).sum()) for part in a.split(BLOCK))
    return total / (len(a) * len(b))
