"""What every weight of time and every loss promises."""

from __future__ import annotations

import pytest
import torch
from parts import examples
from torch import Tensor

from advect.core.categorical import one_hot
from advect.core.random import CounterRng
from advect.core.types import Batch, Conditions
from advect.paths import CondOT, Cosine

WEIGHTS = {
    f"{name}, {type(schedule).__name__}": weight
    for schedule in (CondOT(), Cosine())
    for name, weight in examples("weight", schedule=schedule).items()
}
LOSSES = {
    f"{name}, {dropout}": loss
    for dropout in (0.0, 0.5)
    for name, loss in examples("loss", cond_dropout=dropout).items()
}


@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS.keys())
class TestWeight:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_one_finite_number_a_time_that_is_not_negative(self, weight, dtype):
        t = torch.linspace(0, 1, 1001, dtype=dtype)
        before = t.clone()
        w = weight(t)
        assert w.shape == t.shape and w.dtype == dtype and torch.equal(t, before)
        assert w.isfinite().all() and (w >= 0).all() and w.max() > 0
        torch.testing.assert_close(weight(t[300:305]), w[300:305])


def net(x: Tensor, t: Tensor, cond: Conditions | None) -> Tensor:
    return x.sin() + t.reshape(len(t), -1).sum(1, keepdim=True)


def two_heads(x: Tensor, t: Tensor, cond: Conditions | None) -> Tensor:
    return torch.cat([net(x, t, cond), x.cos()], 1)


def logits(x: Tensor, t: Tensor, cond: Conditions | None) -> Tensor:
    return x.cos() + t[:, None] * torch.arange(3)


def net_of(loss):
    if loss.discrete:
        return logits
    return two_heads if loss.learns_score else net


def batch(loss, rows: slice = slice(None)) -> Batch:
    x1 = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    x1 = one_hot(x1.argmax(1), 3) if loss.discrete else x1
    return Batch(x1[rows], {"label": torch.arange(40)[rows]})


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
class TestLoss:
    def test_a_finite_number_a_sample_that_is_not_negative(self, loss):
        found = loss(net_of(loss), batch(loss), CounterRng(0, 0, 40))
        assert found.shape == (40,) and found.dtype == torch.float32
        assert found.isfinite().all() and (found >= 0).all() and len(found.unique()) > 1

    def test_the_generator_alone_decides(self, loss):
        before = torch.random.get_rng_state()
        first, again, other = (loss(net_of(loss), batch(loss), CounterRng(seed, 0, 40)) for seed in (1, 1, 2))
        assert torch.equal(first, again) and not torch.equal(first, other)
        assert torch.equal(before, torch.random.get_rng_state())

    def test_it_compares_the_output_at_what_it_has_drawn(self, loss):
        sample, cond = loss.sample(batch(loss), CounterRng(3, 0, 40))
        sample = loss.aim(net_of(loss), sample, cond)
        whole = loss(net_of(loss), batch(loss), CounterRng(3, 0, 40))
        assert torch.equal(loss.compare(net_of(loss)(sample.x_t, sample.t, cond), sample), whole)

    def test_a_shared_batch_joins_to_the_whole(self, loss):
        whole = loss(net_of(loss), batch(loss), CounterRng(4, 0, 40))
        parts = [
            loss(net_of(loss), batch(loss, slice(a, b)), CounterRng(4, 0, b - a, start=a, total=40))
            for a, b in ((0, 13), (13, 40))
        ]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-6)

    def test_conditions_are_dropped_in_the_share_asked_for(self, loss):
        many = Batch(torch.zeros(4000, 3), {"label": torch.arange(4000)})
        _, cond = loss.sample(many, CounterRng(5, 0, 4000))
        dropped = float((cond["label"] != many.cond["label"]).double().mean())
        assert dropped == pytest.approx(loss.cond_dropout, abs=0.03)

    def test_the_state_comes_back(self, loss):
        state = loss.state_dict()
        doubled = {name: [2 * value for value in values] for name, values in state.items()}
        loss.load_state_dict(doubled)
        assert loss.state_dict() == doubled
        loss.load_state_dict(state)
        assert loss.state_dict() == state
