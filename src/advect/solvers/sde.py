"""Sampling by a stochastic differential equation with the marginals of the flow.

    dX_t = [u_t(X_t) + g_t^2/2 score_t(X_t)] dt + g_t dW_t

has the marginals p_t of ``dX_t = u_t(X_t) dt`` for every g_t >= 0 (Ma et al. 2024, "SiT"; Song et al. 2021,
"Score-based generative modeling", appendix D.1, between one g and none). The noise is additive: g depends on t alone.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from advect.core import random
from advect.core.errors import UserError, did_you_mean
from advect.core.random import Generator
from advect.core.registry import choices, get, name_of, register
from advect.core.types import check_floating
from advect.paths import CondOT, Schedule
from advect.solvers.base import Solver, Velocity, not_finite, stage_times
from advect.solvers.diffusion_coefficients import Diffusion, SigmaDiffusion, diffusion_on, relaxation
from advect.solvers.time_grids import GridCoefficients, TimeGrid, coefficients_on, resolve_grid

SOLVER = "euler-maruyama"
LAST_STEPS = ("mean", "euler", "tweedie", "noisy")
STEPS = 250

logger = logging.getLogger(__name__)

LastStep = Literal["mean", "euler", "tweedie", "noisy"]


@dataclass(frozen=True)
class SDESolver:
    """How the drift of a step of the stochastic equation is estimated.

    Attributes:
        evaluations: of the drift in a step.
        corrects: whether a step is repeated with the mean of the drift at both ends.
        extrapolates: whether the drift is extrapolated from the step before.
    """

    part_kind: ClassVar[str] = "sde-solver"
    evaluations: ClassVar[int] = 1
    corrects: ClassVar[bool] = False
    extrapolates: ClassVar[bool] = False


@register("euler-maruyama")
@dataclass(frozen=True)
class EulerMaruyama(SDESolver):
    """For --diffusion: weak order 1, one evaluation a step (Kloeden & Platen 1992, 10.2)."""


@register("ab2")
@dataclass(frozen=True)
class AdamsBashforthMaruyama(SDESolver):
    """The drift extrapolated from the step before, one evaluation a step (Buckwar & Winkler 2006)."""

    extrapolates = True


@register("heun")
@dataclass(frozen=True)
class StochasticHeun(SDESolver):
    """The stochastic trapezoid: weak order 2, two evaluations a step (Kloeden & Platen 1992, 15.1)."""

    evaluations, corrects = 2, True


@torch.no_grad()
def integrate_sde(
    velocity: Velocity,
    score: Velocity | None,
    x0: Tensor,
    *,
    diffusion: Diffusion = "sigma",
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
        score: None takes it from the velocity of the affine path of ``schedule``, which must have a Gaussian source
            drawn apart from the data. Steps then are exponential, stable for any g (see :class:`_Exponential`). With
            a score they are explicit: where ``g^2 h |score|^2 / 2`` exceeds 1 per element, g is lowered to it, with
            a warning, as any lower g has the same marginals.
        diffusion: g(t): a number, a function of t (n,), or a registered coefficient or its name; by default sigma_t of
            ``schedule``, 0 at the data. Where g is 0 no score is asked for.
        steps: by default 250; ``grid`` is as in :func:`integrate`.
        solver: "euler-maruyama", weak order 1 and, the noise being additive and g smooth, strong order 1 (1/2 where g
            jumps; Kloeden & Platen 1992, 10.2), "ab2", which extrapolates from the step before at no further call
            (Buckwar & Winkler 2006; Xue et al. 2023, "SA-Solver"), or "heun", the stochastic trapezoid of weak order
            2 at twice the calls (Kloeden & Platen, 15.1).
        last_step: "mean" leaves the noise of the last step out (Song et al. 2021, appendix G), "euler" follows the
            flow instead, "tweedie" ends in the prediction of the data (Efron 2011), and "noisy" is a step like all
            others. The first three ask for nothing at t1.
        schedule: the path's, by default the straight path's; only where one of the above needs it.
        generator: of the noise. With a CounterRng the noise of a row depends on seed, step and row alone.

    Raises UserError for an unknown name, an argument out of range, a ``schedule`` that nothing uses, a velocity that
    does not tell data from noise, and when a state stops being finite (it says at which t).
    """
    check_floating(x0=x0)
    method = get_sde_solver(solver)
    if last_step not in LAST_STEPS:
        raise UserError(f"last_step {last_step!r} is not known{did_you_mean(str(last_step), LAST_STEPS)}")
    if last_step == "tweedie" and t1 != 1:
        raise UserError(f"last_step 'tweedie' predicts the data, at t = 1, but t1 is {t1}; take 'mean'")
    times = resolve_grid(grid, steps, STEPS, t0=t0, t1=t1)
    step = _make_step(velocity, score, diffusion, schedule, times, last_step, method, generator)
    x, states, finite = x0, [x0], []
    stages = stage_times(times, (0.0, 1.0), x)
    for n, t in enumerate(stages):
        x = step(x, n, t, "noisy" if n < len(stages) - 1 else last_step)
        finite.append(torch.isfinite(x).all())
        if trajectory:
            states.append(x)
    bad = [n for n, ok in enumerate(torch.stack(finite).tolist()) if not ok]
    if bad:
        start = not torch.isfinite(x0).all()
        raise not_finite(name_of(method), times[0] if start else times[bad[0] + 1])
    return torch.stack(states) if trajectory else x


