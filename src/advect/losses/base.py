"""What every training objective is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from advect.core.random import Generator
from advect.core.types import Batch, Network


class Loss(ABC):
    """A loss a sample, for a network and a batch.

    A run gives its constructor those of the parts and values in ``part_given`` that it takes.
    """

    part_kind: ClassVar[str] = "loss"
    part_given: ClassVar[tuple[str, ...]] = (
        "path",
        "source",
        "coupling",
        "times",
        "weight",
        "prediction",
        "loss",
        "penalty",
        "margin",
        "cond_dropout",
    )

    @abstractmethod
    def __call__(self, net: Network, batch: Batch, generator: Generator = None) -> Tensor:
        """Return the loss (B,) of ``net`` on ``batch``; all its randomness comes from ``generator``."""

    def state_dict(self) -> dict[str, list[float]]:
        """What a checkpoint must keep, as plain numbers; most objectives have nothing."""
        return {}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        """Take what ``state_dict`` gave."""
        assert not state, "an objective with a state takes it itself"
