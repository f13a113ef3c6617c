"""Losses: sample a path, run the network, compare."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from advect.core.random import Generator
from advect.core.types import Batch, Conditions, Network, PathSample

LossInput = tuple[PathSample, Conditions | None]
"""A sample of the path (B rows) and the conditions for the network."""


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
    def sample(self, batch: Batch, generator: Generator = None) -> LossInput:
        """Sample source, coupling, times and path for ``batch``, and drop conditions, all with ``generator``."""

    @abstractmethod
    def compare(self, output: Tensor, sample: PathSample) -> Tensor:
        """The loss (B,) of the network's output (B, ...) at a sample of the path."""

    def __call__(self, net: Network, batch: Batch, generator: Generator = None) -> Tensor:
        """The loss (B,) of ``net`` on ``batch``."""
        sample, cond = self.sample(batch, generator)
        return self.compare(net(sample.x_t, sample.t, cond), sample)

    def state_dict(self) -> dict[str, list[float]]:
        """What a checkpoint keeps, as plain numbers."""
        return {}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        """Restore ``state_dict``."""
        assert not state, "a loss with a state restores it itself"
