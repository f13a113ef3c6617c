"""When a run ends."""

from __future__ import annotations

from dataclasses import dataclass

from advect.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When a run ends: after ``steps``; earlier after ``max_steps`` finished steps or ``max_minutes`` of this start.

    The two maxima do not enter the schedule of the learning rate, so a run that they end and that is resumed
    equals one that was never stopped.
    """

    steps: int
    max_steps: int | None = None
    max_minutes: float | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"num_epochs leaves {self.steps} steps to train; raise --num-epochs or lower --batch-size")
        if self.max_steps is not None and self.max_steps < 1:
            raise UserError(f"max_steps must be at least 1, got {self.max_steps}; leave it out for no limit")
        if self.max_minutes is not None and not self.max_minutes > 0:
            raise UserError(f"max_minutes must be > 0, got {self.max_minutes}; leave it out for no limit")

    @property
    def last_step(self) -> int:
        """The number of finished steps at which the run ends, if its minutes suffice."""
        return self.steps if self.max_steps is None else min(self.steps, self.max_steps)