def _make_step(
    velocity: Velocity,
    score: Velocity | None,
    diffusion: Diffusion,
    schedule: Schedule | None,
    times: Sequence[float],
    last_step: LastStep,
    method: SDESolver,
    generator: Generator,
) -> _Exponential | _Explicit:
    """Steps on a grid of times, by the arguments of :func:`integrate_sde`."""
    of_path = diffusion == "sigma" or isinstance(diffusion, SigmaDiffusion)
    if schedule is not None and score is not None and not of_path and last_step != "tweedie":
        raise UserError("schedule is given, but score, diffusion and last_step do not use it; leave it out")
    schedule = schedule or CondOT()
    path = coefficients_on(schedule, times) if score is None or last_step == "tweedie" else None
    if score is None and path is not None:
        return _Exponential(velocity, path, relaxation(diffusion, schedule, times), times, method, generator)
    return _Explicit(velocity, score, path, diffusion_on(diffusion, schedule, times), times, method, generator)


class _Exponential:
    """Steps that are exact for a constant prediction D of the data, on ``x = alpha D + sigma e``::

        e' = exp(-L) e + sqrt(1 - exp(-2 L)) xi,    x' = alpha' D + sigma' e',    L = int g^2 / (2 sigma^2) dt

    as e is an Ornstein-Uhlenbeck process at constant D; L = 0 is a step of DDIM (Song et al. 2021, "Denoising
    diffusion implicit models"). Stable for any g, and finite at sigma = 0. "ab2" extrapolates D from the step before
    to the middle of the step; "heun" repeats a step with the mean of D at both ends.
    """

    def __init__(
        self,
        u: Velocity,
        path: GridCoefficients,
        rates: Sequence[float],
        times: Sequence[float],
        solver: SDESolver,
        generator: Generator,
    ) -> None:
        self.u, self.rates, self.times, self.solver, self.generator = u, rates, times, solver, generator
        self.previous: Tensor | None = None
        self.alpha, self.sigma = path.alpha.tolist(), path.sigma.tolist()
        self.data, self.noise = ([w.tolist() for w in pair] for pair in (path.data(), path.noise()))

    def __call__(self, x: Tensor, n: int, t: Sequence[Tensor], kind: str) -> Tensor:
        u, sigma = self.u(x, t[0]), self.sigma[n + 1]
        data = self._sum(x, u, self.data, n)
        if kind == "tweedie":
            return data
        noise = self._sum(x, u, self.noise, n)
        keep = 1.0 if kind == "euler" else math.exp(-self.rates[n])
        fresh = math.sqrt(-math.expm1(-2 * self.rates[n])) if kind == "noisy" else 0.0
        rest = noise.mul(sigma * keep)
        if fresh * sigma > 0:
            xi = random.normal(x.shape, self.generator, device=x.device, dtype=x.dtype)
            rest.add_(xi, alpha=sigma * fresh)
        new = rest.add(data, alpha=self.alpha[n + 1])
        if self.sigma[n] == 0 or sigma == 0 or kind != "noisy":
            return new
        # x = alpha D + sigma e at the old time, so that another D takes its share of x with it.
        weight = self.alpha[n + 1] - self.alpha[n] * sigma / self.sigma[n] * keep
        if self.solver.corrects:
            change = self._sum(new, self.u(new, t[1]), self.data, n + 1).sub_(data)
            new.add_(change, alpha=weight / 2)
        elif self.solver.extrapolates:
            if self.previous is not None:
                ratio = (self.times[n + 1] - self.times[n]) / (self.times[n] - self.times[n - 1])
                new.add_(data - self.previous, alpha=weight * ratio / 2)
            self.previous = data
        return new

    @staticmethod
    def _sum(x: Tensor, u: Tensor, weights: Sequence[Sequence[float]], n: int) -> Tensor:
        return x.mul(weights[0][n]).add_(u, alpha=weights[1][n])


