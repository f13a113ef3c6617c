"""Schedules: alpha_t and sigma_t of an affine path, with their derivatives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import torch
from msgspec import Meta
from torch import Tensor

from advect.core.bounds import Share
from advect.core.registry import register

_HALVINGS = 60


class Coefficients(NamedTuple):
    """``alpha, sigma`` and their derivatives ``d_alpha, d_sigma`` at t, each shaped like t."""

    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor
    d_sigma: Tensor


class Schedule(ABC):
    """Coefficients of ``x_t = alpha_t x_1 + sigma_t x_0``, with alpha / sigma strictly increasing in t.

    As a registered part it stands for an :class:`~advect.paths.AffinePath` on it.
    """

    part_kind: ClassVar[str] = "path"
    width: ClassVar[str | None] = None
    """Argument set by a run's sigma_min; None if that is a jitter on the path."""

    @abstractmethod
    def coefficients(self, t: Tensor) -> Coefficients:
        """Values and derivatives at t in [0, 1], each shaped like t."""

    def finite_ends(self) -> tuple[bool, bool]:
        """Whether all coefficients are finite at t = 0, and at t = 1."""
        start, end = torch.isfinite(torch.stack(self.coefficients(torch.tensor([0.0, 1.0])))).all(0).tolist()
        return start, end

    def snr(self, t: Tensor) -> Tensor:
        """``alpha^2 / sigma^2`` at t, infinite where sigma = 0 (Kingma et al. 2021, "Variational diffusion
        models").
        """
        c = self.coefficients(t)
        return (c.alpha / c.sigma).square()

    def log_snr(self, t: Tensor) -> Tensor:
        """``2 (log alpha - log sigma)`` at t; -inf where alpha = 0, inf where sigma = 0."""
        c = self.coefficients(t)
        return 2 * (c.alpha.log() - c.sigma.log())

    def time_of(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The t in [0, 1] with ``alpha_t / sigma_t = alpha / sigma``, shaped like both; out of range, the nearest end.

        By bisection in float64 if there is no closed form.
        """
        a, s = alpha.double(), sigma.double()
        low, high = torch.zeros_like(a), torch.ones_like(a)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            alpha_t, sigma_t = self._values(middle)
            early = alpha_t * s < sigma_t * a
            low, high = torch.where(early, middle, low), torch.where(early, high, middle)
        return ((low + high) / 2).to(alpha.dtype)

    def _values(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at t, for schedules with costly derivatives."""
        return self.coefficients(t)[:2]


@register("cond-ot")
@dataclass(frozen=True)
class CondOT(Schedule):
    """The straight line from noise to data at constant speed, alpha_t = t and sigma_t = 1 - t.

    Lipman et al. 2023, "Flow matching for generative modeling", with sigma_min = 0; Liu et al. 2023, "Flow
    straight and fast" (rectified flow).
    """

    def coefficients(self, t: Tensor) -> Coefficients:
        one = torch.ones_like(t)
        return Coefficients(t, 1 - t, one, -one)

    def time_of(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return alpha / (alpha + sigma)


@register("lipman-ot")
@dataclass(frozen=True)
class LipmanOT(Schedule):
    """The straight line with noise of width sigma_min left at the data, alpha_t = t, sigma_t = 1 - (1 - sigma_min) t.

    Lipman et al. 2023, "Flow matching for generative modeling". sigma_min > 0 gives a score at t = 1.
    """

    width = "sigma_min"
    part_given = ("sigma_min",)

    sigma_min: Share = 1e-4

    def coefficients(self, t: Tensor) -> Coefficients:
        one = torch.ones_like(t)
        return Coefficients(t, (1 - t) + self.sigma_min * t, one, (self.sigma_min - 1) * one)

    def time_of(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (alpha / (sigma + (1 - self.sigma_min) * alpha)).clamp(max=1)


@register("polynomial")
@dataclass(frozen=True)
class Polynomial(Schedule):
    """The straight line, slow near the noise, alpha_t = t^n and sigma_t = 1 - t^n with n >= 1.

    For n > 1 the velocity at t = 0 is 0, and does not determine the data. Lipman et al.
    2024, "Flow matching guide and code".

    Args:
        n: the power of time; 1 is the straight line.
    """

    part_examples = ({}, {"n": 1.0}, {"n": 1.5})

    n: Annotated[float, Meta(ge=1, le=100)] = 2.0

    def coefficients(self, t: Tensor) -> Coefficients:
        alpha, slope = t**self.n, self.n * t ** (self.n - 1)
        return Coefficients(alpha, 1 - alpha, slope, -slope)

    def time_of(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (alpha / (alpha + sigma)) ** (1 / self.n)
