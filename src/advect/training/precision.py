"""A loss scale that finds its own size, for gradients in float16."""

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

    The loss is multiplied by ``scale``, so that small gradients do not vanish in float16. A step whose gradients
    overflow is skipped and the scale halved; after ``interval`` steps in a row without one it is doubled.
    ``skipped`` counts the skipped steps. All is plain numbers, which a checkpoint keeps.
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
        """Move the scale after a step whose gradients were finite, or were not and so changed nothing.

        Raises UserError where they stay infinite however small the scale.
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
        """What a checkpoint keeps."""
        return {"scale": self.scale, "good": self._good, "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take what ``state_dict`` gave."""
        self.scale, self._good, self.skipped = state["scale"], int(state["good"]), int(state["skipped"])


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
