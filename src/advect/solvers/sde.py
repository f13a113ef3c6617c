"""Sampling by a stochastic differential equation with the marginals of the flow.

    dX_t = [u_t(X_t) + g_t^2/2 score_t(X_t)] dt + g_t dW_t

has the marginals p_t of ``dX_t = u_t(X_t) dt`` for every g_t >= 0 (Ma et al. 2024, "SiT"; Song et al. 2021,
"Score-based generative modeling", appendix D.1, between one g and none). The noise is additive: g depends on t alone.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from advect.core import random
from advect.core.errors import UserError, did_you_mean
from advect.core.random import Generator
from advect.core.registry import choices, get, name_of, register
from advect.paths import CondOT, Schedule
from advect.solvers.base import Solver, Velocity, not_finite, stage_times
from advect.solvers.diffusion_coefficients import Diffusion, SigmaDiffusion, diffusion_on
from advect.solvers.time_grids import GridCoefficients, TimeGrid, coefficients_on, resolve_grid

SOLVER = "euler-maruyama"
LAST_STEPS = ("mean", "euler", "tweedie", "noisy")
STEPS = 250

LastStep = Literal["mean", "euler", "tweedie", "noisy"]


@torch.no_grad()
def integrate_sde(
    velocity: Velocity,
    score: Velocity | None,
    x0: Tensor,
    *,
    diffusion: Diffusion = 1.0,
    steps: int | None = None,
    solver: str | SDESolver = SOLVER,
    grid: str | TimeGrid | Tensor = "uniform",
    t0: float = 0.0,
    t1: float = 1.0,
    last_step: LastStep = "mean",
    schedule: Schedule | None = None,
    generator: Generator = None,
    trajectory: bool = False,
) -> Tensor:
    """Carry x0 (B, *S) from t0 to t1 along the SDE of ``velocity`` and ``score``, both f(x (B, *S), t (B,)).

    With ``t0 > t1`` the SDE of the reversed time is solved, from data to noise. Returns x (B, *S) at t1 or, with
    ``trajectory``, the states at all times of the grid (steps + 1, B, *S), x0 first.

    Args:
        score: None converts it from the velocity of the affine path of ``schedule``, which needs sigma > 0: from noise
            to data it is not asked for at t = 1, but by "heun" with ``last_step="noisy"``.
        diffusion: g(t): a number, a function of t (n,), or a registered coefficient or its name, such as "sigma" of
            ``schedule``. Where g is 0 no score is asked for.
        steps: by default 250; ``grid`` is as in :func:`integrate`.
        solver: "euler-maruyama", weak order 1 and, the noise being additive and g smooth, strong order 1 (1/2 where g
            jumps; Kloeden & Platen 1992, 10.2), or "heun", the stochastic trapezoid of weak order 2 for additive noise
            at twice the calls (their 15.1), or an :class:`SDESolver`.
        last_step: "mean" leaves the noise of the last step out (Song et al. 2021, appendix G), "euler" takes it along
            the flow instead, "tweedie" goes to the prediction of the data that the velocity implies on the path of
            ``schedule`` (Efron 2011), and "noisy" is a step like all others. The first three ask for nothing at t1.
        schedule: the path's, by default the straight path's; only where one of the above needs it.
        generator: of the noise. With a CounterRng the noise of a row depends on seed, step and row alone.

    Raises UserError for an unknown name, an argument out of range, a ``schedule`` that nothing uses, a score at
    sigma = 0, and when a state stops being finite (it says at which t).
    """
    method = get_sde_solver(solver)
    if last_step not in LAST_STEPS:
        raise UserError(f"last_step {last_step!r} is not known{did_you_mean(str(last_step), LAST_STEPS)}")
    times = resolve_grid(grid, steps, STEPS, t0=t0, t1=t1)
    of_path = diffusion == "sigma" or isinstance(diffusion, SigmaDiffusion)
    if schedule is not None and score is not None and not of_path and last_step != "tweedie":
        raise UserError("schedule is given, but score, diffusion and last_step do not use it; leave it out")
    g = diffusion_on(diffusion, schedule or CondOT(), times)
    path = coefficients_on(schedule or CondOT(), times) if score is None or last_step == "tweedie" else None
    if score is None and path is not None:
        _check_score(path.sigma.tolist(), g, times, method.at_end and last_step == "noisy")
    if last_step == "tweedie" and t1 != 1:
        raise UserError(f"last_step 'tweedie' predicts the data, at t = 1, but t1 is {t1}; take 'mean'")
    drift = Drift(velocity, score, path, g, math.copysign(1.0, t1 - t0))
    x, states, finite = x0, [x0], []
    stages = stage_times(times, (0.0, 1.0), x)
    for n, t in enumerate(stages):
        h = times[n + 1] - times[n]
        if n < len(stages) - 1 or last_step == "noisy":
            xi = random.normal(x.shape, generator, device=x.device, dtype=x.dtype)
            x = method.step(drift, x, n, t, h, xi)
        elif last_step == "mean":
            x = x.add(drift(x, n, t[0]), alpha=h)
        elif last_step == "euler":
            x = x.add(velocity(x, t[0]), alpha=h)
        elif path is not None:
            of_x, of_u = path.data()
            x = x.mul(of_x[n].item()).add_(velocity(x, t[0]), alpha=of_u[n].item())
        finite.append(torch.isfinite(x).all())
        if trajectory:
            states.append(x)
    bad = [n for n, ok in enumerate(torch.stack(finite).tolist()) if not ok]
    if bad:
        start = not torch.isfinite(x0).all()
        raise UserError(not_finite(name_of(method), times[0] if start else times[bad[0] + 1]))
    return torch.stack(states) if trajectory else x


class Drift:
    """``u + d g^2/2 score`` at the n-th time of the grid; d is 1 from noise to data and -1 the other way."""

    def __init__(
        self, u: Velocity, score: Velocity | None, path: GridCoefficients | None, g: Sequence[float], d: float
    ) -> None:
        self.u, self.score, self.g, self.half = u, score, g, [d * value**2 / 2 for value in g]
        if path is not None:
            # score = -noise / sigma, a sum of x and u
            self.of_x, self.of_u = ((-w / path.sigma).tolist() for w in path.noise())

    def __call__(self, x: Tensor, n: int, t: Tensor) -> Tensor:
        u, half = self.u(x, t), self.half[n]
        if half == 0:
            return u
        if self.score is not None:
            return u.add(self.score(x, t), alpha=half)
        return u.mul(1 + half * self.of_u[n]).add_(x, alpha=half * self.of_x[n])


@dataclass(frozen=True)
class SDESolver(ABC):
    """A step of the stochastic equation.

    Attributes:
        evaluations: evaluations of the drift per step.
        at_end: whether a step needs the score at its end, too.
    """

    part_kind: ClassVar[str] = "sde-solver"
    evaluations: ClassVar[int]
    at_end: ClassVar[bool] = False

    @abstractmethod
    def step(self, drift: Drift, x: Tensor, n: int, t: Sequence[Tensor], h: float, xi: Tensor) -> Tensor:
        """The state (B, *S) after step n, of width h, between the times ``t`` (two of (B,)).

        ``xi`` (B, *S) is standard normal, ``drift.g`` has the values of g on the grid.
        """


@register("euler-maruyama")
@dataclass(frozen=True)
class EulerMaruyama(SDESolver):
    """For --diffusion: weak order 1, one evaluation a step (Kloeden & Platen 1992, 10.2)."""

    evaluations = 1

    def step(self, drift: Drift, x: Tensor, n: int, t: Sequence[Tensor], h: float, xi: Tensor) -> Tensor:
        return x.add(drift(x, n, t[0]), alpha=h).add_(xi, alpha=drift.g[n] * math.sqrt(abs(h)))


@register("heun")
@dataclass(frozen=True)
class StochasticHeun(SDESolver):
    """The stochastic trapezoid: weak order 2 for additive noise, two evaluations a step (their 15.1)."""

    evaluations, at_end = 2, True

    def step(self, drift: Drift, x: Tensor, n: int, t: Sequence[Tensor], h: float, xi: Tensor) -> Tensor:
        g, k1 = drift.g, drift(x, n, t[0])
        # The trapezoid of g^2 is the noise's variance to the third order in h, which weak order 2 needs.
        noisy = x.add(xi, alpha=math.sqrt((g[n] ** 2 + g[n + 1] ** 2) / 2 * abs(h)))
        k2 = drift(noisy.add(k1, alpha=h), n + 1, t[1])
        return noisy.add_(k1, alpha=h / 2).add_(k2, alpha=h / 2)


def get_sde_solver(solver: str | Solver | SDESolver) -> SDESolver:
    """The solver of that name, or the one given. Raises UserError for an unknown name, with the nearest one."""
    if isinstance(solver, SDESolver):
        return solver
    name, known = solver if isinstance(solver, str) else solver.name, choices("sde-solver")
    if solver not in known:
        raise UserError(f"solver {name!r} does not take a diffusion{did_you_mean(name, known)}")
    return get("sde-solver", name)()


def _check_score(sigma: Sequence[float], g: Sequence[float], times: Sequence[float], at_end: bool) -> None:
    """The score is minus the noise over sigma, so that sigma = 0 has none."""
    for n in range(len(times) if at_end else len(times) - 1):
        if g[n] > 0 and not sigma[n] > 0:
            fix = "take another last_step" if n == len(times) - 1 else "start a little before t = 1, or give a score"
            raise UserError(f"the score cannot be had from the velocity at t = {times[n]:.4g}, where sigma = 0; {fix}")
