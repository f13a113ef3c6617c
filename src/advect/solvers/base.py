"""The interface of solvers of ``dx = u(x, t) dt``."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.registry import choices, get

Velocity = Callable[[Tensor, Tensor], Tensor]
"""``u(x (B, *S), t (B,)) -> (B, *S)``."""


@dataclass(frozen=True)
class Solver(ABC):
    """Carries a state along a grid of times.

    Attributes:
        order: order of convergence.
        evaluations: calls of u per step.
        adaptive: whether it chooses its own steps, so that calls are counted only as it goes.
        affine_only: whether it integrates nothing but the velocity of an affine path.
    """

    part_kind: ClassVar[str] = "solver"
    order: ClassVar[int]
    evaluations: ClassVar[int]
    adaptive: ClassVar[bool] = False
    affine_only: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """The registered name, or that of the class."""
        return getattr(self, "part_name", type(self).__name__)

    @abstractmethod
    def iterate(self, u: Velocity, x: Tensor, grid: Sequence[float]) -> Iterator[Tensor]:
        """Start with x (B, *S) at ``grid[0]`` and yield the state (B, *S) at each later time of the grid.

        Times rise or fall; u gets them as (B,), in float32 or the wider type of x. x is not modified.
        """

    def nfe(self, steps: int) -> int | None:
        """The calls of u in ``steps`` steps; None for an adaptive solver."""
        return None if self.adaptive else steps * self.evaluations


def get_solver(solver: str | Solver, **options: Any) -> Solver:
    """The solver of that name, or the one given, with those of its options that are not None.

    Options are ``rtol``, ``atol``, ``max_steps`` (dopri5) and ``schedule`` (dpmpp2m). Raises UserError for an unknown
    name, with the nearest one, and for an option that the solver does not have.
    """
    if isinstance(solver, str):
        solver = get("solver", solver)()
    assert isinstance(solver, Solver)
    given = {name: value for name, value in options.items() if value is not None}
    for option in given:
        if option not in _options(type(solver)):
            takers = [name for name in choices("solver") if option in _options(get("solver", name))]
            fix = f"it is an option of {' and '.join(takers)}" if takers else "no solver has it"
            raise UserError(f"solver {solver.name!r} does not use {option}; leave it out ({fix})")
    return replace(solver, **given) if given else solver


def _options(cls: type) -> set[str]:
    return {f.name for f in fields(cls)}


def all_finite(x: Tensor) -> bool:
    """Whether all of x is finite; its sum, one small operation, nearly always tells."""
    return math.isfinite(x.sum().item()) or bool(torch.isfinite(x).all())


def not_finite(name: str, t: float) -> str:
    """The error message for a state that is not finite from t on."""
    return (
        f"the state of solver {name!r} is not finite from t = {t:.4g} on; "
        "the network has diverged or the start is not finite: take an earlier checkpoint"
    )


_LARGEST_CONTIGUOUS = 1 << 20


def stage_times(grid: Sequence[float], nodes: Sequence[float], x: Tensor) -> list[tuple[Tensor, ...]]:
    """For each step from a to b of the grid, the times (B,) of its stages, ``a + c (b - a)`` for each node c.

    Made all at once, as a small tensor costs as much as a step's arithmetic.
    """
    flat = [(1 - c) * a + c * b for a, b in pairwise(grid) for c in nodes]
    times = expanded_times(flat, x)
    return [times[i : i + len(nodes)] for i in range(0, len(times), len(nodes))]


def expanded_times(times: Sequence[float], x: Tensor) -> tuple[Tensor, ...]:
    """Each time as (B,), B the length of x, in float32 or the wider type of x.

    Contiguous times make a small network 2% faster than times of stride 0; very large ones keep stride 0.
    """
    t = torch.tensor(times, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    t = t[:, None].expand(-1, len(x))
    return (t.contiguous() if t.numel() <= _LARGEST_CONTIGUOUS else t).unbind()
