"""A classifier of real data that tells which class a sample shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from advect.evaluation.drawing import rows

Space = Callable[[Tensor], Tensor]
"""Maps samples (N, *S) to features (N, d)."""


@dataclass(frozen=True)
class Judge:
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
    ) -> Judge | None:
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
