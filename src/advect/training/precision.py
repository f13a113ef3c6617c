"""Loss scaling for float16, and counted floating-point operations."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from advect.core.errors import UserError
from advect.core.types import Conditions

_LEAST = 2.0**-14


class LossScaler:
    """Dynamic loss scaling (Micikevicius et al. 2018, "Mixed precision training", section 3.2).

    A step with overflowing gradients is skipped and halves ``scale``; ``interval`` good steps in a row double it.
    ``skipped`` counts skipped steps.
    """

    def __init__(self, start: float = 2.0**16, *, interval: int = 2000) -> None:
        if not start > 0:
            raise UserError(f"LossScale.start must be > 0, got {start}; 65536 is usual")
        if interval < 1:
            raise UserError(f"LossScale.interval must be at least 1 step, got {interval}; 2000 is usual")
        self.scale, self.interval = float(start), interval
        self.skipped = self._good = 0

    @torch.no_grad()
    def unscale(self, grads: list[Tensor]) -> None:
        """Divide the gradients by the scale."""
        if grads:
            torch._foreach_mul_(grads, 1 / self.scale)

    def adapt(self, finite: bool) -> None:
        """Update the scale after a step with finite or overflowed gradients.

        Raises UserError if the scale falls below its minimum.
        """
        if not finite:
            self.scale, self._good = self.scale / 2, 0
            self.skipped += 1
            if self.scale < _LEAST:
                error = UserError(
                    f"the gradient in float16 is not finite even with the loss scaled by {2 * self.scale:g}; lower "
                    "--learning-rate, or train with --no-mixed-precision; the last checkpoint is whole"
                )
                error.agreed = True  # as the norm is that of all processes
                raise error
            return
        self._good += 1
        if self._good == self.interval:
            self.scale, self._good = 2 * self.scale, 0

    def state_dict(self) -> dict[str, float]:
        """State for a checkpoint."""
        return {"scale": self.scale, "good": self._good, "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore ``state_dict``."""
        self.scale, self._good, self.skipped = state["scale"], int(state["good"]), int(state["skipped"])


def step_flops(twin: nn.Module, x_t: Tensor, t: Tensor, cond: Conditions | None = None) -> int | None:
    """Floating-point operations of a forward and backward pass of ``twin(x_t, t, cond)``, without computing it.

    ``twin`` is made by :func:`on_meta`. Counts matrix products, convolutions and attention, two for each multiply-add;
    recomputed activations do not count. None if the network needs the values of tensors.
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
    """Copy of the network on the meta device, without gradient checkpointing."""
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
