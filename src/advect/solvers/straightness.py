"""Straightness of a flow's paths."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.solvers.base import Solver, Velocity, all_finite, expanded_times, get_solver
from advect.solvers.integrate import explain_divergence, solver_times

STEPS = 100
"""Default number of steps."""


@dataclass(frozen=True)
class Straightness:
    """Deviation of a flow from straight lines at constant speed.

    Attributes:
        value: mean over samples, elements and time of the squared deviation of the velocity from its time average; 0
            for straight lines.
        distance: mean square of that average; over [0, 1] that of x1 - x0.
    """

    value: float
    distance: float

    @staticmethod
    def of(deviation: Tensor, distance: Tensor) -> Straightness:
        """Means of :func:`deviations` (N,)."""
        return Straightness(deviation.double().mean().item(), distance.double().mean().item())

    @property
    def relative(self) -> float:
        """``value`` over ``distance``, independent of scale."""
        if self.distance > 0:
            return self.value / self.distance
        return 0.0 if self.value == 0 else math.inf


def straightness(
    velocity: Velocity,
    x0: Tensor,
    *,
    steps: int = STEPS,
    solver: str | Solver = "euler",
    t0: float = 0.0,
    t1: float = 1.0,
) -> Straightness:
    """Straightness of the flow of ``velocity(x, t (B,))`` from x0 (B, *S), in one batch.

    ``S = int_0^1 E|x1 - x0 - v(x_t, t)|^2 dt`` per element (Liu et al. 2023, "Flow straight and fast"); over another
    interval x1 - x0 is divided by its length. Raises UserError as :func:`deviations`.
    """
    return Straightness.of(*deviations(velocity, x0, steps=steps, solver=solver, t0=t0, t1=t1))


@torch.no_grad()
def deviations(
    velocity: Velocity,
    x0: Tensor,
    *,
    steps: int = STEPS,
    solver: str | Solver = "euler",
    t0: float = 0.0,
    t1: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Deviation (B,) and distance (B,) of each sample, averaged by :class:`Straightness`.

    With v0 the initial velocity and d = (x1 - x0) / (t1 - t0), ``int |v - d|^2 = int |v - v0|^2 - |d - v0|^2``: the
    integral is one more column of the state, and v0 avoids cancellation. Costs one velocity more than the solver.
    Raises UserError for an adaptive solver, for "dpmpp2m", and for a non-finite state.
    """
    method = get_solver(solver)
    if method.adaptive or method.affine_only or method.two_times or method.jumps:
        raise UserError(
            f"solver {method.name!r} cannot integrate a deviation in fixed steps; take 'euler' or 'midpoint'"
        )
    times = solver_times(method, steps, None, t0=t0, t1=t1, trajectory=False)
    first = velocity(x0, expanded_times(times[:1], x0)[0])

    def system(z: Tensor, t: Tensor) -> Tensor:
        u = velocity(z[:, :-1].reshape(x0.shape), t)
        return torch.cat([u.flatten(1), (u - first).flatten(1).square().mean(1, keepdim=True)], 1)

    start = torch.cat([x0.flatten(1), x0.new_zeros(len(x0), 1)], 1)
    z = deque(method.iterate(system, start, times), maxlen=1).pop()
    if not all_finite(z):
        raise explain_divergence(system, start, method, times)
    mean = (z[:, :-1] - start[:, :-1]) / (t1 - t0)
    turned = (mean - first.flatten(1)).square().mean(1)
    return (z[:, -1] / (t1 - t0) - turned).clamp(min=0), mean.square().mean(1)
