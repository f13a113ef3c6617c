"""Interface of solvers for ``dx = u(x, t) dt``."""

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
    """Integrates a state along a grid of times.

    Attributes:
        order: order of convergence.
        evaluations: calls of u per step.
        adaptive: whether it chooses its own steps; calls are then known only afterwards.
        affine_only: whether it requires the velocity of an affine path.
        two_times: whether u takes the start and end of a step, (B, 2), and is the average velocity over it.
        jumps: whether states are tokens, and u the logits of a discrete flow.
    """

    part_kind: ClassVar[str] = "solver"
    order: ClassVar[int]
    evaluations: ClassVar[int]
    adaptive: ClassVar[bool] = False
    affine_only: ClassVar[bool] = False
    two_times: ClassVar[bool] = False
    jumps: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """Registered name, else the class name."""
        return getattr(self, "part_name", type(self).__name__)

    @abstractmethod
    def iterate(self, u: Velocity, x: Tensor, grid: Sequence[float]) -> Iterator[Tensor]:
        """Yield the state (B, *S) at each later time of the grid, starting from x (B, *S) at ``grid[0]``.

        Times increase or decrease; u gets them as (B,), float32 or the wider type of x. x is not modified.
        """

    def nfe(self, steps: int) -> int | None:
        """Calls of u in ``steps`` steps; None if adaptive."""
        return None if self.adaptive else steps * self.evaluations


def get_solver(solver: str | Solver, **options: Any) -> Solver:
    """Solver of that name, or the one given, with the options that are not None.

    Options: ``rtol``, ``atol``, ``max_steps`` (dopri5), ``schedule`` (dpmpp2m). Raises UserError for an unknown name
    or an option the solver lacks.
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
    """Whether all of x is finite; its sum nearly always decides."""
    return math.isfinite(x.sum().item()) or bool(torch.isfinite(x).all())


class SolverError(UserError):
    """A failure at a time, whose place in ``message`` is ``{t}``."""

    def __init__(self, message: str, t: float = math.nan) -> None:
        super().__init__(message.replace("{t}", f"{t:.4g}"))
        self.message, self.t = message, t

    def at(self, t: float) -> SolverError:
        """The same at another time, for a solver whose own times are no one else's."""
        return type(self)(self.message, t)


def not_finite(name: str, t: float) -> SolverError:
    """The error of a non-finite state from t on."""
    return SolverError(
        f"the state of solver {name!r} is not finite from t = {{t}} on; "
        "the network has diverged or the start is not finite: take an earlier checkpoint",
        t,
    )


_LARGEST_CONTIGUOUS = 1 << 20


def stage_times(grid: Sequence[float], nodes: Sequence[float], x: Tensor) -> list[tuple[Tensor, ...]]:
    """Stage times (B,) ``a + c (b - a)`` of each step from a to b, for each node c.

    Built at once: a small tensor costs as much as a step's arithmetic.
    """
    flat = [(1 - c) * a + c * b for a, b in pairwise(grid) for c in nodes]
    times = expanded_times(flat, x)
    return [times[i : i + len(nodes)] for i in range(0, len(times), len(nodes))]


def expanded_times(times: Sequence[float], x: Tensor) -> tuple[Tensor, ...]:
    """Each time as (B,), B = len(x), float32 or the wider type of x.

    Contiguous, 2% faster for small networks than stride 0, which very large ones keep.
    """
    t = torch.tensor(times, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    t = t[:, None].expand(-1, len(x))
    return (t.contiguous() if t.numel() <= _LARGEST_CONTIGUOUS else t).unbind()
