"""Whether a sample shows the class that was asked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from advect.core.errors import UserError
from advect.core.types import Category
from advect.evaluation.drawing import rows
from advect.evaluation.features import Features


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
    """Ask a support vector classifier (RBF kernel), fitted to held-out data, which class each sample shows.

    ``samples (n, *S)`` were drawn for the classes ``asked (n,)``; ``train`` and ``held_out`` are pairs of data
    (N, *S) and labels (N,), of which at most ``limit`` rows are used and rows without a label left out.
    ``standardise`` scales each feature by itself, for vectors whose columns have units of their own. Returns
    None when the held-out labels, or those asked for, do not allow it (fewer than two classes, none asked for).
    """
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC  # takes a second to import

    if len(samples) != len(asked):
        raise UserError(f"asked must hold one class a sample, got {len(asked)} for {len(samples)} samples")
    (x_fit, y_fit), (x_check, y_check) = (_labelled(*pair, limit, seed) for pair in (held_out, train))
    x, y = _labelled(samples, asked, len(samples), seed)
    if len(np.unique(y_fit)) < 2 or not len(y) or not len(y_check):
        return None
    scale = StandardScaler(with_mean=standardise, with_std=standardise)
    # gamma="scale" divides by the variance over all features, so that the unit of pixels does not matter.
    classifier = make_pipeline(scale, SVC(kernel="rbf", gamma="scale", C=10.0))
    classifier.fit(features(x_fit).numpy(), y_fit)
    right = classifier.predict(features(x).numpy()) == y
    accuracy = float(np.mean(classifier.predict(features(x_check).numpy()) == y_check))
    present = [int(c) for c in np.unique(y)]
    by_class = [(category.names[c], int((y == c).sum()), float(right[y == c].mean())) for c in present]
    return Fidelity(float(right.mean()), accuracy, by_class, len(y), len(y_fit), len(y_check))


def _labelled(x: Tensor, labels: Tensor, limit: int, seed: int) -> tuple[Tensor, np.ndarray]:
    """At most ``limit`` rows that have a label, and those labels."""
    known = (labels >= 0).nonzero().flatten().cpu()
    chosen = known[rows(len(known), limit, seed)]
    return x[chosen], labels.cpu()[chosen].numpy()
