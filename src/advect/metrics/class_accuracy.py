"""Classes of samples: agreement with the condition, and shares."""

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
"""Features (N, D) and labels (N,), negative if missing."""


SKILL = 0.5
"""Least skill of a classifier that judges: 0 is always the most frequent class, 1 all real rows right."""

FOLDS = 3

FEW = 500
"""Labelled held-out rows below which training rows help to fit a classifier."""


@dataclass(frozen=True)
class ProbeClassifier:
    """Support vector classifier (RBF kernel) of features, fitted on ``fitted_on`` rows.

    Attributes:
        accuracy: on these rows, each by a classifier of the other folds.
        majority: share of the most frequent class.
    """

    classifier: Any
    fitted_on: int
    accuracy: float
    majority: float

    @classmethod
    def fit(
        cls, data: Labelled, *, standardise: bool = False, limit: int = PAIRS, seed: int = 0
    ) -> ProbeClassifier | None:
        """Fit to at most ``limit`` labelled rows, scaled by feature if ``standardise``; None for a single class."""
        from sklearn.model_selection import KFold
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import SVC  # takes a second to import

        x, y = labelled_rows(*data, limit, seed)
        if len(y.unique()) < 2 or len(y) < 2 * FOLDS:
            return None
        scale = StandardScaler(with_mean=standardise, with_std=standardise)
        # gamma="scale" divides by the variance over all features, so that the unit of pixels does not matter.
        classifier = make_pipeline(scale, SVC(kernel="rbf", gamma="scale", C=10.0))
        folds = [(a, b) for a, b in KFold(FOLDS, shuffle=True, random_state=0).split(x) if len(y[a].unique()) > 1]
        right = [classifier.fit(x[a].numpy(), y[a].numpy()).predict(x[b].numpy()) == y[b].numpy() for a, b in folds]
        accuracy = sum(int(r.sum()) for r in right) / len(y)
        return cls(classifier.fit(x.numpy(), y.numpy()), len(y), accuracy, float(y.bincount().max()) / len(y))

    @classmethod
    def of_data(cls, held_out: Labelled, train: Labelled | None, **options: Any) -> ProbeClassifier | None:
        """:meth:`fit` to held-out rows, and to ``train`` as well, if given, where held-out rows are few."""
        if train is not None and int((held_out[1] >= 0).sum()) < FEW:
            held_out = (torch.cat([held_out[0], train[0]]), torch.cat([held_out[1], train[1]]))
        return cls.fit(held_out, **options)

    @property
    def mistrust(self) -> str:
        """Why it cannot judge samples, or nothing."""
        if self.accuracy - self.majority >= SKILL * (1 - self.majority):
            return ""
        return (
            f"the classifier is right on {self.accuracy:.0%} of real rows of other folds, and the most frequent class"
            f" is {self.majority:.0%}: it cannot judge"
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Class (N,) int64 of features x (N, D)."""
        return torch.from_numpy(self.classifier.predict(x.numpy()))


def labelled_rows(x: Tensor, labels: Tensor, limit: int, seed: int) -> Labelled:
    """At most ``limit`` random rows with a label, and their labels."""
    known = (labels >= 0).nonzero().flatten().cpu()
    chosen = known[subsample(len(known), limit, seed)]
    return x[chosen], labels.cpu()[chosen]


@dataclass(frozen=True)
class ClassAccuracy:
    """Share in [0, 1] of samples that a classifier of real data assigns to their condition.

    Attributes:
        classifier_accuracy: accuracy of the classifier on real rows, not used to fit it.
        by_class: name, number of samples and share of each class.
        samples, fitted_on: numbers of samples and of real rows.
    """

    share: float
    classifier_accuracy: float
    by_class: list[tuple[str, int, float]]
    samples: int
    fitted_on: int


def class_accuracy(
    probe: ProbeClassifier,
    samples: Labelled,
    *,
    category: Category,
    seed: int = 0,
) -> ClassAccuracy | None:
    """Accuracy of the labels of ``samples`` under ``probe``, a classifier fitted to real rows.

    Unlabelled rows are left out; None if no row is left. Raises UserError unless there is one class a sample.
    """
    if len(samples[0]) != len(samples[1]):
        raise UserError(f"samples must have one class each, got {len(samples[1])} for {len(samples[0])} samples")
    x, y = labelled_rows(*samples, len(samples[0]), seed)
    if not len(y):
        return None
    right = probe(x) == y
    present = [int(c) for c in y.unique()]
    by_class = [(category.names[c], int((y == c).sum()), float(right[y == c].double().mean())) for c in present]
    return ClassAccuracy(float(right.double().mean()), probe.accuracy, by_class, len(y), probe.fitted_on)


@dataclass(frozen=True)
class ClassShares:
    """Shares of classes x, y (K,) in two sets, float64.

    Attributes:
        distance: total variation ``sum |x - y| / 2``, in [0, 1].
        floor: its mean for two sets of these sizes from one law.
        error: standard error of the distance.
    """

    x: Tensor
    y: Tensor
    distance: float
    floor: float
    error: float


def class_shares(x: Tensor, y: Tensor, *, classes: int) -> ClassShares:
    """Compare the classes x (N,) of samples with y (M,) of data, integers below ``classes``; negative ones are left
    out.

    The floor is ``sum sqrt(2 / pi) sqrt(p (1 - p) (1 / N + 1 / M)) / 2``, for normal errors. Raises UserError for
    other labels and an empty set.
    """
    if classes < 1:
        raise UserError(f"classes must be at least 1, got {classes}")
    counts = [_count(v, name, classes) for name, v in (("x", x), ("y", y))]
    n, m = (float(c.sum()) for c in counts)
    p, q, both = counts[0] / n, counts[1] / m, (counts[0] + counts[1]) / (n + m)
    error = (both * (1 - both) * (1 / n + 1 / m)).sqrt()
    side = (p - q).sign() / 2  # the distance is the difference of this one's means
    spread = [float((side**2 @ share - (side @ share) ** 2) / count) for share, count in ((p, n), (q, m))]
    floor = float(error.sum() / math.sqrt(2 * math.pi))
    return ClassShares(p, q, float((p - q).abs().sum() / 2), floor, sum(spread) ** 0.5)


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


def _classifiers(context: EvalContext, metric: str) -> dict[str, ProbeClassifier]:
    """Classifiers of real rows that can judge, by condition; notes why others are left out of ``metric``."""

    def fit(name: str) -> ProbeClassifier | None:
        train = None if context.labels_seen else _labelled(context.train, name)
        return ProbeClassifier.of_data(_labelled(context.held_out, name), train, standardise=context.standardise)

    found = context.once("classifiers", lambda: {name: fit(name) for name in context.categories})
    for name, probe in found.items():
        why = "the rows have too few classes, or are too few, to fit a classifier" if probe is None else probe.mistrust
        if why:
            context.left_out[f"{metric}_{name}"] = why
    return {name: probe for name, probe in found.items() if probe is not None and not probe.mistrust}


@register("class_shares")
class ClassSharesMetric(Metric):
    """Distance between the class shares of samples and training data, under a classifier of real rows.

    The floor is the distance expected by chance.
    """

    needs = frozenset({LABELS})
    rows = PAIRS
    bounds = (0, 1)
    resamples = 0

    def compare(self, x: SampleStatistics, y: SampleStatistics, context: EvalContext) -> dict[str, float]:
        values = {}
        for name, found in self._shares(x, context).items():
            values |= {f"class_shares_{name}": found.distance, f"class_shares_{name}_se": found.error}
        return values

    def floor(self, x: SampleStatistics, y: SampleStatistics, context: EvalContext) -> dict[str, float]:
        found = self._shares(context.train, context)
        return {f"class_shares_{name}": shares.floor for name, shares in found.items()}

    def _shares(self, x: SampleStatistics, context: EvalContext) -> dict[str, ClassShares]:
        found, train = {}, context.train.take(FEATURES, PAIRS)
        for name, probe in _classifiers(context, "class_shares").items():
            real = context.once(f"classes of {name}", lambda probe=probe: probe(train))
            seen = real if x is context.train else probe(x.take(FEATURES, PAIRS))
            found[name] = class_shares(seen, real, classes=len(context.categories[name].names))
        return found


@register("class_accuracy")
class ClassAccuracyMetric(Metric):
    """Share of samples whose class, under a classifier of real rows, matches their condition.

    The classifier is fitted to held-out rows, and where these are few to training rows as well. The floor is its
    accuracy on real rows that it was not fitted to.
    """

    needs = frozenset({LABELS})
    rows = PAIRS
    bounds = (0, 1)
    better = "higher"
    resamples = 0

    def details(self, x: SampleStatistics, context: EvalContext) -> dict[str, ClassAccuracy]:
        """Accuracy for each categorical condition."""
        found = {
            name: class_accuracy(probe, _labelled(x, name), category=context.categories[name])
            for name, probe in _classifiers(context, "class_accuracy").items()
        }
        return {name: accuracy for name, accuracy in found.items() if accuracy is not None}

    def compare(self, x: SampleStatistics, y: SampleStatistics, context: EvalContext) -> dict[str, float]:
        values = {}
        for name, found in self.details(x, context).items():
            values |= {f"class_accuracy_{name}": found.share}
            values |= {f"class_accuracy_{name}_se": _binomial(found.share, found.samples)}
        return values

    def floor(self, x: SampleStatistics, y: SampleStatistics, context: EvalContext) -> dict[str, float]:
        values = {}
        for name, probe in _classifiers(context, "class_accuracy").items():
            values |= {f"class_accuracy_{name}": probe.accuracy}
            values |= {f"class_accuracy_{name}_se": _binomial(probe.accuracy, probe.fitted_on)}
        return values


def _binomial(share: float, rows: int) -> float:
    """Standard error of a share."""
    return (share * (1 - share) / rows) ** 0.5
