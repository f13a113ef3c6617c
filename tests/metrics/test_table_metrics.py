"""Metrics of tables against sdmetrics, closed forms, and at their edges."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import f1_score, r2_score, roc_auc_score
from torch import Tensor

from advect.core.errors import UserError
from advect.core.registry import get
from advect.core.types import Category
from advect.metrics import Predictions, Table, c2st_score, column_pair_trends, column_shapes, predict_column
from advect.metrics.base import EvalContext
from advect.metrics.c2st import boosted_trees, logistic
from advect.metrics.statistics import SampleStatistics

NAN = float("nan")
KINDS = [False, False, True, True]
NAMES = ["a", "b", "kind", "other"]
METADATA = {
    "columns": {
        "a": {"sdtype": "numerical"},
        "b": {"sdtype": "numerical"},
        "kind": {"sdtype": "categorical"},
        "other": {"sdtype": "categorical"},
    }
}


def mixed(n: int, seed: int, shift: float = 0.0, holes: float = 0.1) -> Table:
    """Two numbers and two categories, dependent, with missing values."""
    rng = np.random.default_rng(seed)
    a = rng.normal(shift, 1, n)
    b = np.round(a + rng.normal(size=n), 1)
    kind = np.digitize(a + rng.normal(size=n), [-1, 0.5]).astype(float)
    other = np.where(rng.random(n) < 0.6, kind, rng.integers(0, 4, n))
    b[rng.random(n) < holes] = NAN
    kind[rng.random(n) < holes] = NAN
    return Table(torch.from_numpy(np.stack([a, b, kind, other], 1)), KINDS, NAMES)


def frame(x: Table) -> pd.DataFrame:
    found = pd.DataFrame(x.values.numpy(), columns=NAMES)
    for name in ("kind", "other"):
        found[name] = found[name].map(lambda v: None if math.isnan(v) else f"v{v:g}").astype(object)
    return found


def table(rows: list[list[float]], categorical: list[bool] | None = None) -> Table:
    return Table(torch.tensor(rows, dtype=torch.float64), categorical or [False] * len(rows[0]))


def properties() -> tuple[Any, Any]:
    from sdmetrics.reports.single_table._properties import ColumnPairTrends, ColumnShapes

    return ColumnShapes(), ColumnPairTrends()


def test_shapes_and_trends_are_the_numbers_of_sdmetrics() -> None:
    x, y = mixed(700, 0, 0.3), mixed(500, 1)
    shapes, trends = properties()
    assert float(column_shapes(x, y).mean()) == pytest.approx(shapes.get_score(frame(y), frame(x), METADATA), abs=1e-6)
    assert shapes.details["Score"].to_list() == pytest.approx(column_shapes(x, y).tolist(), abs=1e-6)
    theirs = trends.get_score(frame(y), frame(x), METADATA)
    ours = column_pair_trends(x, y)
    i, j = np.triu_indices(4, 1)
    assert trends.details["Score"].to_list() == pytest.approx(ours[i, j].tolist(), abs=1e-9)
    assert float(ours.nanmean()) == pytest.approx(theirs, abs=1e-9)


def test_constant_empty_and_huge_columns_are_nan_or_right() -> None:
    x = table([[1.0, NAN, 1e308], [1, NAN, -1e308], [1, NAN, 0]])
    assert column_shapes(x, x).isnan().tolist() == [False, True, False]
    found = column_pair_trends(x, x)
    assert found.isnan().all()  # a constant has no correlation, nor has what is missing
    huge = table([[1e300, 1.0], [2e300, 2], [3e300, 2.5]])
    turned = table([[1e300, -1.0], [2e300, -2], [3e300, -2.5]])
    r = np.corrcoef([1, 2, 3], [1, 2, 2.5])[0, 1]
    assert float(column_pair_trends(huge, turned)[0, 1]) == pytest.approx(1 - r)
    beside = table([[0.0, 1e308], [1, -1e308], [0, 0]], [True, False])
    assert float(column_pair_trends(beside, beside)[0, 1]) == 1
    with pytest.raises(UserError, match="same columns"):
        column_shapes(x, Table(torch.ones(3, 3), [True, False, False]))
    with pytest.raises(UserError, match="infinite in column 1"):
        Table(torch.tensor([[0.0, math.inf]]), [False, False])


def test_the_logistic_score_is_that_of_sdmetrics_up_to_its_folds() -> None:
    from sdmetrics.single_table import LogisticDetection

    for shift in (0.0, 0.7):
        x, y = mixed(1500, 2, shift, holes=0), mixed(1500, 3, holes=0)
        theirs = np.mean([LogisticDetection.compute(frame(y), frame(x)) for _ in range(3)])
        ours, error = c2st_score(x, y, logistic)
        assert ours == pytest.approx(theirs, abs=0.03) and 0 < error < 0.05
    assert ours < 0.8


def test_trees_see_what_lines_do_not() -> None:
    pytest.importorskip("xgboost")
    rng = np.random.default_rng(0)
    line = rng.normal(size=(600, 1))
    x = Table(torch.from_numpy(np.concatenate([line, line * rng.choice([-1, 1], (600, 1))], 1)), [False] * 2)
    y = Table(torch.from_numpy(rng.normal(size=(600, 2))), [False] * 2)
    assert c2st_score(x, y, logistic)[0] > 0.8 and c2st_score(x, y, boosted_trees)[0] < 0.2


def test_codes_and_numbers_of_any_size_are_taken_by_the_test() -> None:
    x = mixed(60, 4)
    odd = x.values.clone()
    odd[:, 0] *= 1e300
    odd[0, 0], odd[:, 1] = 1e308, NAN
    odd[:, 3] = torch.arange(60.0)  # each its own category
    huge = Table(odd, KINDS, NAMES)
    for classifier in (logistic, boosted_trees):
        assert 0 <= c2st_score(huge, huge.rows(30), classifier)[0] <= 1
    with pytest.raises(UserError, match="20 rows or more, got 60 and 10"):
        c2st_score(x, x.rows(10), logistic)


def test_predictions_of_a_rule_are_right_and_their_numbers_those_of_scikit_learn() -> None:
    x, y = mixed(900, 5, holes=0), mixed(400, 6, holes=0)
    for target in (3, 0):
        found = predict_column(x, y, target)
        numbers = found.numbers()
        if target == 3:
            said = found.scores.argmax(1)
            area = roc_auc_score(found.truth, found.scores, multi_class="ovr", average="macro")
            assert numbers == pytest.approx({"auc": area, "f1": f1_score(found.truth, said, average="macro")})
            assert numbers["auc"] > 0.65
        else:
            assert numbers == pytest.approx({"r2": r2_score(found.truth, found.scores)}) and numbers["r2"] > 0.5


def test_too_few_rows_are_refused_and_classes_never_seen_count_as_wrong() -> None:
    x, y = mixed(100, 7), mixed(50, 8)
    one = Table(torch.cat([x.values[:, :3], torch.ones(100, 1)], 1), KINDS, NAMES)
    assert predict_column(one, y, 3).numbers()["auc"] == 0.5  # the one class always: chance
    with pytest.raises(UserError, match="column 'b' has 5 and"):
        predict_column(Table(x.values[~x.values[:, 1].isnan()][:5], KINDS, NAMES), y, 1)
    two = Table(x.values[x.values[:, 3] < 2], KINDS, NAMES)
    found = predict_column(two, y, 3)
    assert (found.scores[:, 2:] == 0).all() and found.scores.shape[1] == 4
    assert Predictions(np.zeros(3), np.ones((3, 1))).numbers() == {}  # one class, nothing to tell apart


def statistics(x: Table, **more: Tensor) -> SampleStatistics:
    parts = {"features": x.values[:, :1].float(), "values": x.values, **more}
    return SampleStatistics.from_parts([parts], len(x.values))


def test_registered_metrics_take_conditions_as_columns_and_a_target_by_name() -> None:
    labels = lambda x: (x.values[:, 0] > 0).long()
    sides = [mixed(n, seed, holes=0) for n, seed in ((300, 9), (200, 10))]
    x, y = (statistics(t, **{"cond.label": labels(t)}) for t in sides)
    about: dict[str, Any] = {
        "categories": {"label": Category(("n", "y"), (0.5, 0.5))},
        "categorical": KINDS,
        "column_names": NAMES,
    }
    context = EvalContext(x, y, **about)
    found = get("metric", "ml_efficacy")().compare(x, y, context)
    assert found["ml_efficacy_auc"] == pytest.approx(1, abs=0.02)  # the label is a function of the first column
    assert 0 <= found["ml_efficacy_auc_se"] < 0.05
    assert get("metric", "ml_efficacy")().compare(x, y, EvalContext(x, y, target="a", **about))["ml_efficacy_r2"] > 0.5
    for name in ("column_shapes", "column_pair_trends"):
        metric = get("metric", name)()
        value = metric.compare(x, y, context)[name]
        assert 0.8 < value < 1 and metric.compare(x, x, context)[name] == pytest.approx(1)
    scores = get("metric", "c2st")().compare(x, y, context)
    assert scores["c2st_logistic"] > 0.7 and set(scores) >= {"c2st_logistic_se", "c2st_xgboost"}
