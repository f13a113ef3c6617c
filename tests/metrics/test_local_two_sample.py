"""The local classifier two-sample test passes the exact posterior and rejects wrong ones, also where only x tells."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.ensemble import RandomForestClassifier

from advect.core.errors import UserError
from advect.metrics import local_two_sample_test
from linear_gaussian import LinearGaussian

X = np.array([0.5, -0.3, 1.0])


def judged(model: LinearGaussian, n: int = 400, seed: int = 0, **options):
    rng = np.random.default_rng(seed)
    theta, x = model.simulate(n, rng)
    return local_two_sample_test(theta, x, model.draw(x, 1, rng)[:, 0], X, model.draw(X[None], 200, rng)[0], **options)


def test_the_exact_posterior_passes_as_often_as_it_must() -> None:
    p = [judged(LinearGaussian(), n=100, seed=seed, permutations=19).p_value for seed in range(20)]
    assert sum(value <= 0.1 for value in p) <= stats.binom.ppf(0.999, 20, 0.1)


@pytest.mark.parametrize("wrong", [LinearGaussian(shift=0.6), LinearGaussian(width=0.7)])
def test_a_shifted_and_a_narrow_one_are_rejected(wrong: LinearGaussian) -> None:
    found = judged(wrong)
    assert found.p_value == 0.01 and found.statistic > found.null.max()
    assert found.null.shape == (99,) and found.probabilities.shape == (200,)


def test_a_posterior_that_is_wrong_at_some_observations_is_rejected_there() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (1500, 1))
    theta, draws = rng.normal(size=(1500, 1)), rng.normal(size=(1500, 1)) + x  # wrong by x, and right at 0
    at = lambda place: local_two_sample_test(
        theta, x, draws, [place], rng.normal(size=(200, 1)) + place, permutations=39
    )
    assert at(0.9).p_value == 1 / 40
    assert at(0.9).statistic > 5 * at(0.0).statistic


def test_another_classifier_is_asked_and_constant_columns_do_no_harm() -> None:
    forest = RandomForestClassifier(20, min_samples_leaf=20, random_state=0)
    assert judged(LinearGaussian(shift=1.5), classifier=forest, permutations=19).p_value == 0.05
    rng = np.random.default_rng(0)
    ones, theta = np.ones((60, 1)), rng.normal(size=(60, 2))
    found = local_two_sample_test(
        theta, ones, rng.normal(size=(60, 2)), [1.0], rng.normal(size=(20, 2)), permutations=19
    )
    assert np.isfinite(found.statistic) and 0.05 <= found.p_value <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 19}, r"20 rows or more"),
        ({"permutations": 5}, r"permutations must be 19 or more for p-values of 0.05, got 5"),
    ],
)
def test_too_little_is_refused(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        judged(LinearGaussian(), **change)


def test_shapes_that_do_not_fit_are_refused() -> None:
    rows, draws = np.zeros((30, 2)), np.zeros((5, 2))
    with pytest.raises(UserError, match=r"one draw for each row"):
        local_two_sample_test(rows, rows, rows[:29], [0.0, 0.0], draws)
    with pytest.raises(
        UserError, match=r"observed_draws must be \(M, 2\) and x_observed \(2,\), got \(5, 2\) and \(3,\)"
    ):
        local_two_sample_test(rows, rows, rows, [0.0] * 3, draws)
    with pytest.raises(UserError, match=r"x has NaN or infinite values in 30 of 30 rows"):
        local_two_sample_test(rows, rows * np.nan, rows, [0.0, 0.0], draws)
