"""Where a flow is integrated: coordinates in which its velocity is finite, and exact steps at the ends of time."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from advect.core import random
from advect.core.random import Generator
from advect.core.types import expand_right
from advect.model.end_step import EndStep, Field, Trace
from advect.paths import BrownianBridge, CondOT, Schedule
from advect.solvers import Solver, SolverError, Velocity, integrate, log_prob
from advect.solvers.base import all_finite, not_finite
from advect.solvers.diffusion_coefficients import Diffusion, diffusion_on
from advect.solvers.row_likelihood import log_prob_within

_CLOSE = 1e-4
"""Times as near to the end count as this: networks know none of them."""

FieldOf = Callable[[Tensor | None], Velocity]
"""The field of some rows (b,) of a batch, or None for all."""


@dataclass(frozen=True)
class Within:
    """Densities to a ``tolerance`` in nats, each row by steps of its own."""

    tolerance: float
    field_of: FieldOf


@dataclass(frozen=True)
class Coordinates(ABC):
    """Coordinates y at times tau, y = x / scale(t), in which a flow is solved from t = ``low`` to ``high``.

    ``field`` is what a network gives: the velocity, or for :class:`Rectified` the prediction of data less noise.
    """

    low: float = 0.0
    high: float = 1.0

    @abstractmethod
    def times(self, t: Sequence[float]) -> list[float]:
        """tau, rising in [0, 1], at times t."""

    @abstractmethod
    def time_of(self, tau: Tensor) -> Tensor:
        """t at times tau, both (n,), float64."""

    @contextmanager
    def user_times(self) -> Iterator[None]:
        """Within it errors of solvers tell t instead of tau."""
        try:
            yield
        except SolverError as error:
            raise error.at(self.time_of(torch.tensor([error.t], dtype=torch.float64)).item()) from error

    @abstractmethod
    def velocity(self, field: Velocity, *, together: bool = True) -> Velocity:
        """dy / dtau at y (B, *S), tau (B,): one time for all rows unless not ``together``."""

    def slope(self, y: Tensor, u: Tensor, tau: Tensor) -> Tensor | None:
        """Size (b,) of the gradient of the log density at y (b, *S), tau (b,), of velocity u; None where unknown."""
        return None

    def scale(self, t: float) -> float:
        """x / y at t."""
        return 1.0

    @property
    def start(self) -> float:
        """x0 / y before the first step."""
        return 1.0

    def first(self, field: Velocity) -> EndStep | None:
        """The step from t = 0 to ``low``."""
        return None

    def last(self, field: Velocity) -> list[EndStep]:
        """The steps from ``high`` to t = 1, one to each of ``end_times``."""
        return []

    @property
    def end_times(self) -> list[float]:
        """The times t after ``high``."""
        return [1.0] * (self.high < 1)

    def spread(self, y: Tensor, generator: Generator) -> Tensor:
        """y at ``low``, with the noise that an exact path has gathered by then."""
        return y

    def grid(self, times: Sequence[float]) -> list[float]:
        """Those of the times t from 0 to 1 that are inside, between ``low`` and ``high``."""
        inside = [t for t in times if self.low + 1e-7 < t < self.high - 1e-7]
        return [self.low, *inside, *([self.high] if self.high > self.low else [])]

    def all_times(self, times: Sequence[float]) -> tuple[float, ...]:
        """The times t of the states of :meth:`trajectory`."""
        return (*[0.0] * (self.low > 0), *self.grid(times), *self.end_times)

    def enter(self, field: Velocity, x0: Tensor, generator: Generator) -> Tensor:
        """y at ``low`` of x0 (B, *S)."""
        y, first = x0 / self.start, self.first(field)
        return y if first is None else self.spread(first(y), generator)

    def solve(
        self, field: Velocity, y: Tensor, method: Solver, times: Sequence[float], *, trajectory: bool = False
    ) -> Sequence[Tensor]:
        """The states y from ``low`` to ``high``, or the last alone, over the grid of times t from 0 to 1."""
        taus = self.times(self.grid(times))
        if len(taus) == 1:
            return [y]
        way: dict[str, Any] = {"t0": taus[0], "t1": taus[-1], "trajectory": trajectory}
        if trajectory or not method.adaptive:
            way["grid"] = torch.tensor(taus, dtype=torch.float64)
        with self.user_times():
            found = integrate(self.velocity(field), y, solver=method, **way)
        return found.unbind() if trajectory else [found]

    def finish(self, field: Velocity, y: Tensor) -> Tensor:
        """x at t = 1 of y at ``high``."""
        for step in self.last(field):
            y = step(y)
        return _finite(y, "exact last step", 1.0) * self.scale(1.0)

    def trajectory(self, field: Velocity, x0: Tensor, states: Sequence[Tensor], times: Sequence[float]) -> Tensor:
        """The trajectory x (len(all_times), B, *S) of states y on the grid."""
        y, ends = states[-1], []
        for step in self.last(field):
            ends.append(y := _finite(step(y), "exact last step", 1.0))
        at = [*self.grid(times), *self.end_times]
        x = [y * self.scale(t) for y, t in zip([*states, *ends], at, strict=True)]
        return torch.stack([x0] * (self.low > 0) + x)

    def back(self, field: Velocity, x1: Tensor, method: Solver, times: Sequence[float]) -> Tensor:
        """x0 of x1 (B, *S), without the noise of :meth:`spread`."""
        y, first, taus = x1 / self.scale(1.0), self.first(field), self.times(self.grid(times))
        for step in reversed(self.last(field)):
            y = step.inverse(y)
        if len(taus) > 1:
            grid = None if method.adaptive else torch.tensor(taus, dtype=torch.float64)
            with self.user_times():
                y = integrate(self.velocity(field), y, solver=method, grid=grid, t0=taus[-1], t1=taus[0])
        return _finite(y if first is None else first.inverse(y), "exact first step", 0.0) * self.start

    def log_prob(
        self,
        field: Velocity,
        x1: Tensor,
        source: Field,
        method: Solver,
        times: Sequence[float],
        options: dict[str, Any],
        within: Within | None = None,
    ) -> Tensor:
        """The log density (B,) of x1 (B, *S), ``source`` being that of x0 and ``options`` those of the trace.

        By ``method``, or ``within`` a tolerance.
        """
        d, first, trace = x1[0].numel(), self.first(field), Trace(options)
        y, taus = x1 / self.scale(1.0), self.times(self.grid(times))
        gain = d * (math.log(self.start) - math.log(self.scale(1.0)))

        def at_low(y: Tensor) -> Tensor:
            if first is None:
                return source(y * self.start)
            y = first.inverse(y)
            return source(y * self.start) - first.log_det(y, trace)

        change: Tensor | float = 0.0
        with torch.no_grad():
            for step in reversed(self.last(field)):
                y = step.inverse(y)
                change = change - step.log_det(y, trace)
            if len(taus) == 1:
                return at_low(y) + change + gain
        start = lambda y: at_low(y.detach())
        if within is not None:
            moving = lambda y, tau, rows: self.velocity(within.field_of(rows), together=False)(y, tau)
            with self.user_times():
                value = log_prob_within(
                    moving,
                    y,
                    within.tolerance,
                    source=start,
                    t0=taus[0],
                    t1=taus[-1],
                    slope=self.slope,
                )
            return value + change + gain
        apart = not method.adaptive and method.evaluations > 1  # more nodes where a trace is cheap
        nodes = round((len(taus) - 1) * (1 + (8 / max(d, 8)) ** 2)) if apart else None
        way: dict[str, Any] = {"solver": method, "nodes": nodes, "t0": taus[0], "t1": taus[-1]}
        if apart:
            way["steps"] = len(taus) - 1
        elif not method.adaptive:
            way["grid"] = torch.tensor(taus, dtype=torch.float64)
        with self.user_times():
            value = log_prob(self.velocity(field), y, source=start, **way, **options)
        return value + change + gain

    def until_last(self, times: Sequence[float]) -> Coordinates:
        """These, up to the last step of the grid where that is not the solver's."""
        return self


