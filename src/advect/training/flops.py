"""How much arithmetic a training step is."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from advect.core.types import Conditions


def step_flops(twin: nn.Module, x_t: Tensor, t: Tensor, cond: Conditions | None = None) -> int | None:
    """The floating-point operations of one forward and backward of ``twin(x_t, t, cond)``, nothing being computed.

    ``twin`` is the network's :func:`on_meta`.

    Counted as PyTorch's counter does: matrix products, convolutions and attention, two for each multiplication with
    its addition. Activations that checkpointing computes again are not counted twice, so that the number is the
    model's and not the program's. None for a network that cannot run on tensors without values.
    """
    from torch.utils.flop_counter import FlopCounterMode

    x, times = torch.empty_like(x_t, device="meta"), torch.empty_like(t, device="meta")
    given = cond and {name: torch.empty_like(value, device="meta") for name, value in cond.items()}
    try:
        with FlopCounterMode(display=False) as counter, torch.enable_grad():
            twin(x, times, given).sum().backward()
    except (NotImplementedError, RuntimeError):  # a network that looks at values
        return None
    return counter.get_total_flops()


def on_meta(net: nn.Module) -> nn.Module:
    """A copy of the network whose tensors have shapes alone, without checkpointing; no weight is copied on the way."""
    memo: dict[int, Any] = {}
    for p in net.parameters():
        memo[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
    for b in net.buffers():
        memo[id(b)] = torch.empty_like(b, device="meta")
    twin = copy.deepcopy(net, memo).train()
    for module in twin.modules():
        if hasattr(module, "grad_checkpointing"):
            module.grad_checkpointing = False  # pyright: ignore[reportArgumentType]
    return twin
