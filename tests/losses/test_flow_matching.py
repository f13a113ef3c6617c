from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.random import CounterRng
from advect.core.types import NULL, Batch
from advect.losses import FlowMatching
from advect.paths import AffinePath, BrownianBridge
from advect.times import Importance, Uniform

MEAN, SPREAD = 2.0, 0.5


def best_velocity(x: Tensor, t: Tensor, jitter: float = 0.0) -> Tensor:
    """E[x1 - x0 | x_t = x] for x0 ~ N(0, I), x1 ~ N(MEAN, SPREAD^2 I): two jointly Gaussian variables."""
    t = t[:, None]
    covariance, variance = t * SPREAD**2 - (1 - t), t**2 * SPREAD**2 + (1 - t) ** 2 + jitter**2
    return MEAN + covariance / variance * (x - t * MEAN)


def data(n: int, seed: int = 0, d: int = 2) -> Batch:
    z = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Batch(MEAN + SPREAD * z)


def mean_and_error(loss: Tensor) -> tuple[float, float]:
    return float(loss.mean()), float(loss.std() / len(loss) ** 0.5)


@pytest.mark.parametrize("times", [{}, {"times": Uniform()}], ids=["stratified", "uniform"])
def test_the_best_network_is_left_with_the_conditional_variance(times):
    # var(u | x_t) = s^2 / (t^2 s^2 + (1 - t)^2), and its integral over t in [0, 1] is s pi / 2.
    n = 200_000
    loss = FlowMatching(**times)(lambda x, t, cond: best_velocity(x, t), data(n), CounterRng(0, 0, n))
    mean, error = mean_and_error(loss)
    assert error < 0.01
    assert abs(mean - SPREAD * math.pi / 2) < 4 * error


def test_the_best_network_under_jitter_knows_less():
    n, jitter = 200_000, 0.4
    loss_fn = FlowMatching(path=AffinePath(sigma_min=jitter))
    loss = loss_fn(lambda x, t, cond: best_velocity(x, t, jitter), data(n), CounterRng(0, 0, n))
    t = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    gain = (t * SPREAD**2 - (1 - t)) ** 2 / (t**2 * SPREAD**2 + (1 - t) ** 2 + jitter**2)
    mean, error = mean_and_error(loss)
    assert abs(mean - float(1 + SPREAD**2 - gain.mean())) < 4 * error


@pytest.mark.parametrize("other", [lambda x, t: x, lambda x, t: 0 * x, lambda x, t: (3 * x).sin() + t[:, None]])
def test_any_other_network_is_worse_by_its_distance_from_the_best(other):
    n, distance = 200_000, []

    def net(x, t, cond):
        distance.append((other(x, t) - best_velocity(x, t)).square().mean(1))
        return other(x, t)

    worse = FlowMatching()(net, data(n), CounterRng(0, 0, n))
    best = FlowMatching()(lambda x, t, cond: best_velocity(x, t), data(n), CounterRng(0, 0, n))
    excess, error = mean_and_error(worse - best - distance[0])
    assert distance[0].mean() > 0.1
    assert abs(excess) < 4 * error < 0.1


@pytest.mark.parametrize("shape", [(3,), (1, 4, 4), (2, 3, 5)])
def test_one_loss_a_sample_the_mean_over_its_elements(shape):
    n, seen = 5, {}
    generator = torch.Generator().manual_seed(0)
    x1 = torch.randn(n, *shape, generator=generator)
    offset = torch.arange(n, dtype=torch.float32).reshape(n, *(1 for _ in shape))

    def knows_the_target(x, t, cond):
        seen["t"], seen["cond"] = t, cond
        time = t.reshape(n, *(1 for _ in shape))
        return (x1 - x) / (1 - time) + offset  # x1 - x0 by its definition, and an error that is known

    loss = FlowMatching()(knows_the_target, Batch(x1), generator)
    assert loss.shape == seen["t"].shape == (n,)
    assert seen["cond"] is None
    torch.testing.assert_close(loss, torch.arange(n, dtype=torch.float32).square(), rtol=1e-3, atol=1e-3)


