"""Every prediction in every space of the loss, against the exact fields of a Gaussian mixture."""

from __future__ import annotations

import itertools

import pytest
import torch

from advect.core import registry
from advect.core.errors import UserError
from advect.core.random import CounterRng
from advect.core.types import Batch, expand_right
from advect.couplings import ExactOT, Independent
from advect.losses import (
    FlowMatching,
    ScoreMatching,
    StochasticInterpolantLoss,
    rectified_flow,
    score_head,
    velocity_head,
)
from advect.networks import MLP
from advect.paths import (
    AffinePath,
    BrownianBridge,
    CondOT,
    Cosine,
    InterpolantPath,
    Trigonometric,
    VariancePreserving,
)
from advect.paths.analytic import GaussianMixture
from advect.times import Importance, Stratified

KINDS = ("velocity", "data", "noise", "score")
LAW = GaussianMixture(torch.tensor([[1.5, 0.0], [-1.0, 1.0]]), stds=torch.tensor([0.4, 0.6]))


def exact(kind: str, path: AffinePath):
    law = GaussianMixture(LAW.means, stds=LAW.stds, path=path)
    field = getattr(law, kind)
    return lambda x, t, cond=None: field(x, t)


def loss_of(loss_fn, net, n: int = 4096) -> torch.Tensor:
    x1 = LAW.draw(n, CounterRng(1, 0, n))
    return loss_fn(net, Batch(x1.double()), CounterRng(2, 0, n))


