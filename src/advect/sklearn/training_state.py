"""What a fit in memory keeps of its training: losses, state to go on from, schedule."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

from torch import Tensor

from advect.config.config import TrainingConfig
from advect.evaluation.held_out import copied
from advect.training import Callback, LearningRate, Trainer, TrainState
from advect.training.state import EMA_FILE, Progress


@dataclass
class LossCurve(Callback):
    """Collects the logged losses."""

    losses: list[float] = field(default_factory=list)

    def on_log(self, trainer: Trainer, row: dict) -> None:
        self.losses.append(row["loss"])


@dataclass
class SavedState:
    """CPU copy of a :class:`TrainState`."""

    net: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    ema: tuple[dict[str, Tensor], int] | None
    progress: Progress
    extra: dict[str, list[float]]

    @classmethod
    def from_state(cls, state: TrainState) -> SavedState:
        return cls(
            net=copied(state.net.state_dict()),
            optimizer=copied(state.optimizer.tensors()),
            ema=None if state.ema is None else (copied(state.ema.shadow), state.ema.updates),
            progress=copy.deepcopy(state.progress),
            extra=state.extra.state_dict() if state.extra else {},
        )

    def restore(self, state: TrainState) -> None:
        """Copy into ``state``."""
        state.net.load_state_dict(self.net)
        state.progress = copy.deepcopy(self.progress)
        state.optimizer.load(self.optimizer, self.progress.step)
        if state.ema is not None and self.ema is not None:
            shadow, updates = self.ema
            state.ema.load({EMA_FILE: shadow}, updates)
        if state.extra is not None:
            state.extra.load_state_dict(self.extra)


def learning_rate(training: TrainingConfig, steps: int, start: int) -> LearningRate:
    """The schedule over ``steps`` steps from ``start`` on."""
    return LearningRate(
        peak=training.learning_rate,
        warmup=training.lr_warmup_steps or 0,
        total=start + steps,
        schedule=training.build("lr_schedule"),
        origin=start,
    )
