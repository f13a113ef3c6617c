"""Facts about single schedules; tests/contracts/test_schedule_contract.py holds what all promise."""

from __future__ import annotations

import math

import pytest
import torch

from advect.core.errors import UserError
from advect.paths import (
    BetaLinear,
    CondOT,
    Cosine,
    LipmanOT,
    Polynomial,
    Schedule,
    Trigonometric,
    VariancePreserving,
)

T = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)


def quarter(t: torch.Tensor) -> torch.Tensor:
    return torch.cos(math.pi / 2 * t)


HALF, INF = math.pi / 2, math.inf
W = HALF / 1.008
# For each schedule (alpha, sigma, d_alpha, d_sigma) at t = 0 and t = 1, by hand.
ENDS = {
    CondOT(): ((0, 1, 1, -1), (1, 0, 1, -1)),
    LipmanOT(): ((0, 1, 1, -0.9999), (1, 1e-4, 1, -0.9999)),
    LipmanOT(sigma_min=0.25): ((0, 1, 1, -0.75), (1, 0.25, 1, -0.75)),
    Polynomial(1): ((0, 1, 1, -1), (1, 0, 1, -1)),
    Polynomial(2): ((0, 1, 0, 0), (1, 0, 2, -2)),
    Polynomial(1.5): ((0, 1, 0, 0), (1, 0, 1.5, -1.5)),
    Polynomial(3): ((0, 1, 0, 0), (1, 0, 3, -3)),
    VariancePreserving(): ((0, 1, INF, -1), (1, 0, 0, -1)),
    VariancePreserving(quarter): ((0, 1, HALF, 0), (1, 0, 0, -HALF)),
    VariancePreserving(lambda t: (1 - t) ** 2): ((0, 1, INF, -2), (1, 0, 0, 0)),
    Trigonometric(): ((0, 1, HALF, 0), (1, 0, 0, -HALF)),
    Cosine(): ((0, 1, W / math.sin(W), 0), (1, 0, W / math.tan(W), -INF)),
    BetaLinear(): (
        (math.exp(-5.025), math.sqrt(1 - math.exp(-10.05)), 10 * math.exp(-5.025), -10 * math.exp(-10.05)),
        (1, 0, 0.05, -INF),
    ),
}


