"""Endless orders of the examples: pure functions of (seed, place), so that a resumed run needs to store none of it.

Whoever takes disjoint places, such as the processes that share a batch, takes disjoint examples of an epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from advect.core.errors import UserError
from advect.core.random import CounterRng, mix


class EpochOrder:
    """An endless order of ``n`` examples: each epoch a new permutation, a pure function of (seed, epoch)."""

    def __init__(self, n: int, seed: int) -> None:
        self.n = n
        self._permutation = lru_cache(maxsize=2)(lambda epoch: CounterRng(seed, epoch, n).permutation().numpy())

    def indices(self, first: int, count: int) -> np.ndarray:
        """The examples (count,) at places first, first + 1, ... of the order; a batch may span epochs."""
        epoch, place = divmod(first, self.n)
        if place + count <= self.n:
            return self._permutation(epoch)[place : place + count]
        parts = []
        while count:
            epoch, place = divmod(first, self.n)
            parts.append(self._permutation(epoch)[place : place + count])
            first, count = first + len(parts[-1]), count - len(parts[-1])
        return np.concatenate(parts)


class ShardOrder:
    """An endless order that stays within a few shards at a time, for examples that are slow to reach at random.

    Each epoch puts the shards in a new order, takes ``together`` of them at a time, and mixes the examples of these.
    It visits every example once an epoch, and is a pure function of (seed, epoch).

    Args:
        sizes: how many examples each shard has; shard 0 has the examples 0 .. sizes[0] - 1, and so on. Empty shards
            are passed over.
        seed: of the order.
        together: how many shards are mixed, >= 1. More mix better and are kept open at once.

    Raises:
        UserError: a size is negative, all are 0, or ``together`` is less than 1.
    """

    def __init__(self, sizes: Sequence[int], seed: int, *, together: int = 8) -> None:
        self._sizes = np.asarray(sizes, np.int64)
        if together < 1:
            raise UserError(f"together must be at least 1 shard, got {together}; 8 is usual")
        if (self._sizes < 0).any() or not self._sizes.any():
            raise UserError(f"the sizes of the shards must be >= 0, and not all 0, got {list(sizes)[:8]}")
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._sizes, self._starts = self._sizes[self._sizes > 0], self._starts[self._sizes > 0]
        self.n, self._seed, self._together = int(self._sizes.sum()), seed, together
        self._shards = lru_cache(maxsize=2)(self._shuffled_shards)
        self._group = lru_cache(maxsize=4)(self._mixed_group)

    def indices(self, first: int, count: int) -> np.ndarray:
        """The examples (count,) at places first, first + 1, ... of the order; a batch may span groups and epochs."""
        parts = [np.empty(0, np.int64)]
        while count:
            epoch, place = divmod(first, self.n)
            ends = self._shards(epoch)[1]
            group = int(np.searchsorted(ends, place, side="right"))
            begin = 0 if group == 0 else int(ends[group - 1])
            parts.append(self._group(epoch, group)[place - begin : place - begin + count])
            first, count = first + len(parts[-1]), count - len(parts[-1])
        return np.concatenate(parts)

    def _shuffled_shards(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards in this epoch's order, and the places at which its groups end."""
        order = CounterRng(mix(self._seed, 1), epoch, len(self._sizes)).permutation().numpy()
        ends = np.cumsum(self._sizes[order])
        last = np.append(np.arange(self._together - 1, len(order) - 1, self._together), len(order) - 1)
        return order, ends[last]

    def _mixed_group(self, epoch: int, group: int) -> np.ndarray:
        shards = self._shards(epoch)[0][group * self._together : (group + 1) * self._together]
        starts, sizes = self._starts[shards].tolist(), self._sizes[shards].tolist()
        examples = np.concatenate([np.arange(a, a + n) for a, n in zip(starts, sizes, strict=True)])
        return examples[CounterRng(mix(self._seed, 2, group), epoch, len(examples)).permutation().numpy()]