_UNSTABLE = 1.0
"""The largest g^2 h |score|^2 / 2 an element of an explicit step; it stops contracting at 2."""


class _Explicit:
    """Steps of ``u + d g^2/2 score``; d is 1 from noise to data and -1 the other way."""

    def __init__(
        self,
        u: Velocity,
        score: Velocity | None,
        path: GridCoefficients | None,
        g: Sequence[float],
        times: Sequence[float],
        solver: SDESolver,
        generator: Generator,
    ) -> None:
        self.u, self.score, self.path, self.g, self.times = u, score, path, g, times
        self.solver, self.generator, self.warned = solver, generator, False
        self.previous: Tensor | None = None
        self.d = math.copysign(1.0, times[-1] - times[0])

    def __call__(self, x: Tensor, n: int, t: Sequence[Tensor], kind: str) -> Tensor:
        h, g, u = self.times[n + 1] - self.times[n], self.g[n], self.u(x, t[0])
        if kind == "euler":
            return x.add(u, alpha=h)
        if kind == "tweedie" and self.path is not None:
            of_x, of_u = self.path.data()
            return x.mul(of_x[n].item()).add_(u, alpha=of_u[n].item())
        k1 = u
        if g > 0 and self.score is not None:
            s = self.score(x, t[0])
            g = self._stable(g, s, h, self.times[n])
            k1 = u.add(s, alpha=self.d * g**2 / 2)
        if kind == "mean":
            return x.add(k1, alpha=h)
        xi = random.normal(x.shape, self.generator, device=x.device, dtype=x.dtype)
        if not self.solver.corrects:
            new = x.add(k1, alpha=h).add_(xi, alpha=g * math.sqrt(abs(h)))
            if self.solver.extrapolates:
                if self.previous is not None:
                    new.add_(k1 - self.previous, alpha=h * h / (self.times[n] - self.times[n - 1]) / 2)
                self.previous = k1
            return new
        after = min(self.g[n + 1], g) if g < self.g[n] else self.g[n + 1]
        # The trapezoid of g^2 is the noise's variance to the third order in h, which weak order 2 needs.
        noisy = x.add(xi, alpha=math.sqrt((g**2 + after**2) / 2 * abs(h)))
        there = noisy.add(k1, alpha=h)
        k2 = self.u(there, t[1])
        if after > 0 and self.score is not None:
            k2 = k2.add(self.score(there, t[1]), alpha=self.d * after**2 / 2)
        return noisy.add_(k1, alpha=h / 2).add_(k2, alpha=h / 2)

    def _stable(self, g: float, score: Tensor, h: float, t: float) -> float:
        """g, or the largest with a stable step; the mean square of a score is the mean curvature of -log p."""
        rate = g**2 * abs(h) / 2 * score.square().mean().item()
        if not _UNSTABLE < rate < math.inf:
            return g
        if not self.warned:
            self.warned = True
            logger.warning(
                f"diffusion {g:.3g} needs shorter steps than {abs(h):.3g} from t = {t:.3g} on; lowered there, which "
                "keeps the marginals: take a g that is 0 at the data, such as 'sigma', or more steps"
            )
        return g * math.sqrt(_UNSTABLE / rate)


def get_sde_solver(solver: str | Solver | SDESolver) -> SDESolver:
    """The solver of that name, or the one given. Raises UserError for an unknown name, with the nearest one."""
    if isinstance(solver, SDESolver):
        return solver
    name, known = solver if isinstance(solver, str) else solver.name, choices("sde-solver")
    if name not in known:
        raise UserError(f"solver {name!r} does not take a diffusion{did_you_mean(name, known)}")
    return get("sde-solver", name)()
