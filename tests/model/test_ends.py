"""Exact networks: samples, encodings and densities of a flow are of one law, whatever its path and prediction."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from advect.core.errors import UserError
from advect.core.registry import choices, get
from advect.core.types import DataSpec
from advect.data import Identity
from advect.model.flow import Flow
from advect.model.sampler_config import SamplerConfig
from advect.paths import (
    AffinePath,
    BetaLinear,
    BrownianBridge,
    CondOT,
    Cosine,
    FiniteData,
    GaussianMixture,
    Polynomial,
    Trigonometric,
    VariancePreserving,
)
from advect.sources import Empirical, MatchedGaussian

PATHS = {
    "cond-ot": CondOT(),
    "polynomial": Polynomial(),
    "vp": VariancePreserving(),
    "trigonometric": Trigonometric(),
    "cosine": Cosine(),
    "ddpm": BetaLinear(),
}
KINDS = ["velocity", "data", "noise", "score"]
ROWS, SHARES = torch.tensor([[-1.0, 0.5], [0.3, 2.0], [1.5, -1.0]]), torch.tensor([0.5, 0.3, 0.2])


class Exact(nn.Module):
    def __init__(self, field) -> None:
        super().__init__()
        self.field, self.times = field, []

    def forward(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
        self.times.append(float(t[0]))
        return self.field(x, t)


def flow_of(law, kind: str, margin: float = 1e-3, **more) -> Flow:
    spec = DataSpec(tuple(law.shape), "vector", {})
    return Flow(Exact(getattr(law, kind)), spec, Identity(), path=law.path, prediction=kind, t_eps=margin, **more)


def finite(path: str) -> FiniteData:
    counts = (SHARES * 10).round().long()
    return FiniteData(ROWS.repeat_interleave(counts, 0), AffinePath(PATHS[path]))


HOW = [
    {"solver": "euler", "steps": 40},
    {"solver": "midpoint", "steps": 40},
    {"solver": "ab2", "steps": 40, "grid": "edm"},
    {"solver": "heun", "steps": 20},
    {"solver": "rk4", "steps": 10, "grid": "cosine"},
    {"solver": "dpmpp2m", "steps": 30},
    {"solver": "dopri5"},
    {"diffusion": 0.5, "steps": 80},
    {"diffusion": "ddpm", "solver": "heun", "steps": 60},
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", HOW, ids=lambda how: f"{how.get('solver')} {how.get('diffusion')}")
def test_finite_data_come_back_in_their_shares_without_noise(path, kind, how):
    n, law = 1000, finite(path)
    ends_in_singularity = kind == "velocity" and path in ("cond-ot", "polynomial", "trigonometric")
    if ends_in_singularity and how.get("solver") in ("heun", "rk4", "dopri5"):
        pytest.skip("the velocity of finite data has no value at t = 1")
    samples = flow_of(law, kind).sample(n, batch_size=n, **how)
    distance = torch.cdist(samples.x.double(), ROWS.double()).min(1)
    assert distance.values.quantile(0.98) < (1e-2 if ends_in_singularity and path == "polynomial" else 1e-4)
    shares = torch.bincount(distance.indices, minlength=3) / n
    assert (shares - SHARES).abs().max() < 4 * 0.5 / math.sqrt(n)


@pytest.mark.parametrize("path", ["vp", "cosine", "ddpm"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_point_is_met_in_any_number_of_steps(path, steps):
    law = FiniteData(torch.tensor([[2.0, -1.0]]), AffinePath(PATHS[path]))
    for kind in KINDS:
        flow = flow_of(law, kind, margin=0.05)
        assert (flow.sample(50, steps=steps, solver="euler").x - law.x).abs().max() < 1e-5
        low = 0.0 if kind == "data" and path != "ddpm" else 0.05
        assert low - 1e-6 <= min(flow.net.times) <= max(flow.net.times) <= 0.95 + 1e-6  # where it was trained


def test_the_ends_are_counted_and_seen():
    law = finite("vp")
    samples = flow_of(law, "velocity").sample(3, steps=4, solver="euler", trajectory=True)
    assert samples.nfe == 6 and len(samples.x) == 7
    assert samples.times == pytest.approx((0, 0.001, 0.25, 0.5, 0.75, 0.999, 1))
    plain = flow_of(finite("cond-ot"), "velocity").sample(3, steps=4, solver="euler", trajectory=True)
    assert plain.nfe == 4 and plain.times == pytest.approx((0, 0.25, 0.5, 0.75, 1))


SOLVERS = [name for name in choices("solver") if not (get("solver", name).two_times or get("solver", name).jumps)]
WAYS = [*({"solver": s} for s in SOLVERS), *({"diffusion": 0.5, "solver": s} for s in choices("sde-solver"))]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: " ".join(map(str, way.values())))
@pytest.mark.parametrize("path", [*PATHS, "bridge"])
def test_the_evaluations_told_before_are_those_made(way, path):
    """By every solver, on every grid, clear of the ends of time by less and by more than a step."""
    ways = BrownianBridge(0.5) if path == "bridge" else AffinePath(PATHS[path])
    heads = path == "bridge" and "diffusion" in way
    if path == "bridge" and way["solver"] == "dpmpp2m":
        pytest.skip("a bridge is not affine")
    for kind, margin in (("velocity", 1e-3), ("velocity", 0.15), ("data", 0.15), ("noise", 0.15)):
        if path == "bridge" and kind != "velocity":
            continue
        net = Exact(lambda x, t: torch.cat([-x, -x], 1) if heads else -x)
        more = {"path": ways, "prediction": kind, "learned_score": heads, "t_eps": margin}
        flow = Flow(net, DataSpec((2,), "vector", {}), Identity(), **more)
        configs = [SamplerConfig(**way, steps=n, grid=grid) for n in (1, 2, 7) for grid in choices("grid")]
        for config in [SamplerConfig(**way)] if way["solver"] == "dopri5" else configs:
            net.times.clear()
            samples = flow.sample(3, **config.arguments())
            assert samples.nfe == len(net.times)
            assert flow.nfe(config) == (None if config.adaptive else len(net.times))


def mixture(path: str, **more) -> GaussianMixture:
    means, stds = torch.tensor([[2.0], [-1.0]]), torch.tensor([0.5, 0.3])
    return GaussianMixture(means, stds=stds, weights=torch.tensor([0.7, 0.3]), path=AffinePath(PATHS[path]), **more)


X = torch.linspace(-4, 6, 801)[:, None]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_density_is_that_of_the_law_and_encoding_is_undone(path, kind):
    law = mixture(path)
    flow = flow_of(law, kind)
    density, exact = flow.log_prob(X).exp(), law.log_prob(X, torch.ones(len(X))).exp()
    assert torch.trapezoid(density, X[:, 0]) == pytest.approx(1, abs=1e-4)
    assert (density - exact).abs().max() < 0.012
    x = law.draw(300, torch.Generator().manual_seed(0))
    torch.testing.assert_close(flow.decode(flow.encode(x)), x, atol=1e-3, rtol=0)


@pytest.mark.parametrize("path", ["cond-ot", "vp", "cosine", "ddpm"])
def test_directions_of_little_variance_are_encoded_and_have_their_density(path):
    """A linear flow, whose last step to the predicted data shrinks one direction 20-fold and leaves the other."""
    way, stds = AffinePath(PATHS[path]), torch.tensor([2.0, 0.02], dtype=torch.float64)

    def data(x: Tensor, t: Tensor) -> Tensor:
        c = way.coefficients(t.double())
        alpha, sigma = c.alpha[:, None], c.sigma[:, None]
        return (alpha * stds**2 / ((alpha * stds) ** 2 + sigma**2) * x).to(x.dtype)

    flow = Flow(Exact(data), DataSpec((2,), "vector", {}), Identity(), path=way, prediction="data", t_eps=0.05)
    z = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    x, slopes = flow.decode(z), flow.decode(torch.eye(2)).diagonal()
    torch.testing.assert_close(flow.encode(x), z, atol=1e-4, rtol=0)
    exact = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1) - slopes.abs().log().sum()
    torch.testing.assert_close(flow.log_prob(x), exact, atol=5e-3, rtol=0)
    estimated = torch.stack([flow.log_prob(x, trace="hutchinson", seed=i) for i in range(4)]).mean(0)
    assert (estimated < exact + 1e-2).all()  # a bound


@pytest.mark.parametrize("path", ["vp", "cosine", "ddpm"])
def test_the_mean_is_exact_for_any_step(path):
    law = GaussianMixture(torch.tensor([[2.0]]), stds=0.5, path=AffinePath(PATHS[path]))
    for steps in (5, 50):
        x = flow_of(law, "velocity").sample(4000, steps=steps, solver="euler").x
        assert x.mean() == pytest.approx(2, abs=4 * 0.5 / math.sqrt(4000))


class BridgeToPoints:
    """The velocity of the bridge from N(0, 1), or from points, to two points drawn apart, in one dimension."""

    def __init__(self, sigma: float, source: Tensor | None = None) -> None:
        self.path, self.source, self.shape = BrownianBridge(sigma), source, (1,)
        self.x1, self.w = torch.tensor([-1.0, 1.5], dtype=torch.float64), torch.tensor([0.7, 0.3], dtype=torch.float64)

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        t, y = t.double()[:, None, None], x.double()[:, :, None]
        width = self.path.sigma**2 * t * (1 - t)
        growth = (1 - 2 * t) / (2 * t * (1 - t))
        if self.source is None:
            total = (1 - t) ** 2 + width
            away = y - t * self.x1
            x0 = (1 - t) / total * away
            logits = self.w.log() - away**2 / (2 * total)
            u = self.x1 - x0 + growth * (away - (1 - t) * x0)
        else:
            x1, x0 = (v.flatten() for v in torch.meshgrid(self.x1, self.source.double()[:, 0], indexing="ij"))
            away = y - t * x1 - (1 - t) * x0
            logits = self.w.log().repeat_interleave(len(self.source)) - away**2 / (2 * width)
            u = x1 - x0 + growth * away
        return (logits.softmax(2) * u).sum(2).to(x.dtype)


@pytest.mark.parametrize("source", [None, torch.tensor([[0.0], [2.0]])])
@pytest.mark.parametrize("solver", ["euler", "heun", "rk4"])
def test_a_bridge_ends_in_its_points(source, solver):
    law = BridgeToPoints(1.0, source)
    flow = flow_of(law, "velocity", **({} if source is None else {"source": Empirical(source)}))
    x = flow.sample(3000, steps=400 if solver == "euler" else 60, solver=solver, batch_size=3000).x
    distance = (x - law.x1.float()).abs()
    assert distance.min(1).values.quantile(0.98) < 2e-3
    assert (distance.argmin(1) == 0).float().mean() == pytest.approx(0.7, abs=0.04)


def test_a_matched_source_has_a_density():
    """The straight flow from N(3, 4) that stands still has the source's density."""
    flow = Flow(Exact(lambda x, t: 0 * x), DataSpec((2,), "vector", {}), Identity(), source=MatchedGaussian(2.0, 3.0))
    x = torch.randn(5, 2)
    exact = torch.distributions.Normal(3.0, 2.0).log_prob(x).sum(1)
    torch.testing.assert_close(flow.log_prob(x), exact)


