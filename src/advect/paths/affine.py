"""Affine conditional paths between a source and the data."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from advect.core import random
from advect.core.errors import UserError
from advect.core.random import Generator
from advect.core.shapes import check_pair, expand_right
from advect.core.types import PathPoint
from advect.paths.schedules import CondOT, Schedule


@dataclass(frozen=True)
class AffinePath:
    """``x_t = alpha_t x_1 + sigma_t x_0 + sigma_min eps`` with the velocity ``u_t = alpha_t' x_1 + sigma_t' x_0``.

    ``sigma_min >= 0`` is the standard deviation of an independent Gaussian jitter; its width does not change
    in time, so it leaves u_t as it is (Tong et al. 2024, "Improving and generalizing flow-based generative
    models", eq. 14 and 15, for the straight line).
    """

    schedule: Schedule = field(default_factory=CondOT)
    sigma_min: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.sigma_min < math.inf:
            raise UserError(
                f"AffinePath.sigma_min must be finite and >= 0, got {self.sigma_min}; 0 turns the jitter off"
            )

    def sample(self, x0: Tensor, x1: Tensor, t: Tensor, generator: Generator = None) -> PathPoint:
        """Draw the point x_t (B, *S) of the path from x0 to x1 (B, *S) at t (B,).

        Raises UserError where the shapes or devices of x0, x1 and t do not match.
        """
        check_pair(x0, x1, t)
        alpha, sigma, d_alpha, d_sigma = (expand_right(c, x1) for c in self.schedule.coefficients(t))
        x_t = torch.addcmul(alpha * x1, sigma, x0)
        u_t = torch.addcmul(d_alpha * x1, d_sigma, x0)
        if self.sigma_min > 0:
            x_t = x_t + self.sigma_min * random.normal(x1.shape, generator, device=x1.device, dtype=x1.dtype)
        return PathPoint(x_t=x_t, t=t, u_t=u_t, x0=x0, x1=x1)
