"""The Jacobian of an MLP in its input by products of matrices, against automatic differentiation."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import nn

from advect.core.derivatives import input_alone, input_derivatives
from advect.networks import MLP
from advect.networks import input_jacobian as module
from advect.networks.mlp import Activation
from advect.solvers.likelihood import Linearised


def network(**options: Any) -> MLP:
    torch.manual_seed(0)
    return MLP(4, width=24, **options).double()


def inputs(rows: int, columns: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = 2 * torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return x, torch.rand(rows, generator=generator, dtype=torch.float64)


def jacobian(net: nn.Module, x: torch.Tensor, t: torch.Tensor, cond: Any = None) -> torch.Tensor:
    """(B, D, d), row by row, as the network is written."""
    return torch.stack(
        [
            torch.autograd.functional.jacobian(
                lambda y, i=i: net(y[None], t[i : i + 1], cond and {k: v[i : i + 1] for k, v in cond.items()})[0],
                x[i],
            )
            for i in range(len(x))
        ]
    )  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("activation", get_args(Activation))
@pytest.mark.parametrize("more", [{}, {"depth": 2}, {"input_map": True}, {"inputs": 2, "input_map": True}], ids=str)
def test_the_jacobian_is_that_of_the_network(activation: str, more: dict[str, Any]) -> None:
    net = network(activation=activation, conditions={"label": 3}, **more)
    if net.input_map is not None:
        net.input_map.copy_(torch.randn(4, 4, generator=torch.Generator().manual_seed(2)))
    x, t = inputs(7, 4 * more.get("inputs", 1))
    cond = {"label": torch.arange(7) % 3}
    near = Linearised(lambda x, t: net(x, t, cond), x, t)
    rows = torch.cat([rows for _, rows in near.rows(3)])
    torch.testing.assert_close(near.u, net(x, t, cond).detach())
    torch.testing.assert_close(rows.movedim(0, 1), jacobian(net, x, t, cond))
    assert near.batched


def test_the_slopes_are_those_of_the_activations_far_out_too() -> None:
    h = torch.cat([torch.linspace(-40, 40, 4001, dtype=torch.float64), torch.tensor([0.0, -800.0, 800.0]).double()])
    for name, both in module.WITH_SLOPE.items():
        at = h.clone().requires_grad_()
        value, slope = both(at)
        plain = {"silu": nn.SiLU(), "gelu": nn.GELU(), "tanh": nn.Tanh(), "selu": nn.SELU()}[name](at)
        (exact,) = torch.autograd.grad(plain.sum(), at)
        torch.testing.assert_close(value, plain, msg=name)
        torch.testing.assert_close(slope.detach(), exact, rtol=1e-10, atol=1e-12, msg=name)


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    net, (x, t) = network(), inputs(50)
    whole = torch.cat([rows for _, rows in Linearised(net, x, t).rows(4)])
    monkeypatch.setattr(module, "ELEMENTS", 24 * 4 * 7)
    torch.testing.assert_close(torch.cat([rows for _, rows in Linearised(net, x, t).rows(4)]), whole)


@pytest.mark.parametrize("change", ["hook", "parametrisation", "subclass"])
def test_layers_that_are_more_than_their_weights_are_differentiated_as_they_are(change: str) -> None:
    net, (x, t) = network(), inputs(5)
    if change == "hook":
        net.hidden[0].register_forward_hook(lambda layer, given, out: out.tanh())
    elif change == "parametrisation":
        nn.utils.parametrizations.weight_norm(net.last)
    else:

        class Doubled(nn.Linear):
            def forward(self, input: torch.Tensor) -> torch.Tensor:
                return 2 * super().forward(input)

        net.hidden[1] = Doubled(24, 24).double()
    near = Linearised(net, x, t)
    rows = torch.cat([rows for _, rows in near.rows(4)])
    torch.testing.assert_close(rows.movedim(0, 1), jacobian(net, x, t))


def test_gradients_of_the_parameters_are_not_lost_elsewhere() -> None:
    net, (x, t) = network(), inputs(5)
    near = Linearised(net, x.requires_grad_(), t, create_graph=True)
    rows = torch.cat([rows for _, rows in near.rows(4)])
    gradients = torch.autograd.grad(rows.square().sum(), (net.first.weight, x))
    assert all(bool(g.any()) for g in gradients)
    with input_derivatives():
        assert input_alone()
        with input_derivatives():
            pass
        assert input_alone()
        u = net(x, t)
    assert not input_alone()
    with pytest.raises(RuntimeError):  # asked for what it does not compute: said, not zero
        torch.autograd.grad(u.sum(), net.first.weight)
