"""Rules among columns: what is read, what is refused, and what rows then obey."""

from __future__ import annotations

import json
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
import torch

from advect.core.errors import UserError
from advect.data.tables.dataset import Table, frame_of
from advect.data.transforms import transform_from_config

N = 240
YEARS = {"HS": 9, "BA": 13, "MA": 14, "PhD": 16}
RNG = np.random.default_rng(0)
NAMES = RNG.choice([*YEARS], N)
LOW = RNG.normal(size=N).round(2)
FRAME = pd.DataFrame(
    {
        "education": NAMES,
        "education-num": [YEARS[name] for name in NAMES],
        "a": RNG.integers(0, 9, N),
        "b": RNG.integers(0, 50, N),
        "low": LOW,
        "high": (LOW + RNG.exponential(size=N)).round(2),
        "begun": pd.Timestamp("2024-01-01") + pd.to_timedelta(RNG.integers(0, 99, N), "D"),
    }
)
FRAME["total"] = FRAME["a"] + FRAME["b"]
FRAME["ended"] = FRAME["begun"] + pd.to_timedelta(RNG.integers(1, 9999, N), "min")


def made(frame: pd.DataFrame, *rules: str, n: int = 2000, **options) -> pd.DataFrame:
    """Rows of noise in model units, as the table."""
    table = Table(frame, rule=rules, **options)
    z = torch.randn(n, *table.spec.shape, generator=torch.Generator().manual_seed(0))
    return frame_of(table.transform.inverse(z), None, table.metadata)


def obeying(frame: pd.DataFrame, *rules: str) -> np.ndarray:
    """Which of the rows of :func:`made` obey the rules."""
    table = Table(frame, rule=rules)
    z = torch.randn(2000, *table.spec.shape, generator=torch.Generator().manual_seed(0))
    assert table.transform.constraints is not None
    return ~table.transform.constraints.broken(table.transform.inverse(z)).any(1).numpy()


def test_a_column_that_is_a_function_of_another_is_put_in():
    rows = made(FRAME, "'education-num' == f(education)")
    assert (rows["education-num"] == rows["education"].map(YEARS)).all()
    assert rows["education-num"].dtype == np.int64 and set(rows["education"]) == set(YEARS)
    table = Table(FRAME, rule=["`education-num` == f(education)"])
    assert table.spec.shape[0] == Table(FRAME.drop(columns="education-num")).spec.shape[0]
    back = frame_of(table.transform.inverse(table.train.fetch(np.arange(50)).x1), None, table.metadata)
    whole = frame_of(Table(FRAME).transform.inverse(Table(FRAME).train.fetch(np.arange(50)).x1), None, table.metadata)
    pd.testing.assert_frame_equal(back, whole)


def test_a_sum_is_put_in_with_its_own_type_beyond_the_range_of_the_data():
    rows = made(FRAME, "a + b == total")
    assert (rows["total"] == rows["a"] + rows["b"]).all() and rows["total"].dtype == np.int64
    assert list(rows) == list(FRAME)
    few = pd.DataFrame({"a": [0, 1, 2, 3], "b": [3, 2, 1, 0], "sum": np.array([3, 3, 3, 3], np.uint8)})
    assert made(few, "sum == a + b")["sum"].max() > 3


def test_a_product_is_rounded_as_its_column_is():
    frame = pd.DataFrame({"net": RNG.uniform(1, 9, N).round(2)})
    frame["gross"] = (frame["net"] * 1.19).round(2)
    rows = made(frame, "gross == net * 1.19")
    np.testing.assert_allclose(rows["gross"], rows["net"] * 1.19, atol=0.005000001)
    assert (rows["gross"] == rows["gross"].round(2)).all()
    frame["gross"] = frame["net"] * 1.19
    np.testing.assert_allclose(*made(frame, "gross == net * 1.19")[["gross", "net"]].to_numpy().T / [[1.19], [1]])


def test_what_the_type_cannot_hold_breaks_the_rule():
    frame = pd.DataFrame({"a": [0, 255, 1, 200], "b": [255, 0, 200, 1], "x": [1.0, 2.0, 3.0, 4.0]})
    frame["sum"] = (frame["a"] + frame["b"]).astype(np.uint8)
    frame["share"] = frame["a"] / frame["x"]
    table = Table(frame, rule=["sum == a + b", "share == a / x"], held_out=0, scaling="standard")
    assert table.transform.constraints is not None
    x = torch.tensor([[255.0, 255.0, 1.0, 0, 0], [3.0, 1.0, 0.0, 0, 0], [3.0, 1.0, 2.0, 0, 0]]).double()
    broken = table.transform.constraints.broken(table.transform.constraints.derived(x))
    assert broken.tolist() == [[True, False], [False, True], [False, False]]


