"""Brownian bridge between pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from advect.core import random
from advect.core.bounds import Positive
from advect.core.random import Generator
from advect.core.registry import register
from advect.core.types import PathSample
from advect.paths.base import InterpolantCoefficients, Path, align, check_ends, check_point, require_x0
from advect.paths.convert import refuse


@register("bridge")
@dataclass(frozen=True)
class BrownianBridge(Path):
    """A Brownian bridge of width sigma between x0 and x1, ``N((1 - t) x0 + t x1, sigma^2 t (1 - t))``.

    With mean ``m_t = (1 - t) x0 + t x1`` and width ``w_t = sigma sqrt(t (1 - t))``, sigma > 0,
    ``u_t(x | x0, x1) = x1 - x0 + (1 - 2 t) / (2 t (1 - t)) (x - m_t)`` and ``score = (m_t - x) / w_t^2``, for any
    source. ``dX = (u_t + sigma^2 / 2 score) dt + sigma dW``, with a learned score, is the Schrödinger bridge for pairs
    of entropic transport of ``|x0 - x1|^2`` with regularisation 2 sigma^2, and for no others.

    At t = 0 and 1 the velocity is its mean x1 - x0, and the score raises UserError. Near the ends the velocity grows
    like 1 / sqrt(t), and its mean square over t diverges: keep times off both ends.

    Tong et al. 2024, "Improving and generalizing flow-based generative models", on SB-CFM; Tong et al. 2024,
    "Simulation-free Schrödinger bridges via score and flow matching".
    """

    width = "sigma"
    part_given = ("sigma",)
    part_examples = ({"sigma": 0.5},)

    sigma: Positive

    def sample(self, x0: Tensor, x1: Tensor, t: Tensor, generator: Generator = None) -> PathSample:
        check_ends(x0, x1, t)
        eps = random.normal(x1.shape, generator, device=x1.device, dtype=x1.dtype)
        width = self.sigma * (t * (1 - t)).sqrt()
        deviation = align(width, x1) * eps
        return PathSample(
            x_t=torch.lerp(x0, x1, align(t, x1)) + deviation,
            t=t,
            u_t=x1 - x0 + align(_growth(t), x1) * deviation,
            x0=x0,
            x1=x1,
        )

    def conditional_velocity(self, x: Tensor, t: Tensor, *, x1: Tensor, x0: Tensor | None = None) -> Tensor:
        """x1 - x0 + (1 - 2 t) / (2 t (1 - t)) (x - m_t), and x1 - x0 at both ends."""
        x0 = require_x0(x0, "BrownianBridge")
        check_point(x, t, x1, x0)
        return x1 - x0 + align(_growth(t), x) * (x - torch.lerp(x0, x1, align(t, x)))

    def conditional_score(self, x: Tensor, t: Tensor, *, x1: Tensor, x0: Tensor | None = None) -> Tensor:
        """(m_t - x) / (sigma^2 t (1 - t)). Raises UserError at t = 0 and t = 1."""
        x0 = require_x0(x0, "BrownianBridge")
        check_point(x, t, x1, x0)
        room = t * (1 - t)
        refuse(
            room == 0,
            "a BrownianBridge has no score at t = 0 and t = 1, where its width is 0; stay 0.001 inside",
        )
        return (torch.lerp(x0, x1, align(t, x)) - x) / align(self.sigma**2 * room, x)

    def interpolant(self, t: Tensor) -> InterpolantCoefficients:
        """x1, x0 and the bridge's own noise, the derivative of whose width is infinite at both ends."""
        one, width = torch.ones_like(t), self.sigma * (t * (1 - t)).sqrt()
        return InterpolantCoefficients(t, 1 - t, width, one, -one, self.sigma**2 * (1 - 2 * t) / (2 * width))


def _growth(t: Tensor) -> Tensor:
    """w' / w = (1 - 2 t) / (2 t (1 - t)), and 0 where w = 0."""
    room = t * (1 - t)
    return torch.where(room > 0, (1 - 2 * t) / (2 * room), 0)
