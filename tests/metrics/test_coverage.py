"""Coverage by density, by random points and of intervals, of posteriors whose coverage is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from advect.core.errors import UserError
from advect.metrics import coverage_of, density_coverage, interval_coverage, tarp_coverage
from linear_gaussian import LinearGaussian

EXACT, NARROW, WIDE, SHIFTED = (LinearGaussian(width=w, shift=s) for w, s in ((1, 0), (0.7, 0), (1.4, 0), (1, 0.6)))


def simulated(model: LinearGaussian, n: int = 500, m: int = 199, seed: int = 0):
    rng = np.random.default_rng(seed)
    theta, x = model.simulate(n, rng)
    return theta, x, model.draw(x, m, rng)


def by_density(model: LinearGaussian, **size: int):
    theta, x, draws = simulated(model, **size)
    return density_coverage(model.log_prob(theta[:, None], x)[:, 0], model.log_prob(draws, x))


def by_points(model: LinearGaussian, **size: int):
    theta, _, draws = simulated(model, **size)
    return tarp_coverage(theta, draws)


@pytest.mark.parametrize("coverage", [by_density, by_points])
def test_the_exact_posterior_covers_as_it_says(coverage) -> None:
    found = coverage(EXACT)
    assert found.p_value > 0.01 and found.within and abs(found.excess) < 3 * found.excess_error
    rejected = sum(coverage(EXACT, n=100, m=30, seed=seed).p_value < 0.1 for seed in range(60))
    assert rejected <= stats.binom.ppf(0.999, 60, 0.1)


@pytest.mark.parametrize("coverage", [by_density, by_points])
def test_narrow_is_over_confident_and_wide_under_confident(coverage) -> None:
    narrow, wide = coverage(NARROW), coverage(WIDE)
    assert narrow.excess < -4 * narrow.excess_error and narrow.p_value < 0.01 and not narrow.within
    assert wide.excess > 4 * wide.excess_error and wide.p_value < 0.01 and not wide.within


@pytest.mark.parametrize("coverage", [by_density, by_points])
def test_a_shifted_posterior_is_rejected(coverage) -> None:
    assert coverage(SHIFTED).p_value < 0.01


def test_density_regions_cover_what_the_chi_square_law_says() -> None:
    found = by_density(NARROW, n=4000)
    # A region of the 0.7 times as wide posterior is the exact one of 0.49 times the squared radius.
    expected = stats.chi2(2).cdf(0.49 * stats.chi2(2).ppf(found.levels))
    assert found.covered == pytest.approx(expected, abs=0.03)
    assert found.error[49] == pytest.approx((0.5 * 0.5 / 4000) ** 0.5) and found.rows == 4000


def test_points_in_one_dimension_see_it_too_and_units_do_not_matter() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=600)
    found = tarp_coverage(y, 0.6 * rng.normal(size=(600, 99)))
    assert found.excess < -4 * found.excess_error
    theta, _, draws = simulated(EXACT, n=200)
    unit = np.array([1e6, 1e-3])
    assert tarp_coverage(theta * unit, draws * unit).covered.tolist() == tarp_coverage(theta, draws).covered.tolist()


def test_points_that_depend_on_the_observation_show_a_posterior_that_ignores_it() -> None:
    rng = np.random.default_rng(0)
    theta, x = EXACT.simulate(800, rng)
    prior = rng.normal(size=(800, 199, 2))
    assert tarp_coverage(theta, prior).p_value > 0.01
    assert tarp_coverage(theta, prior, references=EXACT.mean(x)).p_value < 1e-6


def test_constant_columns_and_infinite_densities_pass() -> None:
    theta, x, draws = simulated(EXACT, n=300, m=199)
    theta, draws = (np.concatenate([v, np.ones_like(v[..., :1])], axis=-1) for v in (theta, draws))
    assert tarp_coverage(theta, draws).p_value > 0.01
    own, of_draws = EXACT.log_prob(theta[:, None, :2], x)[:, 0], EXACT.log_prob(draws[..., :2], x)
    own[:150] = -np.inf  # outside the support: in no region
    found = density_coverage(own, of_draws)
    assert found.covered[-1] < 0.6 and found.excess < 0


def test_central_coverage_of_transforms_is_that_of_intervals() -> None:
    u = np.random.default_rng(0).uniform(size=1000)
    found = coverage_of(u, central=True)
    assert found.levels[89] == pytest.approx(0.9)
    assert found.covered[89] == pytest.approx(np.mean((u >= 0.05) & (u <= 0.95)), abs=1e-9)


def test_interval_coverage_by_hand() -> None:
    found = interval_coverage([1.0, 2.0, 3.0, 4.0], [0, 2, 4, 3], [1, 3, 5, 6])
    assert (found.covered, found.width, found.rows) == (0.75, 1.5, 4)
    assert found.error == pytest.approx((4 / 6 * 2 / 6 / 4) ** 0.5)
    assert interval_coverage([1.0], [0.0], [2.0]).error > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tarp_coverage([[1.0]], [[[1.0]]]), r"theta must have 2 rows or more, got 1"),
        (lambda: tarp_coverage(np.ones((3, 1)), np.ones((3, 2, 1)), references=np.ones((3, 2))), r"shape \(3, 1\)"),
        (lambda: density_coverage([np.nan, 1], [[1.0], [1.0]]), r"log_prob has NaN or infinite values in 1 of 2"),
        (
            lambda: density_coverage([1.0, 1.0], [[np.inf], [1.0]]),
            r"draws_log_prob has NaN or infinite values in 1 of 2",
        ),
        (lambda: coverage_of([0.5]), r"coverage needs 2 rows or more, got 1"),
        (lambda: interval_coverage([1.0], [2.0], [1.0]), r"lower is above upper in 1 of 1 intervals"),
        (lambda: interval_coverage([1.0], [2.0], [1.0, 2.0]), r"must have one shape"),
    ],
)
def test_what_has_no_coverage_is_refused_in_one_sentence(call, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()
