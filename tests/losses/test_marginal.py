"""The conditional losses and the marginal ones differ by a constant in the parameters, and have one gradient (R7)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from advect.core.errors import UserError
from advect.core.random import CounterRng
from advect.core.types import Batch
from advect.losses import FlowMatching, MarginalMatching, ScoreMatching
from advect.networks import MLP
from advect.paths.analytic import GaussianMixture
from advect.times import Stratified

N = 60_000
LAW = GaussianMixture(torch.tensor([[1.5, 0.0], [-1.0, 1.0], [0.0, -1.5]]), stds=torch.tensor([0.4, 0.6, 0.5]))


def random_net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    net = MLP(2, width=16, depth=3)
    with torch.no_grad():
        net.last.weight.mul_(2 + 2 * seed)  # far enough apart for their losses to differ
    return net


def mean_loss_and_gradient(loss_fn, net: nn.Module) -> tuple[float, float, Tensor]:
    """Mean, its standard error, and the flat gradient of the mean, over N draws."""
    x1 = LAW.draw(N, CounterRng(1, 0, N)).float()
    loss = loss_fn(net, Batch(x1), CounterRng(2, 0, N))
    gradient = torch.autograd.grad(loss.mean(), list(net.parameters()))
    return loss.mean().item(), (loss.std() / N**0.5).item(), torch.cat([g.flatten() for g in gradient])


MARGIN = 0.15
PAIRS = {
    "flow matching": (
        lambda: FlowMatching(times=Stratified().within(MARGIN)),
        lambda: MarginalMatching(law=LAW, target="velocity", t_eps=MARGIN),
    ),
    "score matching": (
        lambda: ScoreMatching(weighting="uniform", t_eps=MARGIN),
        lambda: MarginalMatching(law=LAW, target="score", t_eps=MARGIN),
    ),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_the_losses_differ_by_one_constant_for_all_networks(kind: str) -> None:
    conditional, marginal = (make() for make in PAIRS[kind])
    gaps, errors = [], []
    for seed in range(4):
        net = random_net(seed)
        (a, ea, _), (b, eb, _) = mean_loss_and_gradient(conditional, net), mean_loss_and_gradient(marginal, net)
        gaps.append(a - b)
        errors.append((ea**2 + eb**2) ** 0.5)
    assert min(gaps) > 0  # the conditional target has a variance that no network can explain
    assert max(gaps) - min(gaps) < 5 * max(errors), (gaps, errors)
    losses = [mean_loss_and_gradient(marginal, random_net(seed))[0] for seed in range(4)]
    assert max(losses) - min(losses) > 10 * max(errors)  # the networks do differ


@pytest.mark.parametrize("kind", PAIRS)
def test_the_gradients_agree(kind: str) -> None:
    conditional, marginal = (make() for make in PAIRS[kind])
    net = random_net(7)
    _, _, a = mean_loss_and_gradient(conditional, net)
    _, _, b = mean_loss_and_gradient(marginal, net)
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.998
    assert (a - b).norm() < 0.06 * b.norm()


def test_the_exact_field_has_no_marginal_loss() -> None:
    for target in ("velocity", "score"):
        loss_fn = MarginalMatching(law=LAW, target=target)
        exact = getattr(LAW, target)
        net = lambda x, t, cond, exact=exact: exact(x, t)
        assert loss_fn(net, Batch(torch.zeros(64, 2)), CounterRng(0, 0, 64)).abs().max() == 0


def test_an_unknown_target_is_told() -> None:
    with pytest.raises(UserError, match="must be 'velocity' or 'score', got 'data'"):
        MarginalMatching(law=LAW, target="data")  # type: ignore[arg-type]
