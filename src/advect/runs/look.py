"""What looks at a flow every so many steps while it trains."""

from __future__ import annotations

from abc import abstractmethod

from advect.core.group import broadcast_object
from advect.training.hook import Hook
from advect.training.hooks import EverySteps
from advect.training.trainer import Trainer


class Look(Hook):
    """Looks at the network every ``every`` steps and at the end of a run, with EMA weights where there are any.

    0 turns both off. A look that a kill has cut short is taken again when the run goes on.
    """

    def __init__(self, every: int) -> None:
        self.every, self._seen = every, -1
        self._timer = EverySteps(every, self.look)

    @abstractmethod
    def look(self, step: int) -> None:
        """Look at the network as it is after ``step`` steps; all processes do so together."""

    @abstractmethod
    def has_looked(self, step: int) -> bool:
        """Whether all that the look at a step leaves behind is there; the first process is asked."""

    def on_start(self, trainer: Trainer) -> None:
        """Look now where the look at the checkpoint's step was cut short, and was due."""
        step = trainer.state.progress.step
        self._seen = step if broadcast_object(self.has_looked(step)) else -1
        if step != self._seen and self.every and step and step % self.every == 0:
            self.take(trainer)

    def on_step(self, trainer: Trainer) -> None:
        step = trainer.state.progress.step
        if self.every and step % self.every == 0 and step != self._seen:  # it has been seen where this step went back
            self.take(trainer)

    def on_end(self, trainer: Trainer, reason: str) -> None:
        if self.every and not reason.startswith("SIG") and trainer.state.progress.step != self._seen:
            self.take(trainer)

    def on_rollback(self, trainer: Trainer, row: dict) -> None:
        self._seen = row["step"]

    def take(self, trainer: Trainer) -> None:
        """Look now, unless the last steps were rolled back."""
        if trainer.flush():
            self._seen = trainer.state.progress.step
            self._timer.run(trainer)
