from __future__ import annotations

import pytest
import torch

from advect.core.errors import UserError
from advect.core.types import LENGTH, drop_conditions
from advect.networks import SequenceTransformer


def made(**kw) -> SequenceTransformer:
    torch.manual_seed(0)
    net = SequenceTransformer((6, 3), width=16, depth=2, heads=2, **kw).double()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net.eval()


LENGTHS = torch.tensor([1, 4, 6])


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(3, 6, 3, dtype=torch.float64), torch.rand(3, dtype=torch.float64)


@pytest.mark.parametrize("junk", [1e6, float("nan"), float("inf")])
def test_padding_is_never_read_and_its_output_is_zero(junk: float) -> None:
    net, (x, t) = made(), inputs()
    padding = torch.arange(6) >= LENGTHS[:, None]
    out = net(x, t, {LENGTH: LENGTHS})
    dirty = x.clone()
    dirty[padding] = junk
    assert torch.equal(net(dirty, t, {LENGTH: LENGTHS}), out)
    assert not out[padding].any() and out[~padding].all()


def test_a_padded_sequence_is_the_short_one() -> None:
    net, (x, t) = made(), inputs()
    out = net(x, t, {LENGTH: LENGTHS})
    for i, n in enumerate(LENGTHS.tolist()):
        torch.testing.assert_close(out[i : i + 1, :n], net(x[i : i + 1, :n], t[i : i + 1]))


def test_padding_takes_no_part_in_gradients() -> None:
    def gradients(fill: float) -> list[torch.Tensor]:
        net, (x, t) = made(), inputs()
        x = torch.where((torch.arange(6) < LENGTHS[:, None])[:, :, None], x, fill).requires_grad_()
        net(x, t, {LENGTH: LENGTHS}).square().sum().backward()
        assert x.grad is not None and not x.grad[torch.arange(6) >= LENGTHS[:, None]].any()
        return [p.grad for p in net.parameters() if p.grad is not None]

    torch.manual_seed(3)
    clean = gradients(0.0)
    torch.manual_seed(3)
    assert all(torch.equal(a, b) for a, b in zip(clean, gradients(float("nan")), strict=True))


def test_longer_and_shorter_sequences_work_and_the_order_matters() -> None:
    net = made()
    t = torch.rand(2, dtype=torch.float64)
    for steps in (1, 3, 40):
        x = torch.randn(2, steps, 3, dtype=torch.float64)
        assert net(x, t).shape == x.shape
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    assert (net(x.flip(1), t).flip(1) - net(x, t)).abs().max() > 1e-3


def test_dropping_conditions_keeps_the_length() -> None:
    cond = {"label": torch.tensor([0, 1, 2]), LENGTH: LENGTHS}
    net, (x, t) = made(conditions={"label": 3}), inputs()
    dropped = drop_conditions(cond, 1.0)
    torch.testing.assert_close(net(x, t, dropped), net(x, t, {LENGTH: LENGTHS}))
    assert (net(x, t, cond) - net(x, t, dropped)).abs().amax((1, 2)).min() > 1e-4


def test_mistakes_are_named() -> None:
    net, (x, t) = made(), inputs()
    with pytest.raises(UserError, match=r"x_t of shape \(B, L, 3\)"):
        net(x[:, :, :2], t)
    with pytest.raises(UserError, match=r"'length' must have shape \(3,\)"):
        net(x, t, {LENGTH: LENGTHS[:, None]})
    with pytest.raises(UserError, match=r"must be \(steps, channels\), got \(3, 8, 8\); for images use DiT"):
        SequenceTransformer((3, 8, 8))
    with pytest.raises(UserError, match="leave it out of conditions"):
        SequenceTransformer((6, 3), conditions={LENGTH: 6})
    with pytest.raises(UserError, match="width must be a multiple of 2 heads = 6, got 16; use 12"):
        SequenceTransformer((6, 3), width=16, heads=3)
