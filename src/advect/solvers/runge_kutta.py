"""Explicit fixed-step Runge-Kutta methods (Hairer, Norsett & Wanner 1993, chapter II)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from advect.core.registry import register
from advect.solvers.base import Solver, Velocity, stage_times


@dataclass(frozen=True)
class RungeKutta(Solver):
    """One-step method with stages at ``nodes`` in [0, 1] of a step."""

    nodes: ClassVar[tuple[float, ...]]

    @abstractmethod
    def step(self, u: Velocity, x: Tensor, t: Sequence[Tensor], h: float) -> Tensor:
        """State (B, *S) after a step of width h; t holds the time (B,) of each node."""

    def iterate(self, u: Velocity, x: Tensor, grid: Sequence[float]) -> Iterator[Tensor]:
        widths = [b - a for a, b in pairwise(grid)]
        for t, h in zip(stage_times(grid, self.nodes, x), widths, strict=True):
            x = self.step(u, x, t, h)
            yield x


@register("euler")
@dataclass(frozen=True)
class Euler(RungeKutta):
    """Euler's method, ``x + h u(x, t)``: order 1."""

    order, evaluations, nodes = 1, 1, (0.0,)

    def step(self, u: Velocity, x: Tensor, t: Sequence[Tensor], h: float) -> Tensor:
        return x.add(u(x, t[0]), alpha=h)


@register("midpoint")
@dataclass(frozen=True)
class Midpoint(RungeKutta):
    """Explicit midpoint rule, ``x + h u(x + h/2 u(x, t), t + h/2)``: order 2."""

    order, evaluations, nodes = 2, 2, (0.0, 0.5)

    def step(self, u: Velocity, x: Tensor, t: Sequence[Tensor], h: float) -> Tensor:
        middle = x.add(u(x, t[0]), alpha=h / 2)
        return x.add(u(middle, t[1]), alpha=h)


@register("heun")
@dataclass(frozen=True)
class Heun(RungeKutta):
    """Heun's method (explicit trapezoid), ``x + h/2 (k1 + k2)``, ``k2 = u(x + h k1, t + h)``: order 2."""

    order, evaluations, nodes = 2, 2, (0.0, 1.0)

    def step(self, u: Velocity, x: Tensor, t: Sequence[Tensor], h: float) -> Tensor:
        k1 = u(x, t[0])
        k2 = u(x.add(k1, alpha=h), t[1])
        return x.add(k1, alpha=h / 2).add_(k2, alpha=h / 2)


@register("rk4")
@dataclass(frozen=True)
class RK4(RungeKutta):
    """Classical method (Kutta 1901), ``x + h/6 (k1 + 2 k2 + 2 k3 + k4)``: order 4."""

    order, evaluations, nodes = 4, 4, (0.0, 0.5, 1.0)

    def step(self, u: Velocity, x: Tensor, t: Sequence[Tensor], h: float) -> Tensor:
        k1 = u(x, t[0])
        k2 = u(x.add(k1, alpha=h / 2), t[1])
        k3 = u(x.add(k2, alpha=h / 2), t[1])
        k4 = u(x.add(k3, alpha=h), t[2])
        return x.add(k1, alpha=h / 6).add_(k2, alpha=h / 3).add_(k3, alpha=h / 3).add_(k4, alpha=h / 6)
