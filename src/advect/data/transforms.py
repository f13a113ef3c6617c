"""Between data units, which a user reads, and model units, which a network sees; both ways.

A transform is fixed once the data is known and is stored as a small JSON object, with tensors beside it where it has
large ones, so that samples of a trained model come back in the data's own units.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from advect.core.errors import UserError, did_you_mean

_KINDS: dict[str, type[Transform]] = {}
"""Each transform by the name that its configuration has."""


class Transform(ABC):
    """A map between data units and model units, float32 in both directions, on the device of its argument."""

    kind: ClassVar[str]

    def __init_subclass__(cls) -> None:
        _KINDS[cls.kind] = cls

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Data units (B, *S), of any real type, to model units (B, *S), float32."""

    @abstractmethod
    def inverse(self, x: Tensor) -> Tensor:
        """Model units (B, *S) to data units (B, *S), float32."""

    @abstractmethod
    def log_det(self, elements: int) -> float:
        """log |det d forward / dx| of a sample with so many elements: what a log-density gains on the way to model
        units. It is a constant for all of these transforms; the clamping and rounding of the way back are left out.
        """

    @abstractmethod
    def to_config(self) -> dict[str, Any]:
        """A JSON object from which :func:`transform_from_config` builds an equal transform, to the last bit."""

    def tensors(self) -> dict[str, Tensor]:
        """What is too large for JSON, by name; :func:`transform_from_config` takes it beside the configuration."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any], tensors: Mapping[str, Tensor]) -> Transform:
        """Build the transform of :meth:`to_config`, less its kind, and :meth:`tensors`. Raises TypeError if unfit."""
        return cls(**config, **tensors)


@dataclass(frozen=True)
class Identity(Transform):
    """Data units are model units."""

    kind: ClassVar[str] = "identity"

    def forward(self, x: Tensor) -> Tensor:
        return x.to(torch.float32)

    def inverse(self, x: Tensor) -> Tensor:
        return x.to(torch.float32)

    def log_det(self, elements: int) -> float:
        return 0.0

    def to_config(self) -> dict[str, Any]:
        return {"kind": self.kind}


@dataclass(frozen=True)
class PixelScale(Transform):
    """Map the range [low, high] to [-1, 1] linearly; the way back ends inside the range.

    Args:
        low: the smallest value of the data, black.
        high: the largest value of the data, white.
        integer: whether the data is whole numbers, to which the way back then rounds.

    Raises:
        UserError: low and high are not finite numbers with low < high.
    """

    low: float
    high: float
    integer: bool = False
    kind: ClassVar[str] = "pixel_scale"

    def __post_init__(self) -> None:
        object.__setattr__(self, "low", float(self.low))
        object.__setattr__(self, "high", float(self.high))
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise UserError(
                f"the pixel range needs finite low < high, got [{self.low}, {self.high}];"
                " for 8-bit images give [0, 255]"
            )

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(torch.float32) - self.low).mul_(2 / (self.high - self.low)).sub_(1)

    def inverse(self, x: Tensor) -> Tensor:
        y = (x.to(torch.float32) + 1).mul_((self.high - self.low) / 2).add_(self.low)
        if self.integer:
            y = y.round_()
        return y.clamp_(self.low, self.high)

    def log_det(self, elements: int) -> float:
        return elements * math.log(2 / (self.high - self.low))

    def to_config(self) -> dict[str, Any]:
        return {"kind": self.kind, "low": self.low, "high": self.high, "integer": self.integer}


@dataclass(frozen=True)
class Standardize(Transform):
    """Subtract the mean and divide by the standard deviation, for each feature of x (B, D) by itself.

    Args:
        mean: (D,) in data units.
        std: (D,) in data units, > 0.

    Raises:
        UserError: the two differ in length, are empty or not finite, or a deviation is not positive.
    """

    mean: Sequence[float]
    std: Sequence[float]
    kind: ClassVar[str] = "standardize"

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(float(v) for v in self.mean))
        object.__setattr__(self, "std", tuple(float(v) for v in self.std))
        if not self.mean or len(self.mean) != len(self.std):
            raise UserError(
                f"mean and std need one number a feature each, got {len(self.mean)} and {len(self.std)} numbers"
            )
        for feature, (mean, std) in enumerate(zip(self.mean, self.std, strict=True)):
            if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
                raise UserError(
                    f"feature {feature} has mean {mean} and std {std};"
                    " give finite numbers, std > 0 (1 if it is constant)"
                )

    @classmethod
    def fit(cls, x: np.ndarray) -> Standardize:
        """The transform that standardises x (N, D): its mean and its deviation + 1e-8, or 1 where x is constant.

        A deviation near 0 would throw the first other value of a constant feature to 1e8 model units.
        """
        mean = x.mean(0, dtype=np.float64)
        # In blocks: the deviations of a whole table in float64 can be more than fits into memory.
        square = sum((((x[i : i + 4096] - mean) ** 2).sum(0) for i in range(0, len(x), 4096)), np.zeros_like(mean))
        std = np.where(x.min(0) == x.max(0), 1.0, np.sqrt(square / len(x)) + 1e-8)
        return cls(mean.tolist(), std.tolist())

    @cached_property
    def _moments(self) -> Tensor:
        """Mean and deviation, (2, D) float64."""
        return torch.tensor([self.mean, self.std], dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        mean, std = self._moments.to(x.device, dtype)
        return (x.to(dtype) - mean).div_(std).to(torch.float32)

    def inverse(self, x: Tensor) -> Tensor:
        mean, std = self._moments.to(x.device, torch.float32)
        return torch.addcmul(mean, x.to(torch.float32), std)

    def log_det(self, elements: int) -> float:
        return -sum(math.log(std) for std in self.std)

    def to_config(self) -> dict[str, Any]:
        return {"kind": self.kind, "mean": list(self.mean), "std": list(self.std)}


def transform_from_config(config: dict[str, Any], tensors: Mapping[str, Tensor] | None = None) -> Transform:
    """Build the transform that ``to_config`` and ``tensors`` described.

    Raises:
        UserError: the kind is unknown, or an entry or a tensor is missing or does not belong there.
    """
    entries = dict(config)
    kind = entries.pop("kind", None)
    if kind not in _KINDS:
        raise UserError(f"unknown transform kind {kind!r}{did_you_mean(str(kind), _KINDS)}")
    try:
        return _KINDS[kind].from_config(entries, tensors or {})
    except (TypeError, KeyError) as error:
        given = sorted([*entries, *(tensors or {})])
        raise UserError(f"the entries of a {kind!r} transform do not fit: {error}; got {given}") from error
