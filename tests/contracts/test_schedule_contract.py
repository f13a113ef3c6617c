"""What every schedule of an affine path promises."""

from __future__ import annotations

import math

import pytest
import torch
from parts import examples

from advect.core.errors import UserError
from advect.paths import (
    LipmanOT,
    Schedule,
    VariancePreserving,
    change_schedule,
    convert,
)


def quarter(t):
    return torch.cos(math.pi / 2 * t)


SCHEDULES = [
    *examples("path", Schedule).values(),
    LipmanOT(sigma_min=0.25),
    VariancePreserving(quarter),
    VariancePreserving(lambda t: (1 - t) ** 2),
]


def noise_left(schedule: Schedule) -> float:
    return float(schedule.coefficients(torch.ones(1)).sigma)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
class TestSchedule:
    @pytest.mark.parametrize("shape", [(), (1,), (7,), (4, 1, 1), (0,)])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_coefficients_are_shaped_like_t(self, schedule, shape, dtype):
        t = 0.001 + 0.998 * torch.rand(shape, dtype=dtype)
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

    def test_derivatives_hold_close_to_the_ends(self, schedule):
        t, h = torch.tensor([1e-4, 1 - 1e-4], dtype=torch.float64), 1e-8
        ahead, behind = schedule.coefficients(t + h), schedule.coefficients(t - h)
        c = schedule.coefficients(t)
        torch.testing.assert_close(c.d_alpha, (ahead.alpha - behind.alpha) / (2 * h), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(c.d_sigma, (ahead.sigma - behind.sigma) / (2 * h), rtol=1e-5, atol=1e-6)

    def test_single_precision_agrees_with_double_up_to_the_ends(self, schedule):
        t = torch.cat([torch.logspace(-6, -1, 50), torch.linspace(0.1, 0.9, 50), 1 - torch.logspace(-6, -1, 50)])
        single, double = schedule.coefficients(t), schedule.coefficients(t.double())
        for a, b in zip(single, double, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=3e-5, atol=1e-6)

    def test_signal_over_noise_rises_all_the_way(self, schedule):
        c = schedule.coefficients(torch.linspace(0, 1, 1001, dtype=torch.float64))
        assert (c.alpha >= 0).all() and (c.sigma >= 0).all()
        assert (torch.atan2(c.alpha, c.sigma).diff() > 0).all()

    def test_snr_and_its_logarithm(self, schedule):
        t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
        c = schedule.coefficients(t)
        torch.testing.assert_close(schedule.snr(t), c.alpha**2 / c.sigma**2, rtol=1e-12, atol=0)
        torch.testing.assert_close(schedule.log_snr(t).exp(), schedule.snr(t), rtol=1e-12, atol=0)
        end = schedule.log_snr(torch.ones(1))
        assert end > 2 if noise_left(schedule) else end == math.inf

    @pytest.mark.parametrize("scale", [1.0, 7.5])
    def test_time_of_a_ratio_is_its_time(self, schedule, scale):
        for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-12)):
            t = torch.linspace(0, 1, 1001, dtype=dtype)
            c = schedule.coefficients(t)
            back = schedule.time_of(scale * c.alpha, scale * c.sigma)
            assert back.dtype == dtype
            torch.testing.assert_close(back, t, rtol=0, atol=tolerance)
            by_halving = Schedule.time_of(schedule, c.alpha, c.sigma)
            torch.testing.assert_close(by_halving, t, rtol=0, atol=tolerance)

    def test_ratios_out_of_reach_are_the_ends(self, schedule):
        pure = schedule.time_of(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0]))
        torch.testing.assert_close(pure, torch.tensor([0.0, 1.0]), rtol=0, atol=1e-7)

    def test_every_conversion_comes_back(self, schedule):
        t = torch.tensor([0.02, 0.3, 0.5, 0.71, 0.98], dtype=torch.float64)
        x, velocity = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        c = schedule.coefficients(t)
        values = {kind: convert.convert(velocity, x, c, "velocity", kind) for kind in convert.KINDS}
        for source, value in values.items():
            for target, other in values.items():
                found = convert.convert(value, x, c, source, target)
                torch.testing.assert_close(found, other, rtol=1e-9, atol=1e-9)

    def test_changing_to_itself_changes_nothing(self, schedule):
        velocity = lambda x, t: x.sin() + t[:, None]
        x = torch.randn(9, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        t = torch.linspace(0.05, 0.95, 9, dtype=torch.float64)
        same = change_schedule(velocity, schedule, schedule)(x, t)
        torch.testing.assert_close(same, velocity(x, t), rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("kind", ["velocity", "data", "noise"])
    def test_a_score_at_no_noise_is_refused(self, schedule, kind):
        x = torch.ones(2, 3)
        c = schedule.coefficients(torch.tensor([0.5, 1.0]))
        if noise_left(schedule):
            assert convert.convert(x, x, c, kind, "score").isfinite().all()
            return
        with pytest.raises(UserError, match=r"the score is not defined where sigma = 0.*stay at t <= 0\.999"):
            convert.convert(x, x, c, kind, "score")
