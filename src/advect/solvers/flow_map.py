"""Steps of a learned flow map, as long as one likes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor

from advect.core import random
from advect.core.errors import UserError
from advect.core.random import Generator
from advect.core.registry import register
from advect.core.types import StepKind
from advect.paths import CondOT, Schedule
from advect.solvers.base import Solver, Velocity, expanded_times


@register("flow-map")
@dataclass(frozen=True)
class FlowMap(Solver):
    """Steps ``x + h u(x, (t, t + h))`` of a network trained for average velocities, such as by mean-flow.

    Exact in any number of steps where the network is. With ``noise`` a step goes beyond its end, and noise brings it
    back: ``sigma / alpha`` there is sqrt(1 - noise^2) of that of the end (Kim et al. 2024, "Consistency trajectory
    models"), so that 1 goes to the data each time, as consistency models are sampled (Song et al. 2023).

    Args:
        noise: share of noise that is put back, 0 for none, 1 for all.
        schedule: the path's schedule.
        generator: of the noise.
    """

    order, evaluations, two_times = 1, 1, True

    noise: Annotated[float, Meta(ge=0, le=1)] = 0.0
    schedule: Schedule = field(default_factory=CondOT)
    generator: Generator = None

    def iterate(self, u: Velocity, x: Tensor, grid: Sequence[float]) -> Iterator[Tensor]:
        if grid[0] > grid[-1]:
            raise UserError("solver 'flow-map' goes from noise to data alone, and was asked back; take 'midpoint'")
        for a, b in pairwise(grid):
            beyond, keep, spread = self._beyond(b)
            x = x.add(u(x, torch.stack(expanded_times([a, beyond], x), 1)), alpha=beyond - a)
            if spread:
                noise = random.normal(x.shape, self.generator, device=x.device, dtype=x.dtype)
                x = x.mul(keep).add_(noise, alpha=spread)
            yield x

    def check(self, grid: Sequence[float], learned: StepKind | None) -> None:
        """Raise UserError unless a network has ``learned`` the steps of a grid; None for a flow without any."""
        if learned is None:
            raise UserError(
                "solver 'flow-map' needs a flow that was trained for steps of any length, such as by advect distill; "
                "take 'midpoint'"
            )
        taken = [(a, self._beyond(b)[0]) for a, b in pairwise(grid)]
        if learned == "to-data" and any(end < 1 for _, end in taken):
            raise UserError(
                "this flow has learned steps to t = 1 alone; take one step, or solver_noise 1 (--solver flow-map "
                "--solver-noise 1), which puts noise back"
            )
        if learned == "halves" and not all(map(_is_half, taken)):
            raise UserError(
                "this flow has learned steps of 1, 1/2, 1/4 and so on alone; take 1, 2, 4 ... uniform steps, without "
                "noise put back"
            )

    def _beyond(self, b: float) -> tuple[float, float, float]:
        """Where a step to b ends before noise is put back, and the factors of that state and of the noise."""
        if not self.noise or b >= 1:
            return b, 1.0, 0.0
        alpha, sigma = (c.item() for c in self.schedule.coefficients(torch.tensor(b, dtype=torch.float64))[:2])
        if self.noise == 1:
            return 1.0, alpha, sigma
        near = (1 - self.noise**2) ** 0.5 * sigma
        beyond = self.schedule.time_of(*(torch.tensor(c, dtype=torch.float64) for c in (alpha, near)))
        keep = alpha / self.schedule.coefficients(beyond)[0].item()
        return beyond.item(), keep, self.noise * sigma


def _is_half(step: tuple[float, float]) -> bool:
    """Whether a step is one of [0, 1], its halves, their halves and so on."""
    count = 1 / (step[1] - step[0])
    places = (math.log2(count), step[0] * count)
    return all(abs(place - round(place)) < 1e-6 for place in places)
