"""Affine conditional paths between a source and the data."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from advect.core import random
from advect.core.bounds import NonNegative, bounded
from advect.core.errors import UserError
from advect.core.random import Generator
from advect.core.types import PathSample
from advect.paths.base import InterpolantCoefficients, Path, align, check_ends, check_point
from advect.paths.convert import convert
from advect.paths.schedules import Coefficients, CondOT, Schedule


@bounded
@dataclass(frozen=True)
class AffinePath(Path):
    """``x_t = alpha_t x_1 + sigma_t x_0 + sigma_min eps`` with the velocity ``u_t = alpha_t' x_1 + sigma_t' x_0``.

    Args:
        schedule: schedule of alpha and sigma.
        sigma_min: standard deviation >= 0 of an independent Gaussian jitter, constant in time and so absent from
            u_t (Tong et al. 2024, "Improving and generalizing flow-based generative models").
        gaussian_source: whether x0 ~ N(0, I), independent of x1. Otherwise there is no law given x1 alone, no
            score without jitter, and no conversion of velocities to scores.
    """

    schedule: Schedule = field(default_factory=CondOT)
    sigma_min: NonNegative = 0.0
    gaussian_source: bool = True

    def sample(self, x0: Tensor, x1: Tensor, t: Tensor, generator: Generator = None) -> PathSample:
        check_ends(x0, x1, t)
        alpha, sigma, d_alpha, d_sigma = (align(c, x1) for c in self.schedule.coefficients(t))
        x_t = torch.addcmul(alpha * x1, sigma, x0)
        u_t = torch.addcmul(d_alpha * x1, d_sigma, x0)
        if self.sigma_min > 0:
            x_t = x_t + self.sigma_min * random.normal(x1.shape, generator, device=x1.device, dtype=x1.dtype)
        return PathSample(x_t=x_t, t=t, u_t=u_t, x0=x0, x1=x1)

    def coefficients(self, t: Tensor) -> Coefficients:
        """Coefficients with ``x_t ~ N(alpha x_1, sigma^2 I)`` given x1: ``sigma = sqrt(sigma_t^2 + sigma_min^2)``.

        "noise" is then ``(x_t - alpha x_1) / sigma``: source and jitter together.
        """
        c = self.schedule.coefficients(t)
        if self.sigma_min == 0:
            return c
        sigma = torch.hypot(c.sigma, torch.full_like(c.sigma, self.sigma_min))
        return Coefficients(c.alpha, sigma, c.d_alpha, c.sigma * c.d_sigma / sigma)

    @property
    def effective_schedule(self) -> Schedule:
        """Schedule without jitter with the same marginals."""
        return self.schedule if self.sigma_min == 0 else Jittered(self)

    def convert(self, value: Tensor, x: Tensor, t: Tensor, source: str, target: str) -> Tensor:
        """Convert ``value`` (B, *S), a ``source`` (velocity, data, noise or score) at x, t (B,), to ``target``.

        Raises UserError as ``paths.convert.convert``, and where a score or jitter needs a Gaussian source.
        """
        if source == target:
            return value
        if not self.gaussian_source and ("score" in (source, target) or self.sigma_min > 0):
            raise UserError(
                f"a {source} does not give the {target} where the source is not Gaussian; "
                f"train a network that predicts the {target}"
            )
        return convert(value, x, self.coefficients(t), source, target)

    def conditional_velocity(self, x: Tensor, t: Tensor, *, x1: Tensor, x0: Tensor | None = None) -> Tensor:
        """u_t(x | x1) = alpha' x1 + sigma' (x - alpha x1) / sigma, or alpha' x1 + sigma' x0 given both ends, (B, *S).

        The first (Lipman et al. 2023) needs a Gaussian source and sigma > 0.
        """
        check_point(x, t, x1, x0)
        if x0 is not None:
            c = self.schedule.coefficients(t)
            return align(c.d_alpha, x) * x1 + align(c.d_sigma, x) * x0
        self._check_gaussian("conditional velocity")
        return convert(x1, x, self.coefficients(t), "data", "velocity")

    def conditional_score(self, x: Tensor, t: Tensor, *, x1: Tensor, x0: Tensor | None = None) -> Tensor:
        """-(x - alpha x1) / sigma^2 given x1, or -(x - alpha x1 - sigma x0) / sigma_min^2 given both ends, (B, *S).

        Raises UserError for the first without a Gaussian source and sigma > 0, the second without jitter.
        """
        check_point(x, t, x1, x0)
        if x0 is None:
            self._check_gaussian("conditional score")
            return convert(x1, x, self.coefficients(t), "data", "score")
        if self.sigma_min == 0:
            raise UserError(
                "given both ends x_t is a point without score; set AffinePath.sigma_min > 0, or use BrownianBridge"
            )
        c = self.schedule.coefficients(t)
        return (align(c.alpha, x) * x1 + align(c.sigma, x) * x0 - x) / self.sigma_min**2

    def interpolant(self, t: Tensor) -> InterpolantCoefficients:
        """x1, x0 and jitter, or x1 and all noise if the source is Gaussian. Raises UserError where there is none."""
        c = self.coefficients(t) if self.gaussian_source else self.schedule.coefficients(t)
        none = torch.zeros_like(c.alpha)
        if self.gaussian_source:
            return InterpolantCoefficients(c.alpha, none, c.sigma, c.d_alpha, none, c.d_sigma)
        if self.sigma_min == 0:
            raise UserError(
                "with this source or coupling the path has no noise, and so no score; set AffinePath.sigma_min > 0, "
                "or use BrownianBridge"
            )
        jitter = torch.full_like(c.alpha, self.sigma_min)
        return InterpolantCoefficients(c.alpha, c.sigma, jitter, c.d_alpha, c.d_sigma, none)

    def _check_gaussian(self, what: str) -> None:
        if not self.gaussian_source:
            raise UserError(f"the {what} given x1 alone needs a Gaussian source; pass x0, the other end, as well")


@dataclass(frozen=True)
class Jittered(Schedule):
    """Coefficients of a path with its jitter in sigma."""

    path: AffinePath

    def coefficients(self, t: Tensor) -> Coefficients:
        return self.path.coefficients(t)
