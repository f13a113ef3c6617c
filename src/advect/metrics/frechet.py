"""Frechet distance between Gaussians fitted to two sets of samples."""

from __future__ import annotations

from torch import Tensor

from advect.core.registry import register
from advect.metrics.base import EvalContext, Metric
from advect.metrics.statistics import GaussianFit, SampleStatistics


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Squared Frechet distance between Gaussians fitted to x (N, *S) and y (M, *S), N and M >= 2.

    The FID for Inception features (Heusel et al. 2017, eq. 6). In squared data units; depends on N and M. Raises
    UserError for fewer than 2 samples, different dimensions and non-finite values.
    """
    return GaussianFit.from_samples(x, argument="x").distance(GaussianFit.from_samples(y, argument="y"))


@register("frechet")
class FrechetMetric(Metric):
    """Frechet distance of Gaussians fitted to the features."""

    rows = None

    def compare(self, x: SampleStatistics, y: SampleStatistics, context: EvalContext) -> dict[str, float]:
        return {"frechet": x.gaussian.distance(y.gaussian)}
