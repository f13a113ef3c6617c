"""Exact heads of Gaussian laws: the stochastic equation with a score keeps the law, for any g, path and coupling."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from advect.core.errors import UserError
from advect.core.random import CounterRng
from advect.core.types import DataSpec
from advect.data import Identity
from advect.model.flow import Flow
from advect.paths import AffinePath, BrownianBridge, Cosine, InterpolantPath, Path
from advect.solvers import get_sde_solver
from advect.solvers.interpolant_sde import integrate_interpolant
from advect.sources import Empirical

N = 20_000
MEAN, STD = 2.0, 0.5


class Linear(nn.Module):
    """Velocity and eta between x0 ~ N(0, 1) and x1 ~ N(2, 1/4) of covariance ``cov``."""

    def __init__(self, path: Path, cov: float = 0.0) -> None:
        super().__init__()
        self.path, self.cov, self.times = path, cov, []

    def variance(self, t: Tensor) -> Tensor:
        a, b, g, *_ = self.path.interpolant(t)
        return a**2 * STD**2 + b**2 + 2 * a * b * self.cov + g**2

    def forward(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
        self.times.append(float(t[0]))
        t = t.double()
        a, b, g, d_a, d_b, d_g = (c[:, None] for c in self.path.interpolant(t))
        away = (x.double() - a * MEAN) / self.variance(t)[:, None]
        data, source, eta = MEAN + (a * STD**2 + b * self.cov) * away, (b + a * self.cov) * away, g * away
        return torch.cat([d_a * data + d_b * source + d_g * eta, eta], 1).to(x.dtype)


def flow_of(net: Linear, **more) -> Flow:
    return Flow(net, DataSpec((1,), "vector", {}), Identity(), path=net.path, learned_score=True, **more)


LAWS = {
    "affine": Linear(AffinePath()),
    "cosine": Linear(AffinePath(Cosine())),
    "jittered": Linear(AffinePath(sigma_min=0.2)),
    "coupled": Linear(AffinePath(sigma_min=0.3, gaussian_source=False), cov=0.35),
    "bridge": Linear(BrownianBridge(0.5)),
    "coupled bridge": Linear(BrownianBridge(1.0), cov=0.35),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("g", [0.0, 0.5, 1.0, "sigma", "decreasing", "ddpm"])
def test_the_law_is_kept_at_all_times_for_any_g(law: str, g: float | str) -> None:
    if g == "ddpm" and "bridge" not in law:
        pytest.skip("4.5 at the noise takes more steps")
    net = LAWS[law]
    samples = flow_of(net).sample(N, steps=100, diffusion=g, batch_size=N, trajectory=True)
    assert len(samples.x) == 103 and samples.times[:2] == (0.0, 1e-3) and samples.times[-2:] == (0.999, 1.0)
    for n in (0, 26, 51, 76, 102):
        t = torch.tensor([samples.times[n]], dtype=torch.float64)
        mean, std = net.path.interpolant(t).alpha.item() * MEAN, net.variance(t).sqrt().item()
        assert samples.x[n].mean().item() == pytest.approx(mean, abs=4.5 * std / math.sqrt(N) + 2e-3)
        assert samples.x[n].std().item() == pytest.approx(std, abs=4.5 * std / math.sqrt(2 * N) + 6e-3)


@pytest.mark.parametrize(("solver", "order"), [("euler-maruyama", 1), ("ab2", 2), ("heun", 2)])
@pytest.mark.parametrize("law", ["affine", "coupled"])
def test_the_deviation_converges_at_the_order_of_the_solver(solver: str, order: int, law: str) -> None:
    """Without noise a linear equation maps the two points +-1 about the mean to +-1 standard deviation."""
    net, errors = LAWS[law], []
    t = torch.tensor([0.05, 0.9], dtype=torch.float64)
    means, stds = net.path.interpolant(t).alpha * MEAN, net.variance(t).sqrt()
    x0 = (means[0] + stds[0] * torch.tensor([-1.0, 1.0], dtype=torch.float64))[:, None]
    for steps in (40, 80):
        times = torch.linspace(0.05, 0.9, steps + 1, dtype=torch.float64).tolist()
        heads = lambda x, t: tuple(net(x, t).chunk(2, 1))
        options = {"times": times, "diffusion": 0.0, "solver": get_sde_solver(solver)}
        x = integrate_interpolant(heads, net.path, x0, **options)
        errors.append(abs((x[1] - x[0]).item() / 2 - stds[1].item()))
    assert errors[0] / errors[1] > 0.75 * 2**order


def test_a_bridge_is_schroedingers_with_entropic_pairs_alone() -> None:
    """With g = sigma the ends keep the covariance of the pairs if that is the static bridge's, c / (s^2 - c^2) = 1 /
    sigma^2 for deviations of product s (Bunne et al. 2023), and no other.
    """
    sigma = 0.8
    entropic = (-(sigma**2) + math.sqrt(sigma**4 + 4 * STD**2)) / 2
    for cov, kept in ((entropic, True), (0.0, False)):
        x = flow_of(Linear(BrownianBridge(sigma), cov)).sample(
            N, steps=200, diffusion=sigma, batch_size=N, trajectory=True
        )
        assert x.x[-1].std().item() == pytest.approx(STD, abs=0.015)
        found = torch.cov(torch.stack([x.x[0, :, 0], x.x[-1, :, 0]]))[0, 1].item()
        assert (abs(found - cov) < 0.02) is kept


class Rows(nn.Module):
    """Heads of the bridge of width ``sigma`` from rows to the point 1."""

    def __init__(self, rows: Tensor, sigma: float) -> None:
        super().__init__()
        self.rows, self.path = rows.double()[:, 0], BrownianBridge(sigma)

    def forward(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
        t, (a, b, g, _, _, d_g) = t.double(), (c[:, None] for c in self.path.interpolant(t.double()))
        z = (x.double() - a - b * self.rows) / g
        share = (-(z**2) / 2).softmax(1)
        eta, source = (share * z).sum(1, keepdim=True), (share * self.rows).sum(1, keepdim=True)
        return torch.cat([1 - source + d_g * eta, eta], 1).to(x.dtype)


@pytest.mark.parametrize("g", [0.0, "sigma", 0.4])
def test_rows_get_the_width_of_the_bridge(g: float | str) -> None:
    rows = torch.tensor([[-1.0], [0.5]])
    net = Rows(rows, 0.4)
    flow = flow_of(net, source=Empirical(rows))  # pyright: ignore[reportArgumentType]
    samples = flow.sample(4000, steps=80, diffusion=g, batch_size=4000, trajectory=True)
    middle = samples.x[41, :, 0]
    assert samples.times[41] == pytest.approx(0.5)
    for centre in (0.0, 0.75):
        near = middle[(middle - centre).abs() < 0.37]
        assert len(near) / 4000 == pytest.approx(0.5, abs=0.05)
    spread = 0.375**2 + 0.4**2 / 4
    assert middle.var().item() == pytest.approx(spread, rel=0.06)
    assert (samples.x[-1] - 1).abs().max() < 1e-3


def test_heads_are_asked_at_trained_times_alone_and_once_a_step() -> None:
    net = Linear(BrownianBridge(0.5))
    samples = flow_of(net, t_eps=0.02).sample(5, steps=10, diffusion=0.5)
    assert min(net.times) == pytest.approx(0.02) and max(net.times) == pytest.approx(0.98)
    assert samples.nfe == len(net.times) == 12


def test_the_learned_score_is_that_of_the_law() -> None:
    x, t = torch.linspace(-3, 3, 50)[:, None], torch.linspace(0.01, 0.99, 50)
    for net in LAWS.values():
        mean = net.path.interpolant(t).alpha * MEAN
        exact = -(x[:, 0] - mean) / net.variance(t)
        torch.testing.assert_close(flow_of(net).score()(x, t)[:, 0], exact, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(flow_of(net).velocity()(x, t), net(x, t)[:, :1])


def test_the_score_follows_from_the_velocity_of_plain_noise_alone() -> None:
    net = LAWS["affine"]
    first = lambda net: type("First", (nn.Module,), {"forward": lambda self, x, t, cond=None: net(x, t)[:, :1]})()
    spec, x, t = DataSpec((1,), "vector", {}), torch.randn(9, 1), torch.rand(9) * 0.9 + 0.05
    plain = Flow(first(net), spec, Identity(), path=net.path)
    torch.testing.assert_close(plain.score()(x, t), flow_of(net).score()(x, t), rtol=1e-3, atol=1e-4)
    for other in (LAWS["bridge"], LAWS["coupled"]):
        flow = Flow(first(other), spec, Identity(), path=other.path)
        for ask in (flow.score, lambda flow=flow: flow.sample(3, diffusion=0.5)):
            with pytest.raises(UserError, match="--objective stochastic-interpolant --score-network head"):
                ask()


def test_a_path_without_noise_has_no_score() -> None:
    with pytest.raises(UserError, match="has no noise, and so no score"):
        InterpolantPath(lambda x0, x1, t: x0 + t * (x1 - x0)).interpolant(torch.rand(3))
    with pytest.raises(UserError, match=r"set AffinePath\.sigma_min > 0"):
        AffinePath(gaussian_source=False).interpolant(torch.rand(3))


def test_a_state_that_diverges_is_told_with_its_time() -> None:
    heads = lambda x, t: (x / (0.5 - t[:, None]).clamp(min=0), x)
    with pytest.raises(UserError, match=r"t = 0\.[56]"):
        integrate_interpolant(
            heads,
            BrownianBridge(1.0),
            torch.ones(3, 1),
            times=[0.0, 0.1, 0.3, 0.5, 0.6, 0.8, 1.0],
            diffusion=1.0,
            solver=get_sde_solver("ab2"),
            inside=(0.1, 0.9),
            generator=CounterRng(0, 0, 3),
        )
