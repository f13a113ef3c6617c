"""Couplings: which source sample is paired with which data sample of a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from advect.core.random import Generator
from advect.core.shapes import check_pair
from advect.core.types import Conditions


class Coupling(ABC):
    """Pairs a batch x0 (B, *S) with x1 (B, *S) and its conditions; both marginals stay what they were."""

    @abstractmethod
    def pair(
        self, x0: Tensor, x1: Tensor, cond: Conditions | None = None, generator: Generator = None
    ) -> tuple[Tensor, Tensor, Conditions | None]:
        """Return (x0, x1, cond), reordered so that row i of each belongs together."""


@dataclass(frozen=True)
class Independent(Coupling):
    """Pair row i with row i: x0 and x1 stay independent draws."""

    def pair(
        self, x0: Tensor, x1: Tensor, cond: Conditions | None = None, generator: Generator = None
    ) -> tuple[Tensor, Tensor, Conditions | None]:
        check_pair(x0, x1)
        return x0, x1, cond
