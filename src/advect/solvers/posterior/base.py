"""Samples of x_1 given a measurement ``y = A(x_1) + noise``, by a flow that was trained without it.

With D(x, t) = E[x_1 | x_t = x], all that a posterior needs beside D is the gradient of log p(y | x_t)::

    E[x_1 | x_t, y] = D + C g,    g by the method,    C = Cov[x_1 | x_t] = sigma^2 / alpha dD / dx

C being symmetric, ``C v`` is a vector-Jacobian product of the network. Steps are exact for a constant E[x_1 | x_t, y],
and ask neither for derivatives of the schedule nor for a division by sigma = 0.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from msgspec import Meta
from torch import Tensor

from advect.core import random
from advect.core.errors import UserError
from advect.core.random import Generator
from advect.core.registry import get, name_of
from advect.core.types import check_floating, expand_right
from advect.paths import CondOT, Schedule
from advect.paths.convert import convert
from advect.solvers.base import SolverError, Velocity, all_finite, expanded_times
from advect.solvers.likelihood import Linearised
from advect.solvers.posterior.measurements import Measurement, Tangent, as_measurement
from advect.solvers.time_grids import TimeGrid, resolve_grid

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""``D(x (B, *S), t (B,)) -> E[x_1 | x_t = x] (B, *S)``."""


@dataclass(frozen=True)
class Observation:
    """y (n, *M) = A(x) + N(0, noise^2) of n samples x (n, *S).

    Raises UserError unless noise >= 0; :meth:`of` checks the rest.
    """

    measurement: Measurement
    y: Tensor
    noise: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise) and self.noise >= 0):
            raise UserError(f"noise is the deviation of the measurement's noise and must be >= 0, got {self.noise}")

    @classmethod
    def of(
        cls, measurement: Any, y: Any, noise: float, n: int, shape: Sequence[int], device: torch.device
    ) -> Observation:
        """Observation of n samples of ``shape``; y is (*M), the same for all, or (n, *M).

        Raises UserError for a measurement or y that does not fit, y that is not finite, and a measurement without
        derivative.
        """
        a = as_measurement(measurement)
        y = torch.as_tensor(y, device=device)
        y = y if y.is_floating_point() else y.float()
        first = a.fullest(shape)  # some samples may have nothing known
        out = _tried(a.rows(slice(first, first + 1), shape), shape, device)
        if y.shape == out.shape[1:]:
            y = y.expand(n, *y.shape)
        if y.shape != (n, *out.shape[1:]):
            m = tuple(out.shape[1:])
            raise UserError(f"y must have the shape of A(x), {m}, or {(n, *m)} for {n} samples, got {tuple(y.shape)}")
        y = a.observed(y)
        if not torch.isfinite(y).all():
            raise UserError("y must be finite; leave out what was not measured, by Masked(mask)")
        return cls(a, y, noise)

    def rows(self, rows: slice | Tensor, shape: Sequence[int]) -> Observation:
        """That of some of the samples."""
        return Observation(self.measurement.rows(rows, shape), self.y[rows], self.noise)

    def near(self, x1: Tensor) -> tuple[Tensor, Tangent]:
        """Residual ``y - A(x1)`` (B, *M), and A near x1 (B, *S)."""
        tangent = self.measurement.near(x1)
        return self.y.to(tangent.value.dtype) - tangent.value, tangent


def _tried(a: Measurement, shape: Sequence[int], device: torch.device) -> Tensor:
    """A(x) (1, *M) of a random sample. Raises UserError for a shape without the batch, and if A does not change."""
    x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    tangent = a.near(x)
    if tangent.value.shape[:1] != (1,):
        raise UserError(f"A must map samples (B, *S) to (B, *M), but one sample gives {tuple(tangent.value.shape)}")
    probe = torch.randn(tangent.value.shape, generator=torch.Generator().manual_seed(1)).to(tangent.value)
    if not tangent.pull(probe).any():
        raise UserError(
            "A(x) does not change with x, so that y tells nothing; leave out what rounds, and masks of False"
        )
    return tangent.value


class Reward(NamedTuple):
    """A log-reward or log-likelihood ``r(x_1 (B, *S)) -> (B,)``: samples of the law p(x_1) exp(r(x_1))."""

    function: Callable[[Tensor], Tensor]

    def slope(self, x1: Tensor) -> Tensor:
        """Gradient of r at x1 (B, *S). Raises UserError for another shape than (B,), and without gradient."""
        at = x1.detach().requires_grad_()
        with torch.enable_grad():
            value = self.function(at)
            if value.shape != at.shape[:1] or not value.requires_grad:
                raise UserError(
                    f"a log-reward must be one number a sample, ({len(at)},), with a gradient in x, got shape "
                    f"{tuple(value.shape)}{'' if value.requires_grad else ' without a gradient'}"
                )
            return torch.autograd.grad(value.sum(), at, materialize_grads=True)[0]

    def check(self, shape: Sequence[int], device: torch.device) -> None:
        """Raise UserError if it does not change with x."""
        x = torch.randn(16, *shape, generator=torch.Generator().manual_seed(0)).to(device)
        if not self.slope(x).any():
            raise UserError("the log-reward does not change with x; leave out what rounds, as categories do")


