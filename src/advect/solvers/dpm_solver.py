"""DPM-Solver++, an exponential integrator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from advect.core.registry import register
from advect.paths import CondOT, Schedule
from advect.solvers.base import Solver, Velocity, expanded_times
from advect.solvers.time_grids import coefficients_on


@register("dpmpp2m")
@dataclass(frozen=True)
class DPMSolverPlusPlus2M(Solver):
    """DPM-Solver++(2M) for velocities of affine paths: order 2 at one evaluation per step.

    Exact for a constant data prediction D. A step from t to t' (Lu et al. 2022, "DPM-Solver++", algorithm 2):

    ``x' = (sigma'/sigma) x + (alpha' - alpha sigma'/sigma) (D_n + r/2 (D_n - D_(n-1)))``

    r is the ratio of steps in t. In log(alpha/sigma), infinite at both ends, the first two steps and the last would
    lose order 2, with 2 to 3 times the error. From data to noise the roles of alpha and sigma, data and noise are
    exchanged, so sigma = 0 is no singularity.

    Order 2 requires steps in log(alpha/sigma) that shrink with the grid; on all of [0, 1] the error is O(h^2
    log(1/h)).

    Args:
        schedule: the path's schedule.
    """

    order, evaluations, affine_only = 2, 1, True

    schedule: Schedule = field(default_factory=CondOT)

    def iterate(self, u: Velocity, x: Tensor, grid: Sequence[float]) -> Iterator[Tensor]:
        weights = _weights(self.schedule, grid)
        # On the straight path both sums of two states are single operations.
        straight = all(abs(w_x - 1) + abs(keep + move - 1) < 1e-14 for w_x, _, _, keep, move in weights)
        previous = x
        for t, (w_x, w_u, extrapolate, keep, move) in zip(expanded_times(grid[:-1], x), weights, strict=True):
            v = u(x, t)
            data = x.add(v, alpha=w_u) if straight else x.mul(w_x).add_(v, alpha=w_u)
            target = torch.lerp(previous, data, extrapolate)
            x = torch.lerp(x, target, move) if straight else x.mul(keep).add_(target, alpha=move)
            previous = data
            yield x


def _weights(schedule: Schedule, grid: Sequence[float]) -> list[list[float]]:
    """Per step: weights of x and u in D, 1 + r/2, weights of x and of the extrapolated D in x'."""
    path = coefficients_on(schedule, grid)
    if grid[-1] > grid[0]:
        near, far, (w_x, w_u) = path.alpha, path.sigma, path.data()
    else:
        near, far, (w_x, w_u) = path.sigma, path.alpha, path.noise()
    h = torch.tensor(grid, dtype=torch.float64).diff()
    extrapolate = torch.cat([h.new_ones(1), 1 + h[1:] / h[:-1] / 2])
    keep = far[1:] / far[:-1]
    move = near[1:] - near[:-1] * keep
    return torch.stack([w_x[:-1], w_u[:-1], extrapolate, keep, move], 1).tolist()
