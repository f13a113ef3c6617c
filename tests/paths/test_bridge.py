from __future__ import annotations

import math

import pytest
import torch

from advect.core.errors import UserError
from advect.core.random import CounterRng
from advect.paths import AffinePath, BrownianBridge

T = torch.tensor([0.05, 0.3, 0.5, 0.8, 0.97], dtype=torch.float64)


def ends():
    x0, x1 = torch.randn(2, 5, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x0, 2 * x1 + 1


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_it_has_the_moments_of_the_brownian_bridge(t):
    n, sigma = 50_000, 0.7
    x0, x1 = torch.full((n, 2), -1.0), torch.full((n, 2), 3.0)
    x = BrownianBridge(sigma).sample(x0, x1, torch.full((n,), t), CounterRng(0, 0, n)).x_t.double()
    width = sigma * math.sqrt(t * (1 - t))
    z = (x - (4 * t - 1)) / width
    assert z.mean().abs() < 4 / math.sqrt(2 * n)
    assert abs(z.var() - 1) < 4 * math.sqrt(2 / (2 * n))
    assert abs((z[:, 0] * z[:, 1]).mean()) < 4 / math.sqrt(n)


def test_the_velocity_moves_a_quantile_and_the_score_is_the_gradient():
    (x0, x1), sigma, h = ends(), 0.7, 1e-7
    path, z = BrownianBridge(sigma), torch.randn(5, 2, 3, dtype=torch.float64)

    def at(t):
        s = t[:, None, None]
        return (1 - s) * x0 + s * x1, sigma * (s * (1 - s)).sqrt()

    mean, width = at(T)
    x = (mean + width * z).requires_grad_()
    (ahead, behind) = (m + w * z for m, w in (at(T + h), at(T - h)))
    velocity = path.conditional_velocity(x, T, x1=x1, x0=x0)
    torch.testing.assert_close(velocity, (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-6)
    (score,) = torch.autograd.grad(torch.distributions.Normal(mean, width).log_prob(x).sum(), x)
    torch.testing.assert_close(path.conditional_score(x, T, x1=x1, x0=x0), score, rtol=1e-9, atol=1e-9)


def test_flow_and_score_together_are_the_bridges_own_drift():
    # The drift of a Brownian bridge pinned at x1 is (x1 - x) / (1 - t), whatever its start and its sigma.
    (x0, x1), sigma = ends(), 1.3
    path, x = BrownianBridge(sigma), torch.randn(5, 2, 3, dtype=torch.float64)
    u, s = path.conditional_velocity(x, T, x1=x1, x0=x0), path.conditional_score(x, T, x1=x1, x0=x0)
    torch.testing.assert_close(u + sigma**2 / 2 * s, (x1 - x) / (1 - T[:, None, None]), rtol=1e-9, atol=1e-9)


def test_both_ends_are_finite_and_symmetric():
    x0, x1 = ends()
    for dtype in (torch.float32, torch.float64):
        a, b = x0.to(dtype), x1.to(dtype)
        for end, t in ((a, torch.zeros(5)), (b, torch.ones(5))):
            point = BrownianBridge(1.0).sample(a, b, t)
            assert torch.equal(point.x_t, end) and torch.equal(point.u_t, b - a)
            assert torch.equal(BrownianBridge(1.0).conditional_velocity(end, t, x1=b, x0=a), b - a)
        tiny = BrownianBridge(1.0).sample(a, b, torch.full((5,), 1e-7))
        assert tiny.u_t.isfinite().all() and tiny.x_t.isfinite().all()


def test_without_width_it_becomes_the_straight_line():
    x0, x1 = ends()
    line, thin = AffinePath().sample(x0, x1, T), BrownianBridge(1e-9).sample(x0, x1, T)
    torch.testing.assert_close(thin.x_t, line.x_t, rtol=0, atol=1e-8)
    torch.testing.assert_close(thin.u_t, line.u_t, rtol=0, atol=1e-7)


def test_mistakes_are_named():
    x0, x1 = ends()
    for sigma in (0, -1, math.nan, math.inf):
        with pytest.raises(
            UserError, match=r"BrownianBridge\.sigma must be (finite and )?above 0 and at most 1,000,000, got"
        ):
            BrownianBridge(sigma)
    for ask in (BrownianBridge(1.0).conditional_score, BrownianBridge(1.0).conditional_velocity):
        with pytest.raises(UserError, match="BrownianBridge has a law given both ends only; pass x0 as well as x1"):
            ask(x0, T, x1=x1)
    for t in (0.0, 1.0):
        with pytest.raises(UserError, match="a BrownianBridge has no score at t = 0 and t = 1, where its width is 0"):
            BrownianBridge(1.0).conditional_score(x0, torch.full((5,), t), x1=x1, x0=x0)