def test_gradients_reach_the_network():
    slope = torch.zeros((), requires_grad=True)
    FlowMatching()(lambda x, t, cond: slope * x, data(100), CounterRng(0, 0, 100)).mean().backward()
    assert slope.grad is not None and slope.grad != 0


def labels_seen(share: float, n: int = 20_000) -> Tensor:
    seen = {}
    label = torch.arange(n)
    FlowMatching(cond_dropout=share)(
        lambda x, t, cond: seen.update(cond) or x, Batch(torch.zeros(n, 1), {"label": label}), CounterRng(1, 2, n)
    )
    assert ((seen["label"] == NULL) | (seen["label"] == label)).all()
    return seen["label"]


@pytest.mark.parametrize("share", [0.0, 0.15, 0.9, 1.0])
def test_conditions_are_dropped_for_their_share_of_the_samples(share):
    dropped = (labels_seen(share) == NULL).double().mean()
    assert abs(dropped - share) <= 4 * (share * (1 - share) / 20_000) ** 0.5


def test_dropout_changes_neither_noise_nor_times():
    seen = []
    for share in (0.0, 0.5):
        batch = Batch(torch.zeros(50, 2), {"label": torch.arange(50)})
        FlowMatching(cond_dropout=share, path=AffinePath(sigma_min=0.1))(
            lambda x, t, cond: seen.append((x, t)) or x, batch, CounterRng(1, 2, 50)
        )
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


