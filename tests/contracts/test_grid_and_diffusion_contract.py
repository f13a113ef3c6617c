"""What every time grid and every diffusion coefficient promises."""

from __future__ import annotations

import pytest
import torch
from parts import examples

from advect.core.errors import UserError
from advect.paths import CondOT, Schedule, Trigonometric
from advect.solvers import t_grid
from advect.solvers.diffusion_coefficients import diffusion_on

GRIDS = examples("grid")
DIFFUSIONS = examples("diffusion")
HALVED = examples("diffusion", scale=0.5)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
class TestGrid:
    @pytest.mark.parametrize("steps", [1, 2, 3, 50, 1000])
    def test_it_rises_from_0_to_1(self, grid, steps):
        times = t_grid(steps, grid)
        assert times.shape == (steps + 1,) and times.dtype == torch.float64
        assert times[0] == 0 and times[-1] == 1 and (times.diff() > 0).all()

    def test_backwards_the_times_are_the_same(self, grid):
        there, back = t_grid(9, grid, t0=0.25, t1=0.75), t_grid(9, grid, t0=0.75, t1=0.25)
        assert torch.equal(there, back.flip(0))
        torch.testing.assert_close(there, 0.25 + 0.5 * t_grid(9, grid))

    def test_too_few_steps_are_refused(self, grid):
        with pytest.raises(UserError, match="steps must be at least 1 and at most 100,000, got 0"):
            t_grid(0, grid)


@pytest.mark.parametrize("schedule", [CondOT(), Trigonometric()], ids=repr)
@pytest.mark.parametrize("name", DIFFUSIONS)
class TestDiffusion:
    def test_it_is_a_finite_number_a_time_that_is_not_negative(self, name: str, schedule: Schedule):
        times = torch.linspace(0, 1, 101, dtype=torch.float64).tolist()
        g = diffusion_on(DIFFUSIONS[name], schedule, times)
        assert len(g) == 101 and max(g) > 0 and min(g) >= 0

    def test_its_scale_is_a_factor(self, name: str, schedule: Schedule):
        times = [0.1, 0.5, 0.9]
        whole = diffusion_on(DIFFUSIONS[name], schedule, times)
        assert diffusion_on(HALVED[name], schedule, times) == pytest.approx([0.5 * g for g in whole])
