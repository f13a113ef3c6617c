"""What every training objective is."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from advect.core.random import Generator
from advect.core.types import Batch, Network


class Loss(ABC):
    """A loss a sample, for a network and a batch."""

    @abstractmethod
    def __call__(self, net: Network, batch: Batch, generator: Generator = None) -> Tensor:
        """Return the loss (B,) of ``net`` on ``batch``; all its randomness comes from ``generator``."""

    def state_dict(self) -> dict[str, list[float]]:
        """What a checkpoint must keep, as plain numbers; most objectives have nothing."""
        return {}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        """Take what ``state_dict`` gave."""
        assert not state, "an objective with a state takes it itself"
