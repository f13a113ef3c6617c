"""Sampling by solving the ordinary differential equation of the flow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from advect.core.errors import UserError, did_you_mean
from advect.paths import Schedule
from advect.solvers.base import EULER, HEUN, MIDPOINT, RK4, Solver, Velocity, all_finite, not_finite
from advect.solvers.dormand_prince import DormandPrince
from advect.solvers.multistep import AdamsBashforth2, DpmPlusPlus2M
from advect.solvers.time_grids import check_interval, resolve_grid

SOLVERS: dict[str, Solver] = {
    s.name: s for s in (EULER, MIDPOINT, HEUN, RK4, AdamsBashforth2(), DpmPlusPlus2M(), DormandPrince())
}
STEPS = 50
"""Steps of a solver of fixed step, where a caller names none."""

_FIXED = {"name", "order", "evaluations", "step", "nodes"}


def get_solver(solver: str | Solver, **options: Any) -> Solver:
    """Return the solver called so, or the one given, with those of its own options that are not None.

    Options are ``rtol``, ``atol``, ``max_steps`` (dopri5) and ``schedule`` (dpmpp2m). Raises UserError with the
    nearest name when there is no such solver, and for an option that it does not have.
    """
    if isinstance(solver, str):
        if solver not in SOLVERS:
            raise UserError(f"solver {solver!r} is not known{did_you_mean(solver, SOLVERS)}")
        solver = SOLVERS[solver]
    given = {name: value for name, value in options.items() if value is not None}
    own = {f.name for f in fields(solver)} - _FIXED
    for name in given:
        if name not in own:
            takers = [s.name for s in SOLVERS.values() if name in {f.name for f in fields(s)} - _FIXED]
            fix = f"it is an option of {' and '.join(takers)}" if takers else "no solver has it"
            raise UserError(f"solver {solver.name!r} does not use {name}; leave it out ({fix})")
    return replace(solver, **given) if given else solver


@dataclass(frozen=True)
class Solution:
    """What a solver found: the end, what it cost and, where asked for, the way.

    Attributes:
        x: the state (B, *S) at the last time.
        times: the n + 1 times of the grid; for an adaptive solver without trajectory the two ends.
        states: the states (n + 1, B, *S) at these times, the start first; None unless asked for.
        nfe: how often the velocity was called.
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
    grid: str | Tensor | None = None,
    t0: float = 0.0,
    t1: float = 1.0,
    trajectory: bool = False,
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int | None = None,
    schedule: Schedule | None = None,
) -> Solution:
    """Carry x0 (B, *S) from t0 to t1 along ``velocity(x, t (B,))``; see :func:`integrate` for the arguments."""
    method = get_solver(solver, rtol=rtol, atol=atol, max_steps=max_steps, schedule=schedule)
    times = solver_times(method, steps, grid, t0=t0, t1=t1, trajectory=trajectory)
    counted = _Counted(velocity)
    x, states = x0, [x0]
    for x in method.walk(counted if method.adaptive else velocity, x0, times):
        if trajectory:
            states.append(x)
    nfe = method.nfe(len(times) - 1)
    if not all_finite(x):
        raise UserError(where_it_broke(velocity, x0, method, times))
    return Solution(
        x, tuple(times), torch.stack(states) if trajectory else None, counted.calls if nfe is None else nfe
    )


def integrate(
    velocity: Velocity,
    x0: Tensor,
    *,
    solver: str | Solver = "midpoint",
    steps: int | None = None,
    grid: str | Tensor | None = None,
    t0: float = 0.0,
    t1: float = 1.0,
    trajectory: bool = False,
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int | None = None,
    schedule: Schedule | None = None,
) -> Tensor:
    """Carry x0 (B, *S) from t0 to t1 along ``velocity(x, t (B,))``. :func:`solve` also says what it cost.

    With ``t0 > t1`` the flow runs backwards, from data to noise, over the same times. Returns x (B, *S) at t1 or,
    with ``trajectory``, the states at all times of the grid (steps + 1, B, *S), x0 first.

    Args:
        solver: "euler", "midpoint", "heun", "rk4", "ab2", "dpmpp2m", "dopri5", or a :class:`Solver`.
        steps: the number of steps, by default 50. An adaptive solver has its own and takes ``steps`` and ``grid``
            only with ``trajectory``, as the times at which it reports the state.
        grid: "uniform" (default), "cosine", "edm", "shifted", or the times themselves, (steps + 1,), as
            :func:`t_grid` makes them with other parameters; then without ``steps``.
        rtol, atol, max_steps: the adaptive solver's tolerances and limit, by default 1e-5, 1e-5 and 1000.
        schedule: the path's, for "dpmpp2m"; by default the straight path's.

    Raises UserError for an unknown name, an option that the solver does not use, steps < 1, times outside [0, 1],
    and when a state stops being finite (it says at which t).
    """
    found = solve(
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
    return found.x if found.states is None else found.states


def solver_times(
    method: Solver, steps: int | None, grid: str | Tensor | None, *, t0: float, t1: float, trajectory: bool
) -> list[float]:
    """The times at which ``method`` has to give the state, t0 first, t1 last."""
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


class _Counted:
    """A velocity that counts its calls, for a solver that cannot know them."""

    def __init__(self, velocity: Velocity) -> None:
        self.velocity, self.calls = velocity, 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        return self.velocity(x, t)


def where_it_broke(velocity: Velocity, x0: Tensor, method: Solver, times: Sequence[float]) -> str:
    """Solve again, looking at each state, so that the usual case pays for one look only."""
    if not torch.isfinite(x0).all():
        return not_finite(method.name, times[0])
    for t, x in zip(times[1:], method.walk(velocity, x0, times), strict=True):
        if not all_finite(x):
            return not_finite(method.name, t)
    return not_finite(method.name, times[-1])
