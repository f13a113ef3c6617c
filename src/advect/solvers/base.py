"""What every solver of ``dx = u(x, t) dt`` is, and the explicit Runge-Kutta methods of fixed step."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]
"""``u(x (B, *S), t (B,)) -> (B, *S)``."""


@dataclass(frozen=True)
class Solver(ABC):
    """A method that carries a state along a grid of times.

    ``order`` is its order of convergence and ``evaluations`` the calls of u that one step makes. An
    ``adaptive`` solver chooses its steps itself, so that its calls are counted only as it goes.
    """

    name: str
    order: int
    evaluations: int

    @property
    def adaptive(self) -> bool:
        """Whether the solver chooses its steps itself."""
        return False

    @abstractmethod
    def walk(self, u: Velocity, x: Tensor, grid: Sequence[float]) -> Iterator[Tensor]:
        """Start with x (B, *S) at ``grid[0]`` and yield the state (B, *S) at each later time of the grid.

        Times rise or fall; u gets them as (B,), in float32 or the wider type of x. The x given stays as it is.
        """

    def nfe(self, steps: int) -> int | None:
        """The calls of u that ``steps`` steps make; None for an adaptive solver, which cannot know."""
        return None if self.adaptive else steps * self.evaluations


def all_finite(x: Tensor) -> bool:
    """Whether every number of x is finite. Their sum, one small operation, nearly always answers."""
    return math.isfinite(x.sum().item()) or bool(torch.isfinite(x).all())


def not_finite(name: str, t: float) -> str:
    """What to tell a user whose state stopped being finite at t."""
    return (
        f"the state of solver {name!r} is not finite from t = {t:.4g} on; "
        "the network has diverged or the start is not finite: take an earlier checkpoint"
    )


_ROWS = 1 << 20


def stage_times(grid: Sequence[float], nodes: Sequence[float], x: Tensor) -> list[tuple[Tensor, ...]]:
    """For each step from a to b of the grid, the times (B,) of its stages, ``a + c (b - a)`` for each node c.

    All at once, since making one small tensor costs as much as the arithmetic of a step.
    """
    flat = [(1 - c) * a + c * b for a, b in pairwise(grid) for c in nodes]
    times = expanded_times(flat, x)
    return [times[i : i + len(nodes)] for i in range(0, len(times), len(nodes))]


def expanded_times(times: Sequence[float], x: Tensor) -> tuple[Tensor, ...]:
    """Each time as (B,), B the length of x, in float32 or the wider type of x.

    A row of equal numbers is 2% of a small network faster than one number of stride 0; only large ones are not made.
    """
    t = torch.tensor(times, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    t = t[:, None].expand(-1, len(x))
    return (t.contiguous() if t.numel() <= _ROWS else t).unbind()


Step = Callable[[Velocity, Tensor, Sequence[Tensor], float], Tensor]
"""``step(u, x (B, *S), t, h) -> (B, *S)``, where t holds the time (B,) of each stage."""


@dataclass(frozen=True)
class OneStep(Solver):
    """A method whose ``step`` from t to t + h remembers nothing; ``nodes`` are its stages' times, in steps."""

    step: Step
    nodes: tuple[float, ...]

    def walk(self, u: Velocity, x: Tensor, grid: Sequence[float]) -> Iterator[Tensor]:
        step, widths = self.step, [b - a for a, b in pairwise(grid)]
        for t, h in zip(stage_times(grid, self.nodes, x), widths, strict=True):
            x = step(u, x, t, h)
            yield x


def euler(u: Velocity, x: Tensor, t: Sequence[Tensor], h: float) -> Tensor:
    """x + h u(x, t)."""
    return x.add(u(x, t[0]), alpha=h)


def midpoint(u: Velocity, x: Tensor, t: Sequence[Tensor], h: float) -> Tensor:
    """x + h u(x + h/2 u(x, t), t + h/2)."""
    middle = x.add(u(x, t[0]), alpha=h / 2)
    return x.add(u(middle, t[1]), alpha=h)


def heun(u: Velocity, x: Tensor, t: Sequence[Tensor], h: float) -> Tensor:
    """x + h/2 (k1 + k2) with k1 = u(x, t) and k2 = u(x + h k1, t + h): Heun's method, the explicit trapezoid."""
    k1 = u(x, t[0])
    k2 = u(x.add(k1, alpha=h), t[1])
    return x.add(k1, alpha=h / 2).add_(k2, alpha=h / 2)


def rk4(u: Velocity, x: Tensor, t: Sequence[Tensor], h: float) -> Tensor:
    """x + h/6 (k1 + 2 k2 + 2 k3 + k4): the classical method of Kutta 1901 (Hairer et al. 1993, table II.1.2)."""
    k1 = u(x, t[0])
    k2 = u(x.add(k1, alpha=h / 2), t[1])
    k3 = u(x.add(k2, alpha=h / 2), t[1])
    k4 = u(x.add(k3, alpha=h), t[2])
    return x.add(k1, alpha=h / 6).add_(k2, alpha=h / 3).add_(k3, alpha=h / 3).add_(k4, alpha=h / 6)


EULER = OneStep("euler", 1, 1, euler, (0.0,))
MIDPOINT = OneStep("midpoint", 2, 2, midpoint, (0.0, 0.5))
HEUN = OneStep("heun", 2, 2, heun, (0.0, 1.0))
RK4 = OneStep("rk4", 4, 4, rk4, (0.0, 0.5, 1.0))
