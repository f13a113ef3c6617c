"""FlowRegressor: laws in closed form, scikit-learn's rules, and what it refuses."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.base import clone
from sklearn.datasets import load_diabetes
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from advect import FlowRegressor, UserError


def small(**arguments: Any) -> FlowRegressor:
    """A regressor that trains in a fraction of a second."""
    given = {"steps": 40, "hidden": (16, 16), "density_steps": 8, "sample_steps": 4, "draws": 20, "device": "cpu"}
    return FlowRegressor(**{**given, "early_stopping": False, "random_state": 0, **arguments})  # type: ignore[arg-type]


@parametrize_with_checks([small(location=None, steps=300, learning_rate=1e-2)])
def test_it_keeps_the_rules_of_scikit_learn(estimator: FlowRegressor, check: Any) -> None:
    check(estimator)


@pytest.fixture(scope="module")
def uneven() -> tuple[np.ndarray, np.ndarray]:
    """y = 2 x + (0.2 + |x|) noise."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-2, 2, size=(2000, 1))
    return x, 2 * x[:, 0] + (0.2 + abs(x[:, 0])) * rng.normal(size=2000)


@pytest.fixture(scope="module")
def fitted(uneven: tuple[np.ndarray, np.ndarray]) -> FlowRegressor:
    return FlowRegressor(steps=1500, hidden=64, early_stopping=False, device="cpu", random_state=0).fit(*uneven)


class TestLaws:
    def test_widths_that_differ_are_found(self, fitted: FlowRegressor) -> None:
        x = np.array([[-1.5], [-0.7], [1.0]])  # at 0 the width has a kink
        truth = stats.norm(2 * x[:, 0], 0.2 + abs(x[:, 0]))
        assert fitted.predict(x) == pytest.approx(truth.mean(), abs=0.2)
        found = fitted.predict_interval(x, 0.9)
        assert np.diff(found)[:, 0] == pytest.approx(2 * 1.645 * truth.std(), rel=0.2)
        y = truth.mean() + 0.5 * truth.std()
        assert fitted.log_prob(x, y) == pytest.approx(truth.logpdf(y), abs=0.25)  # pyright: ignore[reportAttributeAccessIssue]

    def test_samples_densities_and_quantiles_are_of_one_law(self, fitted: FlowRegressor) -> None:
        x = np.array([[1.0]])
        levels = [0.05, 0.3, 0.5, 0.8, 0.97]
        quantiles = fitted.predict_quantiles(x, levels)[0]
        drawn = fitted.sample(x, 20_000)[0]
        assert [(drawn < q).mean() for q in quantiles] == pytest.approx(levels, abs=0.015)
        grid = np.linspace(-8, 12, 2001)
        density = np.exp(fitted.log_prob(np.ones((2001, 1)), grid))
        assert np.trapezoid(density, grid) == pytest.approx(1, abs=2e-3)
        assert [np.trapezoid(density * (grid < q), grid) for q in quantiles] == pytest.approx(levels, abs=0.01)
        score = np.trapezoid((np.cumsum(density) * 0.01 - (grid > 2.5)) ** 2, grid)  # the definition of the CRPS
        assert fitted.crps(x, [2.5])[0] == pytest.approx(score, abs=0.01)

    def test_two_modes_stay_two(self) -> None:
        rng = np.random.default_rng(0)
        x = rng.normal(size=(2000, 1))
        y = np.where(rng.random(2000) < 0.5, -3.0, 3.0) + x[:, 0] + 0.3 * rng.normal(size=2000)
        model = small(steps=1500, hidden=64, location=None, density_steps=20, sample_steps=10).fit(x, y)
        drawn = model.sample([[0.5]], 2000)[0]
        assert (drawn > 0.5).mean() == pytest.approx(0.5, abs=0.08)
        assert (abs(drawn - 0.5) < 1.5).mean() < 0.05
        assert model.log_prob([[0.5]], [0.5])[0] < model.log_prob([[0.5]], [3.5])[0] - 3

    def test_several_responses_keep_their_correlation(self) -> None:
        rng = np.random.default_rng(0)
        x = rng.normal(size=(1500, 2))
        both = rng.multivariate_normal([0, 0], [[1, 0.9], [0.9, 1]], size=1500)
        model = small(steps=600, hidden=64, location=None).fit(x, x + both)
        drawn = model.sample([[0.0, 1.0]], 3000)[0]
        assert np.corrcoef(drawn.T)[0, 1] == pytest.approx(0.9, abs=0.05)
        assert model.predict([[0.0, 1.0]])[0] == pytest.approx([0, 1], abs=0.3)
        shapes = [model.predict_interval(x[:5]), model.predict_quantiles(x[:5], [0.5]), model.crps(x[:5], x[:5])]
        assert [a.shape for a in shapes] == [(5, 2, 2), (5, 1, 2), (5, 2)]
        assert model.log_prob(x[:5], x[:5]).shape == (5,)

    def test_recalibrated_intervals_hold(self, uneven: tuple[np.ndarray, np.ndarray]) -> None:
        x, y = uneven
        model = small(steps=5).fit(x[:500], y[:500])
        model.recalibrate(x[500:1500], y[500:1500], 0.8)
        found = model.predict_interval(x[1500:], 0.8)
        inside = (found[:, 0] <= y[1500:]) & (y[1500:] <= found[:, 1])
        assert inside.mean() == pytest.approx(0.8, abs=0.04)  # three deviations of 1,500 rows after 1,000
        with pytest.raises(UserError, match=r"8 rows are too few to recalibrate intervals of 0\.9: give 9 or more"):
            model.recalibrate(x[:8], y[:8], 0.9)

    def test_rounded_responses_come_back_rounded(self) -> None:
        rng = np.random.default_rng(0)
        x = rng.normal(size=(400, 1))
        y = np.round((x[:, 0] + 0.4 * rng.normal(size=400)) * 2) / 2
        with pytest.warns(UserWarning, match="it is rounded"):
            small(location=None).fit(x, y)
        model = small(location=None, dequantise=True).fit(x, y)
        assert model.step_ == pytest.approx([0.5])
        assert np.allclose(model.sample(x, 3) % 0.5, 0)