def _finite(y: Tensor, step: str, t: float) -> Tensor:
    """y, if it is finite."""
    if not all_finite(y):
        raise not_finite(step, t)
    return y


def _straight_slope(y: Tensor, u: Tensor, tau: Tensor) -> Tensor:
    """That of ``y = (1 - tau) x0 + tau x1`` with x0 ~ N(0, I): the noise predicted, ``y - tau u``, by 1 - tau."""
    noise = y - expand_right(tau.to(y.dtype), y) * u
    return noise.flatten(1).norm(dim=1) / (1 - tau).clamp(min=_CLOSE)


@dataclass(frozen=True)
class Plain(Coordinates):
    """The state itself, at t from 0 to 1.

    Attributes:
        straight: whether its path is.
    """

    straight: bool = False

    def slope(self, y: Tensor, u: Tensor, tau: Tensor) -> Tensor | None:
        return _straight_slope(y, u, tau) if self.straight else None

    def times(self, t: Sequence[float]) -> list[float]:
        return list(t)

    def time_of(self, tau: Tensor) -> Tensor:
        return tau

    def velocity(self, field: Velocity, *, together: bool = True) -> Velocity:
        return field


@dataclass(frozen=True)
class Rectified(Coordinates):
    """Any affine path made straight: ``y = x / (alpha + sigma)`` at ``tau = alpha / (alpha + sigma)``.

    ``dy / dtau = D - e``, the predictions of data and noise, is finite where the velocity is not, and Euler's method
    is DDIM (Song et al. 2021, "Denoising diffusion implicit models"). The first step is ``x = sigma x0 + alpha D(x0)``
    as if the path started from noise alone; the last one goes to D, or to what sigma > 0 leaves at t = 1.

    Attributes:
        schedule: the path's.
        noise: standard deviation of the noise that samples start from.
        reach: the last time of the field.
        open: whether the field divides by sigma, as where data are predicted: then the last step of the grid is
            Euler's, which is stable.
    """

    schedule: Schedule = field(default_factory=CondOT)
    noise: float = 1.0
    reach: float = 1.0
    open: bool = False

    def slope(self, y: Tensor, u: Tensor, tau: Tensor) -> Tensor | None:
        return _straight_slope(y, u, tau)

    def _at(self, t: float) -> tuple[float, float]:
        alpha, sigma, *_ = self.schedule.coefficients(torch.tensor([t], dtype=torch.float64))
        return alpha.item(), sigma.item()

    def defined(self, prediction: str, low: float) -> bool:
        """Whether the field has a value at t = ``low``, and noise alone is the state there if it is 0."""
        alpha, sigma, d_alpha, d_sigma = self.schedule.coefficients(torch.tensor([low], dtype=torch.float64))
        standing = prediction == "velocity" and not sigma * d_alpha > alpha * d_sigma
        return low > 0 or bool(alpha == 0 and not standing)

    def times(self, t: Sequence[float]) -> list[float]:
        return [alpha / (alpha + sigma) for alpha, sigma in map(self._at, t)]

    def time_of(self, tau: Tensor) -> Tensor:
        return self.schedule.time_of(tau, 1 - tau)

    def scale(self, t: float) -> float:
        return sum(self._at(t))

    @property
    def start(self) -> float:
        return self.noise

    def velocity(self, field: Velocity, *, together: bool = True) -> Velocity:
        def changed(y: Tensor, tau: Tensor) -> Tensor:
            t = self.time_of((tau[:1] if together else tau).double()).clamp(self.low, self.high)
            c = self.schedule.coefficients(t)
            return field(y * expand_right((c.alpha + c.sigma).to(y.dtype), y), t.to(tau.dtype).expand(len(y)))

        return changed

    def first(self, field: Velocity) -> EndStep | None:
        (s,) = self.times([self.low])
        if s == 0:
            return None
        scale = self.scale(self.low)
        at = self._frozen(field, self.low)
        return EndStep(1 - s + s / scale, s * (1 - s), lambda y: at(y / scale))

    def last(self, field: Velocity) -> list[EndStep]:
        ends = [self.high, *self.end_times]
        widths = [b - a for a, b in pairwise(self.times(ends))]
        return [EndStep(1.0, h, self._frozen(field, t)) for t, h in zip(ends[:-1], widths, strict=True)]

    @property
    def end_times(self) -> list[float]:
        ends = [self.reach] * (self.high < self.reach < 1) + [1.0]
        return ends if self.high < 1 else []

    def _frozen(self, field: Velocity, t: float) -> Field:
        """The field at one time, as a function of y."""
        scale = self.scale(t)
        return lambda y: field(y * scale, torch.full((len(y),), t, dtype=torch.float32, device=y.device))

    def until_last(self, times: Sequence[float]) -> Coordinates:
        return replace(self, high=min(max(times[-2], self.low), self.reach)) if self.open else self

    def diffusion(self, g: Diffusion) -> Diffusion:
        """The g of y at tau that renews the noise as the ``g`` of x at t does."""

        def changed(tau: Tensor) -> Tensor:
            t = self.time_of(tau.double())
            alpha, sigma, d_alpha, d_sigma = self.schedule.coefficients(t)
            values = torch.tensor(diffusion_on(g, self.schedule, t.tolist()), dtype=torch.float64)
            determinant = sigma * d_alpha - alpha * d_sigma
            return torch.where((determinant > 0) & torch.isfinite(determinant), values / determinant.sqrt(), 0.0)

        return changed


