"""What every posterior method promises: shapes, reproducible rows, and an answer to what it is asked, on any path."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from advect.core import registry
from advect.core.errors import UserError
from advect.core.random import CounterRng
from advect.core.types import DataSpec
from advect.data.transforms import Identity
from advect.losses.flow_matching import Kind
from advect.model.flow import Flow
from advect.networks import DiT
from advect.paths import AffinePath, BrownianBridge, Schedule
from advect.paths.analytic import GaussianMixture
from advect.solvers.posterior import Downsample, Masked, Observation, PosteriorMethod, Reward, posterior_sample
from contracts.parts import examples

METHODS = examples("posterior", PosteriorMethod)
SCHEDULES = [s for s in (registry.get("path", n) for n in registry.choices("path")) if issubclass(s, Schedule)]
SHAPE, KNOWN, STEPS = (3, 2), torch.tensor([[True, False], [False, False], [False, True]]), 40
LAW = GaussianMixture(torch.tensor([[[1.0, -1.0], [0.5, 0.0], [0.0, 2.0]]]), stds=0.7)


@pytest.fixture(params=METHODS.values(), ids=METHODS)
def method(request: pytest.FixtureRequest) -> PosteriorMethod:
    return request.param


def asked(method: PosteriorMethod, n: int, y: float = 1.0) -> Observation | Reward:
    """Two of six elements, with a small noise; or a reward for a large sum."""
    if method.asks is Reward:
        return Reward(lambda x: 3 * y * x.flatten(1).sum(1))
    return Observation.of(Masked(KNOWN), torch.full(SHAPE, y), 0.05, n, SHAPE, torch.device("cpu"))


def answer(method: PosteriorMethod, x0: Tensor, rng: Any, y: float = 1.0) -> Tensor:
    denoiser = lambda x, t: LAW.data(x, t).to(x.dtype)
    return posterior_sample(denoiser, x0, asked(method, len(x0), y), method=method, steps=STEPS, generator=rng)


class Exact(nn.Module):
    """The ideal network of a law, for a prediction."""

    def __init__(self, law: GaussianMixture, prediction: str) -> None:
        super().__init__()
        self.field = getattr(law, prediction)

    def forward(self, x_t: Tensor, t: Tensor, cond: object = None) -> Tensor:
        return self.field(x_t, t)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_have_the_shape_and_type_of_the_noise_and_move_to_what_is_asked(
    method: PosteriorMethod, dtype: torch.dtype
) -> None:
    x0 = CounterRng(0, 0, 200).normal((200, *SHAPE)).to(dtype)
    low, high = (answer(method, x0, CounterRng(1, 0, 200), y) for y in (-0.5, 0.5))
    assert low.shape == x0.shape and low.dtype == dtype and bool(low.isfinite().all())
    if method.asks is Reward:
        assert (high - low).sum((1, 2)).mean() > 1
        return
    for x, y in ((low, -0.5), (high, 0.5)):
        assert (x[:, KNOWN] - y).abs().mean() < 0.1
    rest = high[:, ~KNOWN]  # independent of what is known
    torch.testing.assert_close(rest.mean(0), LAW.means[0][~KNOWN].to(dtype), rtol=0, atol=0.25)
    torch.testing.assert_close(rest.std(0), torch.full((4,), 0.7, dtype=dtype), rtol=0.3, atol=0)


def test_a_row_depends_on_the_seed_and_its_place_alone(method: PosteriorMethod) -> None:
    x0 = CounterRng(0, 0, 12).normal((12, *SHAPE))
    whole = answer(method, x0, CounterRng(1, 0, 12))
    assert torch.equal(whole, answer(method, x0, CounterRng(1, 0, 12)))
    part = answer(method, x0[4:7], CounterRng(1, 0, 3, start=4, total=12))
    torch.testing.assert_close(part, whole[4:7], rtol=1e-5, atol=1e-5)
    other = answer(method, x0, CounterRng(2, 0, 12))
    assert torch.equal(whole, other) == (getattr(method, "eta", 1.0) == 0)


@pytest.mark.parametrize("prediction", get_args(Kind))
def test_flows_of_all_affine_paths_and_predictions_meet_what_is_asked(
    method: PosteriorMethod, prediction: Kind
) -> None:
    for schedule in SCHEDULES:
        law = GaussianMixture(LAW.means.reshape(1, 6), stds=0.7, path=AffinePath(schedule()))
        flow = Flow(
            Exact(law, prediction), DataSpec((6,), "vector", {}), Identity(), path=law.path, prediction=prediction
        )
        known = torch.where(KNOWN.flatten(), 0.5, math.nan)
        ask: dict[str, Any] = {"given": known, "noise": 0.05}
        if method.asks is Reward:
            ask = {"reward": lambda x: 3 * x.sum(1)}
        found = flow.sample_posterior(60, method=method, steps=STEPS, **ask)
        assert found.nfe == method.nfe(STEPS) and bool(found.x.isfinite().all())
        if method.asks is Reward:
            assert found.x.sum(1).mean() > LAW.means.sum() + 1
        else:
            assert (found.x[:, KNOWN.flatten()] - 0.5).abs().mean() < 0.1


def test_other_paths_are_refused(method: PosteriorMethod) -> None:
    flow = Flow(Exact(LAW, "velocity"), DataSpec((6,), "vector", {}), Identity(), path=BrownianBridge(0.5))
    with pytest.raises(UserError, match="posterior sampling needs an affine path from Gaussian noise"):
        flow.sample_posterior(2, given=torch.where(KNOWN.flatten(), 0.5, math.nan), method=method)


def test_what_a_method_is_not_made_for_is_refused(method: PosteriorMethod) -> None:
    wrong = asked(METHODS["dps" if method.asks is Reward else "reward"], 2)
    with pytest.raises(UserError, match="takes no"):
        posterior_sample(LAW.data, torch.zeros(2, *SHAPE), wrong, method=method, steps=2)


def test_images_of_another_size_than_those_of_training() -> None:
    net = DiT((1, 8, 8), patch_size=2, width=16, depth=1, heads=2)
    flow = Flow(net, DataSpec((1, 8, 8), "image", {}), Identity())
    y, ask = torch.linspace(-1, 1, 64).reshape(1, 8, 8), {"image_size": (16, 16), "steps": 30, "seed": 1}
    x = flow.sample_posterior(6, measurement=Downsample(2), y=y, noise=0.01, method="pigdm", **ask).x
    assert x.shape == (6, 1, 16, 16)
    assert (nn.functional.avg_pool2d(x, 2) - y).abs().mean() < 0.1
    part = flow.sample_posterior(
        6, measurement=Downsample(2), y=y, noise=0.01, method="pigdm", rows=range(2, 4), **ask
    ).x
    torch.testing.assert_close(part, x[2:4], rtol=1e-4, atol=1e-4)
    bright = flow.sample_posterior(2, reward=lambda x: x.flatten(1).sum(1), **ask).x
    assert bright.shape == (2, 1, 16, 16)
    given = torch.full((1, 8, 8), math.nan).index_fill(1, torch.tensor([0]), 1.0)
    with pytest.raises(UserError, match=r"image_size is \(16, 16\), but given has the size of the data"):
        flow.sample_posterior(2, given=given, **ask)
    with pytest.raises(UserError, match=r"y must have the shape of A\(x\), \(1, 8, 8\)"):
        flow.sample_posterior(2, measurement=Downsample(2), y=torch.zeros(1, 4, 4), **ask)
