"""Memorisation of training data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from advect.core.registry import register
from advect.metrics.base import EvalContext, Metric
from advect.metrics.precision_recall import nearest_neighbours
from advect.metrics.statistics import SAMPLES, SampleStatistics

PERCENTILE = 0.01


@dataclass(frozen=True)
class Memorisation:
    """Euclidean distances to the nearest training row.

    Attributes:
        sample_distances, held_out_distances: of samples (n,) and held-out rows (M,).
        threshold: 1st percentile of the held-out distances.
        share_closer: share of samples below it; about 0.01 without memorisation.
        samples, neighbours: samples (s, *S) at evenly spaced ranks, and their nearest training rows (s, k, *S).
        distances, indices: of these neighbours (s, k).
    """

    sample_distances: Tensor
    held_out_distances: Tensor
    threshold: float
    share_closer: float
    samples: Tensor
    neighbours: Tensor
    distances: Tensor
    indices: Tensor


def memorisation(
    samples: Tensor, train: Tensor, held_out: Tensor, *, shown: int = 12, k: int = 3, real: Tensor | None = None
) -> Memorisation:
    """Compare the distances of samples (n, *S) and held_out (M, *S), those ``real`` if known, to train (N, *S)."""
    near = nearest_neighbours(samples, train, k=min(k, len(train)))
    real = nearest_neighbours(held_out, train).distances[:, 0] if real is None else real
    own = near.distances[:, 0]
    threshold = float(torch.quantile(real, PERCENTILE))
    places = own.argsort()[torch.linspace(0, len(own) - 1, min(shown, len(own))).round().long()]
    return Memorisation(
        sample_distances=own,
        held_out_distances=real,
        threshold=threshold,
        share_closer=float((own < threshold).double().mean()),
        samples=samples[places],
        neighbours=train[near.indices[places]],
        distances=near.distances[places],
        indices=near.indices[places],
    )


@register("memorisation")
class MemorisationMetric(Metric):
    """Share of samples nearer to a training row than 99% of held-out rows, and the median distance.

    Distances between whole samples. The floor is that of held-out rows.
    """

    needs = frozenset({SAMPLES})
    resamples = 0

    def details(self, x: SampleStatistics, context: EvalContext) -> Memorisation:
        """All distances, and some samples with their neighbours."""
        assert context.train_samples is not None and context.held_out_samples is not None
        own = x.rows[SAMPLES]
        return memorisation(own, context.train_samples, context.held_out_samples, real=_real_distances(context))

    def compare(self, x: SampleStatistics, y: SampleStatistics, context: EvalContext) -> dict[str, float]:
        found = self.details(x, context)
        error = (found.share_closer * (1 - found.share_closer) / len(found.sample_distances)) ** 0.5
        return {
            "memorised": found.share_closer,
            "memorised_se": error,
            "nearest_training": float(found.sample_distances.median()),
        }

    def floor(self, x: SampleStatistics, y: SampleStatistics, context: EvalContext) -> dict[str, float]:
        return {"memorised": PERCENTILE, "nearest_training": float(_real_distances(context).median())}


def _real_distances(context: EvalContext) -> Tensor:
    """Distances of held-out rows to the nearest training row."""
    train, held_out = context.train_samples, context.held_out_samples
    assert train is not None and held_out is not None
    near = lambda: nearest_neighbours(held_out, train).distances[:, 0]
    return context.once("distances of held-out rows to the nearest training row", near)
