"""The channels of padded sequences in model units and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.data.transforms import Standardize, Transform, needs_float64


@dataclass(frozen=True)
class SequenceScale(Transform):
    """Standardise each channel of sequences (B, L, C), whose steps after the last real one are NaN in data units.

    Padding is 0 in model units. On the way back a step of zeros cannot be told from one at the mean, so that the
    padding comes back as the mean unless ``inverse`` is told the lengths.

    Args:
        mean: (C,) in data units, over real steps.
        std: (C,) in data units, > 0, over real steps.
        ragged: whether lengths differ.

    Raises:
        UserError: the two differ in length, are empty or not finite, or a deviation is not positive.
    """

    mean: Sequence[float]
    std: Sequence[float]
    ragged: bool = False
    kind: ClassVar[str] = "sequence_scale"

    def __post_init__(self) -> None:
        checked = Standardize(self.mean, self.std)
        object.__setattr__(self, "mean", checked.mean)
        object.__setattr__(self, "std", checked.std)

    @classmethod
    def fit(cls, steps: np.ndarray, *, ragged: bool) -> SequenceScale:
        """The scale that standardises the real steps (S, C) of all sequences."""
        fitted = Standardize.fit(steps)
        return cls(fitted.mean, fitted.std, ragged)

    @cached_property
    def _moments(self) -> Tensor:
        """Mean and deviation, (2, C) float64."""
        return torch.tensor([self.mean, self.std], dtype=torch.float64)

    @cached_property
    def wide(self) -> bool:
        """Whether data units are float64."""
        return needs_float64(self.mean, self.std)

    def forward(self, x: Tensor) -> Tensor:
        mean, std = self._moments.to(x.device)
        return torch.nan_to_num((x.double() - mean) / std, nan=0.0).float()

    def inverse(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Model units (B, L, C) to data units; steps from ``lengths`` (B,) on are 0 where those are given."""
        dtype = torch.float64 if self.wide else torch.float32
        mean, std = self._moments.to(x.device, dtype)
        y = torch.addcmul(mean, x.to(dtype), std)
        if lengths is None:
            return y
        real = torch.arange(x.shape[1], device=x.device) < lengths.to(x.device)[:, None]
        return torch.where(real[..., None], y, 0.0)

    def centred(self, x: Tensor) -> Tensor:
        """Data units (B, L, C) less the mean where they are float64; steps of zeros, which are padding, stay."""
        if not self.wide:
            return x
        return torch.where((x == 0).all(-1, keepdim=True), 0.0, x.double() - self._moments[0].to(x.device))

    def log_det(self, elements: int) -> float:
        """That of a sample of so many elements, all of its steps real.

        Raises:
            UserError: lengths differ, and with them the number of elements that are scaled.
        """
        if self.ragged:
            raise UserError("sequences of different lengths have no common log_det; train on those of one length")
        return -(elements // len(self.std)) * sum(math.log(std) for std in self.std)

    def to_config(self) -> dict[str, Any]:
        return {"kind": self.kind, "mean": list(self.mean), "std": list(self.std), "ragged": self.ragged}
