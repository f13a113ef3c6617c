"""Classes of samples: whether they are those asked for, and in which shares they occur."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.registry import register
from advect.core.types import Category
from advect.metrics.base import LABELS, PAIRS, EvalContext, Metric
from advect.metrics.statistics import CONDITION, FEATURES, SampleStatistics, subsample

Labelled = tuple[Tensor, Tensor]
"""Features (N, D) and labels (N,), negative where there is none."""


@dataclass(frozen=True)
class ProbeClassifier:
    """A support vector classifier (RBF kernel) of features; ``fitted_on`` is its number of rows."""

    classifier: Any
    fitted_on: int

    @classmethod
    def fit(
        cls, data: Labelled, *, standardise: bool = False, limit: int = PAIRS, seed: int = 0
    ) -> ProbeClassifier | None:
        """Fit to at most ``limit`` labelled rows, with ``standardise`` scaled by feature; None for one class."""
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import SVC  # takes a second to import

        x, y = labelled_rows(*data, limit, seed)
        if len(y.unique()) < 2:
            return None
        scale = StandardScaler(with_mean=standardise, with_std=standardise)
        # gamma="scale" divides by the variance over all features, so that the unit of pixels does not matter.
        classifier = make_pipeline(scale, SVC(kernel="rbf", gamma="scale", C=10.0))
        return cls(classifier.fit(x.numpy(), y.numpy()), len(y))

    def __call__(self, x: Tensor) -> Tensor:
        """The class (N,) int64 of features x (N, D)."""
        return torch.from_numpy(self.classifier.predict(x.numpy()))


def labelled_rows(x: Tensor, labels: Tensor, limit: int, seed: int) -> Labelled:
    """At most ``limit`` rows with a label, chosen by the seed, and those labels."""
    known = (labels >= 0).nonzero().flatten().cpu()
    chosen = known[subsample(len(known), limit, seed)]
    return x[chosen], labels.cpu()[chosen]


@dataclass(frozen=True)
class ClassAccuracy:
    """Share in [0, 1] of samples that a classifier of real data assigns to the class asked for.

    Attributes:
        classifier_accuracy: its accuracy on training rows, to which it was not fitted.
        by_class: name, number of samples, and share of each class asked for.
        samples, fitted_on, checked_on: numbers of samples, held-out rows and training rows.
    """

    share: float
    classifier_accuracy: float
    by_class: list[tuple[str, int, float]]
    samples: int
    fitted_on: int
    checked_on: int


def class_accuracy(
    probe: ProbeClassifier,
    samples: Labelled,
    train: Labelled,
    *,
    category: Category,
    limit: int = PAIRS,
    seed: int = 0,
) -> ClassAccuracy | None:
    """Compare the classes asked for, the labels of ``samples``, with those of ``probe``, fitted to held-out rows.

    It is checked on at most ``limit`` training rows. Rows without a label are left out; None where none is left.
    Raises UserError for other than one class a sample.
    """
    if len(samples[0]) != len(samples[1]):
        raise UserError(f"samples must have one class each, got {len(samples[1])} for {len(samples[0])} samples")
    x_check, y_check = labelled_rows(*train, limit, seed)
    x, y = labelled_rows(*samples, len(samples[0]), seed)
    if not len(y) or not len(y_check):
        return None
    right = probe(x) == y
    accuracy = float((probe(x_check) == y_check).double().mean())
    present = [int(c) for c in y.unique()]
    by_class = [(category.names[c], int((y == c).sum()), float(right[y == c].double().mean())) for c in present]
    return ClassAccuracy(float(right.double().mean()), accuracy, by_class, len(y), probe.fitted_on, len(y_check))


@dataclass(frozen=True)
class ClassShares:
    """Shares of classes x, y (K,) in two sets, float64.

    Attributes:
        distance: total variation ``sum |x - y| / 2``, in [0, 1].
        floor: its mean for two sets of these sizes of the same law.
    """

    x: Tensor
    y: Tensor
    distance: float
    floor: float


def class_shares(x: Tensor, y: Tensor, *, classes: int) -> ClassShares:
    """Compare the classes x (N,) of samples with those of data, y (M,).

    Classes are 0 .. ``classes`` - 1; rows with negative ones are left out. The floor takes errors as normal:
    ``sum sqrt(2 / pi) sqrt(p (1 - p) (1 / N + 1 / M)) / 2``. Raises UserError for other numbers and an empty set.
    """
    if classes < 1:
        raise UserError(f"classes must be at least 1, got {classes}")
    counts = [_count(v, name, classes) for name, v in (("x", x), ("y", y))]
    n, m = (float(c.sum()) for c in counts)
    p, q, both = counts[0] / n, counts[1] / m, (counts[0] + counts[1]) / (n + m)
    error = (both * (1 - both) * (1 / n + 1 / m)).sqrt()
    return ClassShares(p, q, float((p - q).abs().sum() / 2), float(error.sum() / math.sqrt(2 * math.pi)))


def _count(labels: Tensor, argument: str, classes: int) -> Tensor:
    if labels.ndim != 1 or labels.is_floating_point() or (len(labels) and int(labels.max()) >= classes):
        got = f"{tuple(labels.shape)} {labels.dtype}" + (f" up to {labels.max()}" if labels.numel() else "")
        raise UserError(f"{argument} must be (N,) whole numbers below {classes}, a class a row, got {got}")
    known = labels[labels >= 0].cpu().long()
    if not len(known):
        raise UserError(f"{argument} has no row with a class; give labels")
    return torch.bincount(known, minlength=classes).double()


def _labelled(x: SampleStatistics, name: str) -> Labelled:
    return x.take(FEATURES, PAIRS), x.take(CONDITION + name, PAIRS)


def _classifiers(context: EvalContext) -> dict[str, ProbeClassifier]:
    """A classifier of held-out rows for each categorical condition of two classes."""
    fit = lambda name: ProbeClassifier.fit(_labelled(context.held_out, name), standardise=context.standardise)
    found = context.once("classifiers", lambda: {name: fit(name) for name in context.categories})
    return {name: probe for name, probe in found.items() if probe is not None}


@register("class_shares")
class ClassSharesMetric(Metric):
    """Distance of the shares of classes from those of training data, as a classifier sees both.

    The classifier is fitted to held-out rows, so shares are always held against training rows. The floor is the
    distance by chance.
    """

    needs = frozenset({LABELS})
    rows = PAIRS

    def compare(self, x: SampleStatistics, y: SampleStatistics, context: EvalContext) -> dict[str, float]:
        return {f"class_shares_{name}": found.distance for name, found in self._shares(x, context).items()}

    def floor(self, x: SampleStatistics, y: SampleStatistics, context: EvalContext) -> dict[str, float]:
        found = self._shares(context.train, context)
        return {f"class_shares_{name}": shares.floor for name, shares in found.items()}

    def _shares(self, x: SampleStatistics, context: EvalContext) -> dict[str, ClassShares]:
        found, train = {}, context.train.take(FEATURES, PAIRS)
        for name, probe in _classifiers(context).items():
            real = context.once(f"classes of {name}", lambda probe=probe: probe(train))
            seen = real if x is context.train else probe(x.take(FEATURES, PAIRS))
            found[name] = class_shares(seen, real, classes=len(context.categories[name].names))
        return found


@register("class_accuracy")
class ClassAccuracyMetric(Metric):
    """Share of samples that show the class asked for, as a classifier of held-out rows sees it.

    The floor is its accuracy on training rows.
    """

    needs = frozenset({LABELS})
    rows = PAIRS
    better = "higher"

    def details(self, x: SampleStatistics, context: EvalContext) -> dict[str, ClassAccuracy]:
        """The accuracy for each categorical condition."""
        found = {
            name: class_accuracy(
                probe, _labelled(x, name), _labelled(context.train, name), category=context.categories[name]
            )
            for name, probe in _classifiers(context).items()
        }
        return {name: accuracy for name, accuracy in found.items() if accuracy is not None}

    def compare(self, x: SampleStatistics, y: SampleStatistics, context: EvalContext) -> dict[str, float]:
        return {f"class_accuracy_{name}": found.share for name, found in self.details(x, context).items()}

    def floor(self, x: SampleStatistics, y: SampleStatistics, context: EvalContext) -> dict[str, float]:
        found = self.details(context.train, context)
        return {f"class_accuracy_{name}": accuracy.classifier_accuracy for name, accuracy in found.items()}
