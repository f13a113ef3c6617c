"""What every conditional path promises."""

from __future__ import annotations

import pytest
import torch
from parts import examples

from advect.core.errors import UserError
from advect.core.random import CounterRng
from advect.paths import (
    AffinePath,
    InterpolantPath,
    Path,
    Schedule,
    Trigonometric,
)

PATHS = {
    **examples("path", Path),
    **{name: AffinePath(schedule) for name, schedule in examples("path", Schedule).items()},
    "jitter": AffinePath(sigma_min=0.3),
    "two data sets": AffinePath(Trigonometric(), gaussian_source=False),
    "psi": InterpolantPath(lambda x0, x1, t: (1 - t) * x0 + t * x1 + t * (1 - t) * (x0 * x1).sin()),
}
SHAPES = [(1, 1), (6, 3), (6, 1, 4, 4), (6, 2, 3, 5)]


def ends(shape, dtype=torch.float64):
    x0, x1 = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return x0, 2 * x1 + 1, torch.linspace(0.1, 0.9, shape[0], dtype=dtype)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
class TestPath:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_shape_and_dtype_are_kept(self, path, shape, dtype):
        x0, x1, t = ends(shape, dtype)
        for times in (t.float(), t.double()):
            point = path.sample(x0, x1, times)
            for value in (point.x_t, point.u_t, path.conditional_velocity(point.x_t, times, x1=x1, x0=x0)):
                assert value.shape == shape and value.dtype == dtype and value.isfinite().all()
            assert point.x0 is x0 and point.x1 is x1 and point.t is times

    def test_the_velocity_of_a_draw_is_the_conditional_one_there(self, path):
        x0, x1, t = ends((6, 2, 3))
        point = path.sample(x0, x1, t)
        there = path.conditional_velocity(point.x_t, t, x1=x1, x0=x0)
        torch.testing.assert_close(point.u_t, there, rtol=1e-12, atol=1e-12)

    def test_the_velocity_of_a_draw_is_its_derivative(self, path):
        x0, x1, t = ends((6, 2, 3))
        h = 1e-6
        ahead, behind, here = (path.sample(x0, x1, t + d, CounterRng(0, 0, 6)) for d in (h, -h, 0))
        torch.testing.assert_close(here.u_t, (ahead.x_t - behind.x_t) / (2 * h), rtol=1e-7, atol=1e-7)

    def test_it_goes_from_the_source_to_the_data(self, path):
        x0, x1, _ = ends((6, 3))
        slack = 6 * path.sigma_min + 0.03 if isinstance(path, AffinePath) else 1e-12
        for t, end in ((0.0, x0), (1.0, x1)):
            x_t = path.sample(x0, x1, torch.full((6,), t, dtype=torch.float64), CounterRng(0, 0, 6)).x_t
            assert (x_t - end).abs().max() <= slack

    def test_the_generator_alone_decides(self, path):
        x0, x1, t = ends((6, 3))
        before = torch.random.get_rng_state()
        for make in (lambda seed: CounterRng(seed, 0, 6), lambda seed: torch.Generator().manual_seed(seed)):
            first, again = (path.sample(x0, x1, t, make(1)).x_t for _ in range(2))
            assert torch.equal(first, again)
        assert torch.equal(before, torch.random.get_rng_state())

    def test_times_may_be_expanded_from_one(self, path):
        x0, x1, _ = ends((6, 3))
        t = torch.tensor(0.3, dtype=torch.float64)
        one, two = (path.sample(x0, x1, times, CounterRng(0, 0, 6)) for times in (t.expand(6), t.repeat(6)))
        assert torch.equal(one.x_t, two.x_t) and torch.equal(one.u_t, two.u_t)

    def test_samples_do_not_influence_each_other(self, path):
        x0, x1, t = ends((6, 3))
        whole = path.sample(x0, x1, t, CounterRng(1, 0, 6))
        part = path.sample(x0[2:4], x1[2:4], t[2:4], CounterRng(1, 0, 2, start=2, total=6))
        torch.testing.assert_close(part.x_t, whole.x_t[2:4], rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(part.u_t, whole.u_t[2:4], rtol=1e-14, atol=1e-14)

    @pytest.mark.parametrize("times", [[-0.01, 0.5], [0.5, 1.01], [float("nan"), 0.5]])
    def test_times_outside_are_refused(self, path, times):
        x = torch.zeros(2, 3)
        with pytest.raises(UserError, match=r"t must lie in \[0, 1\] \(0 is noise, 1 is data\), got values from"):
            path.sample(x, x, torch.tensor(times))

    def test_what_does_not_match_is_refused(self, path):
        x, t = torch.zeros(2, 3), torch.full((2,), 0.5)
        with pytest.raises(UserError, match="x0 and x1 must have the same shape"):
            path.sample(x, x[:, :2], t)
        with pytest.raises(UserError, match=r"t must have shape \(2,\)"):
            path.sample(x, x, t[:1])
        with pytest.raises(UserError, match=r"one floating dtype, got torch\.float32 and torch\.float64; cast both"):
            path.sample(x, x.double(), t)
        with pytest.raises(UserError, match=r"torch\.int64"):
            path.sample(x.long(), x.long(), t)
        with pytest.raises(UserError, match="x0 and x1 must be on one device"):
            path.sample(x, x.to("meta"), t)
        with pytest.raises(UserError, match="t must be on the device of x1, cpu, got meta"):
            path.sample(x, x, t.to("meta"))
        with pytest.raises(UserError, match=r"x must be like x1, \(2, 3\) torch\.float32, got \(2, 1\)"):
            path.conditional_velocity(x[:, :1], t, x1=x, x0=x)
