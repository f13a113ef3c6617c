from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from advect.core.errors import UserError
from advect.training import EMA, named_params
from advect.training.ema import EMA_FILE


def follow(decay: float, weights: list[float]) -> EMA:
    """The average after the network had these weights, the first when the average was made."""
    p = nn.Parameter(torch.tensor([weights[0]]))
    ema = EMA({"w": p}, decay)
    for value in weights[1:]:
        with torch.no_grad():
            p.fill_(value)
        ema.update()
    return ema


@pytest.mark.parametrize("updates", [1, 2, 10, 60])
def test_share_of_the_start_in_closed_form(updates):
    # The product of (1 + n) / (10 + n) for n = 1 .. k is (k + 1)! 10! / (k + 10)!.
    share = math.factorial(updates + 1) * math.factorial(10) / math.factorial(updates + 10)
    assert follow(0.9999, [1.0] + [0.0] * updates).shadow["w"].item() == pytest.approx(share, rel=1e-5)


def test_after_the_warm_up_the_decay_is_the_one_asked_for():
    # (1 + n) / (10 + n) reaches 1/2 at n = 8.
    share = math.factorial(8) * math.factorial(10) / math.factorial(17) * 0.5**13
    assert follow(0.5, [1.0] + [0.0] * 20).shadow["w"].item() == pytest.approx(share, rel=1e-5)


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.99])
def test_it_is_the_weighted_mean_of_all_weights(decay):
    weights = torch.randn(30, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()
    decays = [min(decay, (1 + n) / (10 + n)) for n in range(1, 30)]
    shares = [math.prod(decays)] + [(1 - d) * math.prod(decays[n + 1 :]) for n, d in enumerate(decays)]
    assert sum(shares) == pytest.approx(1)
    mean = sum(share * weight for share, weight in zip(shares, weights, strict=True))
    assert follow(decay, weights).shadow["w"].item() == pytest.approx(mean, abs=1e-6)


def test_weights_that_rest_are_their_own_average():
    assert follow(0.999, [0.1] * 500).shadow["w"].item() == pytest.approx(0.1, rel=1e-6)


@pytest.fixture
def averaged() -> tuple[nn.Module, EMA]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    net[0].bias.requires_grad_(False)
    ema = EMA(named_params(net), 0.9)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn_like(p))
    ema.update()
    return net, ema


def snapshot(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_applied_lends_the_average_and_gives_the_weights_back_to_the_last_bit(averaged):
    net, ema = averaged
    before, shadow = snapshot(net), {name: value.clone() for name, value in ema.shadow.items()}
    with ema.applied():
        inside = snapshot(net)
        assert equal({name: inside[name] for name in shadow}, shadow)
        assert torch.equal(inside["0.bias"], before["0.bias"])
        assert not equal(inside, before)
    assert equal(snapshot(net), before)
    assert equal(ema.shadow, shadow)


def test_applied_gives_the_weights_back_after_an_error(averaged):
    net, ema = averaged
    before, grad_mode = snapshot(net), torch.is_grad_enabled()
    with pytest.raises(RuntimeError, match="inside"), ema.applied():
        raise RuntimeError("inside")
    assert equal(snapshot(net), before)
    assert torch.is_grad_enabled() == grad_mode


def test_applied_keeps_the_parameters_themselves(averaged):
    # An optimiser that holds the tensors, and their gradients, must still be right after the block.
    net, ema = averaged
    net(torch.randn(5, 3)).sum().backward()
    parameters = [(p, p.data_ptr(), None if p.grad is None else p.grad.clone()) for p in net.parameters()]
    with ema.applied():
        net(torch.randn(5, 3))
    for p, (kept, place, grad) in zip(net.parameters(), parameters, strict=True):
        assert p is kept and p.data_ptr() == place
        assert (p.grad is None and grad is None) or torch.equal(p.grad, grad)


def test_updates_leave_the_network_alone(averaged):
    net, ema = averaged
    before = snapshot(net)
    ema.update()
    assert equal(snapshot(net), before)
    assert all(not value.requires_grad for value in ema.shadow.values())


def test_continued_from_stored_averages_it_is_the_same():
    weights = torch.randn(20, generator=torch.Generator().manual_seed(1)).tolist()
    whole, first = follow(0.8, weights), follow(0.8, weights[:11])
    p = nn.Parameter(torch.tensor([weights[10]]))
    second = EMA({"w": p}, 0.8)
    second.load({EMA_FILE: {"w": first.shadow["w"].clone()}}, first.updates)
    for value in weights[11:]:
        with torch.no_grad():
            p.fill_(value)
        second.update()
    assert torch.equal(second.shadow["w"], whole.shadow["w"]) and second.updates == whole.updates == 19


def test_several_decays_at_once_are_each_what_it_is_alone():
    weights = torch.randn(40, generator=torch.Generator().manual_seed(2)).tolist()
    p = nn.Parameter(torch.tensor([weights[0]]))
    ema = EMA({"w": p}, 0.9, also=(0.5, 0.99))
    for value in weights[1:]:
        with torch.no_grad():
            p.fill_(value)
        ema.update()
    for file, decay in ((EMA_FILE, 0.9), ("ema-0.5.safetensors", 0.5), ("ema-0.99.safetensors", 0.99)):
        assert torch.equal(ema.shadows[file]["w"], follow(decay, weights).shadow["w"])
    with ema.applied():
        assert torch.equal(p, ema.shadow["w"]) and ema.shadow is ema.shadows[EMA_FILE]


def test_averages_of_the_parts_of_a_tensor_are_the_parts_of_its_average():
    # As each process of a sharded run keeps them.
    whole = torch.zeros(7)
    parts = [whole[:3], whole[3:]]
    averages = [EMA({"w": part}, 0.9, also=(0.5,), lengths=(0.05, 0.1)) for part in (whole, *parts)]
    for n in range(20):
        whole.copy_(torch.randn(7, generator=torch.Generator().manual_seed(n)))
        for ema in averages:
            ema.update()
    for file, shadow in averages[0].shadows.items():
        assert torch.equal(shadow["w"], torch.cat([ema.shadows[file]["w"] for ema in averages[1:]]))


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_decay_is_validated(decay):
    with pytest.raises(UserError, match=r"ema_decay must lie in \[0, 1\), got .*use_ema=False turns it off"):
        EMA({}, decay)
