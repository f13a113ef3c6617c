"""Learning rate: linear warm-up, then a registered schedule."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from advect.core.errors import UserError
from advect.core.registry import register


class RateSchedule(ABC):
    """Course of the learning rate after the warm-up.

    Attributes:
        by_length: whether it depends on the length of the run.
    """

    part_kind: ClassVar[str] = "lr-schedule"
    by_length: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, progress: float) -> float:
        """Share of the peak rate, at ``progress`` from 0 (end of the warm-up) to 1 (end of the run)."""


@register("constant")
@dataclass(frozen=True)
class ConstantRate(RateSchedule):
    """The peak."""

    by_length = False

    def __call__(self, progress: float) -> float:
        return 1.0


@register("cosine")
@dataclass(frozen=True)
class CosineDecay(RateSchedule):
    """Half a cosine from the peak to 0 (Loshchilov & Hutter 2017, "SGDR", without restarts)."""

    def __call__(self, progress: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True, kw_only=True)
class LearningRate:
    """Linear warm-up over ``warmup`` steps to ``peak``, then ``schedule`` up to step ``total``."""

    peak: float
    warmup: int
    total: int
    schedule: RateSchedule = ConstantRate()

    def __post_init__(self) -> None:
        if not self.peak > 0:
            raise UserError(f"LearningRate.peak must be > 0, got {self.peak}; 2e-4 is usual")
        if self.warmup < 0:
            raise UserError(f"LearningRate.warmup must be >= 0 steps, got {self.warmup}")

    def __call__(self, step: int) -> float:
        """Rate of the update after ``step`` finished ones."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        return self.peak * self.schedule(min(1.0, (step - self.warmup) / max(1, self.total - self.warmup)))
