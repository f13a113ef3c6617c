from __future__ import annotations

import math
from itertools import pairwise

import plane_mixture as mixture
import pytest
import torch

from advect.core.errors import UserError
from advect.solvers import DormandPrince, integrate, solve


def start(n: int) -> torch.Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def exact() -> torch.Tensor:
    return integrate(mixture.velocity, start(100), solver="rk4", steps=100)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-7])
def test_every_sample_ends_within_the_tolerance(exact, tolerance):
    found = solve(mixture.velocity, start(100), solver="dopri5", rtol=tolerance, atol=tolerance)
    # The tolerance is a step's; over the way errors add up and are stretched by the flow, here less than tenfold.
    assert (found.x - exact).square().mean(1).sqrt().max() < 10 * tolerance


def test_it_needs_fewer_evaluations_than_fixed_steps(exact):
    found = solve(mixture.velocity, start(100), solver="dopri5", rtol=1e-6, atol=1e-6)
    error = (found.x - exact).abs().max()
    for solver, evaluations in (("midpoint", 2), ("rk4", 4)):
        same_cost = integrate(mixture.velocity, start(100), solver=solver, steps=-(-found.nfe // evaluations))
        assert (same_cost - exact).abs().max() > 2 * error


def test_a_tighter_tolerance_costs_by_the_fifth_root():
    costs = [
        solve(mixture.velocity, start(20), solver="dopri5", rtol=tol, atol=tol).nfe for tol in (1e-6, 1e-8, 1e-10)
    ]
    assert [math.log(b / a) / math.log(100) for a, b in pairwise(costs)] == pytest.approx([1 / 5] * 2, abs=0.05)


def test_one_hard_sample_is_not_drowned_by_many_easy_ones():
    # Sample 0 turns fast, 999 others stand still: over the whole batch its error would be divided by 32.
    def velocity(x, t):
        fast = torch.zeros_like(x)
        fast[0] = 40 * torch.cos(40 * t[0])
        return fast

    x0 = torch.zeros(1000, 2, dtype=torch.float64)
    alone = solve(velocity, x0[:1], solver="dopri5")
    assert solve(velocity, x0, solver="dopri5").nfe == alone.nfe
    assert (alone.x - math.sin(40)).abs().max() < 1e-4


def test_a_smooth_stretch_is_passed_in_long_steps():
    asked = []

    def velocity(x, t):
        asked.append(float(t[0]))
        return 3 * torch.exp(-(((t - 0.5) / 0.1) ** 2))[:, None] * x

    integrate(velocity, start(5), solver="dopri5", rtol=1e-8, atol=1e-8)
    times = torch.tensor(asked)
    # A fifth of the time each; in the second the velocity is below 1e-3 of its peak.
    rough, smooth = ((times > 0.4) & (times < 0.6)).sum(), (times > 0.8).sum()
    assert rough > 2 * smooth > 0


def test_the_trajectory_is_dense_output_and_changes_nothing():
    plain = solve(mixture.velocity, start(30), solver="dopri5", rtol=1e-7, atol=1e-7)
    dense = solve(mixture.velocity, start(30), solver="dopri5", rtol=1e-7, atol=1e-7, trajectory=True, steps=37)
    assert dense.nfe == plain.nfe and torch.equal(dense.x, plain.x)
    assert dense.states is not None and dense.states.shape == (38, 30, 2) and len(dense.times) == 38
    exact = integrate(mixture.velocity, start(30), solver="rk4", steps=37 * 5, trajectory=True)[::5]
    assert (dense.states - exact).abs().max() < 5e-6
    chosen = integrate(
        mixture.velocity, start(30), solver="dopri5", grid=torch.tensor([1.0, 0.9, 0.0]), t0=1, t1=0, trajectory=True
    )
    assert chosen.shape == (3, 30, 2)


def test_the_first_slope_of_a_step_is_the_last_of_the_one_before():
    found = solve(mixture.velocity, start(5), solver="dopri5")
    assert found.nfe % 6 == 2  # one for the first slope, one for the first step's width, then six a step


def test_encoding_and_decoding_meet():
    x1 = mixture.sample(50, 1.0, seed=1)
    options = {"solver": "dopri5", "rtol": 1e-8, "atol": 1e-8}
    x0 = integrate(mixture.velocity, x1, t0=1.0, t1=0.0, **options)
    torch.testing.assert_close(integrate(mixture.velocity, x0, **options), x1, rtol=0, atol=1e-6)


def test_too_few_steps_say_how_far_they_went():
    with pytest.raises(UserError, match=r"'dopri5' stopped at t = 0\.\d+ after max_steps = 3; raise max_steps"):
        integrate(mixture.velocity, start(5), solver="dopri5", max_steps=3)


def test_a_velocity_that_breaks_is_found_where_it_does():
    def velocity(x, t):
        return torch.where(t[:, None] > 0.55, torch.nan, x)

    with pytest.raises(UserError, match=r"'dopri5' is not finite from t = 0\.55 on; .*take an earlier checkpoint"):
        integrate(velocity, start(5), solver="dopri5")
    with pytest.raises(UserError, match=r"not finite from t = 1 on"):
        integrate(lambda x, t: x / 0.0, start(5), solver="dopri5", t0=1.0, t1=0.0)
    with pytest.raises(UserError, match=r"not finite from t = 0 on"):
        integrate(lambda x, t: x, torch.full((2, 2), torch.inf), solver="dopri5")


def test_a_singularity_stops_the_steps():
    # x' = x^2 from 2 is infinite at t = 1/2.
    with pytest.raises(UserError, match=r"t = 0\.5"):
        integrate(lambda x, t: x.square(), torch.full((1, 1), 2.0, dtype=torch.float64), solver="dopri5")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"steps": 50},
            "steps is 50, but solver 'dopri5' chooses its own steps; leave steps out and set rtol and atol",
        ),
        ({"grid": "edm"}, "grid is edm, but solver 'dopri5' chooses its own steps"),
        ({"rtol": -1.0}, "rtol must be at least 0 and at most 1, got -1.0"),
        ({"atol": float("nan")}, "atol must be finite"),
        ({"rtol": 0.0, "atol": 0.0}, "rtol and atol are both 0"),
        ({"max_steps": 0}, "max_steps must be at least 1 and at most 100,000, got 0"),
        ({"t0": 0.3, "t1": 0.3}, "t0 and t1 are both 0.3"),
        ({"t1": 1.5}, r"t0 and t1 must lie in \[0, 1\]"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(UserError, match=message):
        integrate(mixture.velocity, start(2), solver="dopri5", **arguments)


def test_a_solver_of_ones_own_tolerances():
    strict = DormandPrince(rtol=1e-9, atol=1e-9)
    assert (
        solve(mixture.velocity, start(5), solver=strict).nfe > solve(mixture.velocity, start(5), solver="dopri5").nfe
    )
