"""Time weights of a loss: w (B,) at t (B,), multiplying the squared error.

TSquared favours the data (t = 1), (1 - t)^2 in texts with the data at 0; OneMinusTSquared the noise. Losses default to
None, uniform.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, get_args

import torch
from torch import Tensor

from advect.core.bounds import Positive
from advect.core.errors import UserError, did_you_mean
from advect.core.registry import register

Weight = Callable[[Tensor], Tensor]
"""``w(t (B,)) -> (B,)``, any function of t."""


class TimeWeight(ABC):
    """Configurable weight; may take an affine path's ``schedule`` and the loss's ``prediction``."""

    part_kind: ClassVar[str] = "weight"
    part_given: ClassVar[tuple[str, ...]] = ("schedule", "prediction")

    @abstractmethod
    def __call__(self, t: Tensor) -> Tensor:
        """w(t) (B,) at t (B,)."""


class HasCoefficients(Protocol):
    """Schedule whose ``coefficients(t)`` gives alpha, sigma and their derivatives."""

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


Prediction = Literal["data", "noise", "velocity", "score"]


@dataclass(frozen=True)
class SNRWeight(TimeWeight):
    """Function of SNR = alpha^2 / sigma^2 on the squared error of one prediction, for a loss of any other.

    A data error d equals a noise error alpha / sigma d, a velocity error (alpha' sigma - alpha sigma') / sigma d and a
    score error alpha / sigma^2 d. t is clamped to [1e-6, 1 - 1e-6], so weights are finite.

    Args:
        of: prediction whose error is weighted; "loss" is that of the loss itself.
    """

    schedule: HasCoefficients
    prediction: Prediction = "velocity"
    of: Literal["loss", "data", "noise", "velocity", "score"] = "loss"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("prediction", self.prediction, get_args(Prediction)),
            ("of", self.of, ("loss", *get_args(Prediction))),
        ):
            if value not in known:
                raise UserError(f"{type(self).__name__}.{name} {value!r} is not known{did_you_mean(value, known)}")

    @abstractmethod
    def of_snr(self, snr: Tensor) -> Tensor:
        """Weight (B,) at signal-to-noise ratios (B,)."""

    def __call__(self, t: Tensor) -> Tensor:
        alpha, sigma, d_alpha, d_sigma = self.schedule.coefficients(t.double().clamp(1e-6, 1 - 1e-6))
        data = torch.ones_like(alpha)
        errors = {
            "data": data,
            "noise": alpha / sigma,
            "velocity": (d_alpha * sigma - alpha * d_sigma) / sigma,
            "score": alpha / sigma.square(),
        }
        of = self.prediction if self.of == "loss" else self.of
        weight = self.of_snr((alpha / sigma).square())
        weight = weight * (errors[of] / errors[self.prediction]).square()
        return weight.clamp(max=torch.finfo(t.dtype).max).to(t.dtype)


@register("inverse-snr")
@dataclass(frozen=True)
class InverseSNR(SNRWeight):
    """``1 / SNR``, by default on the noise error, which makes the data error uniform.

    With ``of="loss"`` it grows towards the noise, up to ``limit``.

    Args:
        limit: largest 1 / SNR.
    """

    prediction: Prediction = "noise"
    of: Literal["loss", "data", "noise", "velocity", "score"] = "noise"
    limit: Positive = 1e3

    def of_snr(self, snr: Tensor) -> Tensor:
        return (1 / snr).clamp(max=self.limit)


@register("min-snr")
@dataclass(frozen=True)
class MinSNR(SNRWeight):
    """``min(SNR, gamma)``, by default on the loss itself.

    Hang et al. 2023, "Efficient diffusion training via min-SNR weighting strategy", weight the data error
    (``of="data"``), equal to ``min(1, gamma / SNR)`` on the noise error.

    Args:
        gamma: largest weight.
    """

    gamma: Positive = 5.0

    def of_snr(self, snr: Tensor) -> Tensor:
        return snr.clamp(max=self.gamma)
