"""Sampling of a stochastic interpolant by its SDE, with a learned score."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from advect.core import random
from advect.core.random import Generator
from advect.core.registry import name_of
from advect.paths import AffinePath, Path, Schedule
from advect.paths.base import InterpolantCoefficients
from advect.paths.schedules import Coefficients
from advect.solvers.base import not_finite
from advect.solvers.diffusion_coefficients import Diffusion, relaxation
from advect.solvers.sde import SDESolver

Heads = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Velocity and predicted noise eta = -gamma score, (B, *S) each, at x (B, *S), t (B,)."""


class _At(NamedTuple):
    """``InterpolantCoefficients`` at one time, as numbers."""

    alpha: float
    beta: float
    gamma: float
    d_alpha: float
    d_beta: float
    d_gamma: float


@dataclass(frozen=True)
class NoiseSchedule(Schedule):
    """alpha of x1 and gamma of the noise on a path of any source."""

    path: Path

    def coefficients(self, t: Tensor) -> Coefficients:
        c = self.path.interpolant(t)
        return Coefficients(c.alpha, c.gamma, c.d_alpha, c.d_gamma)


@torch.no_grad()
def integrate_interpolant(
    heads: Heads,
    path: Path,
    x0: Tensor,
    *,
    times: Sequence[float],
    diffusion: Diffusion,
    solver: SDESolver,
    inside: tuple[float, float] = (0.0, 1.0),
    fresh: bool = False,
    generator: Generator = None,
    trajectory: bool = False,
) -> Tensor:
    """Carry x0 (B, *S) over ``times`` along ``dX = (u + g^2/2 score) dt + g dW``; return the last state, or all.

    On ``x_t = alpha x1 + beta x0 + gamma z`` the velocity and eta = E[z | x_t] tell D1 = E[x1 | x_t] and D0 =
    E[x0 | x_t]. A step is exact where these are constant, as z then is an Ornstein-Uhlenbeck process::

        x' = alpha' D1 + beta' D0 + gamma' (z + (k - 1) eta + sqrt(1 - k^2) xi),   k = exp(-int g^2 / (2 gamma^2) dt)

    with z = eta, or what the velocity leaves of x where x0 itself is the noise. So any g is stable, and the step to
    the end, where gamma is 0, is D1. Higher-order solvers extrapolate or repeat D0 and D1.

    Args:
        inside: the times at which the heads were trained; at others they are asked at the nearest.
        fresh: give a path without noise at the first time its noise in the first step, as for a source that is rows.

    Raises UserError for a path without noise, and when a state stops being finite.
    """
    step = _Step(heads, path, times, diffusion, solver, inside, fresh, generator)
    x, states, finite = x0, [x0], [torch.isfinite(x0).all()]
    for n in range(len(times) - 1):
        x = step(x, n)
        finite.append(torch.isfinite(x).all())
        if trajectory:
            states.append(x)
    good = torch.stack(finite).tolist()
    if not all(good):
        raise not_finite(name_of(solver), times[good.index(False)])
    return torch.stack(states) if trajectory else x


class _Step:
    """A step of :func:`integrate_interpolant`."""

    def __init__(
        self,
        heads: Heads,
        path: Path,
        times: Sequence[float],
        diffusion: Diffusion,
        solver: SDESolver,
        inside: tuple[float, float],
        fresh: bool,
        generator: Generator,
    ) -> None:
        self.heads, self.times, self.solver, self.generator = heads, times, solver, generator
        grid = torch.tensor(list(times), dtype=torch.float64)
        self.asked = grid.clamp(*inside)
        self.at, self.there = (_rows(path.interpolant(t)) for t in (grid, self.asked))
        self.joins = not (isinstance(path, AffinePath) and path.gaussian_source)
        self.keep = [math.exp(-rate) for rate in relaxation(diffusion, NoiseSchedule(path), times)]
        if fresh and self.at[0].gamma == 0:
            self.keep[0] = 0.0
        self.previous: tuple[Tensor, Tensor] | None = None

    def __call__(self, x: Tensor, n: int) -> Tensor:
        (data, source), z, eta = self._predict(x, n)
        here, new, keep = self.at[n], self.at[n + 1], self.keep[n]
        out = new.alpha * data + new.beta * source + new.gamma * (z + (keep - 1) * eta)
        noise = new.gamma * math.sqrt(1 - keep**2)
        if noise > 0:
            xi = random.normal(x.shape, self.generator, device=x.device, dtype=x.dtype)
            out = out.add(xi, alpha=noise)
        if here.gamma == 0 or new.gamma == 0:
            return out
        # At the old time x = alpha D1 + beta D0 + gamma z, so that other D take their share of z with them.
        left = new.gamma / here.gamma * keep
        weights = new.alpha - here.alpha * left, new.beta - here.beta * left
        if self.solver.corrects:
            there, _, _ = self._predict(out, n + 1)
            for weight, now, before in zip(weights, there, (data, source), strict=True):
                out = out.add(now - before, alpha=weight / 2)
        elif self.solver.extrapolates:
            if self.previous is not None:
                ratio = (self.times[n + 1] - self.times[n]) / (self.times[n] - self.times[n - 1])
                for weight, now, before in zip(weights, (data, source), self.previous, strict=True):
                    out = out.add(now - before, alpha=weight * ratio / 2)
            self.previous = data, source
        return out

    def _predict(self, x: Tensor, n: int) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
        """Predictions of x1 and x0, z and eta."""
        c, k = self.at[n], self.there[n]
        t = torch.full((len(x),), self.asked[n].item(), device=x.device, dtype=x.dtype)
        u, eta = self.heads(x, t)
        if self.joins:
            mean, slope = x - c.gamma * eta, u - k.d_gamma * eta  # alpha D1 + beta D0, and its derivative
            determinant = k.d_alpha * c.beta - c.alpha * k.d_beta
            data = (c.beta * slope - k.d_beta * mean) / determinant
            source = (k.d_alpha * mean - c.alpha * slope) / determinant
            return (data, source), eta, eta
        data = (k.gamma * u - k.d_gamma * x) / (k.gamma * k.d_alpha - k.alpha * k.d_gamma)
        z = x / c.gamma if self.times[n] == 0 else (x - c.alpha * data) / c.gamma  # at 0 the state is noise alone
        return (data, torch.zeros_like(x)), z, eta


def _rows(c: InterpolantCoefficients) -> list[_At]:
    """The coefficients (n,) time by time."""
    return [_At(*row) for row in zip(*(values.double().tolist() for values in c), strict=True)]
