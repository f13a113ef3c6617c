from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.sampling import SOLVERS, get_solver, integrate

MEAN, SPREAD = 2.0, 0.5
METHODS = sorted(SOLVERS)


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
    assert min(rates) > SOLVERS[solver].order - 0.15  # midpoint is of order 3 on this flow


@pytest.mark.parametrize(("solver", "error"), [("euler", 0.03), ("midpoint", 2e-5)])
@pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.0), (1.0, 0.0)])
def test_noise_to_data_and_back(solver, error, t0, t1):
    x0 = start(50, 1, 2, 2)
    end = integrate(gaussian_flow, carried(x0, t0), solver=solver, steps=200, t0=t0, t1=t1)
    torch.testing.assert_close(end, carried(x0, t1), rtol=0, atol=error)


@pytest.mark.parametrize("solver", METHODS)
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


@pytest.mark.parametrize("solver", METHODS)
def test_evaluations_are_those_that_the_solver_declares(solver):
    calls = []

    def velocity(x, t):
        calls.append(t)
        return x

    integrate(velocity, start(4, 2), solver=solver, steps=9)
    assert len(calls) == 9 * SOLVERS[solver].evaluations
    assert all(t.shape == (4,) and (t == t[0]).all() and 0 <= t[0] <= 1 for t in calls)


def test_times_asked_for():
    asked = {}
    for solver in ("euler", "midpoint"):
        times = []
        integrate(lambda x, t, times=times: times.append(float(t[0])) or x, start(1, 1), solver=solver, steps=2)
        asked[solver] = times
    assert asked == {"euler": [0.0, 0.5], "midpoint": [0.0, 0.25, 0.5, 0.75]}


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
    with pytest.raises(UserError, match=f"steps must be at least 1, got {steps}; 50 is usual"):
        integrate(gaussian_flow, start(2, 2), steps=steps)


@pytest.mark.parametrize(("t0", "t1"), [(-0.1, 1), (0, 1.1), (float("nan"), 1), (0, float("nan"))])
def test_times_outside_the_unit_interval(t0, t1):
    with pytest.raises(UserError, match=r"t0 and t1 must lie in \[0, 1\] \(0 is noise, 1 is data\), got"):
        integrate(gaussian_flow, start(2, 2), t0=t0, t1=t1)


def test_unknown_solver_suggests_the_nearest():
    with pytest.raises(UserError, match=r"solver 'midpiont' is not known; did you mean 'midpoint'\?"):
        integrate(gaussian_flow, start(2, 2), solver="midpiont")
    with pytest.raises(UserError, match=r"choose from euler, midpoint"):
        get_solver("zzz")