@pytest.mark.parametrize("path", [AffinePath(), AffinePath(Trigonometric()), AffinePath(sigma_min=0.3)], ids=str)
@pytest.mark.parametrize("space", KINDS)
def test_exact_fields_have_one_loss_whatever_is_predicted(path: AffinePath, space: str) -> None:
    given = {"path": path, "loss_space": space, "times": Stratified().within(0.02), "t_eps": 0.0}
    losses = [loss_of(FlowMatching(prediction=p, **given), exact(p, path)).mean() for p in KINDS]  # type: ignore[arg-type]
    if path.sigma_min == 0 or space != "velocity":
        torch.testing.assert_close(torch.stack(losses), losses[0].expand(4), rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize(("prediction", "space"), list(itertools.product(KINDS, KINDS)))
def test_any_other_field_has_a_larger_loss_by_its_own_distance(prediction: str, space: str) -> None:
    path = AffinePath()
    loss_fn = FlowMatching(path=path, prediction=prediction, loss_space=space, t_eps=0.05)  # type: ignore[arg-type]
    best = exact(prediction, path)
    moved = lambda x, t, cond=None: best(x, t) + 0.3 * torch.sin(3 * x)
    extra = loss_of(loss_fn, moved, 30_000) - loss_of(loss_fn, best, 30_000)
    n = 30_000
    x1 = LAW.draw(n, CounterRng(1, 0, n)).double()
    point, _ = loss_fn.sample(Batch(x1), CounterRng(2, 0, n))
    unit = lambda value: path.convert(value, point.x_t, point.t, prediction, space)
    far = (unit(moved(point.x_t, point.t)) - unit(best(point.x_t, point.t))).square().mean(1)
    assert (extra.mean() - far.mean()).abs() < 5 * (extra - far).std() / n**0.5
    assert far.mean() > 0


@pytest.mark.parametrize("weighting", ["sigma2", "uniform", "likelihood", lambda t: 1 + t])
@pytest.mark.parametrize("prediction", ["score", "noise"])
def test_denoising_score_matching_is_its_definition(weighting, prediction: str) -> None:
    n, path = 256, AffinePath(Trigonometric())
    loss_fn = ScoreMatching(path=path, weighting=weighting, prediction=prediction, t_eps=0.05)  # type: ignore[arg-type]
    net = lambda x, t, cond=None: torch.tanh(x) * expand_right(1 + t, x)
    x1 = torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    loss = loss_fn(net, Batch(x1), CounterRng(0, 0, n))
    point, _ = loss_fn.sample(Batch(x1), CounterRng(0, 0, n))
    output, sigma = net(point.x_t, point.t), path.schedule.coefficients(point.t).sigma
    noise = -expand_right(sigma, output) * output if prediction == "score" else output
    inside = point.t.clamp(0.05, 0.95)  # what is divided by sigma^2 stays finite
    alpha, sigma, d_alpha, d_sigma = path.schedule.coefficients(inside)
    weights = {
        "sigma2": sigma**2,
        "uniform": torch.ones_like(sigma),
        "likelihood": 2 * sigma * (sigma * d_alpha / alpha - d_sigma),
    }
    weight = (weights[weighting] if isinstance(weighting, str) else weighting(point.t)) / sigma**2
    torch.testing.assert_close(loss, weight * (noise - point.x0).square().mean(1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("path", [CondOT(), VariancePreserving(), Trigonometric(), Cosine()], ids=str)
@pytest.mark.parametrize(("prediction", "space"), [("data", "velocity"), ("data", "score"), ("noise", "velocity")])
def test_every_time_is_trained_and_only_the_factor_of_the_loss_is_cut(path, prediction, space) -> None:
    t_eps, n = 0.05, 2001
    loss_fn = FlowMatching(path=AffinePath(path), prediction=prediction, loss_space=space, t_eps=t_eps)
    x1 = torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert loss_fn.sample(Batch(x1), CounterRng(0, 0, n))[0].t.max() > 1 - t_eps / 10
    x0, t = x1.flip(0).roll(1, 1), torch.linspace(0, 1, n, dtype=torch.float64)
    sample = AffinePath(path).sample(x0, x1, t)
    target, off = (x1 if prediction == "data" else x0), torch.tensor([0.3, -0.4])
    alpha, sigma, d_alpha, d_sigma = path.coefficients(t.clamp(t_eps, 1 - t_eps))
    determinant = d_alpha * sigma - alpha * d_sigma
    factors = {
        ("data", "velocity"): determinant / sigma,
        ("data", "score"): alpha / sigma**2,
        ("noise", "velocity"): determinant / alpha,
    }
    expected = factors[prediction, space] ** 2 * off.square().mean()
    torch.testing.assert_close(loss_fn.compare(target + off, sample), expected, rtol=1e-6, atol=0)
    assert loss_fn.compare(target, sample).max() == 0


@pytest.mark.parametrize("prediction", ["data", "noise"])
def test_finite_targets_are_trained_up_to_the_ends_of_any_schedule(prediction: str) -> None:
    n = 1000
    loss_fn = FlowMatching(path=AffinePath(VariancePreserving()), prediction=prediction, t_eps=0.05)
    times = loss_fn.sample(Batch(torch.randn(n, 2)), CounterRng(0, 0, n))[0].t
    assert times.min() < 0.002 and times.max() > 0.998
    moving = FlowMatching(path=AffinePath(VariancePreserving()), t_eps=0.05)  # whose derivative is infinite at t = 0
    times = moving.sample(Batch(torch.randn(n, 2)), CounterRng(0, 0, n))[0].t
    assert times.min() >= 0.05 and times.max() <= 0.95


def test_rectified_flow_is_the_straight_line() -> None:
    x1 = torch.randn(64, 3, 4, 4)
    point, _ = rectified_flow().sample(Batch(x1), CounterRng(0, 0, 64))
    assert torch.equal(point.u_t, x1 - point.x0)
    t = expand_right(point.t, x1)
    torch.testing.assert_close(point.x_t, t * x1 + (1 - t) * point.x0)
    assert isinstance(rectified_flow().path, AffinePath) and rectified_flow().path.schedule == CondOT()


def test_a_weight_multiplies_the_loss_of_each_sample() -> None:
    batch, net = Batch(torch.randn(64, 2)), MLP(2, width=8)
    plain = FlowMatching()(net, batch, CounterRng(0, 0, 64))
    point, _ = FlowMatching().sample(batch, CounterRng(0, 0, 64))
    weighted = FlowMatching(weight=lambda t: 1 + 3 * t)(net, batch, CounterRng(0, 0, 64))
    torch.testing.assert_close(weighted, plain * (1 + 3 * point.t))


def test_two_heads_train_on_the_sum_and_split_for_sampling() -> None:
    net = MLP(2, width=8)
    both = lambda x, t, cond=None: torch.cat([net(x, t), -2 * net(x, t)], 1)
    batch, loss_fn = Batch(torch.randn(32, 2)), StochasticInterpolantLoss(score_weight=0.5)
    loss = loss_fn(both, batch, CounterRng(0, 0, 32))
    point, _ = loss_fn.sample(batch, CounterRng(0, 0, 32))
    velocity, score = (
        head(point.x_t, point.t, None) for head in (velocity_head(both), score_head(both, loss_fn.path))
    )
    sigma = (1 - point.t)[:, None]
    assert torch.equal(velocity, net(point.x_t, point.t))
    torch.testing.assert_close(score, 2 * velocity / sigma)
    expected = (velocity - point.u_t).square().mean(1) + 0.5 * (sigma * score + point.x0).square().mean(1)
    torch.testing.assert_close(loss, expected)
    with pytest.raises(UserError, match=r"twice the channels of x_t \(32, 2\), got \(32, 2\)"):
        loss_fn(net, batch, CounterRng(0, 0, 32))


def test_importance_times_leave_the_loss_of_two_heads_as_it_was() -> None:
    both = lambda x, t, cond=None: torch.cat([x * 0, 3 * x], 1)
    n, found = 500, []
    objective = StochasticInterpolantLoss(times=Importance(bins=16, momentum=0.0, floor=0.1))
    x1 = LAW.draw(n, CounterRng(1, 0, n))
    for step in range(400):
        found.append(objective(both, Batch(x1), CounterRng(3, step, n)).mean())
    uniform = StochasticInterpolantLoss()
    expected = torch.stack([uniform(both, Batch(x1), CounterRng(4, step, n)).mean() for step in range(400)])
    weighted = torch.stack(found[1:])
    error = (weighted.var() / len(weighted) + expected.var() / 400).sqrt()
    assert abs(weighted.mean() - expected.mean()) < 4 * error < 0.02 * expected.mean()


@pytest.mark.parametrize(
    ("path", "coupling"),
    [
        (BrownianBridge(0.5), Independent()),
        (BrownianBridge(2.0), ExactOT()),
        (AffinePath(sigma_min=0.3, gaussian_source=False), ExactOT()),
        (AffinePath(Trigonometric()), Independent()),
        (AffinePath(sigma_min=0.3), Independent()),
    ],
    ids=str,
)
def test_the_second_head_is_minus_gamma_times_the_conditional_score(path, coupling) -> None:
    loss_fn = StochasticInterpolantLoss(path=path, coupling=coupling, t_eps=0.05)
    point, _ = loss_fn.sample(Batch(torch.randn(16, 2)), CounterRng(0, 0, 16))
    gaussian = isinstance(path, AffinePath) and path.gaussian_source
    score = path.conditional_score(point.x_t, point.t, x1=point.x1, x0=None if gaussian else point.x0)
    torch.testing.assert_close(-loss_fn.noise(point), path.interpolant(point.t).gamma[:, None] * score)
    # The jitter of a Gaussian source is noise of the score and none of the velocity.
    loss = loss_fn.compare(torch.cat([point.u_t, loss_fn.noise(point)], 1), point)
    assert loss.abs().max() < 1e-9


def test_the_target_of_the_score_is_bounded_up_to_both_ends_of_a_bridge() -> None:
    for t_eps in (1e-3, 1e-6):
        loss_fn = StochasticInterpolantLoss(path=BrownianBridge(0.5), t_eps=t_eps)
        point, _ = loss_fn.sample(Batch(torch.randn(4000, 2).double()), CounterRng(0, 0, 4000))
        noise = loss_fn.noise(point)
        for half in (point.t < 0.01, point.t > 0.99):
            assert noise[half].square().mean().item() == pytest.approx(1, abs=0.4)


def test_a_general_path_trains_on_its_derivative() -> None:
    bent = InterpolantPath(lambda x0, x1, t: (1 - t) * x0 + t * x1 + t * (1 - t) * torch.sin(x0 * x1))
    point, _ = FlowMatching(path=bent).sample(Batch(torch.randn(16, 2)), CounterRng(0, 0, 16))
    t = point.t[:, None]
    expected = point.x1 - point.x0 + (1 - 2 * t) * torch.sin(point.x0 * point.x1)
    torch.testing.assert_close(point.u_t, expected)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"prediction": "velocty"}, "did you mean 'velocity'"),
        ({"loss_space": "dat"}, "did you mean 'data'"),
        ({"t_eps": 0.5}, r"t_eps must lie in \[0, 0.5\)"),
        ({"cond_dropout": -0.1}, r"cond_dropout must lie in \[0, 1\]"),
        ({"path": BrownianBridge(1.0), "prediction": "data"}, "needs an AffinePath, got BrownianBridge"),
        (
            {"path": InterpolantPath(lambda a, b, t: a), "loss_space": "noise"},
            "needs an AffinePath, got InterpolantPath",
        ),
        ({"coupling": ExactOT(), "prediction": "score"}, "Gaussian noise drawn apart from x1"),
        ({"path": AffinePath(gaussian_source=False), "loss_space": "score"}, "Gaussian noise drawn apart from x1"),
    ],
)
def test_combinations_without_a_meaning_are_refused(parts: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        FlowMatching(**parts)


def test_score_matching_takes_plain_noise_alone() -> None:
    x = torch.randn(4, 2)
    with pytest.raises(UserError, match="drawn apart from x1, not gaussian_source=False; take FlowMatching"):
        ScoreMatching(path=AffinePath(gaussian_source=False))
    with pytest.raises(UserError, match="draws its own noise, and the data bring x0; take FlowMatching"):
        ScoreMatching().sample(Batch(x, x0=x))
    assert not {"source", "coupling"} & registry.parameters(ScoreMatching).keys()  # nor do flags give it any


def test_unknown_weightings_are_told() -> None:
    with pytest.raises(UserError, match="did you mean 'uniform'"):
        ScoreMatching(weighting="unifrom")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="must be 'score' or 'noise', got 'data'"):
        ScoreMatching(prediction="data")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="score_weight must be at least 0 and at most 1,000,000, got -1"):
        StochasticInterpolantLoss(score_weight=-1)
