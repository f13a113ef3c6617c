"""A path's coefficients at the times of a grid, and what a velocity implies there.

A solver's times are known before it starts and are the same for the whole batch, so that its conversions are linear
combinations of two states, with weights that are plain numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.paths import Schedule


@dataclass(frozen=True)
class GridCoefficients:
    """``alpha, sigma, d_alpha, d_sigma``, each (n + 1,) float64 on the CPU, at the n + 1 times of a grid.

    ``x = alpha x_1 + sigma x_0`` and ``u = alpha' x_1 + sigma' x_0`` are solved for data and noise, over the
    ``determinant`` alpha' sigma - sigma' alpha.
    """

    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor
    d_sigma: Tensor
    determinant: Tensor

    def data(self) -> tuple[Tensor, Tensor]:
        """The weights (n + 1,) of x and of u in E[x_1 | x] = (sigma u - sigma' x) / determinant."""
        return -self.d_sigma / self.determinant, self.sigma / self.determinant

    def noise(self) -> tuple[Tensor, Tensor]:
        """The weights (n + 1,) of x and of u in E[x_0 | x] = (alpha' x - alpha u) / determinant."""
        return self.d_alpha / self.determinant, -self.alpha / self.determinant


def coefficients_on(schedule: Schedule, grid: Sequence[float]) -> GridCoefficients:
    """The coefficients at the times of ``grid``.

    Raises UserError at a time at which the velocity does not tell data from noise (determinant 0) or a coefficient is
    not finite; the last time is let pass, since solvers mostly do not convert there.
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
