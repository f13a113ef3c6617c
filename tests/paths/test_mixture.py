"""Mixture paths of tokens: their rates obey the Kolmogorov equation, and laws with known posteriors agree by count."""

from __future__ import annotations

import math

import pytest
import torch

from advect.core import categorical
from advect.core.errors import UserError
from advect.core.random import CounterRng
from advect.paths import CondOT, Cosine, MarkovChain, MixturePath, Polynomial, ProductMixture, Trigonometric
from advect.paths.variance_preserving import BetaLinear

CHAIN = MarkovChain([0.5, 0.3, 0.2], [[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.3, 0.6, 0.1]], 3)
MIXTURE = ProductMixture([0.6, 0.4], [[[0.8, 0.1, 0.1], [0.2, 0.2, 0.6]], [[0.0, 0.5, 0.5], [0.9, 0.1, 0.0]]])
LAWS = {"chain": CHAIN, "mixture": MIXTURE}
PATHS = {
    "masked": MixturePath(),
    "uniform": MixturePath(masked=False),
    "masked, polynomial": MixturePath(Polynomial(3.0)),
    "uniform, trigonometric": MixturePath(Trigonometric(), masked=False),
}


def rate_matrix(law, path, states, t):
    """Rates (n, n) from each state, of all masks and tokens, to each other one."""
    b = len(states)
    at = torch.full((b,), t, dtype=torch.float64)
    rates = path.rates(law.logits(states, at, path), states, at)
    codes, matrix = categorical.codes_of(states), torch.zeros(b, b, dtype=torch.float64)
    for i in range(b):
        if law.marginal(states[i : i + 1], torch.tensor([t]), path) == 0:
            continue
        for token in range(states.shape[1]):
            for k in range(states.shape[2]):
                if k != codes[i, token]:
                    other = codes[i].clone()
                    other[token] = k
                    matrix[i, int((codes == other).all(1).nonzero())] = rates[i, token, k]
    return matrix


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS.keys())
class TestExactFlow:
    def test_the_marginals_are_probabilities_from_the_source_to_the_data(self, law, path):
        states = law.states(mask=path.masked)
        for t in (0.0, 0.3, 1.0):
            p = law.marginal(states, torch.full((len(states),), t), path)
            assert p.sum().item() == pytest.approx(1, abs=1e-12)
        whole = categorical.has_token(states).all(1)
        torch.testing.assert_close(p[whole], law.log_prob(states[whole]).exp())

    def test_the_rates_obey_the_kolmogorov_forward_equation(self, law, path):
        states, h = law.states(mask=path.masked), 1e-5
        for t in (0.2, 0.6, 0.9):
            before, now, after = (
                law.marginal(states, torch.full((len(states),), s, dtype=torch.float64), path)
                for s in (t - h, t, t + h)
            )
            q = rate_matrix(law, path, states, t)
            change = now @ q - now * q.sum(1)
            torch.testing.assert_close((after - before) / (2 * h), change, rtol=1e-5, atol=1e-7)

    def test_the_posterior_is_that_of_all_data_weighed(self, law, path):
        data, t = law.states(), torch.full((40,), 0.4, dtype=torch.float64)
        x1 = law.sample(40, torch.Generator().manual_seed(0))
        x = path.sample(path.start_like(x1, CounterRng(1, 0, 40)), x1, t, CounterRng(2, 0, 40)).x_t
        kappa = path.kappa(t)[0][0]
        start = (1 - x.sum(-1)) if path.masked else torch.full(x.shape[:-1], 1 / x.shape[-1], dtype=x.dtype)
        each = kappa * (x[:, None] * data).sum(-1) + (1 - kappa) * start[:, None]  # p_t(x^i | x1^i), (B, data, L)
        joint = each.prod(-1) * law.log_prob(data).exp()
        wanted = torch.einsum("bn,nlk->blk", joint / joint.sum(1, keepdim=True), data)
        torch.testing.assert_close(path.posterior(law.logits(x, t, path), x, t), wanted)


