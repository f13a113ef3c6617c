"""What a model is conditional on: labels, real numbers, and columns of frames."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from advect import FlowModel, UserError
from advect.core.types import Category, Quantity
from advect.sklearn.conditioning import Columns, Labels, Reals, conditioning_of, label_condition


def small(**arguments: Any) -> FlowModel:
    """A model that trains in a fraction of a second."""
    given = {"steps": 20, "batch_size": 16, "hidden": (16, 16), "density_steps": 8, "sample_steps": 5, "device": "cpu"}
    return FlowModel(**{**given, "random_state": 0, **arguments})  # type: ignore[arg-type]


@pytest.fixture
def points() -> np.ndarray:
    return np.random.default_rng(0).normal([1.0, -2.0, 30.0], [1.0, 0.2, 10.0], (80, 3))


class TestLabels:
    def test_samples_follow_their_label(self) -> None:
        rng = np.random.default_rng(0)
        y = np.array(["left", "right"]).repeat(100)
        x = rng.normal(size=(200, 2)) * 0.3 + np.where(y == "left", -5, 5)[:, None]
        model = small(steps=300, batch_size=64, hidden=(32, 32), learning_rate=3e-3, sample_steps=20).fit(x, y)
        assert model.classes_.tolist() == ["left", "right"]
        assert (model.sample(20, "left")[:, 0] < 0).mean() > 0.9
        signs = model.sample(20, ["left", "right"] * 10)[:, 0] > 0
        assert (signs == ([False, True] * 10)).mean() > 0.9
        assert model.score(x, y) > model.score_samples(x, y[::-1]).mean() + 5

    def test_an_unknown_label_is_refused(self, points: np.ndarray) -> None:
        model = small().fit(points, np.arange(80) % 2)
        with pytest.raises(UserError, match="not among the labels"):
            model.sample(3, 7)
        with pytest.raises(UserError, match="without labels"):
            small().fit(points).sample(3, 0)

    def test_a_label_is_equal_by_its_number_or_text(self) -> None:
        labels = Labels.from_values(np.array([30, 10, 20, 10]))
        for y in (20, "20", 20.0, np.int8(20), [20, "20"], torch.tensor([20, 20])):
            assert label_condition(labels, y, 2)["label"].values.tolist() == [1, 1]
        with pytest.raises(UserError, match="y has 1, which is not among"):
            label_condition(labels, 1, 2)

    def test_without_dropout_labels_are_needed(self, points: np.ndarray) -> None:
        y = np.arange(80) % 2
        model = small(label_dropout=0.0).fit(points, y)
        assert np.isfinite(model.score(points, y))
        with pytest.raises(UserError, match="give y"):
            model.score(points)


class TestReals:
    def test_the_conditional_density_is_that_of_the_gaussian(self) -> None:
        rng = np.random.default_rng(0)
        y = rng.normal(size=2000)
        x = 10 + 3 * y[:, None] + rng.normal(size=(2000, 1))
        model = small(steps=800, batch_size=128, hidden=(64, 64), early_stopping=False, density_steps=30).fit(x, y)
        assert model.classes_ is None
        truth = stats.norm(10 + 3 * y[:500], 1).logpdf(x[:500, 0])
        assert abs(model.score_samples(x[:500], y[:500]) - truth).mean() < 0.15
        alone = stats.norm(10, np.sqrt(10)).logpdf(x[:500, 0])
        assert abs(model.score_samples(x[:500]) - alone).mean() < 0.15  # y is left out of a tenth of the rows
        drawn = model.set_params(sample_steps=30).sample(2000, 1.5)
        assert drawn.mean() == pytest.approx(14.5, abs=0.3)
        assert drawn.std() == pytest.approx(1, abs=0.2)

    def test_one_row_or_one_a_sample(self, points: np.ndarray) -> None:
        model = small().fit(points, points[:, :2])
        one = model.sample(4, [1.0, -2.0])
        assert np.array_equal(one, model.sample(4, np.tile([1.0, -2.0], (4, 1))))
        assert np.array_equal(one, pickle.loads(pickle.dumps(model)).sample(4, [1.0, -2.0]))
        with pytest.raises(UserError, match=r"y must have shape \(4, 2\)"):
            model.sample(4, [1.0, -2.0, 3.0])

    @pytest.mark.parametrize("bad", [np.nan, np.inf, 1e200])
    def test_numbers_that_are_none_are_refused(self, points: np.ndarray, bad: float) -> None:
        y = points[:, :2].copy()
        y[3, 1] = bad
        with pytest.raises(UserError, match="y holds"):
            small().fit(points, y)

    def test_a_constant_column_is_only_centred(self) -> None:
        reals = conditioning_of(np.array([[0.1, 0.5], [0.1, 1.5], [0.1, 2.5]]), 3)
        assert isinstance(reals, Reals)
        assert reals.rows(np.array([0.1, 1.5]), 2)["label"].abs().max() < 1e-6

    def test_labels_stay_labels(self) -> None:
        for y in (
            np.array([1, 2, 2]),
            np.array([1.0, 2.0, 2.0]),
            ["a", "b", "b"],
            pd.DataFrame({"y": ["a", "b", "b"]}),
        ):
            assert isinstance(conditioning_of(y, 3), Labels)


class TestColumns:
    @pytest.fixture
    def frame(self) -> pd.DataFrame:
        rng = np.random.default_rng(1)
        return pd.DataFrame(
            {
                "age": rng.normal(40, 9, 80),
                "sex": pd.Categorical(rng.choice(["f", "m"], 80)),
                "n": rng.integers(0, 9, 80),
            }
        )

    def test_each_is_a_condition_of_its_type(self, frame: pd.DataFrame) -> None:
        frame.loc[3, ["age", "sex"]] = np.nan
        columns = conditioning_of(frame, 80)
        assert isinstance(columns, Columns)
        assert {name: type(kind) for name, kind in columns.conditions.items()} == {
            "age": Quantity,
            "sex": Category,
            "n": Quantity,
        }
        rows = columns.rows(frame, 80)
        assert rows["age"][3].isnan().all()
        assert rows["sex"][3] == -1
        assert rows["age"].nanmean().item() == pytest.approx(0, abs=1e-6)

    def test_a_model_learns_them(self, points: np.ndarray, frame: pd.DataFrame) -> None:
        x = np.where(frame[["sex"]] == "f", -5, 5) + np.random.default_rng(0).normal(size=(80, 2))
        model = small(steps=300, batch_size=64, learning_rate=3e-3, sample_steps=20).fit(x, frame)
        asked = frame.iloc[:40]
        assert ((model.sample(40, asked)[:, 0] < 0) == (asked["sex"] == "f")).mean() > 0.9
        assert (model.sample(40, pd.DataFrame({"age": [40.0], "sex": ["m"], "n": [3]}))[:, 0] > 0).mean() > 0.9
        with pytest.raises(UserError, match="with the columns age, sex, n"):
            model.sample(40, asked[["age", "sex"]])
        with pytest.raises(UserError, match="'x', which the data fitted had not"):
            model.sample(1, pd.DataFrame({"age": [40.0], "sex": ["x"], "n": [3]}))
