"""Learning rate: linear warm-up, then a registered schedule."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from msgspec import Meta

from advect.core.bounds import bounded
from advect.core.registry import register

REWARMED = 0.5
"""Share of the schedule at which a finished run goes on when it is given more time."""


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


@bounded
@dataclass(frozen=True, kw_only=True)
class LearningRate:
    """Linear warm-up to ``peak`` over ``warmup`` steps from ``origin``, then ``schedule`` up to step ``total``.

    After :meth:`replanned` the schedule goes on from its ``passed`` share at step ``start``.
    """

    peak: Annotated[float, Meta(gt=0)]
    warmup: Annotated[int, Meta(ge=0)]
    total: int
    schedule: RateSchedule = ConstantRate()
    origin: int = 0
    start: int = 0
    passed: float = 0.0

    def __call__(self, step: int) -> float:
        """Rate of the update after ``step`` finished ones."""
        if step - self.origin < self.warmup:
            return self.peak * (step - self.origin + 1) / self.warmup
        return self.peak * self.schedule(self.progress(step))

    def progress(self, step: int) -> float:
        """Share of the schedule that lies behind ``step``, from 0 to 1."""
        start = max(self.start, self.origin + self.warmup)
        share = (step - start) / max(1, self.total - start)
        return self.passed + (1 - self.passed) * min(1.0, max(0.0, share))

    def replanned(self, step: int, total: int) -> LearningRate:
        """The rate of a run that ends at ``total`` instead, and is the same up to ``step``.

        A warm-up that is not over is cut to a twentieth of the run. A schedule that is over (more time for a finished
        run) goes back to its middle.
        """
        passed = self.progress(step)
        warmup = min(self.warmup, max(step - self.origin, (total - self.origin) // 20))
        return replace(self, warmup=warmup, total=total, start=step, passed=passed if passed < 1 else REWARMED)
