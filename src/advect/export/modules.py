"""The modules that are traced: the velocity of a flow, and its sampler."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from advect.core.types import Conditions, null_conditions, without_padding
from advect.export.recurrence import Recurrence
from advect.model.coordinates import Rectified
from advect.model.flow import Flow


def on_cpu(flow: Flow) -> Flow:
    """The flow with a copy of its network on the CPU, in float32 whatever the precision of training."""
    twin = copy.copy(flow)
    twin.net, twin.device, twin.autocast = copy.deepcopy(flow.net).cpu().float().eval(), torch.device("cpu"), None
    return twin


class Named(nn.Module):
    """A module whose conditions are arguments in the order of ``names``, but for those that are ``fixed`` (1, ...)."""

    def __init__(self, names: Sequence[str], fixed: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.names, self.fixed = tuple(names), tuple(fixed)
        for i, value in enumerate(fixed.values()):
            self.register_buffer(f"fixed_{i}", value)

    def conditions(self, given: Sequence[Tensor], batch: Any) -> Conditions:
        """All conditions (B, ...)."""
        cond = dict(zip(self.names, given, strict=True))
        for i, name in enumerate(self.fixed):
            value = getattr(self, f"fixed_{i}")
            cond[name] = value.expand(batch, *value.shape[1:])
        return cond


class Field(nn.Module):
    """The field of a flow, f(x (B, *S), t (B,) or (B, 2), cond) -> (B, *S), in its coordinates or as velocity."""

    def __init__(self, flow: Flow, *, rectified: bool) -> None:
        super().__init__()
        self.net = flow.net
        self.of = flow._rectified_velocity if rectified else flow._velocity

    def forward(self, x: Tensor, t: Tensor, cond: Conditions | None) -> Tensor:
        return self.of(x, t, cond or None).to(x.dtype)


class NetworkModule(Named):
    """Velocity (B, *S) in model units of x_t (B, *S), t (B,), or (B, 2) if steps were learned, and conditions."""

    def __init__(self, flow: Flow, names: Sequence[str], fixed: Mapping[str, Tensor]) -> None:
        super().__init__(names, fixed)
        self.field = Field(flow, rectified=False)

    def forward(self, x_t: Tensor, t: Tensor, *given: Tensor) -> Tensor:
        return self.field(x_t, t, self.conditions(given, x_t.shape[0]))


class SamplerModule(Named):
    """Samples (B, *S) in data units of initial states (B, *S) and conditions, by a recurrence.

    The loop is one operator whose body calls the network once, at twice the batch with guidance: a graph as long as
    the network's, whatever the number of steps.
    """

    def __init__(
        self,
        flow: Flow,
        recurrence: Recurrence,
        names: Sequence[str],
        fixed: Mapping[str, Tensor],
        *,
        rectified: bool,
        guidance: Tensor | None,
        model_units: bool,
    ) -> None:
        super().__init__(names, fixed)
        self.field = Field(flow, rectified=rectified)
        self.start, self.guided, self.two_times = recurrence.start, guidance is not None, recurrence.times.shape[1] > 1
        self.inverse = None if model_units else flow.transform.inverse
        self.inputs, self.outputs = recurrence.inputs.shape[1], recurrence.outputs.shape[1]
        scale = torch.ones(len(recurrence.times), 1) if guidance is None else guidance[:, None]
        parts = [scale, recurrence.inputs, recurrence.outputs, recurrence.times]
        self.register_buffer("table", torch.cat([part.double() for part in parts], 1).float())

    def forward(self, noise: Tensor, *given: Tensor) -> Tensor:
        from torch._higher_order_ops.scan import scan_op

        cond = self.conditions(given, noise.shape[0])
        x = without_padding(noise, cond) * self.start
        held = dict(self.field.named_parameters()) | dict(self.field.named_buffers())
        names, n = tuple(cond), len(cond)

        def body(*flat: Tensor) -> list[Tensor]:
            carry, row, rest = flat[: self._carried], flat[self._carried], flat[self._carried + 1 :]
            known = dict(zip(names, rest[:n], strict=True))
            return self._call(carry, row, known, dict(zip(held, rest[n:], strict=True)))

        begin = [x, *(torch.zeros_like(x) for _ in range(self._carried - 1))]
        x = scan_op(body, begin, [self.table], (*cond.values(), *held.values()))[0]
        return x if self.inverse is None else without_padding(self.inverse(x), cond)

    @property
    def _carried(self) -> int:
        """Number of states from one call to the next."""
        return self.inputs + self.outputs - 1

    def _call(self, carry: Sequence[Tensor], row: Tensor, cond: Conditions, held: dict[str, Tensor]) -> list[Tensor]:
        """The states after one call of the network: the last inputs, then the last outputs, newest first."""
        xs, us = list(carry[: self.inputs]), list(carry[self.inputs :])
        t = row[1 + self.inputs + self.outputs :]
        t = t.expand(xs[0].shape[0], 2) if self.two_times else t.expand(xs[0].shape[0])
        us = [self._guided(xs[0], t, row[0], cond, held), *us]
        weights = row[1:].unbind()
        new = weights[0] * xs[0] + weights[self.inputs] * us[0]
        for weight, state in (
            *zip(weights[1 : self.inputs], xs[1:], strict=True),
            *zip(weights[self.inputs + 1 : self.inputs + self.outputs], us[1:], strict=True),
        ):
            new = new + weight * state
        return [new, *(state.clone() for state in (*xs[: self.inputs - 1], *us[: self.outputs - 1]))]

    def _guided(self, x: Tensor, t: Tensor, scale: Tensor, cond: Conditions, held: dict[str, Tensor]) -> Tensor:
        field = lambda *args: torch.func.functional_call(self.field, held, args)
        if not self.guided:
            return field(x, t, cond)
        null = null_conditions(cond)
        both = {name: torch.cat([value, null[name]]) for name, value in cond.items()}
        u, batch = field(torch.cat([x, x]), torch.cat([t, t]), both), x.shape[0]
        return torch.lerp(u[batch:], u[:batch], scale)


def is_rectified(coordinates: object) -> bool:
    """Whether the field of these coordinates is the prediction of data less that of noise."""
    return isinstance(coordinates, Rectified)