@dataclass(frozen=True)
class Angle(Coordinates):
    """The state of a Brownian bridge, at ``tau`` with ``t = sin^2(pi tau / 2)``, in which its width is smooth.

    The velocity tells ``D = x + 2 m u + k (E0 - x)`` at t = 1 - m, with k = m / (1 - m) and the prediction E0 of the
    source unknown: the last step takes two values of m, which cancel it. Samples of a law without density, such as
    rows of data, get the width of the bridge after the first step, which no velocity could give them.

    Attributes:
        path: the bridge.
        density: whether the source has one.
    """

    path: BrownianBridge | None = None
    density: bool = True

    def times(self, t: Sequence[float]) -> list[float]:
        return [math.acos(1 - 2 * value) / math.pi for value in t]

    def time_of(self, tau: Tensor) -> Tensor:
        return (1 - torch.cos(math.pi * tau)) / 2

    def velocity(self, field: Velocity, *, together: bool = True) -> Velocity:
        def changed(y: Tensor, tau: Tensor) -> Tensor:
            t = self.time_of((tau[:1] if together else tau).double()).clamp(self.low, self.high)
            slope = math.pi * (t * (1 - t)).sqrt()
            return field(y, t.to(tau.dtype).expand(len(y))) * expand_right(slope.to(y.dtype), y)

        return changed

    def first(self, field: Velocity) -> EndStep | None:
        return EndStep(1.0, self.low, self._frozen(field, self.low))

    def last(self, field: Velocity) -> list[EndStep]:
        near = 1 - self.high
        far = min(2 * near, (near + 1) / 2)
        k_near, k_far = near / (1 - near), far / (1 - far)
        ratio = k_near / (k_far - k_near)
        at_near, at_far = self._frozen(field, self.high), self._frozen(field, 1 - far)
        return [EndStep(1.0, 2 * near, lambda y: (1 + ratio) * at_near(y) - ratio * far / near * at_far(y))]

    @staticmethod
    def _frozen(field: Velocity, t: float) -> Field:
        return lambda y: field(y, torch.full((len(y),), t, dtype=torch.float32, device=y.device))

    def spread(self, y: Tensor, generator: Generator) -> Tensor:
        if self.density or self.path is None:
            return y
        width = self.path.sigma * math.sqrt(self.low * (1 - self.low))
        return y + width * random.normal(y.shape, generator, device=y.device, dtype=y.dtype)
