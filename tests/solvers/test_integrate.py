from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.registry import choices
from advect.paths import CondOT
from advect.solvers import get_solver, integrate, solve, t_grid

MEAN, SPREAD = 2.0, 0.5
METHODS = sorted(
    n for n in choices("solver") if not (get_solver(n).adaptive or get_solver(n).two_times or get_solver(n).jumps)
)


def gaussian_flow(x: Tensor, t: Tensor) -> Tensor:
    """The marginal velocity that carries N(0, I) to N(MEAN, SPREAD^2 I); it takes x0 to MEAN + SPREAD x0."""
    t = t.reshape(-1, *(1 for _ in x.shape[1:]))
    slope = (t * SPREAD**2 - (1 - t)) / (t**2 * SPREAD**2 + (1 - t) ** 2)
    return MEAN + slope * (x - t * MEAN)


def start(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def carried(x0: Tensor, t: float) -> Tensor:
    """Where that flow has x0 at t."""
    return t * MEAN + (t**2 * SPREAD**2 + (1 - t) ** 2) ** 0.5 * x0


@pytest.mark.parametrize("solver", METHODS)
@pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.0), (1.0, 0.0), (0.0, 0.6), (0.9, 0.1)])
def test_gaussian_flow_approaches_its_closed_form_as_fast_as_the_solvers_order(solver, t0, t1):
    x0 = start(100, 2)
    errors = [
        (integrate(gaussian_flow, carried(x0, t0), solver=solver, steps=steps, t0=t0, t1=t1) - carried(x0, t1)).abs()
        for steps in (50, 100, 200)
    ]
    rates = [math.log2(a.max() / b.max()) for a, b in pairwise(errors)]
    # midpoint is of order 3 on this flow; dpmpp2m has h^2 log(1/h) where the way includes an end
    assert min(rates) > get_solver(solver).order - (0.3 if solver == "dpmpp2m" else 0.15)


@pytest.mark.parametrize(
    ("solver", "error"),
    [("euler", 0.03), ("midpoint", 2e-5), ("heun", 2e-4), ("rk4", 1e-8), ("ab2", 5e-4), ("dpmpp2m", 3e-4)],
)
@pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.0), (1.0, 0.0)])
def test_noise_to_data_and_back(solver, error, t0, t1):
    x0 = start(50, 1, 2, 2)
    end = integrate(gaussian_flow, carried(x0, t0), solver=solver, steps=200, t0=t0, t1=t1)
    torch.testing.assert_close(end, carried(x0, t1), rtol=0, atol=error)


@pytest.mark.parametrize("solver", ["euler", "midpoint", "ab2", "dpmpp2m"])
def test_straight_flow_to_a_point_is_exact_in_one_step(solver):
    x0, target = start(20, 3), torch.tensor([1.0, -2.0, 5.0], dtype=torch.float64)
    end = integrate(lambda x, t: (target - x) / (1 - t[:, None]), x0, solver=solver, steps=1)
    torch.testing.assert_close(end, target.expand(20, 3), rtol=0, atol=1e-14)


def test_a_part_of_the_way_and_then_the_rest_is_the_whole_way():
    x0 = start(10, 2)
    half = integrate(gaussian_flow, x0, steps=20, t1=0.5)
    whole = integrate(gaussian_flow, x0, steps=40)
    torch.testing.assert_close(integrate(gaussian_flow, half, steps=20, t0=0.5), whole)


