from __future__ import annotations

import math

import pytest
import torch

from advect.core.errors import UserError
from advect.core.types import NULL
from advect.networks.embeddings import (
    ConditionEmbedding,
    FourierFeatures,
    TimeEmbedding,
    Vector,
    sinusoids,
    smooth_sinusoids,
)


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


def test_smooth_times_differ_and_change_slowly() -> None:
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    one, other = smooth_sinusoids(t, 33), sinusoids(t, 33)
    assert one.shape == other.shape == (101, 33)
    assert 10 < (one.diff(dim=0) / 0.01).abs().max() <= 16  # frequencies are 1 to 16
    assert torch.cdist(one, one).add(10 * torch.eye(101)).min() > 0.01
    torch.testing.assert_close(smooth_sinusoids(t, 1), t.cos()[:, None])
    embed = TimeEmbedding(32, kind="smooth")
    assert embed.state_dict().keys() == TimeEmbedding(32).state_dict().keys()
    assert not torch.equal(embed(t.float()), TimeEmbedding(32)(t.float()))


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


def test_fourier_features_are_kept_with_the_weights_and_differ_from_net_to_net() -> None:
    a, b = TimeEmbedding(12, kind="fourier"), TimeEmbedding(12, kind="fourier")
    t = torch.rand(5)
    assert a(t).shape == (5, 48) and not torch.equal(a(t), b(t))
    b.load_state_dict(a.state_dict())
    assert torch.equal(a(t), b(t))
    assert "fourier.frequencies" in a.state_dict() and "fourier.frequencies" not in dict(a.named_parameters())


def test_fourier_frequencies_are_normal_with_deviation_16() -> None:
    frequencies = FourierFeatures(20_000).frequencies
    assert frequencies.std().item() == pytest.approx(16, rel=0.05)
    whole = FourierFeatures(4)
    whole.frequencies.copy_(torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(whole(torch.tensor([0.25])), torch.tensor([[0.0, -1.0, 1.0, 0.0]]), atol=1e-6, rtol=0)


def test_a_vector_with_a_nan_is_null_and_no_nan_reaches_a_gradient() -> None:
    embed = ConditionEmbedding({"dose": Vector(2)}, 8)
    value = torch.tensor([[0.5, 1.0], [math.nan, 1.0], [math.nan, math.nan]], requires_grad=True)
    rows = embed(torch.zeros(3, 8), {"dose": value})
    assert torch.equal(rows[1], rows[2]) and torch.equal(rows[1:2], embed(torch.zeros(1, 8)))
    assert not torch.equal(rows[0], rows[1])
    rows.square().sum().backward()
    assert value.grad is not None and value.grad.isfinite().all() and not value.grad[1:].any()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in embed.parameters())


def test_mistakes_with_vectors_are_named() -> None:
    with pytest.raises(UserError, match="'dose' must have at least 1 number, got 0"):
        ConditionEmbedding({"dose": Vector(0)}, 8)
    with pytest.raises(UserError, match=r"shape \(2, 3\), one row a sample, got \(2,\)"):
        ConditionEmbedding({"dose": Vector(3)}, 8)(torch.zeros(2, 8), {"dose": torch.zeros(2)})
