"""How straight the paths of a flow are, and so how few steps can follow them."""

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
"""Steps where a caller names none."""


@dataclass(frozen=True)
class Straightness:
    """How far a flow is from straight lines at constant speed.

    Attributes:
        value: the mean, over samples, elements and time, of the squared difference between the velocity and its mean
            over time; 0 for straight lines at constant speed.
        distance: the mean, over samples and elements, of that mean velocity squared: from 0 to 1 of |x1 - x0|^2.
    """

    value: float
    distance: float

    @staticmethod
    def of(deviation: Tensor, distance: Tensor) -> Straightness:
        """The means of what :func:`deviations` says of samples (N,)."""
        return Straightness(deviation.double().mean().item(), distance.double().mean().item())

    @property
    def relative(self) -> float:
        """``value`` as a share of ``distance``, which does not depend on the data's scale."""
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
    """The straightness of the flow of ``velocity(x, t (B,))`` from x0 (B, *S), all of them at once.

    ``S = int_0^1 E|x1 - x0 - v(x_t, t)|^2 dt``, an element's share of it (Liu et al. 2023, "Flow straight and
    fast"). Over another interval x1 - x0 is divided by its length. No state but the last is kept, and the error
    in ``steps`` is of the solver's order. Raises UserError as :func:`deviations` does.
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
    """Each sample's deviation (B,) and distance (B,), of which :class:`Straightness` has the means.

    With v0 the velocity at the start and d = (x1 - x0) / (t1 - t0), ``int |v - d|^2 = int |v - v0|^2 - |d - v0|^2``:
    the integral is carried along as one more column of the state, so that it is as exact as the solver, and v0 keeps
    the difference from cancelling where paths are nearly straight. This costs one call of the velocity more than the
    solver's. Raises UserError for an adaptive solver, for "dpmpp2m", which solves for nothing but a path's state, and
    where a state stops being finite.
    """
    method = get_solver(solver)
    if method.adaptive or method.affine_only:
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
        raise UserError(explain_divergence(system, start, method, times))
    mean = (z[:, :-1] - start[:, :-1]) / (t1 - t0)
    turned = (mean - first.flatten(1)).square().mean(1)
    return (z[:, -1] / (t1 - t0) - turned).clamp(min=0), mean.square().mean(1)
