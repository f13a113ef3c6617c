from __future__ import annotations

from typing import Any

import pytest
import torch

from advect.core.errors import UserError
from advect.core.types import NULL
from advect.networks import MLP


def count(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(("dim", "width", "depth", "time_features"), [(1, 1, 2, 0), (2, 256, 4, 1), (7, 13, 5, 3)])
def test_shape_dtype_and_gradients(dim: int, width: int, depth: int, time_features: int) -> None:
    net = MLP(dim, width=width, depth=depth, time_features=time_features, conditions={"label": 3})
    x, t = torch.randn(5, dim), torch.rand(5)
    out = net(x, t, {"label": torch.tensor([NULL, 0, 1, 2, 2])})
    assert out.shape == x.shape and out.dtype == x.dtype
    out.square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert net.double()(x.double(), t).dtype == torch.float64


def test_four_layers_of_256_have_the_usual_size() -> None:
    assert count(MLP(2, time_features=0)) == 3 * 256 + 256 + 2 * (256 * 256 + 256) + 2 * 256 + 2


def test_time_and_conditions_matter_for_each_sample() -> None:
    net = MLP(3, conditions={"label": 4})
    x, t = torch.randn(2, 3), torch.tensor([0.0, 1.0])
    base = net(x, t)
    assert not torch.allclose(base, net(x, torch.tensor([1.0, 0.0])))
    changed = net(x, t, {"label": torch.tensor([NULL, 2])}) - base
    assert changed[0].abs().max() == 0 and changed[1].abs().max() > 1e-3


def test_start_and_end_of_time_differ_although_the_harmonics_have_period_one() -> None:
    net, x = MLP(2), torch.randn(1, 2)
    assert not torch.allclose(net(x, torch.zeros(1)), net(x, torch.ones(1)), atol=1e-3)


@pytest.mark.parametrize("activation", ["silu", "gelu", "tanh", "selu"])
def test_hidden_layers_start_alive(activation: Any) -> None:
    torch.manual_seed(0)
    net = MLP(8, depth=8, activation=activation)
    out = net(torch.randn(256, 8), torch.rand(256))
    assert 0.03 < out.std(0).mean() < 10


def test_jacobian_is_that_of_finite_differences() -> None:
    net, t = MLP(2, width=16).double(), torch.rand(3, dtype=torch.float64)
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: net(x, t), (x,), check_forward_ad=True)


def test_bfloat16_autocast_is_close() -> None:
    net, x, t = MLP(4, conditions={"label": 2}), torch.randn(64, 4), torch.rand(64)
    with torch.autocast("cpu", torch.bfloat16):
        low = net(x, t)
    assert low.dtype == torch.float32
    assert (low - net(x, t)).norm() < 0.03 * net(x, t).norm()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0}, "MLP.width must be at least 1 and at most 65,536, got 0"),
        ({"depth": 1}, "MLP.depth must be at least 2 and at most 1,000, got 1"),
        ({"time_features": -1}, "MLP.time_features must be at least 0"),
        ({"activation": "sillu"}, "'sillu'; did you mean 'silu'"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MLP(2, **arguments)


def test_inputs_of_another_shape() -> None:
    net = MLP(2)
    with pytest.raises(UserError, match=r"x_t of shape \(B, 2\), got \(4, 3\)"):
        net(torch.zeros(4, 3), torch.zeros(4))
    with pytest.raises(UserError, match=r"t must have shape \(4,\)"):
        net(torch.zeros(4, 2), torch.zeros(4, 1))
    with pytest.raises(UserError, match="the network has no condition 'label'"):
        net(torch.zeros(4, 2), torch.zeros(4), {"label": torch.zeros(4, dtype=torch.long)})
