"""What every network promises to objectives and samplers."""

from __future__ import annotations

import inspect

import pytest
import torch
from implementations import implementations
from torch import Tensor, nn

from advect.core.errors import UserError
from advect.core.random import CounterRng
from advect.core.types import NULL, Batch
from advect.networks import MLP, UNet
from advect.objectives import FlowMatching
from advect.sampling import guided_velocity, integrate

CONDITIONS = {"label": 4, "cell.line": 3}
NETWORKS = {
    "MLP": (lambda **kw: MLP(3, width=16, **kw), (3,)),
    "MLP of one feature": (lambda **kw: MLP(1, width=8, depth=2, time_features=0, **kw), (1,)),
    "UNet": (
        lambda **kw: UNet((1, 8, 8), model_channels=8, channel_mult=(1, 2), attention_resolutions=(4,), **kw),
        (1, 8, 8),
    ),
    "UNet, colour, not square": (
        lambda **kw: UNet((3, 4, 8), model_channels=8, channel_mult=(1, 1), attention_resolutions=(), **kw),
        (3, 4, 8),
    ),
}


def alive(net: nn.Module) -> nn.Module:
    """A net in evaluation mode that no layer keeps at zero, as some are when new."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return net.eval()


@pytest.fixture(params=NETWORKS)
def made(request) -> tuple[nn.Module, tuple[int, ...]]:
    make, shape = NETWORKS[request.param]
    torch.manual_seed(0)
    return alive(make(conditions=CONDITIONS)), shape


def inputs(shape: tuple[int, ...], n: int = 5) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x, t = torch.randn(n, *shape, generator=generator), torch.rand(n, generator=generator)
    return x, t, {"label": torch.arange(n) % 4, "cell.line": torch.tensor([0, NULL, 2, 1, NULL])[:n]}


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_none_is_left_out():
    modules = implementations(nn.Module, "advect.networks")
    networks = {cls for cls in modules if {"x_t", "t", "cond"} <= inspect.signature(cls.forward).parameters.keys()}
    assert networks == {MLP, UNet}


def test_output_is_a_velocity_of_the_input(made):
    net, shape = made
    x, t, cond = inputs(shape)
    for given in (cond, {"label": cond["label"]}, {}, None):
        out = net(x, t, given)
        assert out.shape == x.shape and out.dtype == x.dtype and out.isfinite().all()
    assert torch.equal(net(x, t), net(x, t, None))


def test_null_is_the_same_as_not_given(made):
    net, shape = made
    x, t, cond = inputs(shape)
    null = {name: torch.full_like(value, NULL) for name, value in cond.items()}
    close(net(x, t, null), net(x, t, None))
    close(net(x, t, {**cond, "label": null["label"]}), net(x, t, {"cell.line": cond["cell.line"]}))


def test_each_sample_has_its_own_answer(made):
    net, shape = made
    x, t, cond = inputs(shape)
    whole = net(x, t, cond)
    for i in range(5):
        one = slice(i, i + 1)
        close(net(x[one], t[one], {name: value[one] for name, value in cond.items()}), whole[one])
    order = torch.tensor([3, 0, 4, 1, 2])
    close(net(x[order], t[order], {name: value[order] for name, value in cond.items()}), whole[order])


def test_time_state_and_each_condition_matter(made):
    net, shape = made
    x, t, cond = inputs(shape)
    whole = net(x, t, cond)
    label = {**cond, "label": (cond["label"] + 1) % 4}
    for other in (
        net(x + 1, t, cond),
        net(x, 1 - t, cond),
        net(x, t, label),
        net(x, t, {**cond, "cell.line": label["label"] % 3}),
    ):
        assert ((other - whole).flatten(1).abs().amax(1) > 1e-4).sum() >= 4


def test_arguments_are_not_changed(made):
    net, shape = made
    given, again = inputs(shape), inputs(shape)
    net(*given)
    assert torch.equal(given[0], again[0]) and torch.equal(given[1], again[1])
    assert given[2].keys() == again[2].keys() and all(torch.equal(given[2][k], again[2][k]) for k in again[2])


def test_weights_travel_by_state_dict(made, request):
    net, shape = made
    make, _ = NETWORKS[request.node.callspec.params["made"]]
    other = make(conditions=CONDITIONS).eval()
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(*inputs(shape)), net(*inputs(shape)))


def test_every_parameter_learns_and_double_precision_works(made):
    net, shape = made
    net.double()
    x, _, cond = inputs(shape)
    loss = FlowMatching()(net, Batch(x.double(), cond), CounterRng(0, 0, 5))
    assert loss.shape == (5,) and loss.dtype == torch.float64
    loss.mean().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


def test_it_can_be_guided_and_integrated(made):
    net, shape = made
    x, _, cond = inputs(shape)
    end = integrate(guided_velocity(net, cond, 2.0), x, steps=2)
    assert end.shape == x.shape and not torch.equal(end, integrate(guided_velocity(net, None), x, steps=2))


def test_mistakes_are_named(made):
    net, shape = made
    x, t, _ = inputs(shape)
    with pytest.raises(UserError, match=r"t must have shape \(5,\)"):
        net(x, t[:1])
    with pytest.raises(UserError, match="takes x_t of shape"):
        net(torch.cat([x, x], 1), t)
    with pytest.raises(UserError, match=r"no condition 'lable'; did you mean 'label'\?"):
        net(x, t, {"lable": torch.zeros(5, dtype=torch.long)})
    with pytest.raises(UserError, match=r"'label' must have shape \(5,\)"):
        net(x, t, {"label": torch.zeros(5, 1, dtype=torch.long)})
