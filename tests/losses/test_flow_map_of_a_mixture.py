"""Flow maps of Gaussian mixtures, in no closed form but known to any accuracy, are the minimisers of every loss."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from advect.config.build import build_network
from advect.config.config import network
from advect.core import registry
from advect.core.random import CounterRng
from advect.core.types import Batch, Conditions, DataSpec
from advect.losses import Lagrangian
from advect.metrics import energy_distance
from advect.paths import GaussianMixture
from advect.solvers import integrate

FEW = [name for name in registry.choices("loss") if registry.get("loss", name).learns_steps]
STEPS = 24
"""Steps of the integrator, whatever the length to go."""
MEANS = torch.tensor([[-1.5, 0.3], [1.0, -0.6]], dtype=torch.float64)
STDS = torch.tensor([0.5, 0.3], dtype=torch.float64)
SHARES = torch.tensor([0.35, 0.65], dtype=torch.float64)


def mixture(dim: int) -> GaussianMixture:
    """Two modes of unequal shares and widths, on a line or in the plane."""
    return GaussianMixture(MEANS[:, :dim], STDS, SHARES)


class ExactMap:
    """The average velocity of a mixture's flow, by the classical Runge-Kutta method, which forward mode goes through.

    ``weights`` (F, D) add a combination of 1, x, s and e, and ``factor`` multiplies all, for other maps.
    """

    def __init__(self, dim: int, factor: float = 1.0) -> None:
        self.law, self.factor = mixture(dim), factor
        self.weights = torch.zeros(dim + 3, dim, dtype=torch.float64, requires_grad=True)

    def __call__(self, x: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        start, end = (t, t) if t.ndim == 1 else t.unbind(1)
        return self.factor * self._average(x, start, end) + features(x, start, end) @ self.weights

    def _average(self, x: Tensor, start: Tensor, end: Tensor) -> Tensor:
        still = self.law.velocity(x, start)
        if not (end != start).any():
            return still
        y, h = x, (end - start) / STEPS
        wide = h[:, None]
        for k in range(STEPS):
            u = lambda z, share, k=k: self.law.velocity(z, start + (k + share) * h)
            k1 = u(y, 0.0)
            k2 = u(y + wide / 2 * k1, 0.5)
            k3 = u(y + wide / 2 * k2, 0.5)
            k4 = u(y + wide * k3, 1.0)
            y = y + wide / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        length = (end - start)[:, None]
        return torch.where(length == 0, still, (y - x) / torch.where(length == 0, 1.0, length))


def features(x: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """1, x, s and e (B, D + 3)."""
    return torch.cat([torch.ones_like(x[:, :1]), x, start[:, None], end[:, None]], 1)


def made(name: str, diagonal: float) -> Any:
    finest = {"finest": 4096} if name == "shortcut" else {}  # its shortest steps are two of Euler's
    return registry.get("loss", name)(diagonal=diagonal, **finest)


def drawn(loss: Any, dim: int, n: int) -> Any:
    """A path sample, whose steps are not so short that differences lose digits."""
    x1 = mixture(dim).draw(n, CounterRng(3, 0, n))
    sample, _ = loss.sample(Batch(x1), CounterRng(1, 0, n))
    t = sample.t.double()
    return replace(sample, t=torch.where((t[:, 1:] - t[:, :1]).abs() < 1e-4, t[:, :1], t))


def test_the_map_on_a_line_takes_quantiles_to_quantiles() -> None:
    """So the integrator that the other tests trust is right: F(X(z)) = Phi(z), F the mixture's distribution."""
    z = torch.linspace(-2.5, 2.5, 41, dtype=torch.float64)[:, None]
    end = integrate(ExactMap(1), z, solver="flow-map", steps=1)
    below = (SHARES * torch.special.ndtr((end - MEANS[:, 0]) / STDS)).sum(1)
    torch.testing.assert_close(below, torch.special.ndtr(z[:, 0]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dim", [1, 2])
def test_steps_compose_and_those_of_no_length_are_the_velocity(dim: int) -> None:
    u, n = ExactMap(dim), 200
    x = mixture(dim).draw(n, CounterRng(0, 0, n))
    s, r, e = torch.rand(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).sort(1)[0].unbind(1)
    go = lambda x, a, b: x + (b - a)[:, None] * u(x, torch.stack([a, b], 1))
    torch.testing.assert_close(go(go(x, s, r), r, e), go(x, s, e), rtol=0, atol=1e-4)
    torch.testing.assert_close(u(x, torch.stack([s, s], 1)), mixture(dim).velocity(x, s))
    torch.testing.assert_close(u(x, torch.stack([s, s + 1e-6], 1)), mixture(dim).velocity(x, s), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("name", FEW)
def test_loss_and_gradient_vanish_at_the_exact_map(name: str, dim: int) -> None:
    loss, u = made(name, 0.25), ExactMap(dim)
    sample = drawn(loss, dim, 100)
    sample = replace(sample, u_t=mixture(dim).velocity(sample.x_t, sample.t[:, 0]))
    value = loss.compare(u(sample.x_t, sample.t), loss.aim(u, sample, None))
    value.mean().backward()
    most = {"shortcut": 1e-6, "consistency": 1e-4}.get(name, 1e-7)  # Euler's error; errors count tenfold
    assert value.max() < most and u.weights.grad is not None and u.weights.grad.abs().max() < 1e-4
    other = ExactMap(dim, factor=2.0)
    value = loss.compare(other(sample.x_t, sample.t), loss.aim(other, sample, None))
    value.mean().backward()
    assert value.mean() > 1e-3 and other.weights.grad is not None and other.weights.grad.abs().max() > 1e-2


@pytest.mark.parametrize("name", ["mean-flow", "improved-mean-flow"])
def test_the_gradient_by_conditional_velocities_has_mean_zero_at_the_exact_map(name: str) -> None:
    """What training sees: pairs of noise and data, whose velocities are the flow's in the mean alone."""
    loss, n = made(name, 0.0), 1000
    sample = drawn(loss, 1, n)

    def standard_scores(shift: float) -> Tensor:
        """Mean gradients of the weights (F,) over their standard errors, where u is wrong by ``shift``."""
        u = ExactMap(1)
        with torch.no_grad():
            u.weights[0] += shift
            residual = u(sample.x_t, sample.t) - loss.aim(u, sample, None).u_t
        gradient = residual * features(sample.x_t, *sample.t.unbind(1))
        return gradient.mean(0) / (gradient.std(0) / n**0.5)

    assert standard_scores(0.0).abs().max() < 4
    assert standard_scores(1.0).abs().max() > 6


def test_a_trained_network_approaches_the_map_point_by_point() -> None:
    law, loss, steps = mixture(1), Lagrangian(diagonal=0.5), 400
    net = build_network(network("mlp", width=64, depth=4), DataSpec((1,), "vector", {}), two_times=True)
    optimizer = torch.optim.Adam(net.parameters(), 4e-3)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 4e-3 * (1 - step / steps)
        optimizer.zero_grad()
        x1 = law.draw(256, CounterRng(step, 1, 256)).float()
        loss(net, Batch(x1), CounterRng(step, 0, 256)).mean().backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    z = torch.randn(2000, 1, generator=torch.Generator().manual_seed(5))
    exact = integrate(ExactMap(1), z.double(), solver="flow-map", steps=1).detach().float()
    euler = integrate(net, z, solver="euler", steps=1).detach()
    for count in (1, 2):
        x = integrate(net, z, solver="flow-map", steps=count).detach()
        assert (x - exact).abs().median() < 0.15 < 0.4 < (euler - exact).abs().median()
        assert energy_distance(x, law.draw(2000, CounterRng(7, 0, 2000)).float()) < 0.03
