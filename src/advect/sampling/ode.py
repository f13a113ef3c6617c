"""Sampling by solving the ordinary differential equation of the flow."""

from __future__ import annotations

import torch
from torch import Tensor

from advect.core.errors import UserError, did_you_mean
from advect.sampling.solvers import SOLVERS, Solver, Velocity


def get_solver(name: str) -> Solver:
    """Return the solver called ``name``; UserError with the nearest name when there is none."""
    if name not in SOLVERS:
        raise UserError(f"solver {name!r} is not known{did_you_mean(name, SOLVERS)}")
    return SOLVERS[name]


@torch.no_grad()
def integrate(
    velocity: Velocity,
    x0: Tensor,
    *,
    solver: str = "midpoint",
    steps: int = 50,
    t0: float = 0.0,
    t1: float = 1.0,
    trajectory: bool = False,
) -> Tensor:
    """Carry x0 (B, *S) from t0 to t1 along ``velocity(x, t (B,))`` in ``steps`` equal steps.

    With ``t0 > t1`` the flow runs backwards, from data to noise. Returns x (B, *S) at t1 or, with
    ``trajectory``, the states at all grid times (steps + 1, B, *S), x0 first. Raises UserError for an unknown
    solver, steps < 1, times outside [0, 1], and when a state stops being finite (it says at which t).
    """
    method = get_solver(solver)
    if steps < 1:
        raise UserError(f"steps must be at least 1, got {steps}; 50 is usual")
    if not (0 <= t0 <= 1 and 0 <= t1 <= 1):
        raise UserError(f"t0 and t1 must lie in [0, 1] (0 is noise, 1 is data), got {t0} and {t1}")
    grid = [t0 + (t1 - t0) * i / steps for i in range(steps + 1)]
    times = torch.tensor(grid, dtype=torch.promote_types(x0.dtype, torch.float32), device=x0.device)
    x, states = x0, [x0]
    for i in range(steps):
        x = method.step(velocity, x, times[i].expand(len(x0)), grid[i + 1] - grid[i])
        if trajectory:
            states.append(x)
    if not torch.isfinite(x).all():
        raise UserError(_where_it_broke(velocity, x0, method, grid, times))
    return torch.stack(states) if trajectory else x


def _where_it_broke(velocity: Velocity, x0: Tensor, method: Solver, grid: list[float], times: Tensor) -> str:
    """Solve again, looking at each state, so that the usual case pays for one look only."""
    x = x0
    for i in range(len(grid) - 1):
        if not torch.isfinite(x).all():
            break
        x = method.step(velocity, x, times[i].expand(len(x0)), grid[i + 1] - grid[i])
    else:
        i = len(grid) - 1
    return (
        f"the state of solver {method.name!r} is not finite from t = {grid[i]:.4g} on; "
        "the network has diverged or the start is not finite: take an earlier checkpoint"
    )
