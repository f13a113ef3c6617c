"""What every network promises to objectives and samplers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from advect.core import registry
from advect.core.errors import UserError
from advect.core.random import CounterRng
from advect.core.types import NULL, Batch, null_conditions
from advect.losses import FlowMatching
from advect.networks import MLP, DiT, ResidualMLP, SequenceTransformer, UNet, Vector
from advect.solvers import guided_velocity, integrate

CONDITIONS = {"label": 4, "cell.line": 3, "dose": Vector(2)}
TRANSFORMER = {"width": 16, "depth": 2, "heads": 2}
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
    "UNet of patches": (
        lambda **kw: UNet(
            (2, 8, 4),
            model_channels=8,
            channel_mult=(1, 1),
            attention_resolutions=(2,),
            patch_size=2,
            time_embedding="fourier",
            **kw,
        ),
        (2, 8, 4),
    ),
    "DiT": (lambda **kw: DiT((3, 4, 8), **TRANSFORMER, **kw), (3, 4, 8)),
    "DiT, all options": (
        lambda **kw: DiT(
            (5, 8, 4),
            **TRANSFORMER,
            norm="rms",
            mlp="swiglu",
            positions="rotary",
            qk_norm=True,
            registers=3,
            time_embedding="fourier",
            **kw,
        ),
        (5, 8, 4),
    ),
    "SequenceTransformer": (lambda **kw: SequenceTransformer((7, 3), **TRANSFORMER, **kw), (7, 3)),
    "ResidualMLP": (lambda **kw: ResidualMLP(3, width=16, depth=2, **kw), (3,)),
}
SHAPES = {"vector": (3,), "image": (1, 8, 8), "sequence": (7, 3)}
for name in registry.choices("network"):  # those that others add
    cls = registry.get("network", name)
    if cls not in (MLP, UNet, DiT, SequenceTransformer, ResidualMLP):
        size = {"shape": SHAPES[cls.takes]} if "shape" in registry.parameters(cls) else {"dim": SHAPES[cls.takes][0]}
        options = size | getattr(cls, "part_examples", ({},))[0]
        NETWORKS[name] = (lambda cls=cls, options=options, **kw: cls(**options, **kw), SHAPES[cls.takes])
ZERO_AT_FIRST = [name for name in NETWORKS if not name.startswith("MLP")]


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


@pytest.mark.parametrize("name", ZERO_AT_FIRST)
def test_a_new_net_predicts_zero(name):
    make, shape = NETWORKS[name]
    assert not make(conditions=CONDITIONS)(*inputs(shape)).any()


@pytest.mark.parametrize("name", ZERO_AT_FIRST)
def test_checkpointed_gradients_are_the_plain_ones_bit_for_bit_with_dropout(name):
    make, shape = NETWORKS[name]
    x, t, cond = inputs(shape)

    def gradients(**kw) -> list[Tensor]:
        net = alive(make(conditions=CONDITIONS, dropout=0.2, **kw)).train()
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
