"""Guidance: extrapolation of velocities away from a weaker one."""

from __future__ import annotations

import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.types import Conditions, Network, expand_right, null_conditions
from advect.solvers.base import Velocity

Interval = tuple[float, float]
"""Times [lo, hi] at which guidance acts."""


def guided_velocity(
    net: Network, cond: Conditions | None, scale: float = 1.0, *, interval: Interval | None = None
) -> Velocity:
    """``u = u(x, t, null) + scale (u(x, t, cond) - u(x, t, null))``, Ho & Salimans 2022.

    ``scale`` 1 is the conditional flow, 0 the unconditional one, each at one network call; other scales use one call
    at twice the batch. Outside ``interval`` the flow is conditional (Kynkaanniemi et al. 2024, "Applying guidance in a
    limited interval improves sample and distribution quality in diffusion models"; their noise levels are times here).
    Raises UserError unless 0 <= lo < hi <= 1.
    """
    _check_interval(interval)
    if not cond or scale == 1:
        return lambda x, t: net(x, t, cond)
    null = null_conditions(cond)
    plain: Velocity = lambda x, t: net(x, t, cond)
    if scale == 0:
        return _within(interval, lambda x, t: net(x, t, null), plain)
    both = {name: torch.cat([value, null[name]]) for name, value in cond.items()}

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        with_cond, without = net(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        return torch.lerp(without, with_cond, scale)

    return _within(interval, velocity, plain)


def autoguided_velocity(
    velocity: Velocity, weak: Velocity, scale: float, *, interval: Interval | None = None
) -> Velocity:
    """``u = weak(x, t) + scale (velocity(x, t) - weak(x, t))``, autoguidance.

    Karras et al. 2024, "Guiding a diffusion model with a bad version of itself". ``weak`` comes from a smaller
    or less trained network under the same conditions. ``scale`` 1 is ``velocity``, 0 ``weak``, each at one call; other
    scales call both. Outside ``interval`` the flow is ``velocity``. Raises UserError unless 0 <= lo < hi <= 1.
    """
    _check_interval(interval)
    if scale == 1:
        return velocity
    if scale == 0:
        return _within(interval, weak, velocity)
    return _within(interval, lambda x, t: torch.lerp(weak(x, t), velocity(x, t), scale), velocity)


def _within(interval: Interval | None, inside: Velocity, outside: Velocity) -> Velocity:
    """``inside`` for lo <= t <= hi, else ``outside``, without unneeded calls."""
    if interval is None:
        return inside
    low, high = interval

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        start = t if t.ndim == 1 else t[:, 0]
        here = (start >= low) & (start <= high)
        if not here.any():
            return outside(x, t)
        if here.all():
            return inside(x, t)
        return torch.where(expand_right(here, x), inside(x, t), outside(x, t))

    return velocity


def _check_interval(interval: Interval | None) -> None:
    if interval is not None and not 0 <= interval[0] < interval[1] <= 1:
        raise UserError(f"the guidance interval needs 0 <= lo < hi <= 1, got {interval[0]} and {interval[1]}")
