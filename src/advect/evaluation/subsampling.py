"""What is drawn from a trained flow, and which rows of data are used: the same each time."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from advect.core.random import CounterRng, mix
from advect.core.types import Conditions, DataSpec


class Flow(Protocol):
    """What an evaluation asks of a trained flow."""

    @property
    def spec(self) -> DataSpec:
        """Shape, kind and conditions of the data."""
        ...

    def sample(
        self,
        n: int,
        *,
        steps: int = 50,
        solver: str = "midpoint",
        seed: int = 0,
        cond: dict[str, int | Tensor] | None = None,
        trajectory: bool = False,
    ) -> Tensor:
        """Samples (n, *S) in data units or, with ``trajectory``, all states (steps + 1, n, *S).

        The noise that sample i starts from depends on the seed and i alone.
        """
        ...


def conditions_of(cond: Conditions | None) -> dict[str, int | Tensor] | None:
    """The same conditions as :meth:`Flow.sample` takes them."""
    return {**cond} if cond else None


def rows(n: int, limit: int, seed: int) -> Tensor:
    """At most ``limit`` of the places 0 .. n - 1, chosen by the seed, in random order."""
    return CounterRng(seed, 0, n).permutation()[:limit]


def conditions_like(cond: Conditions | None, n: int, seed: int) -> Conditions | None:
    """Conditions (n, ...) of n samples, taken from rows of the training data's (N, ...) so that their joint law stays.

    No row comes twice before all have come once.
    """
    if not cond:
        return None
    total = len(next(iter(cond.values())))
    places = torch.cat([rows(total, total, mix(seed, i)) for i in range(-(-n // total))])[:n]
    return {name: value[places] for name, value in cond.items()}
