"""Machine-learning efficacy of tables: learned from samples, tested on data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import rankdata

from advect.core.errors import UserError, did_you_mean
from advect.core.random import Stream, stream_seed
from advect.core.registry import register
from advect.metrics.base import COLUMNS, EvalContext, Metric
from advect.metrics.statistics import VALUES, SampleStatistics
from advect.metrics.tables import Table, check_table, table_of

CATEGORIES = 255
"""Most categories that scikit-learn's trees take as such; more are ordered by their codes."""

BOOTSTRAPS = 25


@dataclass(frozen=True)
class Predictions:
    """Predictions of a column of real rows by what samples taught.

    Attributes:
        truth: values (n,), of a category the number of its class.
        scores: predicted values (n,), or of a category probabilities (n, classes).
    """

    truth: np.ndarray
    scores: np.ndarray

    def numbers(self, rows: np.ndarray | None = None) -> dict[str, float]:
        """``auc`` and ``f1``, means over the classes that occur, or ``r2``; without those that rows do not define."""
        truth, scores = (self.truth, self.scores) if rows is None else (self.truth[rows], self.scores[rows])
        if scores.ndim == 1:
            spread = np.square(truth - truth.mean()).sum()
            return {"r2": float(1 - np.square(truth - scores).sum() / spread)} if spread > 0 else {}
        said, there = scores.argmax(1), [k for k in np.unique(truth) if (truth != k).any()]
        areas = [_auc(scores[:, k], truth == k) for k in there]
        right = [(2 * ((said == k) & (truth == k)).sum(), (said == k).sum() + (truth == k).sum()) for k in there]
        return {"auc": float(np.mean(areas)), "f1": float(np.mean([a / b for a, b in right]))} if there else {}


def predict_column(x: Table, y: Table, target: int, *, seed: int = 0) -> Predictions:
    """Predictions of column ``target`` of rows y by gradient-boosted trees fitted to rows x.

    "Train on synthetic, test on real" (Esteban, Hyland & Raetsch 2017) with scikit-learn's histogram trees; classes
    that x lacks get probability 0, so that x of one class predicts it always. Rows without the target are left out.
    Raises UserError unless x has 10 rows with it, and y has one.
    """
    check_table(x, y)
    sides = [side.values[~side.values[:, target].isnan()].numpy() for side in (x, y)]
    name = repr(x.names[target]) if x.names else f"number {target}"
    if min(len(sides[0]) - 9, len(sides[1])) < 1:
        raise UserError(f"column {name} has {len(sides[0])} and {len(sides[1])} values; give more rows")
    categorical = [*x.categorical[:target], *x.categorical[target + 1 :]]
    rest = [np.delete(side, target, 1) for side in sides]
    fit, test = _features(rest[0], rest[1], categorical)
    known = [side[:, target] for side in sides]
    if not x.categorical[target]:
        scale = max(np.abs(known[0]).max(), np.finfo(float).tiny)  # squares of 1e200 overflow
        model = _trees("Regressor", fit, categorical, seed).fit(fit, known[0] / scale)
        return Predictions(known[1] / scale, model.predict(test))
    classes, codes = np.unique(np.concatenate(known), return_inverse=True)
    taught, truth = codes[: len(known[0])], codes[len(known[0]) :]
    scores = np.zeros((len(truth), len(classes)))
    if (taught == taught[0]).all():
        scores[:, taught[0]] = 1
    else:
        model = _trees("Classifier", fit, categorical, seed).fit(fit, taught)
        scores[:, model.classes_] = model.predict_proba(test)
    return Predictions(truth, scores)


def _features(a: np.ndarray, b: np.ndarray, categorical: list[bool]) -> tuple[np.ndarray, np.ndarray]:
    """Both with categories as codes 0, 1, ... of all that occur."""
    both = np.concatenate([a, b])
    for k in np.flatnonzero(categorical):
        known = ~np.isnan(both[:, k])
        both[known, k] = np.unique(both[known, k], return_inverse=True)[1]
    return both[: len(a)], both[len(a) :]


def _trees(kind: str, rows: np.ndarray, categorical: list[bool], seed: int):
    from sklearn import ensemble  # takes a second to import

    few = [bool(c) and not (rows[:, k] >= CATEGORIES).any() for k, c in enumerate(categorical)]
    model = getattr(ensemble, f"HistGradientBoosting{kind}")
    return model(categorical_features=np.array(few, bool), early_stopping=False, random_state=seed)


def _auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the curve by ranks, ties shared (Mann & Whitney 1947); both kinds occur."""
    count = positive.sum()
    ranks = rankdata(scores)[positive].sum()
    return float((ranks - count * (count + 1) / 2) / (count * (len(scores) - count)))


def target_column(context: EvalContext, names: list[str], categorical: list[bool]) -> int:
    """Number of the column to predict: the context's target, else the last condition, category or column.

    Raises UserError for a target that is no column.
    """
    if context.target is not None:
        if context.target not in names:
            raise UserError(f"--target {context.target} is no column{did_you_mean(context.target, names)}")
        return names.index(context.target)
    if context.categories:
        return len(names) - 1
    return max((k for k, category in enumerate(categorical) if category), default=len(names) - 1)


@register("ml_efficacy")
class MlEfficacyMetric(Metric):
    """AUC and F1, or R^2, of predicting --target in data, learned from samples; the floor learns from data."""

    needs = frozenset({VALUES, COLUMNS})
    at_least = 20
    better = "higher"
    bounds = (0, 1)

    resamples = 0

    def compare(self, x: SampleStatistics, y: SampleStatistics, context: EvalContext) -> dict[str, float]:
        sides = table_of(x, context), table_of(y, context)
        target = target_column(context, list(sides[0].names), list(sides[0].categorical))
        found = predict_column(sides[0], sides[1], target)
        values = found.numbers() | {f"{name}_se": error for name, error in self._errors(found).items()}
        return {f"ml_efficacy_{name}": value for name, value in values.items()}

    def _errors(self, found: Predictions) -> dict[str, float]:
        """Standard errors over the rows that are predicted, by the bootstrap; those of learning are not in it."""
        rng = torch.Generator().manual_seed(stream_seed(0, Stream.BOOTSTRAP) >> 1)
        n, drawn = len(found.truth), dict[str, list[float]]()
        for _ in range(BOOTSTRAPS):
            for name, value in found.numbers(torch.randint(n, (n,), generator=rng).numpy()).items():
                drawn.setdefault(name, []).append(value)
        return {name: float(np.std(v, ddof=1)) for name, v in drawn.items() if len(v) > 1}
