from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advect.core.errors import UserError
from advect.core.random import CounterRng
from advect.paths import AffinePath, BetaLinear, Coefficients, CondOT, LipmanOT, Schedule


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
    with pytest.raises(
        UserError, match=r"AffinePath\.sigma_min must be (finite and )?at least 0 and at most 1,000,000, got"
    ):
        AffinePath(sigma_min=sigma_min)


T = torch.tensor([0.1, 0.4, 0.6, 0.95], dtype=torch.float64)


def test_given_both_ends_the_jitter_has_its_score():
    x0, x1 = pair(4, 3)
    path = AffinePath(sigma_min=0.2, gaussian_source=False)
    x = path.sample(x0, x1, T).x_t
    law = torch.distributions.Normal((1 - T[:, None]) * x0 + T[:, None] * x1, 0.2)
    x.requires_grad_()
    (score,) = torch.autograd.grad(law.log_prob(x).sum(), x)
    torch.testing.assert_close(path.conditional_score(x, T, x1=x1, x0=x0), score, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sigma_min", [0.0, 0.3])
@pytest.mark.parametrize(
    "schedule", [CondOT(), Quarter(), BetaLinear(), LipmanOT(0.1)], ids=lambda s: type(s).__name__
)
def test_given_the_datum_the_law_is_gaussian_and_flows(schedule, sigma_min):
    # p_t(x | x1) = N(alpha x1, sigma^2 + jitter^2): its score by autograd, its flow by moving along a quantile.
    path = AffinePath(schedule, sigma_min)
    z, x1 = pair(4, 3)

    def at(t):
        c = schedule.coefficients(t)
        return c.alpha[:, None] * x1, (c.sigma**2 + sigma_min**2).sqrt()[:, None]

    mean, std = at(T)
    x, h = (mean + std * z).requires_grad_(), 1e-6
    (score,) = torch.autograd.grad(torch.distributions.Normal(mean, std).log_prob(x).sum(), x)
    torch.testing.assert_close(path.conditional_score(x, T, x1=x1), score, rtol=1e-9, atol=1e-9)
    (ahead, behind) = (m + s * z for m, s in (at(T + h), at(T - h)))
    velocity = path.conditional_velocity(x, T, x1=x1)
    torch.testing.assert_close(velocity, (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-6)


def test_lipmans_conditional_velocity():
    # Lipman et al. 2023, eq. 21.
    x, x1 = pair(4, 3)
    s = 0.1
    truth = (x1 - (1 - s) * x) / (1 - (1 - s) * T[:, None])
    velocity = AffinePath(LipmanOT(s)).conditional_velocity(x, T, x1=x1)
    torch.testing.assert_close(velocity, truth, rtol=1e-12, atol=1e-12)


def test_a_path_between_two_data_sets_moves_but_has_no_score():
    path = AffinePath(gaussian_source=False)
    x0, x1 = pair(4, 3)
    x = path.sample(x0, x1, T).x_t
    assert torch.equal(path.conditional_velocity(x, T, x1=x1, x0=x0), x1 - x0)
    # What is linear holds for any source; what needs a Gaussian is refused.
    torch.testing.assert_close(path.convert(x1 - x0, x, T, "velocity", "data"), x1, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(path.convert(x1, x, T, "data", "noise"), x0, rtol=1e-10, atol=1e-10)
    for source, target in (("velocity", "score"), ("score", "data")):
        with pytest.raises(UserError, match=f"a {source} does not give the {target} where the source is not Gaussian"):
            path.convert(x, x, T, source, target)
    with pytest.raises(UserError, match=r"train a network that predicts the data"):
        AffinePath(sigma_min=0.1, gaussian_source=False).convert(x, x, T, "velocity", "data")
    with pytest.raises(UserError, match="the conditional score given x1 alone needs a Gaussian source; pass x0"):
        path.conditional_score(x, T, x1=x1)
    with pytest.raises(UserError, match="the conditional velocity given x1 alone needs a Gaussian source; pass x0"):
        path.conditional_velocity(x, T, x1=x1)
    with pytest.raises(
        UserError, match=r"a point without score; set AffinePath\.sigma_min > 0, or use BrownianBridge"
    ):
        path.conditional_score(x, T, x1=x1, x0=x0)
    assert path.convert(x, x, T, "score", "score") is x


def test_the_ends_without_noise_are_refused():
    x, t = torch.zeros(2, 3), torch.tensor([0.5, 1.0])
    with pytest.raises(UserError, match="the score is not defined where sigma = 0"):
        AffinePath().conditional_score(x, t, x1=x)
    with pytest.raises(UserError, match="is not defined where sigma = 0"):
        AffinePath().conditional_velocity(x, t, x1=x)
    assert AffinePath(sigma_min=0.1).conditional_score(x, t, x1=x).isfinite().all()
