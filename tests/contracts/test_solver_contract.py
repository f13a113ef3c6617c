"""What every solver of the ordinary differential equation promises."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from advect.sampling import SOLVERS, Solver, integrate


def bend(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """x' = -2 t x^2, neither linear in x nor constant in t: x(t) = 1 / (1 / x(0) + t^2)."""
    return -2 * t[:, None] * x.square()


X0 = torch.linspace(0.5, 2, 7, dtype=torch.float64)[:, None]
X1 = 1 / (1 / X0 + 1)


def test_the_table_is_by_name():
    assert all(name == solver.name and isinstance(solver, Solver) for name, solver in SOLVERS.items())
    assert {"euler", "midpoint"} <= SOLVERS.keys()


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())
class TestSolver:
    @pytest.mark.parametrize(("start", "end", "t0", "t1"), [(X0, X1, 0.0, 1.0), (X1, X0, 1.0, 0.0)])
    def test_it_converges_with_its_order_both_ways(self, solver, start, end, t0, t1):
        errors = [
            (integrate(bend, start, solver=solver.name, steps=steps, t0=t0, t1=t1) - end).abs().max()
            for steps in (40, 80, 160)
        ]
        rates = [math.log2(a / b) for a, b in pairwise(errors)]
        assert rates == pytest.approx([solver.order] * 2, abs=0.15)

    def test_a_step_makes_the_declared_evaluations(self, solver):
        calls = []
        solver.step(lambda x, t: calls.append(t) or bend(x, t), X0, torch.zeros(7, dtype=torch.float64), 0.1)
        assert len(calls) == solver.evaluations
        assert all(t.shape == (7,) for t in calls)

    def test_polynomials_in_time_up_to_its_order_are_exact(self, solver):
        # x' = t^k is integrated exactly for k < order: the conditions of a quadrature rule.
        for k in range(solver.order):
            end = integrate(lambda x, t, k=k: t[:, None] ** k + 0 * x, X0, solver=solver.name, steps=3)
            torch.testing.assert_close(end, X0 + 1 / (k + 1), rtol=0, atol=1e-14)

    def test_no_velocity_no_motion(self, solver):
        assert torch.equal(integrate(lambda x, t: torch.zeros_like(x), X0, solver=solver.name, steps=3), X0)

    def test_the_state_it_is_given_stays(self, solver):
        before, t = X0.clone(), torch.zeros(7, dtype=torch.float64)
        solver.step(bend, X0, t, 0.5)
        assert torch.equal(X0, before) and (t == 0).all()

    @pytest.mark.parametrize("shape", [(1, 1), (3, 2), (2, 1, 4, 4)])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_shape_and_dtype_are_kept(self, solver, shape, dtype):
        x = solver.step(lambda x, t: x, torch.ones(shape, dtype=dtype), torch.zeros(shape[0], dtype=dtype), 0.25)
        assert x.shape == shape and x.dtype == dtype

    def test_samples_do_not_influence_each_other(self, solver):
        together = integrate(bend, X0, solver=solver.name, steps=5)
        alone = integrate(bend, X0[2:3], solver=solver.name, steps=5)
        torch.testing.assert_close(together[2:3], alone, rtol=1e-14, atol=0)
