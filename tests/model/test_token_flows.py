"""Flows of tokens: exact laws through ``Flow``, guidance, likelihood, and what they have not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from advect.core import categorical
from advect.core.errors import UserError
from advect.core.types import LENGTH, Category, Conditions, DataSpec, Length
from advect.data import Identity, TokenTransform
from advect.model.flow import Flow
from advect.model.sampler_config import SamplerConfig
from advect.paths import MarkovChain, MixturePath, ProductMixture
from advect.solvers import TauLeaping
from advect.sources import Masked, UniformTokens

CHAIN = MarkovChain([0.5, 0.3, 0.2], [[0.8, 0.15, 0.05], [0.05, 0.05, 0.9], [0.2, 0.7, 0.1]], 4)
FACTS = {
    "unit": "characters", "layout": "lines", "words": [], "newline": "\n", "width": 0, "dtype": "int64", "column": "",
    "conditions": [], "style": None,
}  # fmt: skip


class Exact(nn.Module):
    """The logits of a law, times one more than the condition."""

    def __init__(self, law, path: MixturePath) -> None:
        super().__init__()
        self.law, self.path = law, path

    def forward(self, x: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        logits = self.law.logits(x, t, self.path).float()
        return logits * (2 + cond["kind"].float())[:, None, None] if cond and "kind" in cond else logits


def flow_of(law, *, masked: bool = True, conditions=None, **options) -> Flow:
    path = MixturePath(masked=masked)
    spec = DataSpec(law.shape, "tokens", conditions or {})
    transform = TokenTransform(tuple(range(97, 97 + law.shape[1])))
    source = Masked() if masked else UniformTokens()
    return Flow(Exact(law, path), spec, transform, path=path, source=source, facts=FACTS, **options)


@pytest.mark.parametrize("masked", [True, False])
def test_samples_are_of_the_law_and_depend_on_their_row_alone(masked):
    flow = flow_of(CHAIN, masked=masked)
    made = flow.sample(3000, steps=48, seed=1)
    assert made.x.shape == (3000, 4) and made.nfe == 48
    codes = made.x.long() - 97
    pairs = torch.zeros(3, 3).index_put_((codes[:, 0], codes[:, 1]), torch.ones(3000), accumulate=True) / 3000
    wanted = torch.as_tensor(CHAIN.initial)[:, None] * torch.as_tensor(CHAIN.transition)
    assert (pairs - wanted).abs().sum() / 2 < 0.05
    part = flow.sample(3000, steps=48, seed=1, rows=range(700, 800), batch_size=33)
    assert torch.equal(part.x, made.x[700:800])
    assert set("".join(flow.modality.texts(made.x))) <= set("abc")


def test_the_likelihood_is_bounded_and_nearly_that_of_the_law():
    flow = flow_of(CHAIN)
    x = CHAIN.sample(300, torch.Generator().manual_seed(0))
    bound = flow.log_prob_bound(categorical.codes_of(x) + 97.0, draws=64)
    assert bound.mean().item() == pytest.approx(CHAIN.log_prob(x).mean().item(), abs=0.06)
    again = flow.log_prob_bound(categorical.codes_of(x) + 97.0, draws=64, batch_size=7)
    torch.testing.assert_close(again, bound)


def test_padding_is_cut_and_costs_nothing():
    law = ProductMixture([1.0], np.full((1, 4, 3), 1 / 3))
    flow = flow_of(law, conditions={LENGTH: Length((0.5, 0.0, 0.5, 0.0))})
    made = flow.sample(50, steps=3, cond={LENGTH: [1, 3] * 25})
    assert ((made.x > 0).sum(1) == torch.tensor([1, 3] * 25)).all()
    assert list(map(len, flow.modality.texts(made.x, made.encoded))) == [1, 3] * 25
    bound = flow.log_prob_bound(made.x, cond={LENGTH: [1, 3] * 25})
    torch.testing.assert_close(bound, -math.log(3) * torch.tensor([1.0, 3.0] * 25).double())


def test_guidance_goes_beyond_the_condition():
    law = ProductMixture([1.0], [[[0.6, 0.4]]])
    flow = flow_of(law, conditions={"kind": Category(("u", "v"), (0.5, 0.5))})
    share = lambda **how: float((flow.sample(4000, steps=1, cond={"kind": "v"}, **how).x == 97).double().mean())
    odds = lambda power: 0.6**power / (0.6**power + 0.4**power)
    assert share() == pytest.approx(odds(3), abs=0.02)  # the null condition, -1, has power 1
    assert share(guidance=2.0) == pytest.approx(odds(5), abs=0.02)
    assert share(solver=TauLeaping(temperature=3.0)) == pytest.approx(odds(1), abs=0.03)


def test_a_trajectory_unmasks_tokens():
    flow = flow_of(CHAIN)
    made = flow.sample(20, steps=8, trajectory=True)
    masks = made.x.isnan().flatten(1).sum(1)
    assert made.times == pytest.approx([i / 8 for i in range(9)]) and masks[0] == 80 and masks[-1] == 0
    assert (masks.diff() <= 0).all()


def test_a_network_that_diverged_is_told():
    flow = flow_of(CHAIN)
    flow.net.forward = lambda x, t, cond=None: x * torch.nan
    with pytest.raises(UserError, match="solver 'tau-leaping' is not finite"):
        flow.sample(3)


@pytest.mark.parametrize(
    "ask",
    [
        lambda f, x: f.log_prob(x),
        lambda f, x: f.bits_per_dim(x),
        lambda f, x: f.encode(x),
        lambda f, x: f.straightness(3),
        lambda f, x: f.velocity(),
        lambda f, x: f.decode(torch.zeros(1, 4, 3)),
    ],
)
def test_what_tokens_have_not_is_refused(ask):
    with pytest.raises(UserError, match="tokens jump; take sample, logits, or log_prob_bound"):
        ask(flow_of(CHAIN), torch.full((1, 4), 97.0))


def test_solvers_and_flows_that_do_not_go_together_are_told():
    with pytest.raises(UserError, match="a flow of tokens jumps, and solver 'euler' does not; take 'tau-leaping'"):
        flow_of(CHAIN).sample(3, solver="euler")
    other = Flow(nn.Identity(), DataSpec((2,), "vector", {}), Identity())
    with pytest.raises(UserError, match="solver 'tau-leaping' does not; take 'midpoint'"):
        other.sample(3, solver="tau-leaping")
    with pytest.raises(UserError, match="log_prob_bound is for flows of tokens"):
        other.log_prob_bound(torch.zeros(1, 2))
    with pytest.raises(UserError, match="logits are of flows of tokens"):
        other.logits()
    with pytest.raises(UserError, match="needs the score"):
        flow_of(CHAIN).sample(3, diffusion=0.5)
    with pytest.raises(UserError, match="follows from the velocity on an affine path"):
        flow_of(CHAIN).denoiser()
    assert flow_of(CHAIN).sampler == SamplerConfig("tau-leaping", 64, "uniform")


@pytest.mark.parametrize("corrector", [0.0, 1.0])
def test_known_tokens_stay_and_the_others_follow_their_law_given_them(corrector):
    flow = flow_of(CHAIN)
    given = torch.tensor([torch.nan, 98.0, torch.nan, 97.0])
    x = flow.sample(3000, given=given, steps=24, solver=TauLeaping(corrector=corrector)).x
    assert (x[:, 1] == 98).all() and (x[:, 3] == 97).all()
    initial, t = torch.as_tensor(CHAIN.initial), torch.as_tensor(CHAIN.transition)
    first, third = initial * t[:, 1], t[1] * t[:, 0]
    for column, law in ((0, first / first.sum()), (2, third / third.sum())):
        shares = torch.bincount(x[:, column].long() - 97, minlength=3) / 3000
        assert (shares - law).abs().sum() / 2 < 0.03


def test_known_tokens_that_cannot_be_are_refused():
    given = torch.tensor([torch.nan, 98.0, torch.nan, 97.0])
    with pytest.raises(UserError, match="known tokens need a flow that starts from masks"):
        flow_of(CHAIN, masked=False).sample(3, given=given)
    with pytest.raises(UserError, match="the token 120 is not in the vocabulary"):
        flow_of(CHAIN).sample(3, given=torch.tensor([torch.nan, 120.0, 97, 97]))
    with pytest.raises(UserError, match="asks for nothing"):
        flow_of(CHAIN).sample(3, given=torch.full((4,), 97.0))
