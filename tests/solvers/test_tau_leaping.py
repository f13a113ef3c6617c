"""Discrete flows sampled exactly: total variation to a known law, correctors, and the bound of the likelihood."""

from __future__ import annotations

import math

import pytest
import torch

from advect.core import categorical
from advect.core.errors import UserError
from advect.core.random import CounterRng
from advect.paths import Cosine, MarkovChain, MixturePath, ProductMixture
from advect.solvers import TauLeaping, integrate, log_prob_bound
from advect.solvers.tau_leaping import nucleus
from advect.sources import Masked, UniformTokens

N = 6000
CHAIN = MarkovChain([0.5, 0.3, 0.2], [[0.8, 0.15, 0.05], [0.05, 0.05, 0.9], [0.2, 0.7, 0.1]], 4)
INDEPENDENT = ProductMixture([1.0], [[[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.3, 0.3, 0.4]]])
PATHS = {"masked": MixturePath(), "uniform": MixturePath(masked=False), "cosine": MixturePath(Cosine())}


def distance(law, x):
    """Total variation of draws x (n, L, K) and the law."""
    place = torch.tensor([x.shape[2] ** i for i in range(x.shape[1])])
    count = x.shape[2] ** x.shape[1]
    shares = torch.bincount((categorical.codes_of(x) * place).sum(1), minlength=count) / len(x)
    states = law.states()
    p = torch.zeros(count, dtype=torch.float64)
    p[(categorical.codes_of(states) * place).sum(1)] = law.log_prob(states).exp()
    return float((shares - p).abs().sum() / 2)


def sample(law, path, steps, seed=0, **options):
    rng = CounterRng(seed, 0, N)
    x0 = path.start_like(torch.ones(N, *law.shape), rng)
    solver = TauLeaping(path=path, generator=rng, **options)
    return integrate(lambda x, t: law.logits(x, t, path).float(), x0, solver=solver, steps=steps)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
class TestExactLaws:
    def test_independent_tokens_are_exact_in_any_number_of_steps(self, path):
        noise = distance(INDEPENDENT, INDEPENDENT.sample(N, CounterRng(9, 0, N)))
        for steps in (1, 3):
            assert distance(INDEPENDENT, sample(INDEPENDENT, path, steps)) < 2 * noise + 0.002

    def test_the_chain_is_reached_as_steps_shrink(self, path):
        one, few, many = (distance(CHAIN, sample(CHAIN, path, steps)) for steps in (1, 6, 48))
        assert one > 0.3 and few < one / 2 and many < min(few, 0.07)

    def test_correctors_keep_the_law(self, path):
        assert distance(CHAIN, sample(CHAIN, path, 48, corrector=1.0)) < 0.07


def test_masked_and_uniform_sources_agree():
    means = [sample(CHAIN, path, 48).double() for path in (PATHS["masked"], PATHS["uniform"])]
    pairs = [torch.einsum("nk,nl->kl", x[:, 0], x[:, 1]) / N for x in means]
    assert (pairs[0] - pairs[1]).abs().sum() / 2 < 0.05


def test_a_sample_depends_on_its_row_alone():
    path, u = MixturePath(masked=False), lambda x, t: x @ torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    parts = []
    for start, n in ((0, 3), (3, 5)):
        rng = CounterRng(7, 0, n, start=start, total=8)
        x0 = path.start_like(torch.ones(n, 6, 3), rng)
        parts.append(integrate(u, x0, solver=TauLeaping(path=path, generator=rng, corrector=0.5), steps=9))
    rng = CounterRng(7, 0, 8)
    whole = integrate(
        u,
        path.start_like(torch.ones(8, 6, 3), rng),
        solver=TauLeaping(path=path, generator=rng, corrector=0.5),
        steps=9,
    )
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
def test_the_bound_of_the_true_posterior_is_tight(path):
    x = CHAIN.states()
    p, true = CHAIN.log_prob(x).exp(), CHAIN.log_prob(x)
    logits = lambda x, t: CHAIN.logits(x, t, path)
    found = log_prob_bound(logits, path, x, draws=400, generator=CounterRng(0, 0, len(x)))
    assert (found - true)[p > 0.01].abs().mean() < (0.2 if path.masked else 0.6)
    assert float(p @ found) == pytest.approx(-CHAIN.entropy(), abs=0.03 if path.masked else 0.3)


@pytest.mark.parametrize("masked", [True, False])
def test_a_wrong_network_has_a_lower_bound(masked):
    path, x = MixturePath(masked=masked), CHAIN.sample(500, CounterRng(3, 0, 500))
    bounds = []
    for scale in (1.0, 0.5, 0.0):
        logits = lambda x, t, scale=scale: scale * CHAIN.logits(x, t, path).clamp(min=-50)
        bounds.append(float(log_prob_bound(logits, path, x, generator=CounterRng(0, 0, 500)).mean()))
    assert bounds[0] > bounds[1] > bounds[2]
    if masked:  # an ignorant network codes each token by log K nats
        assert bounds[2] == pytest.approx(-4 * math.log(3), rel=1e-6)


def test_padding_costs_nothing():
    path, rng = MixturePath(), CounterRng(0, 0, 2)
    x = categorical.one_hot(torch.tensor([[0, 1, 2, -1, -1], [2, -1, -1, -1, -1]]), 3)
    found = log_prob_bound(lambda x, t: torch.zeros_like(x), path, x, generator=rng)
    torch.testing.assert_close(found, -torch.tensor([3.0, 1.0]).double() * math.log(3))


def test_temperature_and_nucleus_leave_the_likeliest():
    p = torch.tensor([[0.5, 0.3, 0.15, 0.05]])
    torch.testing.assert_close(nucleus(p, 0.7), torch.tensor([[0.625, 0.375, 0, 0]]))
    assert torch.equal(nucleus(p, 1.0), p)
    torch.testing.assert_close(nucleus(p, 1e-9), torch.tensor([[1.0, 0, 0, 0]]))
    cold = sample(INDEPENDENT, MixturePath(), 3, temperature=0.01)
    assert (categorical.codes_of(cold) == torch.tensor([0, 2, 2])).all(1).double().mean() > 0.99


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="from the source to data alone"):
        integrate(lambda x, t: x, torch.zeros(2, 3, 4), solver="tau-leaping", t0=1.0, t1=0.0)
    with pytest.raises(UserError, match="rows of K numbers of which one is 1"):
        log_prob_bound(lambda x, t: x, MixturePath(), torch.rand(2, 3, 4))
    with pytest.raises(UserError, match="draws must be at least 1"):
        log_prob_bound(lambda x, t: x, MixturePath(), torch.zeros(2, 3, 4), draws=0)


def test_the_sources_are_masks_and_uniform_tokens():
    assert not Masked().sample((3, 4, 5)).any()
    x = UniformTokens().sample((4000, 2, 5), CounterRng(0, 0, 4000))
    assert torch.equal(x.sum(-1), torch.ones(4000, 2))
    torch.testing.assert_close(x.mean((0, 1)), torch.full((5,), 0.2), atol=0.02, rtol=0)
    parts = [UniformTokens().sample((n, 2, 5), CounterRng(0, 0, n, start=a, total=8)) for a, n in ((0, 3), (3, 5))]
    assert torch.equal(torch.cat(parts), UniformTokens().sample((8, 2, 5), CounterRng(0, 0, 8)))
