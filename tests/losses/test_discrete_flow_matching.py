"""Discrete flow matching: its minimum is the entropy of the data, and a trained network approaches the law."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from advect.core import categorical
from advect.core.errors import UserError
from advect.core.random import CounterRng, LayerRng
from advect.core.types import Batch
from advect.losses import DiscreteFlowMatching
from advect.networks import SequenceTransformer
from advect.networks.base import TokenLogits
from advect.paths import AffinePath, MarkovChain, MixturePath
from advect.solvers import TauLeaping, integrate, log_prob_bound
from advect.sources import Masked, UniformTokens

SOURCES = {True: Masked(), False: UniformTokens()}
CHAIN = MarkovChain([0.5, 0.3, 0.2], [[0.8, 0.15, 0.05], [0.05, 0.05, 0.9], [0.2, 0.7, 0.1]], 4)


@pytest.mark.parametrize("masked", [True, False])
def test_the_perfect_network_has_the_entropy_as_its_loss(masked):
    path, n = MixturePath(masked=masked), 10_000
    loss = DiscreteFlowMatching(path=path, source=SOURCES[path.masked])
    net = lambda x, t, cond: CHAIN.logits(x, t, path)
    found = loss(net, Batch(CHAIN.sample(n, CounterRng(0, 0, n)).float()), CounterRng(1, 0, n))
    assert found.mean().item() == pytest.approx(CHAIN.entropy() / 4, rel=0.03)


@pytest.mark.parametrize("weighting", ["likelihood", "plain"])
@pytest.mark.parametrize("masked", [True, False])
def test_the_posterior_is_the_minimiser(weighting, masked):
    path, n = MixturePath(masked=masked), 4000
    loss = DiscreteFlowMatching(path=path, source=SOURCES[path.masked], weighting=weighting)
    batch = Batch(CHAIN.sample(n, CounterRng(0, 0, n)))
    shift, flat = (torch.zeros(1, 4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    perfect = lambda x, t, cond: CHAIN.logits(x, t, path).clamp(min=-40) + shift
    for net in (perfect, lambda x, t, cond: torch.zeros_like(x) + flat):
        loss(net, batch, CounterRng(1, 0, n)).mean().backward()
    assert shift.grad is not None and flat.grad is not None
    assert shift.grad.norm() < 0.15 * flat.grad.norm()  # of 4,000 draws


def test_padding_and_known_tokens_cost_nothing():
    x = categorical.one_hot(torch.tensor([[0, 1, -1, -1], [2, 2, 1, 0]]), 3)
    loss = DiscreteFlowMatching()
    found = loss(lambda x, t, cond: torch.zeros_like(x), Batch(x), CounterRng(0, 0, 2))
    torch.testing.assert_close(found, math.log(3) * torch.tensor([2 / 4, 1.0]))
    plain = DiscreteFlowMatching(weighting="plain")
    sample, _ = plain.sample(Batch(x), CounterRng(0, 0, 2))
    masks = ((sample.x_t.sum(-1) == 0) & (x.sum(-1) == 1)).sum(1)
    torch.testing.assert_close(plain.compare(torch.zeros_like(x), sample), math.log(3) * masks / 4)


def test_a_trained_network_approaches_the_chain():
    path = MixturePath()
    loss, n = DiscreteFlowMatching(path=path, source=SOURCES[path.masked]), 256
    with LayerRng(0).used():
        net = TokenLogits(SequenceTransformer((4, 4), width=32, depth=2, heads=2))
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for step in range(250):
        batch = Batch(CHAIN.sample(n, CounterRng(0, step, n)).float())
        optimizer.zero_grad()
        loss(net, batch, CounterRng(1, step, n)).mean().backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    rng = CounterRng(2, 0, 4000)
    x0 = torch.zeros(4000, 4, 3)
    with torch.no_grad():
        x = integrate(lambda x, t: net(x, t), x0, solver=TauLeaping(path=path, generator=rng), steps=32)
    shares = torch.einsum("nlk,mlk->nm", CHAIN.states().float(), x).eq(4).double().mean(1)
    assert (shares - CHAIN.log_prob(CHAIN.states()).exp()).abs().sum() / 2 < 0.12  # 0.05 are of 4,000 draws
    held = CHAIN.sample(1000, CounterRng(3, 0, 1000)).float()
    bound = log_prob_bound(lambda x, t: net(x, t), path, held, generator=CounterRng(4, 0, 1000)).mean().item()
    assert CHAIN.entropy() * 0.97 < -bound < CHAIN.entropy() * 1.1


def test_other_data_and_arguments_are_refused():
    with pytest.raises(UserError, match="rows of K numbers of which one is 1"):
        DiscreteFlowMatching().sample(Batch(torch.randn(4, 3, 5)))
    with pytest.raises(UserError, match="leave out x0"):
        DiscreteFlowMatching().sample(Batch(torch.zeros(4, 3, 5), x0=torch.zeros(4, 3, 5)))
    with pytest.raises(UserError, match=r"weighting .plan. is not known.*plain"):
        DiscreteFlowMatching(weighting="plan")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="needs tokens as its source"):
        DiscreteFlowMatching(source=UniformTokens())
    with pytest.raises(UserError, match="path must be a MixturePath"):
        DiscreteFlowMatching(path=AffinePath())  # pyright: ignore[reportArgumentType]
