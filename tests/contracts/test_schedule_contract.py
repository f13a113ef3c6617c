"""What every schedule of an affine path promises."""

from __future__ import annotations

import pytest
import torch
from implementations import implementations

from advect.paths import CondOT, Schedule

SCHEDULES = [CondOT()]


def test_none_is_left_out():
    assert {type(schedule) for schedule in SCHEDULES} == implementations(Schedule, "advect.paths")


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
class TestSchedule:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_ends(self, schedule, dtype):
        c = schedule.coefficients(torch.tensor([0.0, 1.0], dtype=dtype))
        assert c.alpha.tolist() == pytest.approx([0, 1], abs=1e-6)
        assert c.sigma.tolist() == pytest.approx([1, getattr(schedule, "sigma_min", 0.0)], abs=1e-6)

    @pytest.mark.parametrize("shape", [(), (1,), (7,), (4, 1, 1)])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_coefficients_are_shaped_like_t(self, schedule, shape, dtype):
        t = torch.rand(shape, dtype=dtype)
        before = t.clone()
        for value in schedule.coefficients(t):
            assert value.shape == shape and value.dtype == dtype and value.isfinite().all()
        assert torch.equal(t, before)

    def test_derivatives_are_those_of_the_values(self, schedule):
        t, h = torch.linspace(0.01, 0.99, 197, dtype=torch.float64), 1e-6
        ahead, behind = schedule.coefficients(t + h), schedule.coefficients(t - h)
        c = schedule.coefficients(t)
        torch.testing.assert_close(c.d_alpha, (ahead.alpha - behind.alpha) / (2 * h), rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(c.d_sigma, (ahead.sigma - behind.sigma) / (2 * h), rtol=1e-6, atol=1e-8)

    def test_signal_over_noise_rises_all_the_way(self, schedule):
        c = schedule.coefficients(torch.linspace(0, 1, 1001, dtype=torch.float64))
        assert (c.alpha >= 0).all() and (c.sigma >= 0).all()
        assert (torch.atan2(c.alpha, c.sigma).diff() > 0).all()
