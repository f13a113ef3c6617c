"""Distributions of the training time t in [0, 1]."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from advect.core import random
from advect.core.random import Generator


class TimeDistribution(ABC):
    """A distribution of t on [0, 1]."""

    @abstractmethod
    def sample(self, n: int, generator: Generator = None, device: torch.device | None = None) -> Tensor:
        """Draw t (n,) in float32."""


@dataclass(frozen=True)
class Uniform(TimeDistribution):
    """t uniform on [0, 1), independently for each sample."""

    def sample(self, n: int, generator: Generator = None, device: torch.device | None = None) -> Tensor:
        return random.uniform((n,), generator, device=device)


@dataclass(frozen=True)
class Stratified(TimeDistribution):
    """One uniform t in each of B equal bins of [0, 1), in random order.

    Each t alone is uniform, so the loss keeps its expectation, with less variance: the batch covers all times.
    The order is random so that t does not depend on the place in the batch. With a CounterRng the B bins are
    those of the global batch, also when processes share it.
    """

    def sample(self, n: int, generator: Generator = None, device: torch.device | None = None) -> Tensor:
        places, bins = random.permutation(n, generator, device=device)
        t = places.add(random.uniform((n,), generator, device=device)).div_(bins)
        return t.clamp_(max=1 - 2**-24)