def test_rules_may_build_on_each_other_in_any_order():
    frame = FRAME.assign(twice=FRAME["total"] * 2, most=FRAME["total"].max() + 1)
    rows = made(frame, "twice == total * 2", "total == a + b", "total <= most")
    assert (rows["twice"] == 2 * (rows["a"] + rows["b"])).all()


@pytest.mark.parametrize(
    ("rule", "check"),
    [
        ("low <= high", lambda f: f["low"] <= f["high"]),
        ("-5 < low <= high", lambda f: (f["low"] > -5) & (f["low"] <= f["high"])),
        ("a + b >= a / 2", lambda f: f["a"] + f["b"] >= f["a"] / 2),
        ("a * (b - 3) == 0", lambda f: (f["a"] == 0) | (f["b"] == 3)),
        ("begun < ended", lambda f: f["begun"] < f["ended"]),
    ],
)
def test_comparisons_tell_the_rows_that_break_them(rule, check):
    frame = FRAME[check(FRAME)]
    assert (obeying(frame, rule) == check(made(frame, rule))).all()


def test_names_are_compared_with_names():
    frame = pd.DataFrame({"from": RNG.choice(["A", "B"], N), "to": "C", "big": RNG.random(N) < 0.5})
    frame.loc[::3, "to"] = np.where(frame["from"] == "A", "B", "A")[::3]
    table = Table(frame, rule=["`from` != to"])
    assert table.transform.constraints is not None
    a, b, c = 0.0, 1.0, 2.0
    rows = torch.tensor([[a, a, 0], [a, b, 0], [b, c, 1], [b, b, 1]]).double()
    assert table.transform.constraints.broken(rows)[:, 0].tolist() == [True, False, False, True]
    with pytest.raises(UserError, match="'D', which is neither a column nor a name in the other; choose from A"):
        Table(frame, rule=["to != 'D'"])


def test_a_missing_value_breaks_no_comparison_makes_a_sum_missing_and_is_a_value_of_a_function():
    frame = pd.DataFrame({"a": RNG.integers(1, 9, N).astype(float), "b": RNG.integers(10, 19, N), "kind": "x"})
    frame.loc[::4, "a"] = np.nan
    frame["sum"] = frame["a"] + frame["b"]
    frame["kind"] = np.where(frame["a"].isna(), "none", "some")
    rows = made(frame, "sum == a + b", "a < b", "kind == f(a)")
    assert 0 < rows["a"].isna().mean() < 1
    assert (rows["sum"].isna() == rows["a"].isna()).all() and ((rows["kind"] == "none") == rows["a"].isna()).all()
    frame.loc[0, "sum"] = 12
    with pytest.raises(UserError, match=r"by 1 of 240 rows of the data, first by row 0 with sum = 12\.0 and a = no"):
        Table(frame, rule=["sum == a + b"])


