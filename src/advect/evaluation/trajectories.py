"""The way of a few samples from noise to data."""

from __future__ import annotations

import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.types import Conditions
from advect.evaluation.drawing import Flow, conditions_of


def draw_trajectories(
    flow: Flow, count: int, *, cond: Conditions | None = None, times: int = 10, steps: int = 36, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Follow ``count`` samples, of conditions (count,), by the midpoint method.

    Returns ``times`` evenly spaced times t (T,) from 0 (noise) to 1 (data) and the states (T, count, *S) in
    data units. Raises UserError unless 2 <= times <= steps + 1.
    """
    if not 2 <= times <= steps + 1:
        raise UserError(f"times must be in 2 .. {steps + 1} (steps + 1), got {times}")
    wanted = conditions_of(cond)
    states = flow.sample(count, steps=steps, solver="midpoint", seed=seed, cond=wanted, trajectory=True)
    places = torch.linspace(0, steps, times).round().long()
    return places / steps, states.detach().cpu()[places]
