"""Time grids for fixed-step solvers: (steps + 1,) times from 0 (noise) to 1 (data), or reversed."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from msgspec import Meta
from torch import Tensor

from advect.core.bounds import Positive, Steps, bounded
from advect.core.errors import UserError
from advect.core.registry import get, register
from advect.paths import Schedule


@bounded
def check_steps(steps: Steps) -> None:
    """Raise UserError for a number of steps out of range."""


def _unit(steps: int) -> Tensor:
    """``i / steps``, in float64."""
    check_steps(steps)
    return torch.arange(steps + 1, dtype=torch.float64) / steps


@dataclass(frozen=True)
class TimeGrid(ABC):
    """Placement of solver steps."""

    part_kind: ClassVar[str] = "grid"

    @abstractmethod
    def __call__(self, steps: int) -> Tensor:
        """Increasing times (steps + 1,) float64 from 0 to 1. Raises UserError for steps < 1."""


@register("uniform")
@dataclass(frozen=True)
class UniformGrid(TimeGrid):
    """Equal steps, t_i = i / steps."""

    def __call__(self, steps: int) -> Tensor:
        return _unit(steps)


@register("cosine")
@dataclass(frozen=True)
class CosineGrid(TimeGrid):
    """Dense at both ends, t_i = (1 - cos(pi i / steps)) / 2 (Chebyshev-Lobatto points).

    For flows that bend near noise and data; the widest steps are pi/2 times the uniform ones.
    """

    def __call__(self, steps: int) -> Tensor:
        grid = (1 - torch.cos(math.pi * _unit(steps))) / 2
        grid[-1] = 1.0
        return grid


@register("edm")
@dataclass(frozen=True)
class EDMGrid(TimeGrid):
    """Times at which sigma/alpha of the straight path takes the noise levels of Karras et al. 2022.

    ``sigma_i^(1/rho)`` decreases linearly from sigma_max to sigma_min; t_i = 1 / (1 + sigma_i). The first time, 1 / (1
    + sigma_max), is moved to 0; the last is 1 (sigma = 0).

    Args:
        rho: exponent; larger values put more steps near the data.
        sigma_min: lowest noise level.
        sigma_max: highest noise level.
    """

    rho: Annotated[float, Meta(ge=0.1, le=1000)] = 7.0
    sigma_min: Positive = 0.002
    sigma_max: Positive = 80.0

    def __post_init__(self) -> None:
        if not self.sigma_min < self.sigma_max:
            raise UserError(f"EDMGrid needs 0 < sigma_min < sigma_max, got {self.sigma_min} and {self.sigma_max}")

    def __call__(self, steps: int) -> Tensor:
        check_steps(steps)
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
        grid = torch.ones(steps + 1, dtype=torch.float64)
        grid[:-1] = 1 / (1 + (high + ramp * (low - high)) ** self.rho)
        grid[0] = 0.0
        return grid


@register("shifted")
@dataclass(frozen=True)
class ShiftedGrid(TimeGrid):
    """More steps near the noise, t = s / (s + shift (1 - s)) for uniform s.

    Resolution-dependent shift of Esser et al. 2024, "Scaling rectified flow transformers": shift = sqrt(m / n)
    for m pixels if n needed none.

    Args:
        shift: 1 gives the uniform grid.
    """

    shift: Annotated[float, Meta(gt=0, le=1000)] = 3.0

    def __call__(self, steps: int) -> Tensor:
        s = _unit(steps)
        return s / (s + self.shift * (1 - s))


def t_grid(
    steps: int, grid: str | TimeGrid = "uniform", *, t0: float = 0.0, t1: float = 1.0, **parameters: Any
) -> Tensor:
    """Times of ``grid`` from t0 to t1, (steps + 1,) float64, decreasing if t0 > t1.

    ``parameters`` configure a grid given by name, such as rho of "edm" and shift of "shifted". The unit grid is scaled
    to the interval. Raises UserError for an unknown grid or parameter, steps < 1, or t0 and t1 equal or outside [0,
    1].
    """
    check_interval(t0, t1)
    if isinstance(grid, str):
        try:
            grid = get("grid", grid)(**parameters)
        except TypeError as error:
            raise UserError(f"grid {grid!r} does not take {', '.join(parameters)}") from error
    unit = grid(steps)  # pyright: ignore[reportCallIssue]
    low, high = min(t0, t1), max(t0, t1)
    times = (1 - unit) * low + unit * high
    return times if t0 < t1 else times.flip(0)


def check_interval(t0: float, t1: float) -> None:
    """Raise UserError unless t0 and t1 differ and lie in [0, 1]."""
    if not (0 <= t0 <= 1 and 0 <= t1 <= 1):
        raise UserError(f"t0 and t1 must lie in [0, 1] (0 is noise, 1 is data), got {t0} and {t1}")
    if t0 == t1:
        raise UserError(f"t0 and t1 are both {t0}, so that there is no way to go; 0 and 1 are usual")


def resolve_grid(
    grid: str | TimeGrid | Tensor, steps: int | None, default: int, *, t0: float, t1: float
) -> list[float]:
    """Times from t0 to t1 given by ``grid`` and ``steps`` (None means ``default``).

    A tensor holds the times (n + 1,) themselves, monotone between t0 and t1 in either direction.
    """
    if isinstance(grid, (str, TimeGrid)):
        return t_grid(default if steps is None else steps, grid, t0=t0, t1=t1).tolist()
    check_interval(t0, t1)
    if steps is not None:
        raise UserError(f"steps is {steps}, but the times of the grid are given; leave steps out")
    if grid.ndim != 1 or len(grid) < 2:
        raise UserError(f"a grid of times must have shape (steps + 1,), at least (2,), got {tuple(grid.shape)}")
    times = grid.detach().double().cpu()
    rises = times.diff()
    if not ((rises > 0).all() or (rises < 0).all()):
        raise UserError("the times of a grid must all rise or all fall, each different from the one before")
    times = times if (times[-1] > times[0]).item() == (t1 > t0) else times.flip(0)
    ends = times[[0, -1]].tolist()
    if max(abs(ends[0] - t0), abs(ends[1] - t1)) > 1e-6:
        raise UserError(
            f"the grid goes from {ends[0]:.6g} to {ends[1]:.6g}, but t0 and t1 are {t0} and {t1}; match them"
        )
    return [t0, *times[1:-1].tolist(), t1]


@dataclass(frozen=True)
class GridCoefficients:
    """``alpha, sigma, d_alpha, d_sigma``, each (n + 1,) float64 on the CPU, on a grid of n + 1 times.

    ``determinant`` is alpha' sigma - sigma' alpha, of the system that gives data and noise from x and u.
    """

    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor
    d_sigma: Tensor
    determinant: Tensor

    def data(self) -> tuple[Tensor, Tensor]:
        """Weights (n + 1,) of x and u in E[x_1 | x] = (sigma u - sigma' x) / determinant."""
        return -self.d_sigma / self.determinant, self.sigma / self.determinant

    def noise(self) -> tuple[Tensor, Tensor]:
        """Weights (n + 1,) of x and u in E[x_0 | x] = (alpha' x - alpha u) / determinant."""
        return self.d_alpha / self.determinant, -self.alpha / self.determinant


def coefficients_on(schedule: Schedule, grid: Sequence[float]) -> GridCoefficients:
    """Coefficients on ``grid``.

    Raises UserError if the determinant is not finite and > 0, except at the last time.
    """
    alpha, sigma, d_alpha, d_sigma = schedule.coefficients(torch.tensor(grid, dtype=torch.float64))
    determinant = d_alpha * sigma - d_sigma * alpha
    bad = ~((determinant > 0) & (determinant < math.inf))[:-1]
    if bad.any():
        n = int(bad.nonzero()[0])
        raise UserError(
            f"{type(schedule).__name__} cannot tell data from noise by the velocity at t = {grid[n]:.4g} "
            f"(alpha' sigma - sigma' alpha is {determinant[n].item():.4g}); start a little inside (0, 1)"
        )
    return GridCoefficients(alpha, sigma, d_alpha, d_sigma, determinant)
