"""Sampling by integrating the flow's ODE."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.types import check_floating
from advect.paths import Schedule
from advect.solvers.base import Solver, SolverError, Velocity, all_finite, get_solver, not_finite
from advect.solvers.time_grids import TimeGrid, check_interval, resolve_grid

STEPS = 50
"""Default steps of fixed-step solvers."""


@dataclass(frozen=True)
class Solution:
    """Result of a solver.

    Attributes:
        x: state (B, *S) at the last time.
        times: the n + 1 grid times; the two ends for an adaptive solver without trajectory.
        states: trajectory (n + 1, B, *S) at these times, or None.
        nfe: number of velocity calls.
    """

    x: Tensor
    times: tuple[float, ...]
    states: Tensor | None
    nfe: int


@torch.no_grad()
def solve(
    velocity: Velocity,
    x0: Tensor,
    *,
    solver: str | Solver = "midpoint",
    steps: int | None = None,
    grid: str | TimeGrid | Tensor | None = None,
    t0: float = 0.0,
    t1: float = 1.0,
    trajectory: bool = False,
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int | None = None,
    schedule: Schedule | None = None,
) -> Solution:
    """Integrate x0 (B, *S) from t0 to t1 along ``velocity(x, t (B,))``; arguments as in :func:`integrate`."""
    check_floating(x0=x0)
    method = get_solver(solver, rtol=rtol, atol=atol, max_steps=max_steps, schedule=schedule)
    times = solver_times(method, steps, grid, t0=t0, t1=t1, trajectory=trajectory)
    counted = CountedVelocity(velocity)
    x, states = x0, [x0]
    for x in method.iterate(counted if method.adaptive else velocity, x0, times):
        if trajectory:
            states.append(x)
    nfe = method.nfe(len(times) - 1)
    if not all_finite(x):
        raise explain_divergence(velocity, x0, method, times)
    return Solution(
        x, tuple(times), torch.stack(states) if trajectory else None, counted.calls if nfe is None else nfe
    )


def integrate(
    velocity: Velocity,
    x0: Tensor,
    *,
    solver: str | Solver = "midpoint",
    steps: int | None = None,
    grid: str | TimeGrid | Tensor | None = None,
    t0: float = 0.0,
    t1: float = 1.0,
    trajectory: bool = False,
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int | None = None,
    schedule: Schedule | None = None,
) -> Tensor:
    """Integrate x0 (B, *S) from t0 to t1 along ``velocity(x, t (B,))``. :func:`solve` also returns the cost.

    ``t0 > t1`` runs backwards, from data to noise. Returns x (B, *S) at t1 or, with ``trajectory``, all states (steps
    + 1, B, *S), x0 first.

    Args:
        solver: "euler", "midpoint", "heun", "rk4", "ab2", "dpmpp2m", "dopri5", or a :class:`Solver`.
        steps: number of steps, default 50. Adaptive solvers take ``steps`` and ``grid`` only with ``trajectory``, as
            report times.
        grid: "uniform" (default), "cosine", "edm", "shifted", or times (steps + 1,), without ``steps``, such as those
            of :func:`t_grid`.
        rtol, atol, max_steps: of adaptive solvers, default 1e-5, 1e-5 and 1000.
        schedule: the path's, for "dpmpp2m"; default the straight path's.

    Raises UserError for an unknown name, an unused option, steps < 1, times outside [0, 1], or a non-finite state
    (with its t).
    """
    solution = solve(
        velocity,
        x0,
        solver=solver,
        steps=steps,
        grid=grid,
        t0=t0,
        t1=t1,
        trajectory=trajectory,
        rtol=rtol,
        atol=atol,
        max_steps=max_steps,
        schedule=schedule,
    )
    return solution.x if solution.states is None else solution.states


def solver_times(
    method: Solver, steps: int | None, grid: str | TimeGrid | Tensor | None, *, t0: float, t1: float, trajectory: bool
) -> list[float]:
    """Times at which ``method`` reports the state, t0 first, t1 last."""
    if method.adaptive and not trajectory:
        for name, value in (("steps", steps), ("grid", grid)):
            if value is not None:
                given = value if isinstance(value, (int, str)) else "given"
                raise UserError(
                    f"{name} is {given}, but solver {method.name!r} chooses its own steps; leave {name} out "
                    "and set rtol and atol"
                )
        check_interval(t0, t1)
        return [t0, t1]
    return resolve_grid("uniform" if grid is None else grid, steps, STEPS, t0=t0, t1=t1)


class CountedVelocity:
    """Velocity that counts its ``calls``, and the ``rows`` evaluated in them; ``each()`` follows a call."""

    def __init__(self, velocity: Velocity, each: Callable[[], object] = lambda: None) -> None:
        self.velocity, self.each, self.calls, self.rows = velocity, each, 0, 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        self.rows += len(x)
        u = self.velocity(x, t)
        self.each()
        return u


def explain_divergence(velocity: Velocity, x0: Tensor, method: Solver, times: Sequence[float]) -> SolverError:
    """Solve again, checking each state, to say where it stopped being finite."""
    if not torch.isfinite(x0).all():
        return not_finite(method.name, times[0])
    for t, x in zip(times[1:], method.iterate(velocity, x0, times), strict=True):
        if not all_finite(x):
            return not_finite(method.name, t)
    return not_finite(method.name, times[-1])
