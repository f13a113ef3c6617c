"""Epoch orders and batches as pure functions of (seed, position), without state to store."""

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
    """Endless order of ``n`` examples: a new permutation each epoch, a pure function of (seed, epoch)."""

    def __init__(self, n: int, seed: int) -> None:
        self.n, self._seed = n, stream_seed(seed, Stream.ORDER)
        self._permutation = lru_cache(maxsize=2)(self._permuted)

    def _permuted(self, epoch: int) -> np.ndarray:
        return CounterRng(self._seed, epoch, self.n).permutation().numpy()

    def indices(self, first: int, count: int) -> np.ndarray:
        """Indices (count,) at positions first, first + 1, ...; may span epochs."""
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
    """Endless order that reads a few shards at a time, for slow random access.

    Each epoch shuffles the shards and mixes the examples of ``together`` consecutive ones. Every example occurs once
    an epoch; a pure function of (seed, epoch).

    Args:
        sizes: examples per shard, numbered consecutively; may be 0.
        seed: seed of the order.
        together: shards mixed and open at once, >= 1.

    Raises:
        UserError: a size is negative, all are 0, or ``together`` < 1.
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
        """Indices (count,) at positions first, first + 1, ...; may span groups and epochs."""
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
        """The epoch's order of shards, and the positions at which its groups end."""
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


class BucketSampler:
    """Endless order of batches of one bucket each, such as an image size, but for the rests of buckets.

    Each epoch permutes every bucket, cuts it into batches and shuffles these; rests fill batches with the buckets next
    to theirs. Every example occurs once an epoch; a pure function of (seed, epoch, batch, start).

    Args:
        buckets: (N,) bucket of each example, from 0.
        batch: examples of a batch, over all processes.
        start: position of a batch, modulo ``batch``; not 0 after a run went on with other batches.
    """

    def __init__(self, buckets: np.ndarray, seed: int, batch: int, *, start: int = 0) -> None:
        self.n, self._seed, self._buckets = len(buckets), seed, np.asarray(buckets)
        self._batch, self._start = batch, start
        self._order = lru_cache(maxsize=2)(self._arranged)

    def bucket(self, indices: np.ndarray) -> int:
        """The most frequent bucket of examples (n,)."""
        return int(np.bincount(self._buckets[indices]).argmax())

    def indices(self, first: int, count: int) -> np.ndarray:
        """Indices (count,) at positions first, first + 1, ...; may span epochs."""
        parts = [np.empty(0, np.int64)]
        while count:
            epoch, place = divmod(first, self.n)
            parts.append(self._order(epoch)[place : place + count])
            first, count = first + len(parts[-1]), count - len(parts[-1])
        return np.concatenate(parts)

    def _arranged(self, epoch: int) -> np.ndarray:
        """The epoch's order (N,)."""
        rows = CounterRng(stream_seed(self._seed, Stream.ORDER), epoch, self.n).permutation().numpy()
        rows = rows[np.argsort(self._buckets[rows], kind="stable")]
        batches, rests = [], []
        for bucket in np.split(rows, np.cumsum(np.bincount(self._buckets))[:-1]):
            whole = len(bucket) // self._batch * self._batch
            batches += list(bucket[:whole].reshape(-1, self._batch))
            rests.append(bucket[whole:])
        rest = np.concatenate(rests)
        head = min((self._start - epoch * self.n) % self._batch, self.n)  # of the batch that began an epoch before
        while len(rest) < head:
            rest = np.concatenate([rest, batches.pop()])
        middle = rest[head:]
        whole = len(middle) // self._batch * self._batch
        batches += list(middle[:whole].reshape(-1, self._batch))
        if batches:
            rng = CounterRng(stream_seed(self._seed, Stream.BUCKETS), epoch, len(batches))
            batches = [batches[i] for i in rng.permutation().tolist()]
        return np.concatenate([rest[:head], *batches, middle[whole:]])


T = TypeVar("T")


class Prefetcher(Generic[T]):
    """``Prefetcher(draw)(step)`` returns ``draw(step)`` and starts ``draw(step + 1)`` in a thread; ``draw`` must
    be pure.
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
    """Interface of a loader's data, such as a split of a dataset."""

    def __len__(self) -> int: ...

    def fetch(self, indices: np.ndarray, rng: CounterRng | None = None) -> Batch: ...


class Loader:
    """Batches of ``batch_size`` consecutive positions of the epoch order.

    Examples with ``shards`` (sizes) are read through a :class:`ShardSampler`, those with ``buckets`` (N,) through a
    :class:`BucketSampler`, with the bucket of the batch given to ``fetch``, others through an :class:`EpochSampler`.
    Each of ``world`` processes takes ``batch_size`` rows of the global batch, in the order of ranks. ``workers``
    threads prepare later batches; their number does not change the batches.
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
        self._seed = seed
        self._order = self._sampler(0)
        self._workers = workers
        self._origin = (0, 0)
        self._pool: ThreadPoolExecutor | None = None
        self._ahead: dict[int, Future[Batch]] = {}

    def __len__(self) -> int:
        return len(self.examples)

    def _sampler(self, start: int) -> EpochSampler | ShardSampler | BucketSampler:
        shards, buckets = (getattr(self.examples, name, None) for name in ("shards", "buckets"))
        if buckets is not None:
            return BucketSampler(buckets, self._seed, self.global_batch, start=start)
        return EpochSampler(len(self.examples), self._seed) if shards is None else ShardSampler(shards, self._seed)

    def start_at(self, step: int, seen: int) -> None:
        """Place the start of ``step`` at position ``seen`` of the order."""
        self._origin = (step, seen)
        self._order = self._sampler(seen % self.global_batch)
        self._ahead.clear()

    def rng(self, stream: Stream, step: int) -> CounterRng:
        """Random numbers of ``stream`` for this process's rows of the global batch."""
        return CounterRng(
            stream_seed(self._seed, stream), step, self.batch_size, start=self.first_row, total=self.global_batch
        )

    def indices(self, step: int) -> np.ndarray:
        """Indices (global_batch,) of ``step``, over all processes."""
        return self._indices(step, 0, self.global_batch)

    def _indices(self, step: int, first_row: int, rows: int) -> np.ndarray:
        first_step, first = self._origin
        return self._order.indices(first + (step - first_step) * self.global_batch + first_row, rows)

    def _make(self, step: int) -> Batch:
        indices, rng = self._indices(step, self.first_row, self.batch_size), self.rng(Stream.AUGMENTATION, step)
        if isinstance(self._order, BucketSampler):
            bucket = self._order.bucket(self.indices(step))
            return self.examples.fetch(indices, rng, bucket)  # pyright: ignore[reportCallIssue]
        return self.examples.fetch(indices, rng)

    def batch(self, step: int) -> Batch:
        """The batch of ``step``."""
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
