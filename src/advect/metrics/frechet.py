"""The Frechet distance between Gaussians fitted to two sets of samples, and its limit for infinitely many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from advect.core.errors import UserError
from advect.core.random import CounterRng, Stream, stream_seed
from advect.core.registry import register
from advect.metrics.base import EvalContext, Metric
from advect.metrics.statistics import FEATURES, GaussianFit, Moments, SampleStatistics, check_samples


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Squared Frechet distance between Gaussians fitted to x (N, *S) and y (M, *S), N and M >= 2.

    The FID for Inception features (Heusel et al. 2017). In squared data units; depends on N and M. Raises
    UserError for fewer than 2 samples, different dimensions and non-finite values.
    """
    return GaussianFit.from_samples(x, argument="x").distance(GaussianFit.from_samples(y, argument="y"))


def frechet_error(x: SampleStatistics, y: SampleStatistics) -> float:
    """Standard error of the squared Frechet distance over the rows of both sets, by the infinitesimal jackknife.

    The bootstrap to first order, without its bias by repeated rows; up to 1.5 times too large for equal laws.
    """
    a, b = x.gaussian, y.gaussian
    effects = a.influence(b, x.rows[FEATURES]), b.influence(a, y.rows[FEATURES])
    return sum(float(e.var()) / s.count for e, s in zip(effects, (x, y), strict=True)) ** 0.5


@register("frechet")
class FrechetMetric(Metric):
    """Frechet distance of Gaussians fitted to the features."""

    rows = None
    resamples = 0

    def compare(self, x: SampleStatistics, y: SampleStatistics, context: EvalContext) -> dict[str, float]:
        return {"frechet": x.gaussian.distance(y.gaussian), "frechet_se": frechet_error(x, y)}


BLOCK = 4096
"""Rows converted to float64 at once."""


@dataclass(frozen=True)
class Extrapolation:
    """The line ``distance = value + slope / N`` through distances at several N.

    Attributes:
        value: intercept; may be below 0 by noise.
        slope: bias of N samples, times N.
        residual: root mean squared residual.
        sizes, distances: the points.
    """

    value: float
    slope: float
    residual: float
    sizes: tuple[int, ...]
    distances: tuple[float, ...]


def extrapolate(sizes: Sequence[int], distances: Sequence[float]) -> Extrapolation:
    """Least-squares line in 1 / N through distances at N = sizes (Chong & Forsyth 2020, sec. 3).

    Raises UserError for fewer than three different sizes, sizes below 2 and non-finite values.
    """
    if len(sizes) != len(distances) or len(set(sizes)) < 3 or min(sizes) < 2:
        raise UserError(f"sizes must be three different numbers >= 2 or more, one a distance, got {list(sizes)}")
    if not np.isfinite(distances).all():
        raise UserError("distances must be finite, got NaN or infinite ones")
    design = np.stack([np.ones(len(sizes)), 1 / np.asarray(sizes, float)], 1)
    (value, slope), *_ = np.linalg.lstsq(design, np.asarray(distances, float))
    residual = float(np.sqrt(np.mean((design @ (value, slope) - distances) ** 2)))
    return Extrapolation(float(value), float(slope), residual, tuple(sizes), tuple(map(float, distances)))


def frechet_at_infinity(
    x: Tensor, target: GaussianFit, *, points: int = 15, smallest: int | None = None, seed: int = 0
) -> Extrapolation:
    """Squared Frechet distance from x (N, *S) to ``target``, extrapolated to infinitely many samples.

    The bias is about proportional to 1 / N (Chong & Forsyth 2020): distances of random subsets at ``points`` sizes
    from ``smallest`` to N are extrapolated. The bias of the finite reference remains.

    Args:
        x: features of samples.
        target: reference in D dimensions.
        points: number of sizes, >= 3.
        smallest: smallest size, >= 2; default N / 10. Prefer more than D, below which the bias is not linear.
        seed: seed of the subsets.

    Raises:
        UserError: arguments out of range, different dimensions, non-finite values.
    """
    x = check_samples(x, "x", at_least=2)
    smallest = max(2, len(x) // 10) if smallest is None else smallest
    if points < 3:
        raise UserError(f"points must be at least 3, got {points}; 15 is usual")
    if not 2 <= smallest <= len(x) - points:
        raise UserError(
            f"smallest must be in 2 .. {len(x) - points} for {len(x)} samples and {points} points, got {smallest}; "
            "give more samples"
        )
    sizes = np.linspace(smallest, len(x), points).round().astype(int).tolist()
    distances = []
    for step, size in enumerate(sizes):
        places = CounterRng(stream_seed(seed, Stream.FID_INFINITY), step, len(x)).permutation()[:size].to(x.device)
        blocks = (Moments.from_samples(x[part]) for part in places.split(BLOCK))
        distances.append(GaussianFit.from_running(Moments.merged(blocks)).distance(target))
    return extrapolate(sizes, distances)


@register("frechet_infinity")
class FrechetInfinityMetric(Metric):
    """Frechet distance extrapolated to infinitely many samples."""

    at_least = 17
    bounds = (-math.inf, math.inf)
    resamples = 0

    def compare(self, x: SampleStatistics, y: SampleStatistics, context: EvalContext) -> dict[str, float]:
        return {"frechet_infinity": frechet_at_infinity(x.rows[FEATURES], y.gaussian).value}
