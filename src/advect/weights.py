"""Weights of time in a loss: functions of t (B,) that return w (B,).

They multiply the squared error in the space in which it is taken. In this project's time, data at t = 1:

==================  ===========================  ==========================================================
here                in texts with data at t = 0  what it does
==================  ===========================  ==========================================================
TSquared            (1 - t)^2                    favours the data's end, where details are decided
OneMinusTSquared    t^2                          favours the noise's end, where the layout is decided
InverseSNR          1 / SNR                      sigma^2 / alpha^2, grows towards the noise
MinSNR              min(SNR, gamma)              Hang et al. 2023, eq. 8; for the data, noise or velocity
==================  ===========================  ==========================================================

Uniform weights are the default of every objective (None).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.registry import register

Weight = Callable[[Tensor], Tensor]
"""``w(t (B,)) -> (B,)``; any function of t will do."""


class TimeWeight(ABC):
    """A weight that a run can choose. It may take the ``schedule`` of an affine path and the loss's ``prediction``."""

    part_kind: ClassVar[str] = "weight"
    part_given: ClassVar[tuple[str, ...]] = ("schedule", "prediction")

    @abstractmethod
    def __call__(self, t: Tensor) -> Tensor:
        """w(t) (B,) at t (B,)."""


class HasCoefficients(Protocol):
    """A schedule of ``advect.paths``: ``coefficients(t)`` gives alpha, sigma and their derivatives."""

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...


@register("uniform")
@dataclass(frozen=True)
class Uniform(TimeWeight):
    """1 at every t."""

    def __call__(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@register("t2")
@dataclass(frozen=True)
class TSquared(TimeWeight):
    """t^2: 0 at the noise, 1 at the data."""

    def __call__(self, t: Tensor) -> Tensor:
        return t.square()


@register("one-minus-t2")
@dataclass(frozen=True)
class OneMinusTSquared(TimeWeight):
    """(1 - t)^2: 1 at the noise, 0 at the data."""

    def __call__(self, t: Tensor) -> Tensor:
        return (1 - t).square()


@register("inverse-snr")
@dataclass(frozen=True)
class InverseSNR(TimeWeight):
    """``1 / SNR(t) = sigma^2 / alpha^2``, at most ``limit``, which it reaches towards the noise, where SNR = 0.

    Args:
        limit: largest weight.
    """

    schedule: HasCoefficients
    limit: float = 1e3

    def __post_init__(self) -> None:
        _check_above_zero("InverseSNR.limit", self.limit)

    def __call__(self, t: Tensor) -> Tensor:
        alpha, sigma, _, _ = self.schedule.coefficients(t)
        return torch.where(alpha > 0, (sigma / alpha).square(), self.limit).clamp(max=self.limit)


@register("min-snr")
@dataclass(frozen=True)
class MinSNR(TimeWeight):
    """``min(SNR, gamma)`` on the error of the data, told in the space of ``prediction`` (Hang et al. 2023, eq. 8).

    With SNR = alpha^2 / sigma^2 an error of the noise is SNR times, and one of the velocity
    ((alpha' sigma - alpha sigma') / sigma)^2 times that of the data, so their weights are ``min(SNR, gamma) / SNR =
    min(1, gamma / SNR)`` and ``min(alpha^2, gamma sigma^2) / (alpha' sigma - alpha sigma')^2``: all finite.

    Args:
        gamma: the signal-to-noise ratio at which it is clipped.
    """

    schedule: HasCoefficients
    gamma: float = 5.0
    prediction: Literal["data", "noise", "velocity"] = "velocity"

    def __post_init__(self) -> None:
        _check_above_zero("MinSNR.gamma", self.gamma)
        if self.prediction not in ("data", "noise", "velocity"):
            raise UserError(f"MinSNR needs a loss of data, noise or velocity, got {self.prediction!r}")

    def __call__(self, t: Tensor) -> Tensor:
        alpha, sigma, d_alpha, d_sigma = self.schedule.coefficients(t)
        signal, noise = alpha.square(), sigma.square()
        if self.prediction == "data":
            return torch.where(noise > 0, signal / noise, math.inf).clamp(max=self.gamma)
        if self.prediction == "noise":
            return torch.where(signal > 0, self.gamma * noise / signal, math.inf).clamp(max=1.0)
        least = torch.minimum(signal, self.gamma * noise)
        # Where a path stands still at an end both are 0, and so is the limit.
        return torch.where(least > 0, least / (d_alpha * sigma - alpha * d_sigma).square(), 0.0)


def _check_above_zero(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise UserError(f"{name} must be finite and > 0, got {value}; the default is usual")