def test_densities_and_encodings_run_in_full_precision():
    net = nn.Linear(2, 2)
    run = lambda autocast: Flow(
        type("Net", (nn.Module,), {"forward": lambda self, x, t, cond=None: net(x)})(),
        DataSpec((2,), "vector", {}),
        Identity(),
        autocast=autocast,
    )
    x = torch.randn(20, 2)
    half, full = run(torch.bfloat16), run(None)
    torch.testing.assert_close(half.log_prob(x), full.log_prob(x), rtol=0, atol=0)
    torch.testing.assert_close(half.decode(half.encode(x)), x, rtol=0, atol=2e-6)
    assert half.autocast == torch.bfloat16 and not torch.equal(half.sample(9, seed=1).x, full.sample(9, seed=1).x)


@pytest.mark.parametrize("path", ["cond-ot", "vp", "cosine", "bridge"])
@pytest.mark.parametrize("how", [{"solver": "euler"}, {"solver": "dopri5"}, {"solver": "ab2"}, {"diffusion": "sigma"}])
def test_a_state_that_is_not_finite_is_told_with_the_time_of_the_path(path, how):
    if path == "bridge" and "diffusion" in how:
        pytest.skip("a bridge has no score")
    way = BrownianBridge(0.5) if path == "bridge" else AffinePath(PATHS[path])
    net = Exact(lambda x, t: torch.where(t[:, None] > 0.52, torch.nan, -x))
    flow = Flow(net, DataSpec((2,), "vector", {}), Identity(), path=way)
    steps = {} if how.get("solver") == "dopri5" else {"steps": 10}
    with pytest.raises(UserError, match=r"not finite from t = \S+ on") as told:
        flow.sample(4, **how, **steps)
    t = float(str(told.value).split("from t = ")[1].split()[0])
    assert 0.5 < t <= (0.7 if steps else 0.53)
    for run in (flow.log_prob, flow.encode):
        with pytest.raises(UserError, match=r"not finite from t = (1|0\.9\S*) on"):
            run(torch.ones(2, 2))


def test_an_exact_last_step_that_is_not_finite_is_told():
    net = Exact(lambda x, t: torch.where(t[:, None] > 0.9985, torch.nan, -x))
    flow = Flow(net, DataSpec((2,), "vector", {}), Identity(), path=AffinePath(VariancePreserving()))
    for trajectory in (False, True):
        with pytest.raises(UserError, match="'exact last step' is not finite from t = 1 on"):
            flow.sample(4, solver="euler", steps=10, trajectory=trajectory)
