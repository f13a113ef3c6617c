"""What happens around the steps of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from advect.core.errors import UserError

if TYPE_CHECKING:
    from advect.training.trainer import Trainer


class Hook:
    """What happens around the steps: logging, pictures, checkpoints. Every method may be left out.

    All processes call ``on_step``, ``on_epoch``, ``on_log`` and ``on_end`` at the same steps.
    """

    trouble: UserError | None = None
    """Why the run cannot go on, found by something that works beside it."""

    def on_start(self, trainer: Trainer) -> None: ...
    def on_log(self, trainer: Trainer, row: dict) -> None: ...
    def on_epoch(self, trainer: Trainer, loss: float) -> None: ...
    def on_step(self, trainer: Trainer) -> None: ...
    def on_bad_step(self, trainer: Trainer, row: dict) -> None: ...
    def on_rollback(self, trainer: Trainer, row: dict) -> None: ...
    def on_end(self, trainer: Trainer, reason: str) -> None: ...
    def close(self) -> None: ...

    def checkpoint_before(self, step: int) -> Path | None:
        """The newest checkpoint of fewer than ``step`` finished steps, once it is whole."""