def test_a_function_of_two_columns_knows_which_values_occur_together():
    frame = pd.DataFrame({"x": list("aabb") * 9, "n": [1, 2, 2, 3] * 9, "y": list("pqrs") * 9, "z": range(36)})
    table = Table(frame, rule=["y == f(x, n)"], held_out=0)
    assert table.transform.constraints is not None
    x = torch.tensor([[0, 1, 0, 0], [1, 2, 2, 0], [1, 1, 2, 0], [0, 3, 1, 0]]).double()
    assert table.transform.constraints.broken(x)[:, 0].tolist() == [False, False, True, True]


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("total = a + b", "has =; write == for equality"),
        ("total == a + c", "names 'c', which is no column; choose from"),
        ("totl == a + b", "did you mean 'total'"),
        ("education-num == f(education)", "'education-num' without quotes"),
        ("a + b", "compares nothing; write"),
        ("low <= high and a <= b", "give each a --rule of its own"),
        ("total == a + education", "counts with 'education', which holds names"),
        ("total == a + begun", "counts with 'begun', which holds time"),
        ("begun <= 3", "compares what cannot be compared"),
        ("a + b == low + high", "no column alone on one side"),
        ("total == total + a", "'total' on both sides"),
        ("a == b == total", "== in a chain"),
        ("education == g(a)", "not f of columns"),
        ("education == f(a + 1)", "other things than other columns"),
        ("education == f(education)", "other things than other columns"),
        ("f(a) < b", "has f beside other things"),
        ("education == f(low)", "too many to learn f"),
        ("__import__('os').system('true') == a", "not f of columns"),
        ("a.real <= b", "has more than columns, numbers"),
        ("a <= b # or so", "has #"),
        ("a ** 9 <= b", "has more than columns, numbers"),
        ("a in b", "another word than"),
        ("a <= 1e999", "beyond 1e300"),
        ("(" * 400 + "a" + ")" * 400 + "<= b", "is no rule"),
        ("a <= True", "has more than columns"),
        ("1 <= 2", "numbers alone"),
        ("a <= 'bb'", "the text 'bb', which is no column"),
        ("b <= a", r"broken by \d+ of 240 rows of the data, first by row \d+ with a = \d+ and b = \d+; take these"),
        ("b == f(a)", "where f is"),
        ("total <= b", "is broken by"),
    ],
)
def test_what_is_no_rule_of_the_data_is_refused_in_a_sentence(rule, words):
    with pytest.raises(UserError, match=words) as error:
        Table(FRAME, rule=[rule])
    assert "--rule" in str(error.value) and "\n" not in str(error.value)


def test_rules_that_contradict_each_other_are_refused():
    with pytest.raises(UserError, match="says twice what 'total' equals"):
        Table(FRAME, rule=["total == a + b", "total == b + a"])
    with pytest.raises(UserError, match="'total' and 'a' that they follow from each other"):
        Table(FRAME, rule=["total == a + b", "a == total - b"])
    with pytest.raises(UserError, match="condition 'a', which is not drawn; take it out of --conditions"):
        Table(FRAME, rule=["total == a + b"], conditions=("a",))


def test_rules_are_a_part_of_the_data_and_of_their_description():
    plain, ruled = Table(FRAME), Table(FRAME, rule=["`education-num` == f(education)", "low <= high"])
    assert plain.fingerprint != ruled.fingerprint and "rules" not in plain.metadata["transform"]
    config = json.loads(json.dumps(ruled.metadata["transform"], allow_nan=False))
    assert transform_from_config(config) == ruled.transform
    config["rules"][0]["values"][0] = None
    transform_from_config(config)
    config["rules"][0]["values"].pop()
    with pytest.raises(UserError, match="has no function of 1 columns that fits"):
        _ = transform_from_config(config).constraints
    with pytest.raises(UserError, match="rows that obey --rule have no density"):
        ruled.transform.log_det(8)


def test_decimals_and_dates_of_arrow_obey_too():
    days = pd.Series([Decimal("1.50"), Decimal("2.25"), Decimal("3.00")] * 9)
    frame = pd.DataFrame({"net": days, "fee": [Decimal("0.25")] * 26 + [Decimal("0.50")]})
    frame["all"] = [a + b for a, b in zip(frame["net"], frame["fee"], strict=True)]
    rows = made(frame, "all == net + fee", n=50)
    assert all(row["all"] == row["net"] + row["fee"] for _, row in rows.iterrows())


def test_a_file_of_questions_that_contradicts_a_rule_is_refused_by_its_row(tmp_path):
    table = Table(FRAME[["education", "a", "b", "total"]], rule=["total == a + b"])
    rows = pd.DataFrame({"education": ["BA", None], "a": [1, 2], "b": [5, 6], "total": [6, 9]})
    rows.to_csv(tmp_path / "q.csv", index=False)
    with pytest.raises(UserError, match=r"1 of 2 rows of q\.csv, first by row 1 with total = 9 and a = 2 and b = 6"):
        table.modality.read_given(tmp_path / "q.csv")


def test_a_function_of_more_values_than_whole_numbers_count_is_refused() -> None:
    """3^45, two names and nothing in each column, is beyond 2^63."""
    names = [f"c{i}" for i in range(45)]
    frame = pd.DataFrame(RNG.choice(["yes", "no"], (50, 45)), columns=names).assign(
        t=lambda f: f["c0"], u=RNG.normal(size=50)
    )
    with pytest.raises(UserError, match="takes too many columns of too many values"):
        Table(frame, rule=[f"t == f({', '.join(names)})"])
    assert len(Table(frame, rule=[f"t == f({', '.join(names[:39])})"]).train) == 45
