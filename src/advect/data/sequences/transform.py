"""Standardisation of padded sequences."""

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
from advect.data.transforms import Standardize, Transform


@dataclass(frozen=True)
class SequenceScale(Transform):
    """Standardise each channel of sequences (B, L, C); padding is NaN in data units, 0 in model units.

    The inverse cannot tell padding from steps at the mean: without lengths it returns the mean there.

    Args:
        mean: (C,) in data units, over real steps.
        std: (C,) in data units, > 0, over real steps.
        ragged: whether lengths differ.
        constant: constant channels, as of :class:`Standardize`.

    Raises:
        UserError: lengths of mean and std differ or are 0, a value is not finite, or a deviation not positive.
    """

    mean: Sequence[float]
    std: Sequence[float]
    ragged: bool = False
    constant: Sequence[int] = ()
    kind: ClassVar[str] = "sequence_scale"

    def __post_init__(self) -> None:
        for name in ("mean", "std", "constant"):
            object.__setattr__(self, name, getattr(self._channels, name))

    @classmethod
    def fit(cls, steps: np.ndarray, others: np.ndarray | None = None, *, ragged: bool) -> SequenceScale:
        """Fit to the real steps (S, C) of all sequences; constant channels are so in ``others`` (T, C) too."""
        fitted = Standardize.fit(steps, others)
        return cls(fitted.mean, fitted.std, ragged, fitted.constant)

    @cached_property
    def _channels(self) -> Standardize:
        return Standardize(self.mean, self.std, self.constant)

    @cached_property
    def _moments(self) -> Tensor:
        """Mean and deviation, (2, C) float64."""
        return torch.tensor([self.mean, self.std], dtype=torch.float64)

    @cached_property
    def wide(self) -> bool:
        """Whether data units are float64."""
        return self._channels.wide

    def forward(self, x: Tensor) -> Tensor:
        mean, std = self._moments.to(x.device)
        return torch.nan_to_num((x.double() - mean) / std, nan=0.0).float()

    def inverse(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Model units (B, L, C) to data units; steps from ``lengths`` (B,) on are 0 if given."""
        y = self._channels.inverse(x)
        if lengths is None:
            return y
        real = torch.arange(x.shape[1], device=x.device) < lengths.to(x.device)[:, None]
        return torch.where(real[..., None], y, 0.0)

    def centred(self, x: Tensor) -> Tensor:
        """Data units (B, L, C), less the mean if float64; steps of zeros (padding) stay."""
        if not self.wide:
            return x
        return torch.where((x == 0).all(-1, keepdim=True), 0.0, x.double() - self._moments[0].to(x.device))

    @property
    def unit(self) -> float:
        return self._channels.unit

    def log_det(self, elements: int) -> float:
        """log |det d forward / dx| of a sample of ``elements`` elements, all steps real.

        Raises:
            UserError: lengths differ.
        """
        if self.ragged:
            raise UserError("sequences of different lengths have no common log_det; train on those of one length")
        return -(elements // len(self.std)) * sum(math.log(std) for std in self.std)

    def to_config(self) -> dict[str, Any]:
        return {**self._channels.to_config(), "kind": self.kind, "ragged": self.ragged}
