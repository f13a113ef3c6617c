"""Classifier two-sample test of tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from advect.core.errors import UserError, optional_import
from advect.core.registry import register
from advect.metrics.base import COLUMNS, EvalContext, Metric
from advect.metrics.statistics import VALUES, SampleStatistics
from advect.metrics.tables import Table, check_table, encoder, table_of, within_one

FOLDS = 3


def c2st_score(x: Table, y: Table, classifier: Callable[[], Any], *, seed: int = 0) -> tuple[float, float]:
    """Score in [0, 1] of tables x and y that ``classifier()`` tries to tell apart, and its standard error.

    ``1 - mean(max(2 AUC - 1, 0))`` over three stratified folds: 1 for rows that it cannot tell, 0 for rows that it can
    (Lopez-Paz & Oquab 2017; the detection scores of ``sdmetrics``, by which tables are compared in print). Categories
    are 0 and 1, missing numbers the mean. Raises UserError for fewer than 20 rows of a side.
    """
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline

    check_table(x, y)
    if min(len(x.values), len(y.values)) < 20:
        raise UserError(f"c2st needs 20 rows or more, got {len(x.values)} and {len(y.values)}; give more")
    rows = within_one(np.concatenate([x.values.numpy(), y.values.numpy()]), x.categorical)
    labels = np.repeat([0, 1], [len(x.values), len(y.values)])
    scores = []
    for fit, test in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(rows, labels):
        judge = make_pipeline(encoder(x.categorical), classifier()).fit(rows[fit], labels[fit])
        area = roc_auc_score(labels[test], judge.predict_proba(rows[test])[:, 1])
        scores.append(1 - max(2 * area - 1, 0))
    return float(np.mean(scores)), float(np.std(scores, ddof=1) / FOLDS**0.5)


def logistic() -> Any:
    """Logistic regression."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=1000)


def boosted_trees() -> Any:
    """XGBoost with its defaults, on one thread. Raises UserError if it is not installed."""
    return optional_import("xgboost", "metrics").XGBClassifier(n_jobs=1, random_state=0)


@register("c2st")
class C2stMetric(Metric):
    """Score of a logistic and an XGBoost classifier at telling samples from data, as in sdmetrics; 1 is best."""

    needs = frozenset({VALUES, COLUMNS})
    at_least = 20
    better = "higher"
    bounds = (0, 1)
    resamples = 0

    def compare(self, x: SampleStatistics, y: SampleStatistics, context: EvalContext) -> dict[str, float]:
        sides = [table_of(side, context) for side in (x, y)]
        n = min(len(side.values) for side in sides)
        found = {}
        for name, classifier in (("c2st_logistic", logistic), ("c2st_xgboost", boosted_trees)):
            try:
                found[name], found[f"{name}_se"] = c2st_score(sides[0].rows(n), sides[1].rows(n), classifier)
            except UserError as error:
                context.left_out[name] = str(error)
        return found