@pytest.mark.parametrize(("schedule", "ends"), ENDS.items(), ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ends(schedule, ends, dtype):
    c = schedule.coefficients(torch.tensor([0.0, 1.0], dtype=dtype))
    for i, end in enumerate(ends):
        assert [float(value[i]) for value in c] == pytest.approx(end, rel=2e-5, abs=1e-7)


def close(a: Schedule, b: Schedule, tolerance: float) -> None:
    for x, y in zip(a.coefficients(T), b.coefficients(T), strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "schedule", [VariancePreserving(), Trigonometric(), Cosine(), Cosine(0.1), BetaLinear()], ids=repr
)
def test_the_variance_is_preserved(schedule):
    c = schedule.coefficients(torch.linspace(0, 1, 101, dtype=torch.float64))
    torch.testing.assert_close(c.alpha**2 + c.sigma**2, torch.ones(101, dtype=torch.float64), rtol=0, atol=1e-15)


def test_the_same_schedule_by_another_way():
    close(LipmanOT(sigma_min=0), CondOT(), 1e-15)
    close(Polynomial(1), CondOT(), 1e-15)
    close(VariancePreserving("cosine"), Trigonometric(), 1e-12)
    close(VariancePreserving(lambda t: 1 - t.square()), VariancePreserving("quadratic"), 0.0)
    close(Cosine(1e-9), Trigonometric(), 1e-5)
    close(VariancePreserving(lambda t: BetaLinear().coefficients(t).sigma), BetaLinear(), 1e-9)


def test_cosine_is_the_papers_alpha_bar():
    # Nichol & Dhariwal 2021, eq. 17, with their time 1 - t.
    f = lambda u: torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    torch.testing.assert_close(Cosine().coefficients(T).alpha ** 2, f(1 - T) / f(torch.zeros(())), rtol=1e-6, atol=0)


def test_beta_linear_is_the_limit_of_ddpms_products():
    # Ho et al. 2020: alpha-bar is the product of 1 - beta_i, beta_i from 1e-4 to 0.02 in 1000 steps.
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    steps = torch.arange(1, 1001, dtype=torch.float64)
    alpha = BetaLinear().coefficients(1 - steps / 1000).alpha
    assert ((1 - betas).cumprod(0).sqrt() / alpha - 1).abs().max() < 0.06
    fine = torch.linspace(1e-7, 2e-5, 1_000_000, dtype=torch.float64)
    assert float((-fine).log1p().sum().exp().sqrt() / alpha[-1]) == pytest.approx(1, rel=1e-4)


def test_the_quadratic_noise_level_is_finite_at_both_ends():
    # alpha = t sqrt(2 - t^2), alpha' = 2 (1 - t^2) / sqrt(2 - t^2)
    c, alpha = VariancePreserving("quadratic").coefficients(T), T * (2 - T.square()).sqrt()
    torch.testing.assert_close(c.alpha, alpha, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(c.d_alpha, 2 * (1 - T.square()) / (2 - T.square()).sqrt(), rtol=1e-9, atol=1e-12)
    assert VariancePreserving("quadratic").finite_ends() == (True, True)


def test_beta_linear_solves_its_equation():
    # d alpha / du = -beta / 2 alpha in reversed time u, and the variance grows as (1 - sigma^2) beta.
    c = BetaLinear(0.2, 7).coefficients(T)
    beta = 0.2 + 6.8 * (1 - T)
    torch.testing.assert_close(c.d_alpha / c.alpha, beta / 2, rtol=1e-12, atol=0)
    torch.testing.assert_close(2 * c.sigma * c.d_sigma, -beta * (1 - c.sigma**2), rtol=1e-12, atol=1e-14)


def test_a_noise_level_of_ones_own_is_differentiated_below_rounding():
    # s'(0) = 0: the derivative of alpha stays at its limit sqrt(-s'') where s rounds to 1.
    schedule = VariancePreserving(lambda t: torch.cos(math.pi / 2 * t))
    t = torch.tensor([0, 1e-12, 1e-9], dtype=torch.float64)
    torch.testing.assert_close(schedule.coefficients(t).d_alpha, torch.full_like(t, math.pi / 2), rtol=1e-6, atol=0)


@pytest.mark.parametrize("schedule", [CondOT(), BetaLinear(), Cosine(), VariancePreserving()], ids=repr)
def test_coefficients_carry_a_gradient(schedule):
    t = T.clone().requires_grad_()
    c = schedule.coefficients(t)
    (slope,) = torch.autograd.grad(c.alpha.sum(), t)
    torch.testing.assert_close(slope, c.d_alpha, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: LipmanOT(sigma_min=1),
            r"LipmanOT\.sigma_min must be at least 0 and below 1, got 1; ",
        ),
        (lambda: LipmanOT(sigma_min=float("nan")), r"LipmanOT\.sigma_min must be finite and at least 0 and below 1"),
        (lambda: Polynomial(0.5), r"Polynomial\.n must be at least 1 and at most 100, got 0\.5"),
        (lambda: Cosine(0), r"Cosine\.offset must be above 0 and at most 1,000, got 0; 0\.008 is usual"),
        (lambda: BetaLinear(beta_min=3, beta_max=2), "BetaLinear needs 0 < beta_min <= beta_max, got 3 and 2"),
        (lambda: BetaLinear(beta_min=0), r"BetaLinear\.beta_min must be above 0"),
        (lambda: VariancePreserving(lambda t: t), r"sigma must fall from at most 1 at t = 0 to 0.*got 0 at 0"),
        (lambda: VariancePreserving(lambda t: 2 - 2 * t), "sigma must fall from at most 1 at t = 0"),
        (lambda: VariancePreserving(lambda t: 1 - t / 2), "sigma must fall .* 0.5 at 1; the linear one is 1 - t"),
        (lambda: VariancePreserving(lambda t: (1 - t).mean()), "must return one noise level a time"),
        (lambda: VariancePreserving(lambda t: 0.5), "must return one noise level a time"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make()
