"""Schedules: the coefficients alpha_t and sigma_t of an affine path, with their derivatives in t."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Coefficients(NamedTuple):
    """``alpha, sigma`` and their derivatives ``d_alpha, d_sigma`` at t, each shaped like t."""

    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor
    d_sigma: Tensor


class Schedule(ABC):
    """Coefficients of ``x_t = alpha_t x_1 + sigma_t x_0``, from noise at t = 0 to data at t = 1."""

    @abstractmethod
    def coefficients(self, t: Tensor) -> Coefficients:
        """Values and derivatives at t, each shaped like t, which lies in [0, 1]."""


@dataclass(frozen=True)
class CondOT(Schedule):
    """The straight line, alpha_t = t and sigma_t = 1 - t.

    Lipman et al. 2023, "Flow matching for generative modeling", eq. 20 with sigma_min = 0; Liu et al. 2023,
    "Flow straight and fast" (rectified flow), eq. 1.
    """

    def coefficients(self, t: Tensor) -> Coefficients:
        one = torch.ones_like(t)
        return Coefficients(t, 1 - t, one, -one)
