"""Steps of a learned flow map."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.random import CounterRng
from advect.core.types import StepKind
from advect.solvers import FlowMap, get_solver, guided_velocity, integrate, log_prob, solve

STD = 0.5


def spread(t: Tensor) -> Tensor:
    """Standard deviation (B, 1) on the straight path to N(0, STD^2)."""
    return ((1 - t) ** 2 + (t * STD) ** 2).sqrt()[:, None]


def exact(x: Tensor, t: Tensor, cond: object = None) -> Tensor:
    """The average velocity to N(0, STD^2): states are scaled."""
    return x * (spread(t[:, 1]) / spread(t[:, 0]) - 1) / (t[:, 1:] - t[:, :1])


def test_one_step_is_where_many_lead() -> None:
    x0 = torch.randn(7, 3, dtype=torch.float64)
    ends = [integrate(exact, x0, solver="flow-map", steps=n) for n in (1, 2, 5)]
    for end in ends:
        torch.testing.assert_close(end, STD * x0, rtol=1e-6, atol=1e-6)
    found = solve(exact, x0, solver="flow-map", steps=4, trajectory=True)
    assert found.nfe == 4 and found.states is not None
    torch.testing.assert_close(found.states[2], x0 * spread(torch.tensor([0.5])).double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("noise", [0.0, 0.4, 1.0])
def test_noise_put_back_keeps_the_law(noise: float) -> None:
    n = 40_000
    solver = FlowMap(noise=noise, generator=CounterRng(3, 0, n))
    x0 = torch.randn(n, 1, generator=torch.Generator().manual_seed(0))
    states = integrate(exact, x0, solver=solver, steps=4, trajectory=True)
    for t, x in zip(torch.linspace(0, 1, 5), states, strict=True):
        assert float(x.std()) == pytest.approx(float(spread(t[None])), rel=0.015)
    correlation = float((x0 * states[-1]).mean() / states[-1].std() / x0.std())
    assert correlation == pytest.approx({0.0: 1.0, 0.4: 0.9, 1.0: 0.0}[noise], abs=0.1)


def test_noise_of_the_same_numbers_is_the_same() -> None:
    x0 = torch.randn(5, 1)
    solvers = [FlowMap(noise=0.5, generator=CounterRng(seed, 0, 5)) for seed in (1, 1, 2)]
    one, again, other = (integrate(exact, x0, solver=solver, steps=3) for solver in solvers)
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_guidance_acts_by_the_start_of_a_step() -> None:
    seen = []

    def net(x: Tensor, t: Tensor, cond: dict[str, Tensor] | None) -> Tensor:
        seen.append(len(x))
        return torch.zeros_like(x)

    u = guided_velocity(net, {"label": torch.zeros(3, dtype=torch.long)}, 2.0, interval=(0.3, 1.0))
    integrate(u, torch.zeros(3, 1), solver="flow-map", steps=2)
    assert seen == [3, 6]


def test_it_goes_one_way_and_has_no_density() -> None:
    x = torch.zeros(2, 1)
    with pytest.raises(UserError, match="from noise to data alone"):
        integrate(exact, x, solver="flow-map", steps=2, t0=1.0, t1=0.0)
    with pytest.raises(UserError, match="cannot integrate a divergence"):
        log_prob(exact, x, solver="flow-map", steps=2)
    assert get_solver("flow-map").nfe(3) == 3 and math.isclose(FlowMap().noise, 0.0)


@pytest.mark.parametrize(
    ("learned", "steps", "noise", "words"),
    [
        (None, 4, 0.0, "needs a flow that was trained for steps of any length"),
        ("any", 3, 0.5, ""),
        ("halves", 4, 0.0, ""),
        ("halves", 3, 0.0, "take 1, 2, 4 ... uniform steps"),
        ("halves", 4, 1.0, "without noise put back"),
        ("to-data", 1, 0.0, ""),
        ("to-data", 4, 1.0, ""),
        ("to-data", 2, 0.0, "has learned steps to t = 1 alone"),
        ("to-data", 2, 0.9, "has learned steps to t = 1 alone"),
    ],
)
def test_steps_that_were_not_learned_are_refused(
    learned: StepKind | None, steps: int, noise: float, words: str
) -> None:
    grid = torch.linspace(0, 1, steps + 1).tolist()
    if not words:
        FlowMap(noise=noise).check(grid, learned)
        return
    with pytest.raises(UserError, match=words):
        FlowMap(noise=noise).check(grid, learned)
