"""Rows drawn anew by a flow whose network is the exact velocity between normal laws, so that columns are uniform."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from advect.core.errors import UserError
from advect.core.types import Conditions, DataSpec
from advect.data.tables.dataset import Table
from advect.data.tables.rules import Rule
from advect.data.tables.transform import TableTransform
from advect.model.flow import Flow
from advect.model.sampler_config import SamplerConfig
from advect.model.sampling import check_sampler

NAN = np.nan


class Exact(nn.Module):
    """u_t(x) of the straight path from N(0, 1) to N(0, 1), which keeps known entries where they are."""

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        return ((2 * t - 1) / (t.square() + (1 - t).square()))[:, None] * x_t


def square(*rules: str, **options) -> Flow:
    """A flow of independent uniform numbers a and b, and of d = a + b, under rules."""
    u = np.linspace(0, 1, 2001)
    frame = pd.DataFrame({"a": u, "b": np.random.default_rng(0).permutation(u)}).round(4)
    columns = Table(frame.assign(d=(frame["a"] + frame["b"]).round(4)), held_out=0).transform.columns  # type: ignore
    transform = TableTransform(columns if any("d" in r for r in rules) else columns[:2], [Rule(r) for r in rules])
    return Flow(Exact(), DataSpec((2,), "table", {}), transform, **options)


def test_the_law_given_a_rule_is_that_of_the_flow_on_what_obeys():
    made = square("a <= b").sample(4000, steps=8, batch_size=4000)
    a, b = made.x.T
    assert bool((a <= b).all())
    n = 4000**0.5
    for value, mean, std in ((a, 1 / 3, 1 / 18**0.5), (b, 2 / 3, 1 / 18**0.5), (a / b, 1 / 2, 1 / 12**0.5)):
        assert value.mean().item() == pytest.approx(mean, abs=4 * std / n)
        assert value.std().item() == pytest.approx(std, rel=0.05)
    assert abs(np.corrcoef(a / b, b)[0, 1]) < 4 / n  # independent on the triangle, a / b uniform
    assert made.nfe > 1.4 * square().sample(10, steps=8).nfe  # half of the draws are thrown away


def test_a_row_depends_on_the_seed_and_its_place_alone():
    flow = square("a <= b", "d == a + b", "d <= 1.2")
    whole = flow.sample(40, steps=6, seed=3).x
    assert torch.equal(flow.sample(40, steps=6, seed=3, rows=range(30, 40)).x, whole[30:])
    torch.testing.assert_close(flow.sample(40, steps=6, seed=3, batch_size=7).x, whole, rtol=0, atol=2e-4)
    assert not torch.equal(flow.sample(40, steps=6, seed=4).x, whole)
    assert torch.equal(flow.sample(40, steps=6, seed=3, trajectory=True).x[-1], whole)
    free = square().sample(40, steps=6, seed=3).x
    kept = (free[:, 0] <= free[:, 1]) & (free.sum(1) <= 1.2)
    assert torch.equal(whole[kept, :2], free[kept])  # rows that obey at once are those of the flow without rules


def test_few_rows_that_obey_are_told():
    with pytest.raises(UserError, match=r"only \d+ of [\d,]+ rows drawn obey .* 'a \+ b <= 0.01' is broken most"):
        square("0 <= a", "a + b <= 0.01").sample(20, steps=4)
    check_sampler(square("a + b <= 0.01"), SamplerConfig(steps=4))  # tries the sampler, not the network


def test_what_is_given_is_kept_and_the_rest_obeys():
    flow = square("a <= b", "d == a + b", masked=True)
    x = flow.sample(200, given=[0.7, NAN, NAN], steps=6).x
    assert bool((x[:, 0] == 0.7).all()) and bool((x[:, 1] >= 0.7).all())
    assert torch.equal(x[:, 2], (x[:, 0] + x[:, 1]).round(decimals=4))
    assert x[:, 1].mean().item() == pytest.approx(0.85, abs=4 * 0.3 / 12**0.5 / 200**0.5)
    exact = flow.sample(3, given=[0.123456, NAN, NAN], steps=6).x  # more digits than the column has
    torch.testing.assert_close(exact[:, 2], exact[:, :2].sum(1), rtol=0, atol=5.1e-5)


def test_a_given_column_that_follows_from_others_must_agree():
    flow = square("d == a + b", masked=True)
    with pytest.raises(UserError, match=r"given, first by row 1 with d = 0\.9\d* and a = 0.2\d* and b = 0.3"):
        flow.sample(2, given=[[0.2, NAN, 0.9], [0.2, 0.3, 0.9]], steps=4)
    with pytest.raises(UserError, match="only 0 of"):  # no draw of reals has this very sum
        flow.sample(2, given=[NAN, NAN, 0.9], steps=4)
    kinds = pd.DataFrame({"kind": list("abcd") * 9, "half": list("xxyy") * 9, "v": range(36)})
    table = Table(kinds, rule=["half == f(kind)"], held_out=0)
    some = Flow(Exact(), table.spec, table.transform, masked=True, facts=table.metadata)
    x = some.sample(300, given=[NAN, 1.0, NAN], steps=4).x
    assert set(x[:, 0].tolist()) == {2.0, 3.0} and bool((x[:, 1] == 1).all())


def test_the_last_unknown_term_of_a_known_sum_follows_from_it():
    x = square("d == a + b", masked=True).sample(2, given=[[0.2, NAN, 0.9], [NAN, 0.25, 0.5]], steps=4).x
    torch.testing.assert_close(x, torch.tensor([[0.2, 0.7, 0.9], [0.25, 0.25, 0.5]], dtype=x.dtype))
    columns = square("d == a + b").transform.columns
    for text, row, b in (
        ("d == 2 * a - 4 * b", [1.0, NAN, 0.4], 0.4),
        ("d == a / b", [0.4, NAN, 0.5], NAN),  # not linear
        ("d == a * b", [0.0, NAN, 0.0], NAN),  # any b
        ("d == b * 3", [0.0, NAN, 0.5], NAN),  # 0.1667 * 3 is not 0.5
    ):
        found = TableTransform(columns, [Rule(text)]).constraints.known(torch.tensor([row], dtype=torch.float64))
        torch.testing.assert_close(found[0, 1], torch.tensor(b, dtype=torch.float64), equal_nan=True)
    with pytest.raises(UserError, match="given, first by row 0"):
        flow = square("a <= b", "d == a + b", masked=True)
        flow.sample(1, given=[0.6, NAN, 0.9], steps=4)


def test_posterior_samples_obey_too():
    flow = square("a <= b", "d == a + b")
    x = flow.sample_posterior(40, given=[0.6, NAN, NAN], method="pigdm", steps=8).x
    assert bool((x[:, 0] == 0.6).all()) and bool((x[:, 1] >= 0.6).all())
    assert torch.equal(x[:, 2], (x[:, 0] + x[:, 1]).round(decimals=4))
    again = flow.sample_posterior(40, given=[0.6, NAN, NAN], method="pigdm", steps=8, rows=range(20, 40)).x
    torch.testing.assert_close(again, x[20:], rtol=0, atol=2e-4)
