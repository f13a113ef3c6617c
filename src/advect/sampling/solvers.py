"""Fixed-step solvers of ``dx = u(x, t) dt``, one function a solver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]
"""``u(x (B, *S), t (B,)) -> (B, *S)``."""


@dataclass(frozen=True)
class Solver:
    """A one-step method: ``step(u, x, t, h)`` moves x (B, *S) from time t (B,) to t + h.

    ``order`` is its order of convergence, ``evaluations`` the calls of u that a step makes.
    """

    name: str
    step: Callable[[Velocity, Tensor, Tensor, float], Tensor]
    order: int
    evaluations: int


def euler(u: Velocity, x: Tensor, t: Tensor, h: float) -> Tensor:
    """x + h u(x, t)."""
    return x.add(u(x, t), alpha=h)


def midpoint(u: Velocity, x: Tensor, t: Tensor, h: float) -> Tensor:
    """x + h u(x + h/2 u(x, t), t + h/2)."""
    middle = x.add(u(x, t), alpha=h / 2)
    return x.add(u(middle, t + h / 2), alpha=h)


SOLVERS = {s.name: s for s in (Solver("euler", euler, 1, 1), Solver("midpoint", midpoint, 2, 2))}