def test_a_chain_counts_as_its_steps_do():
    x = CHAIN.states()
    codes = categorical.codes_of(x)
    initial, transition = torch.as_tensor(CHAIN.initial), torch.as_tensor(CHAIN.transition)
    p = initial[codes[:, 0]] * transition[codes[:, 0], codes[:, 1]] * transition[codes[:, 1], codes[:, 2]]
    torch.testing.assert_close(CHAIN.log_prob(x).exp(), p)
    assert CHAIN.entropy() == pytest.approx(-(p * p.log()).sum().item())
    drawn = CHAIN.sample(20_000, CounterRng(0, 0, 20_000))
    shares = torch.einsum("nlk,mlk->nm", x, drawn).eq(3).double().mean(1)
    assert (shares - p).abs().sum() / 2 < 0.02


@pytest.mark.parametrize("masked", [True, False])
def test_a_token_is_that_of_the_data_with_the_probability_of_the_schedule(masked):
    path, n = MixturePath(Cosine(), masked=masked), 4000
    x1 = categorical.one_hot(torch.arange(5).expand(n, 5), 5)
    x0, t = path.start_like(x1, CounterRng(0, 0, n)), torch.full((n,), 0.35)
    sample = path.sample(x0, x1, t, CounterRng(1, 0, n))
    kappa = Cosine().coefficients(torch.tensor(0.35)).alpha.item()
    wanted = kappa + (0 if masked else (1 - kappa) / 5)
    assert (sample.x_t == x1).all(-1).double().mean().item() == pytest.approx(wanted, abs=0.01)
    assert torch.equal(path.sample(x0, x1, torch.ones(n)).x_t, x1)
    assert torch.equal(path.sample(x0, x1, torch.zeros(n)).x_t, x0)
    rate = path.rate(t)[0].item()
    torch.testing.assert_close(sample.u_t, rate * (x1 - sample.x_t), rtol=1e-4, atol=1e-5)


def test_going_back_and_forth_keeps_the_law_given_the_data():
    path, n = MixturePath(masked=False), 20_000
    x1 = categorical.one_hot(torch.full((n, 1), 2), 4)
    x = path.sample(path.start_like(x1, CounterRng(0, 0, n)), x1, torch.full((n,), 0.8), CounterRng(1, 0, n)).x_t
    back = path.noised(x, 0.8, 0.3, CounterRng(2, 0, n)).mean((0, 1))
    torch.testing.assert_close(back, torch.tensor([0.175, 0.175, 0.475, 0.175]), atol=0.012, rtol=0)


def test_what_no_path_over_tokens_is_is_refused_in_a_sentence():
    with pytest.raises(UserError, match=r"alpha rises from 0 to 1, got BetaLinear.*take cond-ot"):
        MixturePath(BetaLinear())
    with pytest.raises(UserError, match="no density and so no score"):
        MixturePath().conditional_score(torch.zeros(1, 2, 3), torch.zeros(1), x1=torch.zeros(1, 2, 3))
    with pytest.raises(UserError, match=r"probabilities of sum 1, got rows of sum \[0.9"):
        ProductMixture([1.0], [[[0.5, 0.4]]])
    with pytest.raises(UserError, match="transition of"):
        MarkovChain([0.5, 0.5], [[1.0, 0.0]], 3)
    assert MixturePath(CondOT()).jump_probability(0.0, 1.0) == 1
    assert MixturePath().jump_probability(0.2, 0.6) == pytest.approx(1 - math.exp(math.log(0.4 / 0.8)))


def test_codes_and_rows_are_inverse():
    codes = torch.tensor([[0, 2, -1], [1, -1, 0]])
    assert torch.equal(categorical.codes_of(categorical.one_hot(codes, 3)), codes)
    p = torch.tensor([[0.0, 0.7, 0.3, 0.0]]).expand(30_000, 4)
    shares = torch.bincount(categorical.draw(p, CounterRng(0, 0, 30_000)), minlength=4) / 30_000
    torch.testing.assert_close(shares, p[0], atol=0.01, rtol=0)
    assert shares[0] == shares[3] == 0
