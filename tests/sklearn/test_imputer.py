from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

from advect import FlowImputer, FlowModel, UserError

RHO = 0.9


def small(**arguments: Any) -> FlowImputer:
    """An imputer that trains in a fraction of a second."""
    usual = {"steps": 20, "hidden": 16, "sample_steps": 3, "draws": 2, "early_stopping": False, "random_state": 0}
    return FlowImputer(**{**usual, **arguments})


def correlated(n: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Two columns of correlation 0.9 on other scales, and the same with a share of NaN."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(n, 2)) @ np.linalg.cholesky([[1, RHO], [RHO, 1]]).T
    x = z * [2.0, 0.01] + [100.0, -3.0]
    holes = rng.random(x.shape) < share
    holes[holes.all(1), 0] = False
    return x, np.where(holes, np.nan, x)


def frame() -> pd.DataFrame:
    rng = np.random.default_rng(1)
    kind = rng.choice(["red", "blue"], 200)
    x = pd.DataFrame({"kind": kind, "size": np.where(kind == "red", 1.5, -1.5) + 0.25 * rng.integers(0, 3, 200)})
    x["count"] = rng.integers(3, 9, 200)
    x["day"] = np.datetime64("2024-01-01") + rng.integers(0, 300, 200).astype("m8[D]")
    holes = rng.random(x.shape) < 0.2
    return x.mask(pd.DataFrame(holes, columns=x.columns)).astype({"count": "Int64"})


@parametrize_with_checks([small()])
def test_it_keeps_the_rules_of_scikit_learn(estimator: FlowImputer, check: Any) -> None:
    check(estimator)


def test_draws_follow_the_conditional_law_learned_from_rows_with_holes() -> None:
    _, known = correlated(1500, 0.2)
    imputer = FlowImputer(steps=1200, hidden=64, sample_steps=20, random_state=0).fit(known)
    ask = np.array([[104.0, np.nan], [np.nan, -3.01]])
    first, second = (np.stack(imputer.sample(ask, 800))[:, row, column] for row, column in ((0, 1), (1, 0)))
    width = (1 - RHO**2) ** 0.5
    assert (first.mean() + 3) / 0.01 == pytest.approx(2 * RHO, abs=0.15)
    assert (second.mean() - 100) / 2 == pytest.approx(-RHO, abs=0.15)
    assert first.std() / 0.01 == pytest.approx(width, abs=0.1)
    assert second.std() / 2 == pytest.approx(width, abs=0.1)
    np.testing.assert_allclose(imputer.transform(ask)[0, 1], -3 + 0.018, atol=0.004)


def test_what_is_there_stays_bit_for_bit_and_nothing_is_left_missing() -> None:
    _, known = correlated(60, 0.3)
    imputer = small().fit(known)
    for filled in (imputer.transform(known), *imputer.sample(known, 3)):
        there = ~np.isnan(known)
        assert np.array_equal(filled[there], known[there]) and np.isfinite(filled).all()
    whole = np.nan_to_num(known, nan=1.0)
    assert np.array_equal(imputer.transform(whole), whole)


def test_a_row_of_which_nothing_is_known_is_drawn_whole() -> None:
    _, known = correlated(60, 0.3)
    filled = small().fit(known).sample(np.array([[np.nan, np.nan]]), 2)
    assert np.isfinite(filled[0]).all() and not np.array_equal(*filled)


def test_few_rows_are_drawn_by_flows_of_folds_whatever_each_is_asked() -> None:
    _, known = correlated(60, 0.3)
    model = small(early_stopping=True).fit(known).model_
    assert len(model._flows) > 1
    given = np.array([[np.nan, np.nan]] * 4 + [[100.0, np.nan]] * 4 + [[100.0, -3.0]] * 4)
    drawn = model.sample(12, given=given)
    assert np.isfinite(drawn).all() and np.array_equal(drawn[8:], given[8:]) and (drawn[4:, 0] == 100).all()


def test_frames_keep_their_types_and_what_is_there() -> None:
    x = frame()
    before, imputer = x.copy(), small(draws=3)
    filled = imputer.fit_transform(x)
    pd.testing.assert_frame_equal(x, before)
    for found in (filled, *imputer.sample(x, 2)):
        assert list(found.columns) == list(x.columns) and found.index.equals(x.index)
        assert not found.isna().any(axis=None)
        assert set(found["kind"]) == {"red", "blue"} and found["count"].dtype == x["count"].dtype
        for name in x.columns:
            there = x[name].notna()
            assert found.loc[there, name].tolist() == x.loc[there, name].tolist()
    assert filled["count"].between(3, 8).all()


def test_a_column_tells_the_category_that_goes_with_it() -> None:
    imputer = FlowImputer(steps=600, hidden=64, sample_steps=10, draws=15, random_state=0).fit(frame())
    asked = pd.DataFrame(
        {"kind": [None, None], "size": [1.75, -1.25], "count": pd.array([4, 4], "Int64"), "day": pd.NaT}
    )
    assert imputer.transform(asked)["kind"].tolist() == ["red", "blue"]


def test_a_pickled_imputer_draws_the_same() -> None:
    _, known = correlated(60, 0.3)
    imputer = small().fit(known)
    again = pickle.loads(pickle.dumps(imputer))
    assert np.array_equal(imputer.transform(known), again.transform(known))
    assert np.array_equal(imputer.transform(known), clone(imputer).fit(known).transform(known))


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.array([[1.0, np.nan]] * 20), "feature 1 has no value"),
        (np.array([[1.0, np.inf], [0.0, 1.0]]), "infinity"),
    ],
)
def test_what_cannot_be_learned_is_refused(x: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        small().fit(x)


def test_arguments_are_checked() -> None:
    _, known = correlated(30, 0.3)
    with pytest.raises(UserError, match="draws must be"):
        small(draws=0).fit(known)
    imputer = small().fit(known)
    with pytest.raises(UserError, match="draws must be"):
        imputer.sample(known, 0)
    unknown = frame()
    with pytest.raises(UserError, match="'green'"):
        small().fit(unknown).transform(unknown.head(3).assign(kind="green", size=[1.0, None, None]))


def test_a_model_with_a_mask_draws_given_some() -> None:
    x, _ = correlated(400, 0)
    model = FlowModel(steps=400, hidden=32, options={"mask": "random"}, random_state=0, early_stopping=False).fit(x)
    drawn = model.sample(300, given=[[104.0, np.nan]])
    assert (drawn[:, 0] == 104).all() and (drawn[:, 1].mean() + 3) / 0.01 == pytest.approx(2 * RHO, abs=0.3)
    with pytest.raises(UserError, match="one row, or the 3"):
        model.sample(3, given=x[:2])
    with pytest.raises(UserError, match="--mask random"):
        FlowModel(steps=5, hidden=8, early_stopping=False).fit(x).sample(1, given=[[104.0, np.nan]])


def test_holes_need_a_mask() -> None:
    with pytest.raises(UserError, match=r"holes=True, .* add mask="):
        FlowModel(options={"holes": True}).fit(np.array([[1.0, np.nan], [2.0, 1.0], [3.0, 2.0]]))


def ruled(n: int) -> pd.DataFrame:
    """Rows with low <= high, total = low + high, and a code of each size."""
    rng = np.random.default_rng(3)
    low, high = np.sort(rng.integers(0, 40, (n, 2)), 1).T
    size = rng.choice(["S", "M", "L"], n)
    code = pd.Series(size).map({"S": 1, "M": 2, "L": 3})
    return pd.DataFrame({"low": low, "high": high, "total": low + high, "size": size, "code": code})


RULES = ["low <= high", "total == low + high", "code == f(size)"]


def obeys(x: pd.DataFrame) -> bool:
    same = x["code"].astype(int) == x["size"].map({"S": 1, "M": 2, "L": 3})
    return bool(((x["low"] <= x["high"]) & (x["total"] == x["low"] + x["high"]) & same).all())


@pytest.mark.parametrize("columns", [["low", "high", "total"], ["low", "high", "total", "size", "code"]])
def test_samples_of_a_model_with_rules_obey_them_whitened_or_not(columns: list[str]) -> None:
    x = ruled(200)[columns]
    rules = [rule for rule in RULES if "code" in columns or "code" not in rule]
    model = FlowModel(steps=30, hidden=16, sample_steps=4, options={"rule": rules}, random_state=0).fit(x)
    drawn = model.sample(300)
    pd.testing.assert_series_equal(drawn.dtypes, x.dtypes)
    assert obeys(drawn.assign(size=drawn.get("size", "S"), code=drawn.get("code", 1)))
    with pytest.raises(UserError, match="no density"):
        model.score_samples(x)
    with pytest.raises(UserError, match="'low <= high' is broken by 1 of 2 rows of X"):
        model.transform(x.head(2).assign(low=[50, 0], total=x["high"].head(2).add([50, 0])))


def test_imputed_rows_obey_the_rules_and_keep_what_is_there() -> None:
    whole = ruled(150)
    holes = np.random.default_rng(4).random(whole.shape) < 0.2
    holes[holes[:, :3].sum(1) > 1, :3] = False  # the total leaves one of the others open
    x = whole.mask(pd.DataFrame(holes, columns=whole.columns)).astype({"low": "Int64", "high": "Int64"})
    x = x.astype({"total": "Int64", "code": "Int64"})
    imputer = small(options={"rule": RULES}).fit(x)
    for filled in (imputer.transform(x), *imputer.sample(x, 2)):
        assert obeys(filled)
        for name in x.columns:
            assert filled.loc[x[name].notna(), name].tolist() == x.loc[x[name].notna(), name].tolist()
        numbers = filled[["low", "high", "total"]].to_numpy(int)
        assert (numbers == whole[["low", "high", "total"]].to_numpy(int)).all()  # each follows from the two others


def test_options_of_other_data_are_refused() -> None:
    with pytest.raises(UserError, match="'rule', which is for frames, not for arrays"):
        FlowModel(options={"rule": ["a <= b"]}).fit(np.zeros((20, 2)))
    with pytest.raises(UserError, match="must be text"):
        FlowModel(options={"rule": [1]}).fit(ruled(20))
    with pytest.raises(UserError, match="'total == low' is broken by"):
        FlowModel(options={"rule": "total == low"}).fit(ruled(20))
