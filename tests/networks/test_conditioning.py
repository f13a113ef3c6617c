from __future__ import annotations

import math

import pytest
import torch

from advect.core.errors import UserError
from advect.core.types import NULL
from advect.networks.conditioning import ConditionEmbedding, TimeEmbedding, sinusoids


def test_sinusoids_are_cosines_and_sines_of_a_thousand_t() -> None:
    t = torch.tensor([0.0, math.pi / 1000, 1.0], dtype=torch.float64)
    features = sinusoids(t, 8)
    assert features[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert features[1, 0].item() == pytest.approx(-1)
    slowest = 1000 * 10_000 ** (-3 / 4)
    assert features[2, 7].item() == pytest.approx(math.sin(slowest))


def test_sinusoids_of_an_odd_number_and_of_low_precision_times() -> None:
    assert sinusoids(torch.rand(3), 7).shape == (3, 7)
    t = torch.tensor([0.75], dtype=torch.bfloat16)
    assert torch.equal(sinusoids(t, 16), sinusoids(t.float(), 16))


def test_time_embedding_is_four_times_as_wide() -> None:
    assert TimeEmbedding(12)(torch.rand(5)).shape == (5, 48)
    assert TimeEmbedding(12).double()(torch.rand(5)).dtype == torch.float64


def test_null_is_the_same_as_missing_and_values_differ() -> None:
    embed = ConditionEmbedding({"label": 3, "type": 2}, 8)
    h = torch.randn(4, 8)
    null = torch.full((4,), NULL)
    assert torch.equal(embed(h), embed(h, {"label": null}))
    assert torch.equal(embed(h, {}), embed(h, {"type": null, "label": null}))
    rows = embed(torch.zeros(4, 8), {"label": torch.tensor([NULL, 0, 1, 2])})
    assert len(torch.unique(rows, dim=0)) == 4


def test_conditions_add_up() -> None:
    embed = ConditionEmbedding({"a": 3, "b.c": 3}, 8)
    h, one = torch.zeros(1, 8), torch.tensor([1])
    both, a, b, none = embed(h, {"a": one, "b.c": one}), embed(h, {"a": one}), embed(h, {"b.c": one}), embed(h)
    torch.testing.assert_close(both - none, (a - none) + (b - none))


def test_only_the_rows_that_are_used_learn() -> None:
    embed = ConditionEmbedding({"label": 3}, 8)
    embed(torch.zeros(2, 8), {"label": torch.tensor([NULL, 1])}).sum().backward()
    grad = embed.tables[0].grad
    assert grad is not None
    assert grad.any(1).tolist() == [True, False, True, False]


def test_mistakes_are_named() -> None:
    embed, h = ConditionEmbedding({"label": 3}, 8), torch.zeros(2, 8)
    with pytest.raises(UserError, match="no condition 'lable'; did you mean 'label'"):
        embed(h, {"lable": torch.zeros(2, dtype=torch.long)})
    with pytest.raises(UserError, match=r"shape \(2,\), one value a sample, got \(3,\)"):
        embed(h, {"label": torch.zeros(3, dtype=torch.long)})
    with pytest.raises(UserError, match="it has none, so pass cond=None"):
        ConditionEmbedding({}, 8)(h, {"label": torch.zeros(2, dtype=torch.long)})
    with pytest.raises(UserError, match="'label' must have at least 1 value, got 0"):
        ConditionEmbedding({"label": 0}, 8)
    with pytest.raises(IndexError):
        embed(h, {"label": torch.tensor([0, 3])})
