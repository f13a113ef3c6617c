"""Variance-preserving schedules: alpha_t^2 + sigma_t^2 = 1."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal, get_args

import torch
from msgspec import Meta
from torch import Tensor

from advect.core.errors import UserError, did_you_mean
from advect.core.registry import register
from advect.paths.schedules import Coefficients, Schedule

_ROUNDING = 1e-15


Level = Literal["linear", "quadratic", "cosine"]

LEVELS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda t: 1 - t,
    "quadratic": lambda t: 1 - t.square(),
    "cosine": lambda t: torch.cos(math.pi / 2 * t),
}


_SLOPES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "linear": (lambda t: -torch.ones_like(t), torch.zeros_like),
    "quadratic": (lambda t: -2 * t, lambda t: -2 * torch.ones_like(t)),
    "cosine": (
        lambda t: -math.pi / 2 * torch.sin(math.pi / 2 * t),
        lambda t: -((math.pi / 2) ** 2) * torch.cos(math.pi / 2 * t),
    ),
}
"""First and second derivatives of the levels, for graphs, which take none of their own."""


def _slope(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Derivative of an elementwise function; itself differentiable."""

    def slope(t: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            at = t if t.requires_grad else t.clone().requires_grad_()
            value = f(at).sum()
            if not value.requires_grad:
                return torch.zeros_like(t)
            found = torch.autograd.grad(value, at, create_graph=True)[0]
        return found if t.requires_grad else found.detach()

    return slope


@register("vp")
@dataclass(frozen=True, repr=False)
class VariancePreserving(Schedule):
    """A path of unit variance by a noise level s(t) from 1 to 0, sigma_t = s(t) and alpha_t = sqrt(1 - s(t)^2).

    A function s is elementwise in PyTorch, and differentiated in float64. Where s = 1 (t = 0),
    ``d_alpha = -s s' / alpha`` is infinite unless s' = 0: with the default, linear s the velocity's mean square over t
    diverges, and times must stay off 0. Where s' = 0, d_alpha is its limit sqrt(-s'').

    Lipman et al. 2023, "Flow matching for generative modeling".

    Args:
        sigma: the noise level s: 1 - t, 1 - t^2 or cos(pi t / 2), the last two with a finite velocity at t = 0; or any
            function, in Python.
    """

    sigma: Level | Callable[[Tensor], Tensor] = "linear"

    @cached_property
    def _level(self) -> Callable[[Tensor], Tensor]:
        return LEVELS[self.sigma] if isinstance(self.sigma, str) else self.sigma

    def __post_init__(self) -> None:
        if isinstance(self.sigma, str) and self.sigma not in get_args(Level):
            fix = did_you_mean(self.sigma, get_args(Level))
            raise UserError(f"VariancePreserving.sigma {self.sigma!r} is not known{fix}")
        t = torch.linspace(0, 1, 101, dtype=torch.float64)
        s = self._level(t)
        if not isinstance(s, Tensor) or s.shape != t.shape:
            raise UserError("VariancePreserving.sigma must return one noise level a time, a tensor shaped like t")
        if not ((s > -_ROUNDING) & (s < 1 + _ROUNDING)).all() or not (s.diff() < 0).all() or s[-1] > _ROUNDING:
            raise UserError(
                f"VariancePreserving.sigma must fall from at most 1 at t = 0 to 0 at t = 1, got {s[0]:.4g} at 0, "
                f"{s[50]:.4g} at 0.5 and {s[100]:.4g} at 1; the linear one is 1 - t"
            )

    def __repr__(self) -> str:
        name = (
            self.sigma if isinstance(self.sigma, str) else getattr(self.sigma, "__name__", type(self.sigma).__name__)
        )
        return f"VariancePreserving(sigma={name})"

    def coefficients(self, t: Tensor) -> Coefficients:
        u = t.double()  # 1 - s keeps its digits where s is near 1
        exporting = torch.compiler.is_exporting() and isinstance(self.sigma, str)
        first = _SLOPES[str(self.sigma)][0] if exporting else _slope(self._level)
        (alpha, s), ds = self._values(u), first(u)
        d_alpha = -s * ds / alpha
        flat = (alpha == 0) & (ds.abs() < 1e-6)
        if exporting:
            d_alpha = torch.where(flat, (-_SLOPES[str(self.sigma)][1](u)).sqrt(), d_alpha)
        elif flat.any():
            d_alpha = torch.where(flat, (-_slope(_slope(self._level))(u)).sqrt(), d_alpha)
        return Coefficients(*(c.to(t.dtype) for c in (alpha, s, d_alpha, ds)))

    def time_of(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        if self.sigma != "linear":
            return super().time_of(alpha, sigma)
        norm = torch.hypot(alpha, sigma)
        return alpha.square() / (norm * (norm + sigma))

    def _values(self, t: Tensor) -> tuple[Tensor, Tensor]:
        s = self._level(t).clamp(max=1)
        s = torch.where((t == 1) & (s < _ROUNDING), 0, s)  # cos(pi / 2) comes out as 6e-17
        return ((1 - s) * (1 + s)).sqrt(), s


@register("trigonometric")
@dataclass(frozen=True)
class Trigonometric(Schedule):
    """A quarter circle from noise to data at constant speed, alpha_t = sin(pi t / 2) and sigma_t = cos(pi t / 2).

    Albergo & Vanden-Eijnden 2023, "Building normalizing flows with stochastic interpolants"; "GVP" in Ma et al. 2024,
    "SiT".
    """

    def coefficients(self, t: Tensor) -> Coefficients:
        w = math.pi / 2
        alpha, sigma = torch.sin(w * t), torch.sin(w * (1 - t))  # the sine is exactly 0 at t = 1, the cosine is not
        return Coefficients(alpha, sigma, w * sigma, -w * alpha)

    def time_of(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return torch.atan2(alpha, sigma) * (2 / math.pi)


@register("cosine")
@dataclass(frozen=True)
class Cosine(Schedule):
    """The cosine schedule of diffusion models, ``alpha_t = sin(w t) / sin(w)`` with ``w = pi / (2 (1 + offset))``.

    ``alpha_t^2 = f(1 - t) / f(0)`` with ``f(u) = cos^2((u + offset) / (1 + offset) pi / 2)``; Trigonometric as
    offset -> 0. Finite at t = 0, without the paper's cap on beta; d_sigma is -inf at t = 1. Nichol & Dhariwal 2021,
    "Improved denoising diffusion probabilistic models".

    Args:
        offset: distance from Trigonometric.
    """

    offset: Annotated[float, Meta(gt=0, le=1000)] = 0.008

    def coefficients(self, t: Tensor) -> Coefficients:
        w = math.pi / (2 * (1 + self.offset))
        alpha = torch.sin(w * t) / math.sin(w)
        sigma = (torch.sin(w * (1 - t)) * torch.sin(w * (1 + t))).sqrt() / math.sin(w)  # sin^2 w - sin^2 wt
        d_alpha = w * torch.cos(w * t) / math.sin(w)
        return Coefficients(alpha, sigma, d_alpha, -alpha * d_alpha / sigma)

    def time_of(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        w = math.pi / (2 * (1 + self.offset))
        return torch.atan2(math.sin(w) * alpha, torch.hypot(sigma, math.cos(w) * alpha)).clamp(max=w) / w


@register("ddpm")
@dataclass(frozen=True)
class BetaLinear(Schedule):
    """DDPM's schedule: at ``u = 1 - t`` noise is added at rate ``beta_min + u (beta_max - beta_min)``, linear in u.

    With ``B = beta_min u + (beta_max - beta_min) u^2 / 2``, ``alpha_t = exp(-B / 2)`` and ``sigma_t
    = sqrt(1 - exp(-B))``. ``alpha_0 = exp(-(beta_min + beta_max) / 4)``, 0.0066 by default, is not 0; d_sigma is -inf
    at t = 1.

    Ho et al. 2020, "Denoising diffusion probabilistic models", section 4; Song et al. 2021, "Score-based generative
    modeling through stochastic differential equations".

    Args:
        beta_min: rate at the data.
        beta_max: rate at the noise.
    """

    beta_min: Annotated[float, Meta(gt=0, le=1000)] = 0.1
    beta_max: Annotated[float, Meta(gt=0, le=1000)] = 20.0

    def __post_init__(self) -> None:
        if not self.beta_min <= self.beta_max:
            raise UserError(
                f"BetaLinear needs 0 < beta_min <= beta_max, got {self.beta_min} and {self.beta_max}; "
                "0.1 and 20 are usual"
            )

    def coefficients(self, t: Tensor) -> Coefficients:
        u, rise = 1 - t, self.beta_max - self.beta_min
        beta, area = self.beta_min + rise * u, (self.beta_min + rise / 2 * u) * u
        alpha, sigma = torch.exp(-area / 2), torch.sqrt(-torch.expm1(-area))
        return Coefficients(alpha, sigma, beta * alpha / 2, -beta * alpha.square() / (2 * sigma))

    def time_of(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        rise = self.beta_max - self.beta_min
        area = torch.log1p((sigma / alpha).square()).clamp(max=self.beta_min + rise / 2)  # no further than t = 0
        return 1 - 2 * area / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * rise * area))
