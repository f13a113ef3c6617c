"""The learning rate as a function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from advect.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class LearningRate:
    """Linear warm-up over ``warmup`` steps to ``peak``, then constant, or a half cosine to 0 at step ``total``."""

    peak: float
    warmup: int
    total: int
    shape: Literal["constant", "cosine"] = "constant"

    def __post_init__(self) -> None:
        if self.shape not in ("constant", "cosine"):
            raise UserError(f"LearningRate.shape must be 'constant' or 'cosine', got {self.shape!r}")
        if not self.peak > 0:
            raise UserError(f"LearningRate.peak must be > 0, got {self.peak}; 2e-4 is usual")
        if self.warmup < 0:
            raise UserError(f"LearningRate.warmup must be >= 0 steps, got {self.warmup}")

    def __call__(self, step: int) -> float:
        """Return the rate of the update that follows ``step`` finished ones."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        if self.shape == "constant":
            return self.peak
        progress = min(1.0, (step - self.warmup) / max(1, self.total - self.warmup))
        return self.peak * 0.5 * (1 + math.cos(math.pi * progress))
