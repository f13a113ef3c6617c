"""Endless orders of the examples: pure functions of (seed, place), so that a resumed run needs to store none of it.

Whoever takes disjoint places, such as the processes that share a batch, takes disjoint examples of an epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Generic, Protocol, TypeVar

import numpy as np

from advect.core.errors import UserError
from advect.core.random import CounterRng, Stream, stream_seed
from advect.core.types import Batch


class EpochSampler:
    """An endless order of ``n`` examples: each epoch a new permutation, a pure function of (seed, epoch)."""

    def __init__(self, n: int, seed: int) -> None:
        self.n, self._seed = n, stream_seed(seed, Stream.ORDER)
        self._permutation = lru_cache(maxsize=2)(self._permuted)

    def _permuted(self, epoch: int) -> np.ndarray:
        return CounterRng(self._seed, epoch, self.n).permutation().numpy()

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


class ShardSampler:
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
        order = CounterRng(stream_seed(self._seed, Stream.SHARDS), epoch, len(self._sizes)).permutation().numpy()
        ends = np.cumsum(self._sizes[order])
        last = np.append(np.arange(self._together - 1, len(order) - 1, self._together), len(order) - 1)
        return order, ends[last]

    def _mixed_group(self, epoch: int, group: int) -> np.ndarray:
        shards = self._shards(epoch)[0][group * self._together : (group + 1) * self._together]
        starts, sizes = self._starts[shards].tolist(), self._sizes[shards].tolist()
        examples = np.concatenate([np.arange(a, a + n) for a, n in zip(starts, sizes, strict=True)])
        return examples[
            CounterRng(stream_seed(self._seed, Stream.SHARD_ROWS, group), epoch, len(examples)).permutation().numpy()
        ]


T = TypeVar("T")


class Prefetcher(Generic[T]):
    """``Prefetcher(draw)(step)`` is ``draw(step)``, with step + 1 already under way in a thread.

    ``draw`` must be a function of the step alone, so that doing it early changes nothing.
    """

    def __init__(self, draw: Callable[[int], T]) -> None:
        self._draw = draw
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="advect-ahead")
        self._next: tuple[int, Future[T]] | None = None

    def __call__(self, step: int) -> T:
        due = self._next[1] if self._next and self._next[0] == step else self._pool.submit(self._draw, step)
        self._next = step + 1, self._pool.submit(self._draw, step + 1)
        return due.result()

    def close(self) -> None:
        """Stop the thread."""
        self._pool.shutdown(wait=True, cancel_futures=True)


class Examples(Protocol):
    """What a loader draws from; the splits of ``advect.data`` are such."""

    def __len__(self) -> int: ...

    def fetch(self, indices: np.ndarray, rng: CounterRng | None = None) -> Batch: ...


class Loader:
    """Batches of ``batch_size`` consecutive places of the epoch order; step 0 begins at place 0.

    Examples with an attribute ``shards``, the sizes of the runs that are near to one another on a disk, are taken in a
    :class:`ShardSampler`, others in an :class:`EpochSampler`.

    Of ``world`` processes each takes its ``batch_size`` rows of a global batch, the one of ``rank`` 0 the first ones,
    so that together they see what one process with the global batch would. With ``workers`` > 0 that many threads
    prepare the following steps' batches ahead; what they prepare does not depend on their number.
    """

    def __init__(
        self, examples: Examples, batch_size: int, *, seed: int = 0, workers: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        if len(examples) == 0:
            raise UserError("the training split has no example; see that the data folder is the right one")
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {batch_size}; 128 is usual for images")
        if workers < 0:
            raise UserError(f"num_workers must be >= 0, got {workers}; 0 loads in the training thread")
        self.examples, self.batch_size, self.global_batch = examples, batch_size, batch_size * world
        self.first_row = rank * batch_size
        shards = getattr(examples, "shards", None)
        self._order = EpochSampler(len(examples), seed) if shards is None else ShardSampler(shards, seed)
        self._seed = seed
        self._workers = workers
        self._origin = (0, 0)
        self._pool: ThreadPoolExecutor | None = None
        self._ahead: dict[int, Future[Batch]] = {}

    def __len__(self) -> int:
        return len(self.examples)

    def start_at(self, step: int, seen: int) -> None:
        """Let ``step`` begin at place ``seen`` of the order, as a run does that continues after so many samples."""
        self._origin = (step, seen)
        self._ahead.clear()

    def rng(self, stream: Stream, step: int) -> CounterRng:
        """The random numbers of ``stream`` for this process's rows of the global batch of ``step``."""
        return CounterRng(
            stream_seed(self._seed, stream), step, self.batch_size, start=self.first_row, total=self.global_batch
        )

    def indices(self, step: int) -> np.ndarray:
        """The examples (global_batch,) of ``step``, those of all processes."""
        return self._indices(step, 0, self.global_batch)

    def _indices(self, step: int, first_row: int, rows: int) -> np.ndarray:
        first_step, first = self._origin
        return self._order.indices(first + (step - first_step) * self.global_batch + first_row, rows)

    def _make(self, step: int) -> Batch:
        indices = self._indices(step, self.first_row, self.batch_size)
        return self.examples.fetch(indices, self.rng(Stream.AUGMENTATION, step))

    def batch(self, step: int) -> Batch:
        """Return the batch of ``step``."""
        if self._workers == 0:
            return self._make(step)
        pool = self._pool = self._pool or ThreadPoolExecutor(self._workers, thread_name_prefix="advect-loader")
        for s in range(step, step + 2 * self._workers + 1):
            if s not in self._ahead:
                self._ahead[s] = pool.submit(self._make, s)
        return self._ahead.pop(step).result()

    def close(self) -> None:
        """Stop the threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
        self._ahead.clear()
