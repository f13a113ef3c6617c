"""Ranks, probability transforms, bands and verdicts of posteriors that are exact, too narrow, too wide and shifted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from advect.core.errors import UserError
from advect.metrics import probability_transform, simulation_ranks, uniform_band, uniformity, verdict
from advect.metrics.calibration import cumulative
from linear_gaussian import LinearGaussian

EXACT, NARROW, WIDE, SHIFTED = (LinearGaussian(width=w, shift=s) for w, s in ((1, 0), (0.7, 0), (1.4, 0), (1, 0.4)))


def ranks_of(model: LinearGaussian, n: int = 500, m: int = 99, seed: int = 0):
    rng = np.random.default_rng(seed)
    theta, x = model.simulate(n, rng)
    return simulation_ranks(theta, model.draw(x, m, rng))


def test_ranks_of_the_exact_posterior_are_uniform_at_about_the_level_of_the_test() -> None:
    p = np.array([uniformity(ranks_of(EXACT, n=150, m=20, seed=seed).u).p_value for seed in range(150)])
    assert (p < 0.1).sum() <= stats.binom.ppf(0.999, 150, 0.1)
    verdicts = [verdict(ranks_of(EXACT, n=150, m=20, seed=seed)).kind for seed in range(150)]
    assert sum(kind != "calibrated" for kind in verdicts) <= stats.binom.ppf(0.999, 150, 0.01)


@pytest.mark.parametrize(
    ("model", "kind"), [(NARROW, "over-confident"), (WIDE, "under-confident"), (SHIFTED, "biased")]
)
def test_wrong_posteriors_are_rejected_and_named(model: LinearGaussian, kind: str) -> None:
    found = verdict(ranks_of(model), names=("a", "b"))
    assert found.kind == kind and found.p_value < 1e-3
    assert f"of {'ab'[found.column]} cover" in found.sentence and "500 rows" in found.sentence and found.advice


def test_figures_are_those_of_the_law() -> None:
    # Draws of N(0, 0.7^2) for y of N(0, 1): 90% intervals cover what 0.7 * 1.645 standard deviations do.
    found = verdict(ranks_of(NARROW, n=8000, m=199), level=0.9)
    covered = 2 * stats.norm.cdf(0.7 * stats.norm.ppf(0.95)) - 1
    assert found.coverage == pytest.approx(covered, abs=0.02)
    assert found.coverage_error == pytest.approx((0.9 * 0.1 / 8000) ** 0.5)
    test = uniformity(ranks_of(SHIFTED, n=8000, m=199).u)
    # y - draw is N(-0.4, 2) in standard deviations of the posterior.
    assert test.bias + 0.5 == pytest.approx(np.full(2, stats.norm.cdf(-0.4 / 2**0.5)), abs=0.015)


def test_bonferroni_and_kolmogorov_smirnov_are_those_of_scipy() -> None:
    u = ranks_of(NARROW, n=80).u
    p = [stats.kstest(column, "uniform").pvalue for column in u.T]
    found = uniformity(u)
    assert found.p_values.tolist() == p and found.p_value == min(1, 2 * min(p))


def test_ranks_by_hand_and_ties_spread_evenly() -> None:
    found = simulation_ranks([2.5, -1.0, 9.0], [[1, 2, 3], [0, 1, 2], [4, 5, 6]])
    assert found.ranks[:, 0].tolist() == [2, 0, 3] and found.draws == 3
    tied = simulation_ranks(np.zeros(20_000), np.zeros((20_000, 4)))
    counts = np.bincount(tied.ranks[:, 0], minlength=5)
    assert stats.chisquare(counts).pvalue > 1e-3
    assert uniformity(tied.u).p_value > 1e-3 and tied.u.min() >= 0 and tied.u.max() < 1


def test_one_draw_is_uniform_too_but_too_few_for_a_verdict() -> None:
    one = ranks_of(EXACT, n=2000, m=1)
    assert set(one.ranks.ravel().tolist()) == {0, 1} and uniformity(one.u).p_value > 1e-3
    with pytest.raises(UserError, match=r"draws must be 19 or more a row for intervals of 90%, got 1"):
        verdict(one)


def test_constant_columns_are_calibrated_and_tell_nothing() -> None:
    theta, draws = np.full((300, 2), 3.0), np.full((300, 30, 2), 3.0)
    assert verdict(simulation_ranks(theta, draws)).kind == "calibrated"
    found = verdict(simulation_ranks(theta + 1, draws))
    assert found.kind == "biased" and "above" in found.sentence


def test_the_seed_and_nothing_else_decides() -> None:
    theta, draws = np.zeros((50, 1)), np.zeros((50, 9, 1))
    first = simulation_ranks(theta, draws, seed=3)
    state = np.random.get_state()[1].copy(), torch.get_rng_state()
    again = simulation_ranks(torch.from_numpy(theta), torch.from_numpy(draws), seed=3)
    assert (first.u == again.u).all() and (first.u != simulation_ranks(theta, draws, seed=4).u).any()
    assert (np.random.get_state()[1] == state[0]).all() and torch.equal(torch.get_rng_state(), state[1])


def test_probability_transform_by_draws_and_by_a_distribution_function() -> None:
    y = np.random.default_rng(0).normal(size=600)
    draws = np.random.default_rng(1).normal(size=(600, 400))
    by_cdf = probability_transform(y, cdf=stats.norm.cdf)
    assert probability_transform(y, draws) == pytest.approx(by_cdf, abs=0.11)
    assert uniformity(by_cdf).p_value > 0.01
    assert uniformity(probability_transform(y, cdf=stats.norm(scale=0.7).cdf)).p_value < 1e-4
    assert verdict(probability_transform(y, cdf=stats.norm(scale=0.7).cdf)).kind == "over-confident"


@pytest.mark.parametrize("n", [20, 400])
def test_the_band_holds_uniform_numbers_as_often_as_it_says(n: int) -> None:
    band, rng = uniform_band(n, level=0.9), np.random.default_rng(1)
    held = sum(band.holds(rng.uniform(size=n)) for _ in range(1000))
    assert stats.binom.cdf(900, 1000, held / 1000) > 1e-3  # discrete: at least the level
    assert held <= 970


def test_the_band_narrows_at_the_ends_unlike_that_of_dkw() -> None:
    band = uniform_band(1000)
    dkw = (np.log(2 / 0.05) / 2000) ** 0.5
    width = (band.high - band.low) / 2
    assert width[0] < 0.3 * dkw and width[len(width) // 2] < 1.2 * dkw
    assert not band.holds(ranks_of(NARROW, n=1000).u[:, 0]) and band.holds(ranks_of(EXACT, n=1000).u[:, 0])
    assert cumulative(np.array([0.1, 0.2, 0.9]), np.array([0.2, 0.5])).tolist() == pytest.approx([2 / 3, 2 / 3])


def test_other_shapes_of_law_are_called_so() -> None:
    rng, at = np.random.default_rng(0), 0.5 + np.array([-1, 1]) / 12**0.5  # two lumps of the uniform law's moments
    found = verdict(rng.choice(at, 2000) + 0.04 * rng.uniform(-1, 1, 2000))
    assert found.kind == "miscalibrated" and found.p_value < 1e-6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: verdict(np.linspace(0, 1, 99)), r"99 rows are too few for a claim of calibration; give 100 or more"),
        (lambda: verdict(np.linspace(0, 2, 200)), r"u must lie in \[0, 1\], got 0 to 2"),
        (lambda: verdict(np.linspace(0, 1, 200), level=1.0), r"level must lie in \(0, 1\), got 1"),
        (lambda: verdict(np.linspace(0, 1, 200), names=("a", "b")), r"names must be 1, one a column, got 2"),
        (lambda: simulation_ranks([np.nan], [[1.0]]), r"theta has NaN or infinite values in 1 of 1 rows"),
        (lambda: simulation_ranks([1.0], [[np.inf]]), r"draws has NaN or infinite values in 1 of 1 rows"),
        (lambda: simulation_ranks([], [[]]), r"theta must have 1 or 2 axes and entries, got shape \(0,\)"),
        (lambda: simulation_ranks([1.0, 2.0], [[1.0]]), r"draws must be \(2, M, 1\) for theta of shape \(2,\)"),
        (lambda: simulation_ranks(np.zeros((2, 3)), np.zeros((2, 5))), r"draws must be \(2, M, 3\)"),
        (lambda: simulation_ranks(["a"], [[1.0]]), r"theta must be an array of numbers"),
        (lambda: probability_transform([1.0]), r"needs either draws \(N, M\) or cdf"),
        (lambda: probability_transform([1.0], cdf=lambda y: y + 1), r"cdf\(y\) must be 1 probabilities"),
        (lambda: uniform_band(1), r"a band needs n >= 2 numbers"),
    ],
)
def test_what_cannot_be_judged_is_refused_in_one_sentence(call, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()