@pytest.mark.parametrize("times", [{}, {"times": Uniform()}], ids=["stratified", "uniform"])
@pytest.mark.parametrize("cuts", [(0, 8, 16), (0, 5, 6, 16), (0, 1, 16)])
def test_a_batch_shared_by_processes_has_the_losses_of_the_whole(cuts, times):
    loss_fn = FlowMatching(path=AffinePath(sigma_min=0.1), cond_dropout=0.5, **times)
    x1, label = data(16, d=3).x1.float(), torch.arange(16)

    def net(x, t, cond):
        return x.sin() + t[:, None] + cond["label"][:, None]

    whole = loss_fn(net, Batch(x1, {"label": label}), CounterRng(7, 8, 16))
    parts = [
        loss_fn(net, Batch(x1[a:b], {"label": label[a:b]}), CounterRng(7, 8, b - a, start=a, total=16))
        for a, b in pairwise(cuts)
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_all_randomness_comes_from_the_generator():
    loss_fn = FlowMatching(path=AffinePath(sigma_min=0.1), cond_dropout=0.5)
    batch = Batch(torch.ones(9, 2), {"label": torch.arange(9)})
    net = lambda x, t, cond: x * t[:, None] + cond["label"][:, None]
    before = torch.random.get_rng_state()
    by_counter = [loss_fn(net, batch, CounterRng(1, step, 9)) for step in (0, 0, 1)]
    by_torch = [loss_fn(net, batch, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    for first, again, other in (by_counter, by_torch):
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("share", [-0.01, 1.01, float("nan")])
def test_cond_dropout_is_validated(share):
    with pytest.raises(UserError, match=r"FlowMatching\.cond_dropout must lie in \[0, 1\], got .*; 0\.1 is usual"):
        FlowMatching(cond_dropout=share)


def with_offsets(offset: Tensor, **options) -> tuple[Tensor, Tensor]:
    """The loss (n,) and its gradient (n, d) of a network that misses each target by its row of offset (n, d)."""
    loss_fn = FlowMatching(**options)
    point, _ = loss_fn.sample(Batch(torch.ones_like(offset)), CounterRng(3, 0, len(offset)))
    output = (point.u_t + offset).requires_grad_()
    loss = loss_fn.compare(output, point)
    return loss.detach(), torch.autograd.grad(loss.sum(), output)[0]


@pytest.mark.parametrize("d", [1, 4, 3072])
def test_pseudo_huber_is_the_published_loss_over_the_root_of_the_dimension(d: int) -> None:
    size = torch.logspace(-6, 2, 9, dtype=torch.float64)
    offset = size[:, None] * torch.randn(9, d, generator=torch.Generator().manual_seed(d), dtype=torch.float64)
    loss, gradient = with_offsets(offset, loss_type="pseudo-huber")
    c, norm = 0.00054 * d**0.5, offset.norm(dim=1)  # Song & Dhariwal 2023: sqrt(|r|^2 + c^2) - c
    torch.testing.assert_close(loss, (torch.sqrt(norm**2 + c**2) - c) / d**0.5, rtol=1e-7, atol=1e-13)
    expected = offset / torch.sqrt(norm**2 + c**2)[:, None] / d**0.5
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-12)


def test_pseudo_huber_is_square_where_the_residual_is_small_and_its_norm_where_large() -> None:
    offset = torch.tensor([[0.0], [1e-6], [1e-5], [10.0], [1e4]]).expand(-1, 6)
    loss, gradient = with_offsets(offset, loss_type="pseudo-huber")
    assert loss[0] == 0 and torch.equal(gradient[0], torch.zeros(6))
    torch.testing.assert_close(loss[1:3], offset[1:3, 0].square() / (2 * 0.00054), rtol=2e-2, atol=0)
    torch.testing.assert_close(loss[3:], offset[3:, 0], rtol=1e-3, atol=0)


def test_pseudo_huber_is_weighted_after_the_penalty() -> None:
    offset = torch.full((4, 2), 5.0)
    plain, _ = with_offsets(offset, loss_type="pseudo-huber")
    weighted, _ = with_offsets(offset, loss_type="pseudo-huber", weight=lambda t: 3 * torch.ones_like(t))
    torch.testing.assert_close(weighted, 3 * plain)


def test_squared_residuals_are_the_default_to_the_bit() -> None:
    offset = torch.randn(64, 3, 5, generator=torch.Generator().manual_seed(0))
    loss_fn = FlowMatching()
    point, _ = loss_fn.sample(Batch(torch.ones(64, 3, 5)), CounterRng(3, 0, 64))
    expected = ((point.u_t + offset) - point.u_t).square().flatten(1).mean(1)
    assert torch.equal(loss_fn.compare(point.u_t + offset, point), expected)
    assert torch.equal(FlowMatching(loss_type="squared").compare(point.u_t + offset, point), expected)


def test_a_penalty_that_is_not_known_is_told() -> None:
    with pytest.raises(
        UserError, match=r"FlowMatching\.loss_type 'pseudo-hubert' is not known; did you mean 'pseudo-huber'"
    ):
        FlowMatching(loss_type="pseudo-hubert")  # type: ignore[arg-type]


@pytest.mark.parametrize("t_eps", [0.0, 0.001, 0.05, 0.2])
def test_importance_times_keep_a_constant_loss_whatever_the_interval(t_eps):
    times = Importance(momentum=0.5, floor=0.1)
    times.update(torch.linspace(0, 1, 500), torch.linspace(4, 0, 500).square())  # far from even
    loss_fn, n, means = FlowMatching(path=BrownianBridge(1.0), times=times, t_eps=t_eps), 2000, []
    for step in range(60):
        sample, _ = loss_fn.sample(data(n), CounterRng(0, step, n))
        assert sample.t.min() >= t_eps - 1e-7 and sample.t.max() <= 1 - t_eps + 1e-7
        means.append(loss_fn.compare(loss_fn.target(sample) + 0.1**0.5, sample).mean())
    mean, error = mean_and_error(torch.stack(means))
    assert mean == pytest.approx(0.1, abs=4 * error + 1e-6)
    assert error < 2e-3
    assert times.probabilities() == pytest.approx(1 / times.bins, rel=0.02)  # every bin has learned that it is
