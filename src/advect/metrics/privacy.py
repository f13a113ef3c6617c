"""What samples tell of the training rows: copies, closest records, membership."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.stats import rankdata
from torch import Tensor

from advect.core.errors import UserError
from advect.core.registry import register
from advect.metrics.base import EvalContext, Metric
from advect.metrics.memorisation import Memorisation
from advect.metrics.precision_recall import nearest_neighbours
from advect.metrics.statistics import SAMPLES, SampleStatistics, subsample


@dataclass(frozen=True)
class Privacy:
    """What a set of samples tells of the training rows.

    Attributes:
        copies, held_out_copies: shares of samples and of held-out rows that equal a training row.
        closest_record: share of samples nearer to a training row than to any of as many held-out rows, ties counting
            half; 1/2 is best.
        membership_auc: area under the curve of an attack that takes a row near a sample for a training row (Chen et
            al. 2020, "GAN-leaks"); 1/2 is best, 1 tells every training row.
        closest_record_error, membership_error: standard errors.
        rows: training and held-out rows compared, as many of each.
    """

    copies: float
    held_out_copies: float
    closest_record: float
    membership_auc: float
    closest_record_error: float
    membership_error: float
    rows: int


def privacy(
    samples: Tensor, train: Tensor, held_out: Tensor, *, known: Memorisation | None = None, seed: int = 0
) -> Privacy:
    """Compare samples (n, *S) with training rows (N, *S) and held-out rows (M, *S), by Euclidean distances.

    Copies are sought among all training rows, unless distances to these are ``known``, the rest among as many of each.
    Raises UserError for sets without rows, of different shapes, or with non-finite values.
    """
    if not (len(samples) and len(train) and len(held_out)):
        raise UserError(
            f"privacy needs samples, training and held-out rows, got {len(samples)}, {len(train)} and {len(held_out)}"
        )
    m = min(len(train), len(held_out))
    members, others = (rows[subsample(len(rows), m, seed)] for rows in (train, held_out))
    near, far = (nearest_neighbours(samples, rows).distances[:, 0] for rows in (members, others))
    share = (near < far).double() + (near == far).double() / 2
    attacked = [nearest_neighbours(rows, samples).distances[:, 0] for rows in (members, others)]
    to_train = lambda rows: nearest_neighbours(rows, train).distances[:, 0]
    equal = lambda distances: float((distances == 0).double().mean())
    return Privacy(
        copies=equal(to_train(samples) if known is None else known.sample_distances),
        held_out_copies=equal(to_train(held_out) if known is None else known.held_out_distances),
        closest_record=float(share.mean()),
        membership_auc=_auc(*attacked),
        closest_record_error=float(share.std(correction=0)) / (min(len(samples), m) ** 0.5),
        membership_error=((2 * m + 1) / (12 * m * m)) ** 0.5,  # of equal laws
        rows=m,
    )


def _auc(near: Tensor, far: Tensor) -> float:
    """Share of pairs in which the first is nearer, ties counting half (Mann & Whitney 1947)."""
    ranks = rankdata(torch.cat([near, far]).cpu().numpy())[: len(near)].sum()
    return float(1 - (ranks - len(near) * (len(near) + 1) / 2) / (len(near) * len(far)))


@register("privacy")
class PrivacyMetric(Metric):
    """Copies of training rows, the share of samples nearer to these than to held-out rows, and a membership attack.

    Distances between whole samples. The floor is of held-out rows, and 1/2 for both others.
    """

    needs = frozenset({SAMPLES})
    bounds = (0, 1)
    resamples = 0

    def details(self, x: SampleStatistics, context: EvalContext, known: Memorisation | None = None) -> Privacy:
        """All numbers, with ``known`` distances to the training rows if given."""
        assert context.train_samples is not None and context.held_out_samples is not None
        return privacy(x.rows[SAMPLES], context.train_samples, context.held_out_samples, known=known)

    def compare(self, x: SampleStatistics, y: SampleStatistics, context: EvalContext) -> dict[str, float]:
        found, n = self.details(x, context), len(x.rows[SAMPLES])
        return {
            "copies": found.copies,
            "copies_se": (found.copies * (1 - found.copies) / n) ** 0.5,
            "closest_record": found.closest_record,
            "closest_record_se": found.closest_record_error,
            "membership_auc": found.membership_auc,
            "membership_auc_se": found.membership_error,
        }

    def floor(self, x: SampleStatistics, y: SampleStatistics, context: EvalContext) -> dict[str, float]:
        train, held_out = context.train_samples, context.held_out_samples
        assert train is not None and held_out is not None
        near = nearest_neighbours(held_out, train).distances[:, 0]
        return {"copies": float((near == 0).double().mean()), "closest_record": 0.5, "membership_auc": 0.5}
