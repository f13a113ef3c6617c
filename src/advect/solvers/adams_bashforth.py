"""Two-step Adams-Bashforth method."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from advect.core.registry import register
from advect.solvers.base import Solver, Velocity, expanded_times


@register("ab2")
@dataclass(frozen=True)
class AdamsBashforth2(Solver):
    """Two-step Adams-Bashforth method: order 2 at one evaluation per step.

    ``x + h ((1 + r/2) u_n - r/2 u_(n-1))``, r the ratio of this step to the previous, on any grid (Hairer, Norsett &
    Wanner 1993, III.5). Starts with a midpoint step.
    """

    order, evaluations = 2, 1

    def nfe(self, steps: int) -> int:
        return steps + 1

    def iterate(self, u: Velocity, x: Tensor, grid: Sequence[float]) -> Iterator[Tensor]:
        widths = [b - a for a, b in pairwise(grid)]
        weights = [(h * (1 + h / last / 2), -h * h / last / 2) for last, h in pairwise(widths)]
        start, middle = expanded_times([grid[0], (grid[0] + grid[1]) / 2], x)
        previous = u(x, start)
        x = x.add(u(x.add(previous, alpha=widths[0] / 2), middle), alpha=widths[0])
        yield x
        for t, (w, w_previous) in zip(expanded_times(grid[1:-1], x), weights, strict=True):
            v = u(x, t)
            x = x.add(v, alpha=w).add_(previous, alpha=w_previous)
            previous = v
            yield x