@pytest.mark.parametrize("solver", METHODS)
@pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.0), (1.0, 0.0), (0.25, 0.75)])
def test_trajectory_has_all_grid_times(solver, t0, t1):
    x0 = start(5, 3)
    states = integrate(gaussian_flow, x0, solver=solver, steps=7, t0=t0, t1=t1, trajectory=True)
    assert states.shape == (8, 5, 3)
    assert torch.equal(states[0], x0)
    assert torch.equal(states[-1], integrate(gaussian_flow, x0, solver=solver, steps=7, t0=t0, t1=t1))
    # x' = 1: every state tells how far its time is from the first one's.
    clock = integrate(lambda x, t: x.new_ones(x.shape), x0, solver=solver, steps=7, t0=t0, t1=t1, trajectory=True)
    passed = torch.linspace(0, t1 - t0, 8, dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(clock - x0, passed.expand(8, 5, 3), rtol=0, atol=1e-14)


def test_times_asked_for():
    asked = {}
    for solver in METHODS:
        times = []
        integrate(lambda x, t, times=times: times.append(float(t[0])) or x, start(1, 1), solver=solver, steps=2)
        asked[solver] = times
    assert asked == {
        "euler": [0.0, 0.5],
        "midpoint": [0.0, 0.25, 0.5, 0.75],
        "heun": [0.0, 0.5, 0.5, 1.0],
        "rk4": [0.0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1.0],
        "ab2": [0.0, 0.25, 0.5],
        "dpmpp2m": [0.0, 0.5],
    }


def test_large_batches_get_times_too():
    # More numbers than are laid out: the times are then rows of stride 0.
    asked = []
    integrate(lambda x, t: asked.append(t) or x, torch.zeros(400_000, 1), solver="euler", steps=3)
    assert [t.shape for t in asked] == [(400_000,)] * 3 and [float(t[-1]) for t in asked] == pytest.approx(
        [0, 1 / 3, 2 / 3]
    )


def test_a_solution_tells_its_times_and_cost():
    found = solve(gaussian_flow, start(4, 2), solver="heun", steps=4, t0=1.0, t1=0.0, trajectory=True)
    assert found.times == (1.0, 0.75, 0.5, 0.25, 0.0) and found.nfe == 8
    assert found.states is not None and torch.equal(found.states[-1], found.x)
    assert solve(gaussian_flow, start(4, 2), steps=4).states is None


def test_fifty_steps_where_none_are_asked_for():
    assert len(solve(gaussian_flow, start(1, 1)).times) == 51


def test_no_graph_is_kept_and_the_start_is_not_changed():
    x0 = start(3, 2).requires_grad_()
    before = x0.detach().clone()
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    assert not integrate(lambda x, t: weight * x, x0, steps=2).requires_grad
    assert torch.equal(x0.detach(), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_of_the_start_is_kept(dtype):
    seen = set()
    end = integrate(lambda x, t: seen.add((x.dtype, t.dtype)) or x, start(3, 2).to(dtype), steps=2)
    assert end.dtype == dtype
    assert seen == {(dtype, dtype)}


# --- States that stop being finite. ---


@pytest.mark.parametrize("trajectory", [False, True])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_first_broken_time_is_named(bad, trajectory):
    def velocity(x, t):
        return torch.where(t[:, None] > 0.55, bad, x)

    with pytest.raises(UserError, match=r"solver 'euler' is not finite from t = 0\.7 on.*take an earlier checkpoint"):
        integrate(velocity, start(4, 2), solver="euler", steps=10, trajectory=trajectory)


def test_one_broken_element_at_the_last_step_is_seen():
    def velocity(x, t):
        broken = x.clone()
        broken[2, 1] = torch.where(t[0] > 0.85, torch.inf, 0.0)
        return broken

    with pytest.raises(UserError, match=r"from t = 1 on"):
        integrate(velocity, start(4, 2), solver="euler", steps=10)


def test_broken_backwards_and_from_the_start():
    late = lambda x, t: torch.where(t[:, None] < 0.55, torch.nan, x)
    with pytest.raises(UserError, match=r"from t = 0\.4 on"):
        integrate(late, start(4, 2), solver="euler", steps=10, t0=1.0, t1=0.0)
    with pytest.raises(UserError, match=r"from t = 0 on.*the start is not finite"):
        integrate(lambda x, t: x, torch.full((2, 2), torch.nan), steps=3)


# --- Mistakes. ---


@pytest.mark.parametrize("steps", [0, -3])
def test_too_few_steps(steps):
    with pytest.raises(UserError, match=f"steps must be at least 1 and at most 100,000, got {steps}"):
        integrate(gaussian_flow, start(2, 2), steps=steps)


@pytest.mark.parametrize(("t0", "t1"), [(-0.1, 1), (0, 1.1), (float("nan"), 1), (0, float("nan"))])
def test_times_outside_the_unit_interval(t0, t1):
    with pytest.raises(UserError, match=r"t0 and t1 must lie in \[0, 1\] \(0 is noise, 1 is data\), got"):
        integrate(gaussian_flow, start(2, 2), t0=t0, t1=t1)


def test_unknown_solver_suggests_the_nearest():
    with pytest.raises(UserError, match=r"solver 'midpiont' is not known; did you mean 'midpoint'\?"):
        integrate(gaussian_flow, start(2, 2), solver="midpiont")
    with pytest.raises(UserError, match=r"choose from .*euler, midpoint"):
        get_solver("zzz")


# --- Grids. ---


@pytest.mark.parametrize("grid", ["uniform", "cosine", "edm", "shifted"])
@pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.0), (1.0, 0.0), (0.2, 0.8)])
def test_a_named_grid_is_the_given_times(grid, t0, t1):
    x0 = start(5, 2)
    times = t_grid(12, grid, t0=t0, t1=t1)
    by_name = solve(gaussian_flow, x0, steps=12, grid=grid, t0=t0, t1=t1)
    given = solve(gaussian_flow, x0, grid=times, t0=t0, t1=t1)
    assert given.times == by_name.times == pytest.approx(tuple(times.tolist()))
    assert torch.equal(given.x, by_name.x)
    assert torch.equal(solve(gaussian_flow, x0, grid=times.flip(0), t0=t0, t1=t1).x, given.x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grid": "cosin"}, r"grid 'cosin' is not known; did you mean 'cosine'\?"),
        ({"grid": torch.tensor([0.0, 0.5, 1.0]), "steps": 2}, "steps is 2, but the times of the grid are given"),
        ({"grid": torch.tensor([0.0, 0.5])}, "the grid goes from 0 to 0.5, but t0 and t1 are 0.0 and 1.0; match them"),
        ({"grid": torch.tensor([0.0, 0.5, 0.5, 1.0])}, "must all rise or all fall"),
        ({"grid": torch.tensor([0.0, float("nan"), 1.0])}, "must all rise or all fall"),
        ({"grid": torch.tensor([[0.0, 1.0]])}, r"must have shape \(steps \+ 1,\), at least \(2,\), got \(1, 2\)"),
        ({"grid": torch.tensor([0.0])}, "at least"),
        ({"t0": 0.5, "t1": 0.5}, "t0 and t1 are both 0.5"),
        ({"rtol": 1e-3}, r"solver 'midpoint' does not use rtol; leave it out \(it is an option of dopri5\)"),
        ({"schedule": CondOT()}, r"does not use schedule; leave it out \(it is an option of dpmpp2m and flow-map\)"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(UserError, match=message):
        integrate(gaussian_flow, start(2, 2), **arguments)
