"""What every network promises to objectives and samplers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from advect.core import registry
from advect.core.derivatives import derivative_along
from advect.core.errors import UserError
from advect.core.random import CounterRng
from advect.core.types import GIVEN, NULL, STEP, Batch, null_conditions
from advect.losses import FlowMatching
from advect.networks import Vector, layers
from advect.networks.base import TwoTimes, WithGiven
from advect.solvers import guided_velocity, integrate

CONDITIONS = {"label": 4, "cell.line": 3, "dose": Vector(2)}
SHAPES = {
    "vector": [(3,), (1,)],
    "image": [(1, 8, 8), (3, 4, 8), (2, 8, 4)],
    "sequence": [(7, 3), (5, 1)],
}


def networks() -> Iterator[tuple[str, tuple[Callable[..., nn.Module], tuple[int, ...]]]]:
    """Each example of each network, for one of the shapes that it takes after another."""
    for name in registry.choices("network"):
        cls: Any = registry.get("network", name)
        for i, options in enumerate(getattr(cls, "part_examples", ({},))):
            shape = SHAPES[cls.takes][i % len(SHAPES[cls.takes])]
            size = {"shape": shape} if "shape" in registry.parameters(cls) else {"dim": shape[0]}
            yield f"{name} {i}" if i else name, (partial(cls, **size, **options), shape)


NETWORKS = dict(networks())
CHECKPOINTED = [
    name
    for name, (make, _) in NETWORKS.items()
    if {"grad_checkpointing", "dropout"} <= registry.parameters(make.func).keys()
]


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
    dose = torch.randn(n, 2, generator=generator)
    dose[1:3, 1] = torch.nan
    return x, t, {"label": torch.arange(n) % 4, "cell.line": torch.tensor([0, NULL, 2, 1, NULL])[:n], "dose": dose}


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_output_is_a_velocity_of_the_input(made):
    net, shape = made
    x, t, cond = inputs(shape)
    for given in (cond, {"label": cond["label"]}, {}, None):
        out = net(x, t, given)
        assert out.shape == x.shape and out.dtype == x.dtype and out.isfinite().all()
    assert torch.equal(net(x, t), net(x, t, None))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_second_output_follows_the_first_on_axis_1_and_has_its_own_weights(name):
    make, shape = NETWORKS[name]
    net = alive(make(conditions=CONDITIONS, outputs=2))
    x, t, cond = inputs(shape)
    out = net(x, t, cond)
    assert out.shape == (5, 2 * shape[0], *shape[1:])
    first, second = out.chunk(2, 1)
    assert not torch.allclose(first, second)


def test_null_is_the_same_as_not_given(made):
    net, shape = made
    x, t, cond = inputs(shape)
    null = null_conditions(cond)
    close(net(x, t, null), net(x, t, None))
    for name in cond:
        others = {other: value for other, value in cond.items() if other != name}
        close(net(x, t, {**cond, name: null[name]}), net(x, t, others))


def test_a_missing_quantity_is_missing_for_its_sample_alone_and_reaches_no_gradient(made):
    net, shape = made
    x, t, cond = inputs(shape)
    net(x, t, cond).square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())
    given = {**cond, "dose": torch.where(cond["dose"].isnan().any(1, keepdim=True), 0.5, cond["dose"])}
    changed = (net(x, t, given) - net(x, t, cond)).flatten(1).abs().amax(1) > 1e-5
    assert changed.tolist() == [False, True, True, False, False]


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
        net(x, t, {**cond, "dose": 1 - cond["dose"].nan_to_num(3)}),
    ):
        assert ((other - whole).flatten(1).abs().amax(1) > 1e-4).sum() >= 4


def test_arguments_are_not_changed(made):
    net, shape = made
    given, again = inputs(shape), inputs(shape)
    net(*given)
    assert torch.equal(given[0], again[0]) and torch.equal(given[1], again[1])
    assert given[2].keys() == again[2].keys()
    for name, value in again[2].items():
        torch.testing.assert_close(given[2][name], value, rtol=0, atol=0, equal_nan=True)


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
        net(torch.cat([x, x], -1 if x.ndim == 3 else 1), t)
    with pytest.raises(UserError, match=r"no condition 'lable'; did you mean 'label'\?"):
        net(x, t, {"lable": torch.zeros(5, dtype=torch.long)})
    with pytest.raises(UserError, match=r"'label' must have shape \(5,\)"):
        net(x, t, {"label": torch.zeros(5, 1, dtype=torch.long)})
    with pytest.raises(UserError, match=r"'dose' must have shape \(5, 2\)"):
        net(x, t, {"dose": torch.zeros(5)})


@pytest.mark.parametrize("name", CHECKPOINTED)
def test_checkpointed_gradients_are_the_plain_ones_bit_for_bit_with_dropout(name):
    make, shape = NETWORKS[name]
    x, t, cond = inputs(shape)

    def gradients(**kw) -> list[Tensor]:
        net = alive(make(conditions=CONDITIONS, **{"dropout": 0.2, **kw})).train()
        torch.manual_seed(2)
        out = net(x, t, cond)
        (out * torch.arange(out.numel()).view_as(out)).sum().backward()
        return [out, *(p.grad for p in net.parameters() if p.grad is not None), torch.rand(3)]

    torch.manual_seed(0)
    plain = gradients()
    torch.manual_seed(0)
    again = gradients(grad_checkpointing=True)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_bfloat16_autocast_is_close(made):
    net, shape = made
    exact = net(*inputs(shape))
    with torch.autocast("cpu", torch.bfloat16):
        low = net(*inputs(shape))
    assert low.dtype == torch.float32 and (low - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_given_is_seen_and_the_state_there_is_not(name):
    make, shape = NETWORKS[name]
    net = alive(WithGiven(make(conditions=CONDITIONS, inputs=3), make.func.takes))
    x, t, cond = inputs(shape)
    known = torch.rand(x.shape, generator=torch.Generator().manual_seed(2)) < 0.5
    absent = ~known & (torch.rand(x.shape, generator=torch.Generator().manual_seed(3)) < 0.3)
    given = torch.where(known, x.cos(), torch.nan)
    given = torch.where(absent, torch.inf, given)
    out = net(x, t, {**cond, GIVEN: given})
    assert out.shape == x.shape and out.isfinite().all()
    close(net(torch.where(known | absent, 1e6, x), t, {**cond, GIVEN: given}), out)
    for other in (torch.where(known, given + 1, given), torch.where(absent, torch.nan, given)):
        assert not torch.allclose(net(x, t, {**cond, GIVEN: other}), out)
    close(net(x, t, {**cond, GIVEN: torch.full_like(x, torch.nan)}), net(x, t, cond))


def two_times(name: str, **options: Any) -> tuple[TwoTimes, tuple[int, ...]]:
    make, shape = NETWORKS[name]
    return TwoTimes(alive(make(conditions={**CONDITIONS, STEP: Vector(1)}, **options))), shape


@pytest.mark.parametrize("name", NETWORKS)
def test_of_two_times_the_end_matters_and_one_time_is_a_step_of_no_length(name):
    net, shape = two_times(name)
    x, t, cond = inputs(shape)
    t = t / 2
    whole = net(x, torch.stack([t, (1 + t) / 2], 1), cond)
    assert whole.shape == x.shape
    assert ((net(x, torch.stack([t, torch.ones(5)], 1), cond) - whole).flatten(1).abs().amax(1) > 1e-5).all()
    assert torch.equal(net(x, torch.stack([t, t], 1), cond), net(x, t, cond))


def without_tangents(graph: Any, _: Any) -> Callable[..., Any]:
    """A compiler whose code, like that of PyTorch's own, sees no derivatives along."""
    primal = lambda value: forward_ad.unpack_dual(value).primal if isinstance(value, Tensor) else value
    return lambda *values: graph(*map(primal, values))