class LocalDenoiser:
    """The prediction D of the data at x (B, *S), t (B,), with the covariance of x_1 given x_t.

    Attributes:
        data: D (B, *S).
        alpha, sigma: coefficients at t.
    """

    def __init__(self, denoiser: Denoiser, x: Tensor, t: Tensor, alpha: float, sigma: float) -> None:
        self._near = Linearised(denoiser, x, t)
        self.data, self.alpha, self.sigma = self._near.u, alpha, sigma

    def covariance(self, v: Tensor) -> Tensor:
        """C v (B, *S) of v (B, *S), by one vector-Jacobian product."""
        return self._near.pull(v.to(self.data.dtype)[None])[0] * (self.sigma**2 / self.alpha)


@dataclass(frozen=True)
class PosteriorMethod(ABC):
    """A way to sample x_1 given a measurement.

    Attributes:
        steps: by default.
        asks: what it is asked: ``Observation`` or ``Reward``.
    """

    part_kind: ClassVar[str] = "posterior"
    steps: ClassVar[int] = 100
    asks: ClassVar[type] = Observation

    @abstractmethod
    def sample(self, denoiser: Denoiser, x: Tensor, ask: Any, times: Times, generator: Generator) -> Tensor:
        """x_1 (B, *S) of noise x (B, *S) at ``times[0]``."""

    def check(self, ask: Observation | Reward) -> None:
        """Raise UserError for what the method cannot be asked."""
        if not isinstance(ask, self.asks):
            fix = "give a log-reward" if self.asks is Reward else "'reward' takes a log-reward"
            raise UserError(f"posterior {name_of(self)!r} takes no {type(ask).__name__.lower()}; {fix}")

    def nfe(self, steps: int) -> int:
        """Predictions of the data in ``steps`` steps."""
        return steps


class Times:
    """A grid of times with alpha and sigma, and the times ``at`` which the denoiser is asked, inside (low, high).

    The first is moved half a step inside, as C = sigma^2 / alpha dD/dx magnifies a network's errors as alpha -> 0.
    """

    def __init__(self, schedule: Schedule, times: Sequence[float], inside: tuple[float, float], x: Tensor) -> None:
        low, high = inside
        low = max(low, (times[0] + times[1]) / 2)
        at = [min(max(t, low), high) for t in times[:-1]]
        self.t = times
        self.alpha, self.sigma = (c.tolist() for c in self._values(schedule, times))
        self.at_alpha, self.at_sigma = (c.tolist() for c in self._values(schedule, at))
        self.at = expanded_times(at, x)
        self.tau = [a / (a + s) for a, s in zip(self.alpha, self.sigma, strict=True)]

    @staticmethod
    def _values(schedule: Schedule, times: Sequence[float]) -> tuple[Tensor, Tensor]:
        return schedule.coefficients(torch.tensor(times, dtype=torch.float64))[:2]

    def __len__(self) -> int:
        return len(self.t)

    def near(self, denoiser: Denoiser, x: Tensor, n: int) -> LocalDenoiser:
        """The denoiser at x (B, *S) and time n."""
        return LocalDenoiser(denoiser, x, self.at[n], self.at_alpha[n], self.at_sigma[n])

    def keep(self, n: int) -> float:
        """Share of the noise at time n in that at n + 1 by an ancestral step: the root of the ratio of the SNRs."""
        return self.alpha[n] * self.sigma[n + 1] / (self.alpha[n + 1] * self.sigma[n])

    def step(self, x: Tensor, data: Tensor, n: int, eta: float, generator: Generator) -> Tensor:
        """x (B, *S) at n + 1 of x at n, exact for constant ``data``, with the share ``eta`` of ancestral noise.

        Song et al. 2021, "Denoising diffusion implicit models".
        """
        fresh = eta * math.sqrt(max(0.0, 1 - self.keep(n) ** 2))
        noise = (x - self.alpha[n] * data) * (self.sigma[n + 1] / self.sigma[n] * math.sqrt(1 - fresh**2))
        new = noise.add_(data, alpha=self.alpha[n + 1])
        if fresh * self.sigma[n + 1] > 0:
            xi = random.normal(x.shape, generator, device=x.device, dtype=x.dtype)
            new.add_(xi, alpha=self.sigma[n + 1] * fresh)
        return new

    def not_finite(self, method: PosteriorMethod, n: int) -> SolverError:
        """The error of a state that is not finite at time n."""
        return SolverError(
            f"the state of posterior {name_of(method)!r} is not finite from t = {{t}} on; "
            "take more steps, or a larger noise",
            self.t[n],
        )


