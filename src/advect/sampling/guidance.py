"""Classifier-free guidance."""

from __future__ import annotations

import torch
from torch import Tensor

from advect.core.conditions import null_conditions
from advect.core.types import Conditions, Network
from advect.sampling.solvers import Velocity


def guided_velocity(net: Network, cond: Conditions | None, scale: float = 1.0) -> Velocity:
    """``u = u(x, t, null) + scale (u(x, t, cond) - u(x, t, null))``, Ho & Salimans 2022, eq. 6.

    ``scale`` 1 is the conditional flow itself and 0 the unconditional one, each at one call of the network;
    any other scale calls it once on a batch of twice the size.
    """
    if not cond or scale == 1:
        return lambda x, t: net(x, t, cond)
    null = null_conditions(cond)
    if scale == 0:
        return lambda x, t: net(x, t, null)
    both = {name: torch.cat([value, null[name]]) for name, value in cond.items()}

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        with_cond, without = net(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        return torch.lerp(without, with_cond, scale)

    return velocity
