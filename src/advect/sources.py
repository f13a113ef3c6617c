"""Source distributions: where a flow starts, at t = 0."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from advect.core import random
from advect.core.random import Generator


class SourceDistribution(ABC):
    """A distribution that samples x0 of any shape (B, *S)."""

    @abstractmethod
    def sample(
        self,
        shape: Sequence[int],
        generator: Generator = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Draw x0 of ``shape`` (B, *S)."""

    def sample_like(self, x1: Tensor, generator: Generator = None) -> Tensor:
        """Draw x0 with the shape, device and dtype of x1 (B, *S)."""
        return self.sample(x1.shape, generator, device=x1.device, dtype=x1.dtype)


@dataclass(frozen=True)
class Gaussian(SourceDistribution):
    """The standard Gaussian N(0, I)."""

    def sample(
        self,
        shape: Sequence[int],
        generator: Generator = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        return random.normal(shape, generator, device=device, dtype=dtype)