Eta = Annotated[float, Meta(ge=0, le=1)]


@dataclass(frozen=True)
class GuidedMethod(PosteriorMethod):
    """A method that estimates E[x_1 | x_t, y], which takes the place of D in each step.

    Args:
        eta: share of the noise that is renewed in a step: 0 solves the ODE, 1 is ancestral.
    """

    eta: Eta = 1.0

    @abstractmethod
    def estimate(self, near: LocalDenoiser, ask: Any) -> Tensor:
        """E[x_1 | x_t, y] (B, *S)."""

    def sample(self, denoiser: Denoiser, x: Tensor, ask: Any, times: Times, generator: Generator) -> Tensor:
        before: Tensor | None = None
        for n in range(len(times) - 1):
            data = self.estimate(times.near(denoiser, x, n), ask)
            middle = data
            if before is not None and times.sigma[n + 1] > 0:  # second order, as DPM-Solver++(2M) of Lu et al. 2022
                ratio = (times.tau[n + 1] - times.tau[n]) / (times.tau[n] - times.tau[n - 1])
                middle = data + (data - before) * (ratio / 2)
            before, x = data, times.step(x, middle, n, self.eta, generator)
            if not all_finite(x):
                raise times.not_finite(self, n + 1)
        return x


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products (B, 1, ...) of the rows of a and b (B, *M)."""
    return expand_right((a * b).flatten(1).sum(1), a)


def conjugate_gradients(
    matrix: Callable[[Tensor], Tensor], b: Tensor, iterations: int, tolerance: float = 1e-5
) -> Tensor:
    """v (B, *M) with ``matrix(v) = b``, row by row, to a residual of ``tolerance`` |b| if reached (Hestenes & Stiefel
    1952).

    A row stops where the matrix is not positive, as a network's covariance need not be.
    """
    v, rest, way = torch.zeros_like(b), b, b
    size = dot(b, b)
    enough = tolerance**2 * size
    for _ in range(iterations):
        if not (size > enough).any():
            break
        image = matrix(way)
        curvature = dot(way, image)
        goes = (size > enough) & (curvature > 0)
        length = torch.where(goes, size / curvature, 0.0)
        v, rest = v + length * way, rest - length * image
        new = dot(rest, rest)
        way = rest + torch.where(goes, new / size, 0.0) * way
        size = torch.where(goes, new, 0.0)
    return v


def get_posterior(method: str | PosteriorMethod) -> PosteriorMethod:
    """The method of that name, or the one given. Raises UserError for an unknown name."""
    return get("posterior", method)() if isinstance(method, str) else method


def denoiser_of(velocity: Velocity, schedule: Schedule) -> Denoiser:
    """E[x_1 | x_t] by the velocity on the affine path of ``schedule``, from Gaussian noise drawn apart."""

    def denoiser(x: Tensor, t: Tensor) -> Tensor:
        return convert(velocity(x, t), x, schedule.coefficients(t.double()), "velocity", "data")

    return denoiser


@torch.no_grad()
def posterior_sample(
    denoiser: Denoiser,
    x0: Tensor,
    ask: Observation | Reward,
    *,
    method: str | PosteriorMethod = "mmps",
    schedule: Schedule | None = None,
    steps: int | None = None,
    grid: str | TimeGrid | Tensor = "uniform",
    inside: tuple[float, float] = (1e-3, 1 - 1e-3),
    generator: Generator = None,
) -> Tensor:
    """Sample x_1 (B, *S) given ``ask``, from noise x0 (B, *S), by D(x, t) = E[x_1 | x_t = x] of an affine path.

    Args:
        denoiser: differentiable, row i of row i alone; see :func:`denoiser_of`.
        method: a registered posterior or its name; its ``steps`` by default.
        schedule: the path's, by default the straight path's; the source is N(0, I), drawn apart from the data.
        grid: as in :func:`advect.solvers.integrate`.
        inside: least and largest time at which the denoiser is asked.
        generator: of the noise. With a CounterRng the noise of a row depends on seed, step and row alone.

    Raises UserError for what the method cannot be asked, a bad grid, and a state that is not finite (it says at which
    t).
    """
    check_floating(x0=x0)
    method = get_posterior(method)
    method.check(ask)
    at = resolve_grid(grid, steps, method.steps, t0=0.0, t1=1.0)
    if any(b <= a for a, b in pairwise(at)):
        raise UserError("the grid must go from t = 0 to 1, from noise to data")
    return method.sample(denoiser, x0, ask, Times(schedule or CondOT(), at, inside, x0), generator)