class TestUse:
    def test_frames_of_any_columns_and_missing_values(self) -> None:
        rng = np.random.default_rng(0)
        kind = rng.choice(["a", "b"], 300)
        frame = pd.DataFrame({"kind": kind, "z": rng.normal(size=300), "same": 1.0})
        frame.loc[::7, "z"] = np.nan
        y = np.where(kind == "a", -5, 5) + 0.1 * rng.normal(size=300)
        model = small().fit(frame, y)
        assert (np.sign(model.predict(frame)) == np.where(kind == "a", -1, 1)).all()
        with pytest.raises(UserError, match="'c', which the data fitted had not"):
            model.predict(frame.assign(kind="c"))

    def test_a_pickle_gives_the_same_numbers(self, uneven: tuple[np.ndarray, np.ndarray]) -> None:
        x, y = uneven[0][:100], uneven[1][:100]
        model = small().fit(x, y)
        again = pickle.loads(pickle.dumps(model))
        for a, b in ((model, again), (model, clone(model).fit(x, y))):
            assert np.array_equal(a.predict(x), b.predict(x))
            assert np.array_equal(a.log_prob(x, y), b.log_prob(x, y))
            assert np.array_equal(a.sample(x, 2), b.sample(x, 2))

    def test_pipelines_searches_and_cross_validation(self) -> None:
        x, y = load_diabetes(return_X_y=True)
        x, y = x[:90], y[:90]
        grid = GridSearchCV(small(location=None, scoring="log-density"), {"hidden": [(8, 8), (16, 16)]}, cv=2).fit(
            x, y
        )
        assert np.isfinite(grid.cv_results_["mean_test_score"]).all()
        pipe = make_pipeline(StandardScaler(), small(location=None))
        assert cross_val_predict(pipe, x, y, cv=2).shape == (90,)

    def test_folds_are_mixed(self) -> None:
        x, y = load_diabetes(return_X_y=True)
        model = small(early_stopping="auto").fit(x[:60], y[:60])
        assert len(model._flows) == 6


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        (np.zeros((20, 2)), None, "y to be passed"),
        (np.eye(20), np.ones(20), "y has one value alone"),
        (np.eye(20), np.append(np.arange(19.0), np.nan), "y holds NaN"),
        (np.eye(9), np.arange(9.0), "give 10 or more"),
        (np.full((20, 2), np.inf), np.arange(20.0), "infinity"),
        (np.eye(20), ["a", "b"] * 10, "text"),
    ],
)
def test_data_that_cannot_be_learned_are_refused(x: Any, y: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        small().fit(x, y)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"location": "tree"}, "location"),
        ({"scoring": "mse"}, "scoring"),
        ({"draws": 0}, "draws"),
        ({"hidden": 0}, "hidden"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        small(**arguments).fit(np.eye(20), np.arange(20.0))
