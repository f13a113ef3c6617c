"""Whether classes occur among samples as often as among data, with no network of others."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from advect.evaluation.drawing import rows
from advect.evaluation.judge import Judge, Space
from advect.metrics import ClassShares, class_shares


@dataclass(frozen=True)
class SeenShares:
    """Shares of classes as a classifier sees them.

    Attributes:
        shares: among samples (x) and among training data (y), both as the classifier sees them, so that its mistakes
            are in both.
        classifier_accuracy: its share of correct answers on that training data, which it was not fitted to.
        fitted_on: the held-out rows that it was fitted to.
    """

    shares: ClassShares
    classifier_accuracy: float
    fitted_on: int


def measure_shares(
    samples: Tensor,
    train: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor],
    *,
    features: Space,
    classes: int,
    standardise: bool = False,
    limit: int = 5000,
    seed: int = 0,
) -> SeenShares | None:
    """Compare how often each class shows among samples (n, *S), drawn for no class, and among training data.

    ``train`` and ``held_out`` are pairs of data (N, *S) and labels (N,); at most ``limit`` rows of each set are used,
    labelled or not. A :class:`Judge`, fitted to held-out data, tells the classes; None where that has fewer than two
    classes or no training row a label. Where classes were asked for, :func:`advect.metrics.class_shares` compares
    those without a classifier.
    """
    judge = Judge.fit(held_out, features=features, standardise=standardise, limit=limit, seed=seed)
    chosen = rows(len(train[0]), limit, seed)
    told = train[1].cpu()[chosen]
    if judge is None or not (told >= 0).any():
        return None
    seen = judge(train[0][chosen])
    accuracy = float((seen == told)[told >= 0].double().mean())
    shares = class_shares(judge(samples[rows(len(samples), limit, seed)]), seen, classes=classes)
    return SeenShares(shares, accuracy, judge.fitted_on)
