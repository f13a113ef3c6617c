"""CRPS against closed forms, and conformal intervals against the law of their coverage."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from scipy import stats

from advect.core.errors import UserError
from advect.metrics import ConformalIntervals, central_interval, crps, interval_coverage, sharpness


def gaussian_crps(y: np.ndarray, mean: float, std: float) -> np.ndarray:
    """Gneiting et al. 2005, eq. 5."""
    z = (y - mean) / std
    return std * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / math.sqrt(math.pi))


def test_crps_of_gaussian_draws_is_its_closed_form_for_any_number_of_draws() -> None:
    rng, y = np.random.default_rng(0), np.array([-2.0, 0.0, 0.5, 4.0])
    exact = gaussian_crps(y, 1.0, 2.0)
    assert crps(y, rng.normal(1, 2, (4, 100_000))) == pytest.approx(exact, abs=0.03)
    for m in (2, 5):  # unbiased: the plain estimator would be off by std / (m sqrt(pi)), 0.56 and 0.23
        mean = crps(np.repeat(y, 40_000), rng.normal(1, 2, (160_000, m))).reshape(4, -1).mean(1)
        assert mean == pytest.approx(exact, abs=0.05)


def test_crps_is_the_mean_over_pairs() -> None:
    rng = np.random.default_rng(1)
    y, x = rng.normal(size=(6, 2)), rng.normal(size=(6, 7, 2))
    pairs = np.abs(x[:, :, None] - x[:, None]).sum((1, 2)) / (7 * 6)
    found = crps(y, x)
    assert found == pytest.approx(np.abs(x - y[:, None]).mean(1) - pairs / 2) and found.shape == (6, 2)
    assert crps(y + 1e9, x + 1e9) == pytest.approx(found, abs=1e-5)
    assert crps([1.0], [[1.0, 1.0]]).tolist() == [0.0]


def test_the_true_law_has_the_least_mean_crps() -> None:
    rng = np.random.default_rng(2)
    y, x = rng.normal(size=4000), rng.normal(size=(4000, 50))
    assert crps(y, x).mean() < min(crps(y, 0.6 * x).mean(), crps(y, 1.6 * x).mean(), crps(y, x + 0.5).mean())


def test_intervals_of_draws_cover_and_sharpness_is_their_width() -> None:
    rng = np.random.default_rng(3)
    y, x = rng.normal(size=20_000), rng.normal(size=(20_000, 19))  # the ends are the extremes
    low, high = central_interval(x)
    assert (low == x.min(1)).all() and (high == x.max(1)).all()
    assert interval_coverage(y, low, high).covered == pytest.approx(0.9, abs=0.008)
    assert sharpness(rng.normal(size=(200, 5000)), 0.8) == pytest.approx(2 * stats.norm.ppf(0.9), rel=0.01)
    widths = sharpness(rng.normal(size=(200, 999, 2)) * [1, 3])
    assert widths == pytest.approx([2 * 1.645, 6 * 1.645], rel=0.03)


def test_conformal_coverage_holds_and_follows_its_beta_law() -> None:
    rng, covered = np.random.default_rng(0), []
    for _ in range(400):
        y = rng.normal(size=99)
        found = ConformalIntervals(0.8).fit(np.full(99, -0.5), np.full(99, 0.7), y)  # far too narrow
        low, high = found.adjust(np.array([-0.5]), np.array([0.7]))
        covered.append(stats.norm.cdf(high[0]) - stats.norm.cdf(low[0]))  # exact, of new rows
    mean, std = found.law()
    assert (found.rank_, found.rows_) == (80, 99) and mean == pytest.approx(0.8)
    assert np.mean(covered) == pytest.approx(0.8, abs=4 * std / 20)
    assert stats.kstest(covered, stats.beta(80, 20).cdf).pvalue > 0.001
    assert std == pytest.approx(stats.beta(80, 20).std())


def test_wide_intervals_are_narrowed_and_the_scores_quantile_is_by_hand() -> None:
    y = np.arange(1.0, 10.0)  # 9 rows: the rank of 0.9 is the last
    found = ConformalIntervals(0.9).fit(np.zeros(9), np.full(9, 20.0), y)
    assert found.shift_ == -1.0 and found.least_rows == 9  # scores -1 .. -9
    low, high = found.adjust([0.0, 0.0], [20.0, 1.0])
    assert low.tolist() == [1.0, 0.5] and high.tolist() == [19.0, 0.5]  # what would be empty is its middle


def test_columns_are_corrected_each_on_their_own_and_pickled_ones_are_equal() -> None:
    rng = np.random.default_rng(1)
    y = rng.normal(size=(200, 2)) * [1, 5]
    found = ConformalIntervals(0.9).fit(-np.ones((200, 2)), np.ones((200, 2)), y)
    again = pickle.loads(pickle.dumps(found))
    low, high = again.adjust(-np.ones((3, 2)), np.ones((3, 2)))
    assert (high[0] - low[0]) / 2 == pytest.approx([1.645, 5 * 1.645], rel=0.2)
    assert (low == found.adjust(-np.ones((3, 2)), np.ones((3, 2)))[0]).all()
    for column in range(2):
        one = ConformalIntervals(0.9).fit(-np.ones(200), np.ones(200), y[:, column])
        assert one.shift_ == found.shift_[column]


@pytest.mark.parametrize(("coverage", "least"), [(0.5, 1), (0.8, 4), (0.9, 9), (0.95, 19), (0.99, 99), (0.999, 999)])
def test_too_few_rows_for_the_level_are_refused(coverage: float, least: int) -> None:
    made = ConformalIntervals(coverage)
    assert made.least_rows == least
    made.fit(np.zeros(least), np.ones(least), np.ones(least))
    if least > 1:
        with pytest.raises(UserError, match=rf"{least - 1} rows are too few .* give {least} or more"):
            made.fit(np.zeros(least - 1), np.ones(least - 1), np.ones(least - 1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: crps([1.0], [[1.0]]), r"draws must be 2 or more a row, got 1"),
        (lambda: crps([np.nan], [[1.0, 2.0]]), r"y has NaN or infinite values in 1 of 1 rows"),
        (lambda: sharpness(np.ones((3, 18))), r"draws must be 19 or more a row, got 18"),
        (lambda: sharpness(np.ones((3, 50)), 0.0), r"level must lie in \(0, 1\), got 0"),
        (lambda: sharpness(np.ones(3)), r"draws must have 2 or 3 axes"),
        (lambda: ConformalIntervals(1.0), r"ConformalIntervals.coverage must be above 0 and below 1, got 1.0"),
        (lambda: ConformalIntervals().adjust([0.0], [1.0]), r"not fitted; call fit"),
        (lambda: ConformalIntervals().law(), r"not fitted; call fit"),
        (lambda: ConformalIntervals(0.5).fit([0.0], [1.0], [np.nan]), r"y has NaN"),
        (lambda: ConformalIntervals(0.5).fit([1.0], [0.0], [1.0]), r"lower is above upper in 1 of 1"),
        (lambda: ConformalIntervals(0.5).fit([0.0], [1.0], [1.0]).adjust([[0.0]], [[1.0]]), r"must have no columns"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()
