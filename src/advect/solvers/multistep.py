"""Solvers that remember the step before: second order at one call of the network a step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from advect.paths import CondOT, Schedule
from advect.solvers.base import Solver, Velocity, expanded_times
from advect.solvers.time_grids import coefficients_on


@dataclass(frozen=True)
class AdamsBashforth2(Solver):
    """``x + h ((1 + r/2) u_n - r/2 u_(n-1))``, r the ratio of this step to the one before; first a midpoint step.

    The two-step method of Adams and Bashforth on any grid (Hairer, Norsett & Wanner 1993, III.5, eq. 5.2).
    """

    name: str = "ab2"
    order: int = 2
    evaluations: int = 1

    def nfe(self, steps: int) -> int:
        return steps + 1

    def walk(self, u: Velocity, x: Tensor, grid: Sequence[float]) -> Iterator[Tensor]:
        h = [b - a for a, b in pairwise(grid)]
        weights = [(now * (1 + now / last / 2), -now * now / last / 2) for last, now in pairwise(h)]
        start, middle = expanded_times([grid[0], (grid[0] + grid[1]) / 2], x)
        before = u(x, start)
        x = x.add(u(x.add(before, alpha=h[0] / 2), middle), alpha=h[0])
        yield x
        for t, (of_now, of_before) in zip(expanded_times(grid[1:-1], x), weights, strict=True):
            now = u(x, t)
            x = x.add(now, alpha=of_now).add_(before, alpha=of_before)
            before = now
            yield x


@dataclass(frozen=True)
class DpmPlusPlus2M(Solver):
    """Exponential integrator for the velocity of an affine path, exact where the data prediction is constant.

    With D the prediction of the data that the velocity implies, a step from t to t' is ::

        x' = (sigma'/sigma) x + (alpha' - alpha sigma'/sigma) (D_n + r/2 (D_n - D_(n-1)))

    which is DPM-Solver++(2M) (Lu et al. 2022, "DPM-Solver++", algorithm 2 and eq. 9) in this project's time, but
    that the ratio r of the steps is taken in t. In log(alpha/sigma), which is infinite at both ends, the first
    two steps and the last would lose the second order, and errors were 2 to 3 times as large. From data to noise the
    same formula is used with alpha and sigma, data and noise exchanged, so that sigma = 0 is no singularity.

    The order is 2 as long as steps in log(alpha/sigma) shrink with the grid. On the whole of [0, 1], where they do
    not, the error is of order h^2 log(1/h).
    """

    name: str = "dpmpp2m"
    order: int = 2
    evaluations: int = 1
    schedule: Schedule = field(default_factory=CondOT)

    def walk(self, u: Velocity, x: Tensor, grid: Sequence[float]) -> Iterator[Tensor]:
        weights = _weights(self.schedule, grid)
        # On the straight path both sums of two states are single operations.
        straight = all(abs(of_x - 1) + abs(keep + move - 1) < 1e-14 for of_x, _, _, keep, move in weights)
        before = x
        for t, (of_x, of_u, ahead, keep, move) in zip(expanded_times(grid[:-1], x), weights, strict=True):
            v = u(x, t)
            now = x.add(v, alpha=of_u) if straight else x.mul(of_x).add_(v, alpha=of_u)
            goal = torch.lerp(before, now, ahead)
            x = torch.lerp(x, goal, move) if straight else x.mul(keep).add_(goal, alpha=move)
            before = now
            yield x


def _weights(schedule: Schedule, grid: Sequence[float]) -> list[list[float]]:
    """For each step of DPM-Solver++(2M): those of x and u in the prediction, 1 + r/2, and those of the step itself."""
    path = coefficients_on(schedule, grid)
    if grid[-1] > grid[0]:
        near, far, (of_x, of_u) = path.alpha, path.sigma, path.data()
    else:
        near, far, (of_x, of_u) = path.sigma, path.alpha, path.noise()
    h = torch.tensor(grid, dtype=torch.float64).diff()
    ahead = torch.cat([h.new_ones(1), 1 + h[1:] / h[:-1] / 2])
    keep = far[1:] / far[:-1]
    move = near[1:] - near[:-1] * keep
    return torch.stack([of_x[:-1], of_u[:-1], ahead, keep, move], 1).tolist()
