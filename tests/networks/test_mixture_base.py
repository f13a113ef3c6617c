"""A network that corrects a Gaussian mixture: closed forms, ends of time, densities, derivatives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

from advect import paths
from advect.core.errors import UserError
from advect.networks.mixture_base import PREDICTIONS, Gaussians, WithMixture
from advect.solvers import log_prob

SCHEDULES = (paths.CondOT(), paths.Trigonometric(), paths.VariancePreserving(), paths.Polynomial(2.0))


class Zero(nn.Module):
    """A network of output 0."""

    def forward(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
        return torch.zeros_like(x)


def _law() -> tuple[Tensor, Tensor, Tensor]:
    """Weights, means and covariances of four Gaussians in three dimensions."""
    rng = torch.Generator().manual_seed(3)
    roots = torch.randn(4, 3, 3, generator=rng, dtype=torch.float64)
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    means = torch.randn(4, 3, generator=rng, dtype=torch.float64)
    return weights, means, roots @ roots.mT + 0.05 * torch.eye(3)


@pytest.mark.parametrize("jitter", [0.0, 0.2])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_prediction_is_the_exact_one(schedule: paths.Schedule, jitter: float) -> None:
    weights, means, covariances = _law()
    path = paths.AffinePath(schedule, sigma_min=jitter)
    exact = paths.GaussianMixture(means, covariances=covariances, weights=weights, path=path)
    x, t = torch.linspace(-2, 2, 60, dtype=torch.float64).view(20, 3), torch.linspace(0.01, 0.99, 20).double()
    for kind in PREDICTIONS:
        net = WithMixture(Zero(), Gaussians.of(weights, means, covariances), path, kind).double()
        torch.testing.assert_close(net(x, t), getattr(exact, kind)(x, t), atol=1e-5, rtol=1e-5)


def test_the_velocity_is_the_mean_of_conditional_ones() -> None:
    """Monte Carlo: E[u_t | x_t = x] with x_1 drawn from the mixture, weighted by the likelihood of x."""
    weights, means, covariances = _law()
    path, t = paths.AffinePath(paths.Trigonometric()), torch.tensor([0.4], dtype=torch.float64)
    law = paths.GaussianMixture(means, covariances=covariances, weights=weights)
    x1, x = law.draw(200_000, torch.Generator().manual_seed(0)), torch.tensor([[0.3, -0.5, 0.8]], dtype=torch.float64)
    c = path.coefficients(t)
    p = (-(x - c.alpha * x1).square().sum(1) / (2 * c.sigma**2)).softmax(0)
    u = p @ (c.d_alpha * x1 + c.d_sigma * (x - c.alpha * x1) / c.sigma)
    net = WithMixture(Zero(), Gaussians.of(weights, means, covariances), path, "velocity").double()
    torch.testing.assert_close(net(x, t)[0], u, atol=0.03, rtol=0.0)


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_float32_is_finite_at_the_ends(schedule: paths.Schedule, kind: str) -> None:
    """Also with eigenvalues of 1e-6, and for rows far from all components, with a gradient."""
    means, values = torch.tensor([[0.0, 0.0], [3.0, 1.0]]), torch.tensor([[1e-6, 1.0], [1e-6, 1e-6]])
    law = Gaussians(means, values, torch.eye(2).expand(2, 2, 2), torch.tensor([0.5, 0.5]).log())
    net = WithMixture(Zero(), law, paths.AffinePath(schedule), kind)
    x, t = torch.tensor([[0.0, 0.0], [3.0, 1.0], [50.0, -50.0]]).repeat(5, 1).requires_grad_(), torch.zeros(15)
    t[3:6], t[6:9], t[9:12], t[12:] = 1e-7, 0.5, 1 - 6e-8, 1.0
    out = net(x, t)
    (slope,) = torch.autograd.grad(out.sum(), x)
    assert out.isfinite().all()
    assert slope.isfinite().all()


def test_at_the_start_the_density_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.normal(size=(300, 2)) * [1, 0.3], rng.normal(size=(200, 2)) * 0.5 + [2, 1]])
    fitted = GaussianMixture(3, random_state=0).fit(rows)
    law = Gaussians.of(*map(torch.from_numpy, (fitted.weights_, fitted.means_, fitted.covariances_)))
    x, expected = torch.from_numpy(rows[:50]), torch.from_numpy(fitted.score_samples(rows[:50]))
    torch.testing.assert_close(law.log_prob(x), expected)
    net = WithMixture(Zero(), law, paths.AffinePath(), "velocity").double()
    found = log_prob(lambda y, t: net(y, t), x, solver="rk4", steps=60)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0.0)


def test_forward_and_reverse_derivatives_agree() -> None:
    net = WithMixture(Zero(), Gaussians.of(*_law()), paths.AffinePath(), "velocity").double()
    x, t, v = torch.randn(5, 3, dtype=torch.float64), torch.full((5,), 0.7).double(), torch.ones(5, 3).double()
    _, forward = torch.func.jvp(lambda y: net(y, t), (x,), (v,))
    jacobian = torch.autograd.functional.jacobian(lambda y: net(y, t).sum(0), x)
    torch.testing.assert_close(forward, torch.einsum("ibj,bj->bi", jacobian, v))


def test_the_gaussians_are_saved_with_the_weights() -> None:
    path, law = paths.AffinePath(), Gaussians.of(*_law())
    net = WithMixture(nn.Linear(3, 3), law, path, "data")
    empty = Gaussians(law.means * 0, law.values * 0 + 1, law.vectors * 0, law.log_weights * 0)
    other = WithMixture(nn.Linear(3, 3), empty, path, "data")
    other.load_state_dict(net.state_dict())
    x, t = torch.randn(4, 3), torch.full((4,), 0.3)
    assert torch.equal(other.of_mixture(x, t), net.of_mixture(x, t))


def test_what_is_no_mixture_is_refused() -> None:
    weights, means, covariances = _law()
    with pytest.raises(UserError, match="eigenvalues > 0"):
        Gaussians.of(weights, means, covariances * 0)
    with pytest.raises(UserError, match="finite"):
        Gaussians.of(weights, means * torch.nan, covariances)
    with pytest.raises(UserError, match="numbers, got"):
        Gaussians.of(weights[:2], means, covariances)
    with pytest.raises(UserError, match="'speed'"):
        WithMixture(Zero(), Gaussians.of(weights, means, covariances), paths.AffinePath(), "speed")
