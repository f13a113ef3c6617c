"""Base class of losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from advect.core.random import Generator
from advect.core.types import Batch, Conditions, Network, PathSample, StepKind
from advect.masks import Mask

LossInput = tuple[PathSample, Conditions | None]
"""A path sample (B rows) and the network's conditions."""


class Loss(ABC):
    """A loss a sample, for a network and a batch.

    A run sets the constructor arguments in ``part_given``.
    """

    part_kind: ClassVar[str] = "loss"
    part_given: ClassVar[tuple[str, ...]] = (
        "path",
        "source",
        "coupling",
        "times",
        "weight",
        "prediction",
        "loss_space",
        "loss_type",
        "t_eps",
        "cond_dropout",
        "mask",
        "codes",
    )

    learns_score: ClassVar[bool] = False
    """Whether the network has a second output, for the score; see ``StochasticInterpolantLoss``."""

    learns_posterior: ClassVar[bool] = False
    """Whether the network's output is read by a ``PosteriorHead``."""

    learns_steps: ClassVar[StepKind | None] = None
    """Steps whose average velocity the network learns, with their starts and ends as its times; None for none."""

    discrete: ClassVar[bool] = False
    """Whether samples are tokens, which jump along a mixture path, and the network gives their logits."""

    derives_time: ClassVar[bool] = False
    """Whether targets hold a derivative of the network in its time, which must then be embedded smoothly."""

    mask: Mask | None = None
    """Law of what the network is given of a sample; None for nothing."""

    @property
    def form(self) -> dict[str, Any]:
        """What the network takes beside a sample and a time."""
        return {"masked": self.mask is not None, "two_times": self.learns_steps is not None, "tokens": self.discrete}

    @abstractmethod
    def sample(self, batch: Batch, generator: Generator = None) -> LossInput:
        """Sample source, coupling, times and path for ``batch``, and drop conditions."""

    def aim(self, net: Network, sample: PathSample, cond: Conditions | None) -> PathSample:
        """The path sample with the targets that the network itself is asked for, without gradients; by default as is.

        ``net`` has no dropout here.
        """
        return sample

    @abstractmethod
    def compare(self, output: Tensor, sample: PathSample) -> Tensor:
        """Loss (B,) of the network's output (B, ...) at a path sample."""

    def __call__(self, net: Network, batch: Batch, generator: Generator = None) -> Tensor:
        """Loss (B,) of ``net`` on ``batch``."""
        sample, cond = self.sample(batch, generator)
        sample = self.aim(net, sample, cond)
        return self.compare(net(sample.x_t, sample.t, cond), sample)

    def state_dict(self) -> dict[str, list[float]]:
        """State for a checkpoint, as plain numbers."""
        return {}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        """Restore ``state_dict``."""
        assert not state, "a loss with a state restores it itself"
