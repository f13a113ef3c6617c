"""What every solver of the ordinary differential equation promises."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from advect.core.errors import UserError
from advect.core.registry import choices
from advect.solvers import get_solver, integrate, solve

SOLVERS = {name: solver for name in choices("solver") if not ((solver := get_solver(name)).two_times or solver.jumps)}
FIXED = {name: solver for name, solver in SOLVERS.items() if not solver.adaptive}


def bend(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """x' = -2 t x^2, neither linear in x nor constant in t: x(t) = 1 / (1 / x(0) + t^2)."""
    return -2 * t[:, None] * x.square()


X0 = torch.linspace(0.5, 2, 7, dtype=torch.float64)[:, None]


def bent(t: float) -> torch.Tensor:
    """Where it has X0 at t."""
    return 1 / (1 / X0 + t**2)


@pytest.mark.parametrize("solver", FIXED.values(), ids=FIXED.keys())
@pytest.mark.parametrize(("t0", "t1"), [(0.1, 0.9), (0.9, 0.1)])
class TestOrder:
    def rates(self, solver, t0, t1, grids):
        errors = [
            (integrate(bend, bent(t0), solver=solver, t0=t0, t1=t1, **grid) - bent(t1)).abs().max() for grid in grids
        ]
        return [math.log2(a / b) for a, b in pairwise(errors)]

    def test_it_converges_with_its_order_both_ways(self, solver, t0, t1):
        rates = self.rates(solver, t0, t1, [{"steps": steps} for steps in (80, 160, 320)])
        assert rates == pytest.approx([solver.order] * 2, abs=0.15)

    def test_it_converges_with_its_order_on_steps_of_any_width(self, solver, t0, t1):
        # Steps of two widths in turn: a two-step method that forgot the ratio would be of order 1.
        grids = []
        for steps in (80, 160, 320):
            widths = torch.tensor([1.0, 2.0], dtype=torch.float64).repeat(steps // 2)
            grids.append({"grid": 0.1 + 0.8 * torch.cat([widths.new_zeros(1), widths.cumsum(0)]) / widths.sum()})
        assert self.rates(solver, t0, t1, grids) == pytest.approx([solver.order] * 2, abs=0.15)


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())
class TestSolver:
    def steps(self, solver, n):
        return {} if solver.adaptive else {"steps": n}

    def test_it_makes_the_evaluations_that_it_tells(self, solver):
        calls = []
        found = solve(lambda x, t: calls.append(t) or bend(x, t), X0, solver=solver, **self.steps(solver, 9))
        assert found.nfe == len(calls)
        assert solver.nfe(9) == (None if solver.adaptive else len(calls))
        assert all(t.shape == (7,) and (t == t[0]).all() and 0 <= t[0] <= 1 for t in calls)

    def test_there_and_back_is_where_it_was(self, solver):
        there = integrate(bend, X0, solver=solver, **self.steps(solver, 400))
        back = integrate(bend, there, solver=solver, t0=1.0, t1=0.0, **self.steps(solver, 400))
        torch.testing.assert_close(back, X0, rtol=0, atol={1: 2e-2, 2: 3e-4}.get(solver.order, 1e-4))

    def test_no_velocity_no_motion(self, solver):
        end = integrate(lambda x, t: torch.zeros_like(x), X0, solver=solver, **self.steps(solver, 3))
        torch.testing.assert_close(end, X0, rtol=1e-14, atol=0)

    def test_the_state_it_is_given_stays(self, solver):
        before = X0.clone()
        for _ in solver.iterate(bend, X0, [0.0, 0.5, 0.9]):
            assert torch.equal(X0, before)

    def test_states_once_given_stay(self, solver):
        given = [(x, x.clone()) for x in solver.iterate(bend, X0, [0.0, 0.3, 0.5, 0.9])]
        assert len(given) == 3 and all(torch.equal(x, copy) for x, copy in given)

    @pytest.mark.parametrize("shape", [(1, 1), (3, 2), (2, 1, 4, 4)])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_shape_and_dtype_are_kept(self, solver, shape, dtype):
        for x in solver.iterate(lambda x, t: x, torch.ones(shape, dtype=dtype), [0.0, 0.25, 0.5]):
            assert x.shape == shape and x.dtype == dtype

    def test_half_precision_states_get_single_precision_times(self, solver):
        seen = set()
        x0 = torch.ones(3, 2, dtype=torch.bfloat16)
        options = {"rtol": 0.1, "atol": 0.1} if solver.adaptive else {"steps": 3}
        end = integrate(lambda x, t: seen.add(t.dtype) or x, x0, solver=solver, **options)
        assert end.dtype == torch.bfloat16 and seen == {torch.float32}

    def test_gradients_flow_through_a_walk(self, solver):
        rate = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        *_, end = solver.iterate(lambda x, t: rate * x, X0, torch.linspace(0, 1, 201).tolist())
        (slope,) = torch.autograd.grad(end.sum(), rate)
        assert slope == pytest.approx(float(X0.sum() * math.exp(0.5)), rel=5e-3)

    def test_it_refuses_the_options_of_others(self, solver):
        for option, value in (("rtol", 1e-3), ("max_steps", 5), ("schedule", object())):
            if not hasattr(solver, option):
                with pytest.raises(UserError, match=f"solver {solver.name!r} does not use {option}; leave it out"):
                    get_solver(solver.name, **{option: value})


@pytest.mark.parametrize("solver", [s for s in FIXED.values() if not s.affine_only], ids=lambda s: s.name)
class TestQuadrature:
    def test_polynomials_in_time_up_to_its_order_are_exact(self, solver):
        # x' = t^k is integrated exactly for k < order: the conditions of a quadrature rule.
        for k in range(solver.order):
            end = integrate(lambda x, t, k=k: t[:, None] ** k + 0 * x, X0, solver=solver, steps=3)
            torch.testing.assert_close(end, X0 + 1 / (k + 1), rtol=0, atol=1e-14)

    def test_samples_do_not_influence_each_other(self, solver):
        together = integrate(bend, X0, solver=solver.name, steps=5)
        alone = integrate(bend, X0[2:3], solver=solver.name, steps=5)
        torch.testing.assert_close(together[2:3], alone, rtol=1e-14, atol=0)
