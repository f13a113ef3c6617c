from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import plane_mixture as mixture
import pytest
import torch

from advect.core.errors import UserError
from advect.paths import Coefficients, CondOT, Schedule
from advect.solvers import DPMSolverPlusPlus2M, integrate, solve, t_grid


@dataclass(frozen=True)
class Trigonometric(Schedule):
    """alpha = sin(pi t / 2), sigma = cos(pi t / 2)."""

    def coefficients(self, t):
        a, k = t * math.pi / 2, math.pi / 2
        return Coefficients(a.sin(), a.cos(), k * a.cos(), -k * a.sin())


@dataclass(frozen=True)
class Slow(Schedule):
    """alpha = t^2, sigma = 1 - t^2: at t = 0 the velocity says nothing."""

    def coefficients(self, t):
        return Coefficients(t**2, 1 - t**2, 2 * t, -2 * t)


def start(n: int, width: int = 2) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def to_a_point(schedule: Schedule, point: torch.Tensor):
    """The flow of a data set of one point: the data prediction is that point, everywhere."""

    def velocity(x, t):
        alpha, sigma, d_alpha, d_sigma = (c[:, None] for c in schedule.coefficients(t))
        return d_alpha * point + d_sigma / sigma * (x - alpha * point)

    return velocity


@pytest.mark.parametrize("schedule", [CondOT(), Trigonometric()], ids=repr)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_constant_prediction_of_the_data_is_integrated_exactly(schedule, steps):
    point = torch.tensor([2.0, -1.0], dtype=torch.float64)
    states = integrate(
        to_a_point(schedule, point), start(6), solver="dpmpp2m", schedule=schedule, steps=steps, trajectory=True
    )
    c = schedule.coefficients(torch.linspace(0, 1, steps + 1, dtype=torch.float64)[:, None, None])
    torch.testing.assert_close(states, c.alpha * point + c.sigma * start(6), rtol=0, atol=1e-13)


@pytest.mark.parametrize("schedule", [CondOT(), Trigonometric()], ids=repr)
def test_from_data_to_noise_a_constant_prediction_of_the_noise_is(schedule):
    x1, noise = start(6), torch.tensor([0.5, 1.5], dtype=torch.float64)

    def velocity(x, t):
        alpha, sigma, d_alpha, d_sigma = (c[:, None] for c in schedule.coefficients(t))
        return d_alpha / alpha * (x - sigma * noise) + d_sigma * noise

    end = integrate(velocity, x1, solver="dpmpp2m", schedule=schedule, steps=4, t0=1.0, t1=0.0)
    torch.testing.assert_close(end, noise.expand(6, 2), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.0), (1.0, 0.0)])
def test_over_the_whole_way_the_error_is_the_square_of_the_step_times_a_logarithm(t0, t1):
    x = start(20) if t0 == 0 else mixture.sample(20, 1.0, seed=0)
    exact = integrate(mixture.velocity, x, solver="rk4", steps=200, t0=t0, t1=t1)
    errors = [
        (integrate(mixture.velocity, x, solver="dpmpp2m", steps=n, t0=t0, t1=t1) - exact).abs().mean()
        for n in (80, 160, 320)
    ]
    assert min(math.log2(a / b) for a, b in pairwise(errors)) > 1.7


def test_few_steps_go_further_than_eulers():
    x0 = start(200)
    exact = integrate(mixture.velocity, x0, solver="rk4", steps=200)
    error = {
        solver: float((integrate(mixture.velocity, x0, solver=solver, steps=10) - exact).square().mean().sqrt())
        for solver in ("euler", "dpmpp2m")
    }
    assert error["dpmpp2m"] < error["euler"] / 5


def test_the_schedule_is_heeded():
    # Trigonometric and straight paths of one Gaussian end in the same place, each with its own velocity.
    mean, spread, x0 = 2.0, 0.5, start(20, 1)

    def velocity_of(schedule):
        def velocity(x, t):
            alpha, sigma, d_alpha, d_sigma = (c[:, None] for c in schedule.coefficients(t))
            slope = (alpha * d_alpha * spread**2 + sigma * d_sigma) / (alpha**2 * spread**2 + sigma**2)
            return d_alpha * mean + slope * (x - alpha * mean)

        return velocity

    for schedule in (CondOT(), Trigonometric()):
        end = integrate(velocity_of(schedule), x0, solver=DPMSolverPlusPlus2M(schedule=schedule), steps=100)
        torch.testing.assert_close(end, mean + spread * x0, rtol=0, atol=2e-3)
    wrong = integrate(velocity_of(Trigonometric()), x0, solver="dpmpp2m", steps=5)
    right = integrate(velocity_of(Trigonometric()), x0, solver="dpmpp2m", schedule=Trigonometric(), steps=5)
    exact = mean + spread * x0
    assert (right - exact).abs().max() < (wrong - exact).abs().max()


def test_a_time_at_which_the_velocity_says_nothing_is_named():
    with pytest.raises(UserError, match=r"Slow cannot tell data from noise by the velocity at t = 0 .*start a little"):
        integrate(mixture.velocity, start(2), solver="dpmpp2m", schedule=Slow(), steps=3)
    end = integrate(to_a_point(Slow(), start(1)), start(3), solver="dpmpp2m", schedule=Slow(), steps=3, t0=0.1)
    torch.testing.assert_close(end, start(1).expand(3, 2), rtol=0, atol=1e-13)


@pytest.mark.parametrize("grid", ["cosine", "edm", "shifted"])
@pytest.mark.parametrize("solver", ["ab2", "dpmpp2m"])
def test_any_grid_ends_where_the_others_do(solver, grid):
    x0 = start(30)
    exact = integrate(mixture.velocity, x0, solver="rk4", steps=300)
    end = integrate(mixture.velocity, x0, solver=solver, grid=t_grid(400, grid))
    torch.testing.assert_close(end, exact, rtol=0, atol=5e-3)


def test_two_step_costs():
    assert solve(mixture.velocity, start(1), solver="ab2", steps=1).nfe == 2
    assert solve(mixture.velocity, start(1), solver="ab2", steps=20).nfe == 21
    assert solve(mixture.velocity, start(1), solver="dpmpp2m", steps=20).nfe == 20
