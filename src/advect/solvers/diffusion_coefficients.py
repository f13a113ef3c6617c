"""Diffusion coefficients g(t) >= 0 for SDE sampling.

All keep the flow's marginals; they differ in how fast paths forget their start and in the error per step.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from advect.core.bounds import DiffusionScale
from advect.core.errors import UserError
from advect.core.registry import get, register
from advect.paths import Schedule

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DiffusionCoefficient(ABC):
    """g(t) = ``scale`` times a shape.

    Args:
        scale: factor.
    """

    part_kind: ClassVar[str] = "diffusion"

    scale: DiffusionScale = 1.0

    @abstractmethod
    def shape(self, t: Tensor, schedule: Schedule) -> Tensor:
        """Shape (n,) >= 0 at t (n,) for a path's schedule."""


Diffusion = float | str | DiffusionCoefficient | Callable[[Tensor], Tensor]
"""A number, a registered coefficient or its name, or ``g(t (n,)) -> (n,)``."""


@register("constant")
@dataclass(frozen=True)
class ConstantDiffusion(DiffusionCoefficient):
    """g = scale."""

    def shape(self, t: Tensor, schedule: Schedule) -> Tensor:
        return torch.ones_like(t)


@register("sigma")
@dataclass(frozen=True)
class SigmaDiffusion(DiffusionCoefficient):
    """g = scale sigma_t; g and g^2 times the score vanish at the data."""

    def shape(self, t: Tensor, schedule: Schedule) -> Tensor:
        return schedule.coefficients(t).sigma


@register("decreasing")
@dataclass(frozen=True)
class DecreasingDiffusion(DiffusionCoefficient):
    """g = scale (1 + cos(pi t)) / 2, largest at the noise, 0 at the data (Ma et al. 2024, "SiT")."""

    def shape(self, t: Tensor, schedule: Schedule) -> Tensor:
        return (1 + torch.cos(math.pi * t)) / 2


@register("increasing-decreasing")
@dataclass(frozen=True)
class IncreasingDecreasingDiffusion(DiffusionCoefficient):
    """g = scale sin(pi t), largest in the middle, 0 at both ends (Ma et al. 2024, "SiT")."""

    def shape(self, t: Tensor, schedule: Schedule) -> Tensor:
        return torch.sin(math.pi * t)


@register("ddpm")
@dataclass(frozen=True)
class DDPMDiffusion(DiffusionCoefficient):
    """g^2 = scale^2 (20 - 19.9 t), DDPM's beta in continuous time.

    Song et al. 2021, appendix C, with 0.1 and 20; with the variance-preserving schedule of that beta it gives their
    reverse-time equation.
    """

    def shape(self, t: Tensor, schedule: Schedule) -> Tensor:
        return torch.sqrt(20 - 19.9 * t)


def diffusion_on(diffusion: Diffusion, schedule: Schedule, grid: Sequence[float]) -> list[float]:
    """Values of g on ``grid``.

    Raises UserError for an unknown name or g negative, not finite, or not one number per time.
    """
    t = torch.tensor(list(grid), dtype=torch.float64)
    if isinstance(diffusion, str):
        diffusion = get("diffusion", diffusion)()
    if isinstance(diffusion, DiffusionCoefficient):
        g = diffusion.scale * diffusion.shape(t, schedule)
    else:
        g = diffusion(t) if callable(diffusion) else torch.full_like(t, float(diffusion))  # pyright: ignore
    if g.shape != t.shape:
        raise UserError(f"diffusion must give one number a time, {tuple(t.shape)}, got {tuple(g.shape)}")
    values = g.detach().double().cpu().tolist()
    for time, value in zip(grid, values, strict=True):
        if not 0 <= value < math.inf:
            raise UserError(f"the diffusion g must be finite and >= 0, got {value} at t = {time:.4g}")
    return values


# Gauss-Legendre nodes and weights of a step of width 1.
_NODES, _WEIGHTS = (torch.from_numpy(v) / 2 for v in np.polynomial.legendre.leggauss(6))


def relaxation(diffusion: Diffusion, schedule: Schedule, grid: Sequence[float]) -> list[float]:
    """``int g^2 / (2 sigma^2) dt`` >= 0 over each step of ``grid``: how far the SDE renews the noise in it.

    Infinite where g does not vanish with sigma at an end of the step. Raises UserError as :func:`diffusion_on` does.
    """
    times = torch.tensor(list(grid), dtype=torch.float64)
    widths = times.diff()
    inside = times[:-1, None] + widths[:, None] * (_NODES + 0.5)
    g = torch.tensor(diffusion_on(diffusion, schedule, inside.flatten().tolist()), dtype=torch.float64)
    at_grid = torch.tensor(diffusion_on(diffusion, schedule, grid), dtype=torch.float64)
    sigma = schedule.coefficients(inside.flatten()).sigma
    rates = (g / sigma).square().view_as(inside) @ _WEIGHTS * widths.abs() / 2
    ends = (at_grid > 0) & (schedule.coefficients(times).sigma == 0)
    return torch.where(ends[:-1] | ends[1:], math.inf, rates).tolist()


BOUND = 1.0
"""The largest g^2 / (2 sigma) with a learned score."""


def bounded_diffusion(diffusion: Diffusion, schedule: Schedule) -> Diffusion:
    """``min(g, sqrt(2 BOUND sigma_t))``, which has the same marginals, for a learned velocity; logs where it is lower.

    The drift g^2/2 score is ``g^2 / (2 sigma)`` times the predicted noise, so that where g does not vanish with sigma
    it multiplies the errors of a network without bound.
    """

    def lowered(t: Tensor) -> Tensor:
        g = torch.tensor(diffusion_on(diffusion, schedule, t.tolist()), dtype=torch.float64)
        return torch.minimum(g, (2 * BOUND * schedule.coefficients(t.double()).sigma).sqrt())

    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    g = torch.tensor(diffusion_on(diffusion, schedule, t.tolist()), dtype=torch.float64)
    where = (g > lowered(t) + 1e-9).nonzero()
    if not len(where):
        return diffusion
    _warn(
        f"diffusion {diffusion} is lowered to sqrt({2 * BOUND:g} sigma_t) where it is larger, from t = "
        f"{t[where[0, 0]].item():.3g} on: the same law, but errors of the network are not multiplied"
    )
    return lowered


@cache
def _warn(message: str) -> None:
    """Log a warning once, though every batch of an evaluation comes by."""
    logger.warning(message)
