"""Whether a sample shows the class that was asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.types import Category
from advect.evaluation.features import Features
from advect.evaluation.subsampling import rows
from advect.metrics import ClassShares, class_shares

Space = Callable[[Tensor], Tensor]
"""Maps samples (N, *S) to features (N, d)."""


@dataclass(frozen=True)
class ProbeClassifier:
    """A support vector classifier (RBF kernel) of features; ``fitted_on`` says to how many rows."""

    classifier: Any
    features: Space
    fitted_on: int

    @classmethod
    def fit(
        cls,
        data: tuple[Tensor, Tensor],
        *,
        features: Space,
        standardise: bool = False,
        limit: int = 5000,
        seed: int = 0,
    ) -> ProbeClassifier | None:
        """Fit to at most ``limit`` labelled rows of data (N, *S) and labels (N,); None for fewer than two classes.

        ``standardise`` scales each feature by itself, for vectors whose columns have units of their own.
        """
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import SVC  # takes a second to import

        x, y = labelled_rows(*data, limit, seed)
        if len(y.unique()) < 2:
            return None
        scale = StandardScaler(with_mean=standardise, with_std=standardise)
        # gamma="scale" divides by the variance over all features, so that the unit of pixels does not matter.
        classifier = make_pipeline(scale, SVC(kernel="rbf", gamma="scale", C=10.0))
        return cls(classifier.fit(features(x).numpy(), y.numpy()), features, len(y))

    def __call__(self, x: Tensor) -> Tensor:
        """The class (N,) int64 that each of x (N, *S) shows."""
        return torch.from_numpy(self.classifier.predict(self.features(x).numpy()))


def labelled_rows(x: Tensor, labels: Tensor, limit: int, seed: int) -> tuple[Tensor, Tensor]:
    """At most ``limit`` rows that have a label, chosen by the seed, and those labels."""
    known = (labels >= 0).nonzero().flatten().cpu()
    chosen = known[rows(len(known), limit, seed)]
    return x[chosen], labels.cpu()[chosen]


@dataclass(frozen=True)
class Fidelity:
    """Agreement between the class asked for and the class a classifier of real data sees.

    Attributes:
        share: the share of samples that it assigns to the class asked for, in [0, 1].
        classifier_accuracy: its share of correct answers on real training data, which it has not seen.
        by_class: for each class asked for, its name, how many samples, and their share.
        samples, fitted_on, checked_on: how many samples, held-out rows and training rows took part.
    """

    share: float
    classifier_accuracy: float
    by_class: list[tuple[str, int, float]]
    samples: int
    fitted_on: int
    checked_on: int


def measure_fidelity(
    samples: Tensor,
    asked: Tensor,
    train: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor],
    *,
    features: Features,
    category: Category,
    standardise: bool = False,
    limit: int = 5000,
    seed: int = 0,
) -> Fidelity | None:
    """Ask a :class:`ProbeClassifier`, fitted to held-out data, which class each sample shows.

    ``samples (n, *S)`` were drawn for the classes ``asked (n,)``; ``train`` and ``held_out`` are pairs of data
    (N, *S) and labels (N,), of which at most ``limit`` rows are used and rows without a label left out.
    ``standardise`` scales each feature by itself, for vectors whose columns have units of their own. Returns
    None when the held-out labels, or those asked for, do not allow it (fewer than two classes, none asked for).
    """
    if len(samples) != len(asked):
        raise UserError(f"asked must hold one class a sample, got {len(asked)} for {len(samples)} samples")
    x_check, y_check = labelled_rows(*train, limit, seed)
    x, y = labelled_rows(samples, asked, len(samples), seed)
    judge = ProbeClassifier.fit(held_out, features=features, standardise=standardise, limit=limit, seed=seed)
    if judge is None or not len(y) or not len(y_check):
        return None
    right = judge(x) == y
    accuracy = float((judge(x_check) == y_check).double().mean())
    present = [int(c) for c in y.unique()]
    by_class = [(category.names[c], int((y == c).sum()), float(right[y == c].double().mean())) for c in present]
    return Fidelity(float(right.double().mean()), accuracy, by_class, len(y), judge.fitted_on, len(y_check))


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
    labelled or not. A :class:`ProbeClassifier`, fitted to held-out data, tells; None where that has fewer than two
    classes or no training row a label. Where classes were asked for, :func:`advect.metrics.class_shares` compares
    those without a classifier.
    """
    judge = ProbeClassifier.fit(held_out, features=features, standardise=standardise, limit=limit, seed=seed)
    chosen = rows(len(train[0]), limit, seed)
    told = train[1].cpu()[chosen]
    if judge is None or not (told >= 0).any():
        return None
    seen = judge(train[0][chosen])
    accuracy = float((seen == told)[told >= 0].double().mean())
    shares = class_shares(judge(samples[rows(len(samples), limit, seed)]), seen, classes=classes)
    return SeenShares(shares, accuracy, judge.fitted_on)
