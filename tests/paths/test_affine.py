from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advect.core.errors import UserError
from advect.core.random import CounterRng
from advect.paths import AffinePath, Coefficients, Schedule


class Quarter(Schedule):
    """A quarter circle: a schedule whose four coefficients all differ, and change in time."""

    def coefficients(self, t):
        a = t * torch.pi / 2
        return Coefficients(a.sin(), a.cos(), a.cos() * torch.pi / 2, -a.sin() * torch.pi / 2)


def pair(n: int, *shape: int, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0, x1 = torch.randn(2, n, *shape, generator=generator, dtype=dtype)
    return x0, 3 * x1 + 1


@settings(max_examples=25, deadline=None)
@given(shape=st.lists(st.integers(1, 4), max_size=3), t=st.floats(0, 1), b=st.integers(1, 4))
def test_straight_line_by_hand(shape, t, b):
    # The formulas of torchcfm's ConditionalFlowMatcher, sample by sample.
    x0, x1 = pair(b, *shape)
    times = torch.linspace(t, 1, b, dtype=torch.float64)
    point = AffinePath().sample(x0, x1, times)
    for i in range(b):
        torch.testing.assert_close(point.x_t[i], times[i] * x1[i] + (1 - times[i]) * x0[i], rtol=1e-14, atol=1e-14)
    assert torch.equal(point.u_t, x1 - x0)
    assert point.t is times and point.x0 is x0 and point.x1 is x1


@pytest.mark.parametrize("path", [AffinePath(), AffinePath(Quarter())], ids=["CondOT", "quarter"])
def test_velocity_is_the_derivative_of_the_position(path):
    x0, x1 = pair(5, 3, 2, 2)
    t, h = torch.tensor([0.01, 0.3, 0.5, 0.77, 0.99], dtype=torch.float64), 1e-5
    ahead, behind = path.sample(x0, x1, t + h).x_t, path.sample(x0, x1, t - h).x_t
    torch.testing.assert_close(path.sample(x0, x1, t).u_t, (ahead - behind) / (2 * h), rtol=0, atol=1e-8)


def test_ends_are_the_source_and_the_data():
    x0, x1 = pair(4, 7, dtype=torch.float32)
    assert torch.equal(AffinePath().sample(x0, x1, torch.zeros(4)).x_t, x0)
    assert torch.equal(AffinePath().sample(x0, x1, torch.ones(4)).x_t, x1)


def test_jitter_has_its_width_at_every_time_and_leaves_the_velocity_alone():
    n, sigma_min = 50_000, 0.25
    x0, x1 = torch.full((n, 2), -1.0), torch.full((n, 2), 3.0)
    for step, t in enumerate((0.0, 0.5, 1.0)):
        point = AffinePath(sigma_min=sigma_min).sample(x0, x1, torch.full((n,), t), CounterRng(0, step, n))
        assert torch.equal(point.u_t, x1 - x0)
        eps = (point.x_t - (t * x1 + (1 - t) * x0)).double() / sigma_min
        assert eps.mean().abs() < 4 / (2 * n) ** 0.5
        assert abs(eps.var() - 1) < 4 * (2 / (2 * n)) ** 0.5
        assert abs((eps[:, 0] * eps[:, 1]).mean()) < 4 / n**0.5


def test_jitter_is_independent_of_the_source_drawn_before_it():
    n = 50_000
    rng = CounterRng(3, 0, n)
    x0 = rng.normal((n, 1))
    x_t = AffinePath(sigma_min=1.0).sample(x0, torch.zeros(n, 1), torch.zeros(n), rng).x_t
    assert abs((x0 * (x_t - x0)).mean()) < 4 / n**0.5


def test_without_jitter_no_number_is_drawn():
    x0, x1 = pair(3, 2)
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    AffinePath().sample(x0, x1, torch.rand(3), generator)
    assert torch.equal(before, generator.get_state())


@pytest.mark.parametrize("sigma_min", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_of_the_data_is_kept_with_times_in_float32(dtype, sigma_min):
    x0, x1 = pair(3, 2, dtype=dtype)
    point = AffinePath(sigma_min=sigma_min).sample(x0, x1, torch.rand(3))
    assert point.x_t.dtype == point.u_t.dtype == dtype


def test_arguments_are_not_changed():
    x0, x1 = pair(3, 2)
    t = torch.rand(3)
    copies = x0.clone(), x1.clone(), t.clone()
    AffinePath(sigma_min=0.5).sample(x0, x1, t)
    assert all(torch.equal(a, b) for a, b in zip((x0, x1, t), copies, strict=True))


@pytest.mark.parametrize(
    ("x0", "x1", "t", "message"),
    [
        ((4, 2), (4, 3), (4,), "x0 and x1 must have the same shape"),
        ((1, 2), (4, 2), (4,), "x0 and x1 must have the same shape"),
        ((4, 2), (4, 2), (1,), r"t must have shape \(4,\)"),
        ((4, 4), (4, 4), (4, 1), r"t must have shape \(4,\)"),
        ((4, 2), (4, 2), (), r"t must have shape \(4,\)"),
    ],
)
def test_shapes_that_would_broadcast_are_refused(x0, x1, t, message):
    with pytest.raises(UserError, match=message):
        AffinePath().sample(torch.zeros(x0), torch.zeros(x1), torch.zeros(t))


@pytest.mark.parametrize("sigma_min", [-1e-9, float("nan"), float("-inf")])
def test_sigma_min_is_validated(sigma_min):
    with pytest.raises(UserError, match=r"sigma_min must be finite and >= 0, got .*; 0 turns the jitter off"):
        AffinePath(sigma_min=sigma_min)