WAYS = ["plain", "fused attention", "channels last", "checkpointed", "bfloat16", "compiled"]
FORWARD_MODE = [
    pytest.param(name, way, marks=[pytest.mark.slow] if way == "compiled" and name != "mlp" else [])
    for name in NETWORKS
    for way in WAYS
]


@pytest.mark.parametrize(("name", "way"), FORWARD_MODE)
def test_forward_mode_gives_the_difference_quotient_along_state_and_times(name, way, monkeypatch):
    if way == "checkpointed" and name not in CHECKPOINTED:
        pytest.skip("it has no activations to recompute")
    net, shape = two_times(name, **({"grad_checkpointing": True} if way == "checkpointed" else {}))
    if way == "channels last":
        net = net.to(memory_format=torch.channels_last)
    if way == "fused attention":
        monkeypatch.setattr(layers, "PLAIN_TOKENS", 0)
    net = net.train(way == "checkpointed").double() if way != "bfloat16" else net
    for module in net.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.0
    x, t, cond = inputs(shape)
    dtype = torch.float32 if way == "bfloat16" else torch.float64
    x, t, cond = x.to(dtype), t.to(dtype) / 2, {**cond, "dose": cond["dose"].to(dtype)}
    towards = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=dtype)
    times, rates = torch.stack([t, t + 0.4], 1), torch.tensor([[1.0, 0.3]], dtype=dtype).expand(5, 2)

    run = torch.compile(net, backend=without_tangents) if way == "compiled" else net

    def f(x: Tensor, times: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=way == "bfloat16"):
            return run(x, times, cond)

    value, slope = derivative_along(f, (x, times), (towards, rates))
    h = 1e-7  # the networks see 1000 t
    with torch.no_grad():
        torch.testing.assert_close(value, f(x, times))
        if way == "bfloat16":  # against the derivative in full precision
            exact = derivative_along(lambda x, times: net(x, times, cond), (x, times), (towards, rates))[1]
            assert (slope - exact).square().mean().sqrt() < 0.05 * exact.square().mean().sqrt()
            return
        quotient = (f(x + h * towards, times + h * rates) - f(x - h * towards, times - h * rates)) / (2 * h)
    torch.testing.assert_close(slope, quotient, rtol=1e-4, atol=1e-5)
