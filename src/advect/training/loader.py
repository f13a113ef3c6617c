"""Batches as a pure function of the step."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np

from advect.core.errors import UserError
from advect.core.random import CounterRng, mix
from advect.core.types import Batch
from advect.training.order import EpochOrder, ShardOrder


class Examples(Protocol):
    """What a loader draws from; the splits of ``advect.data`` are such."""

    def __len__(self) -> int: ...

    def fetch(self, indices: np.ndarray, rng: CounterRng | None = None) -> Batch: ...


class Loader:
    """Batches of ``batch_size`` consecutive places of the epoch order; step 0 begins at place 0.

    Examples with an attribute ``shards``, the sizes of the runs that are near to one another on a disk, are taken in a
    :class:`ShardOrder`, others in an :class:`EpochOrder`.

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
        order_seed = mix(seed, 1)
        self._order = EpochOrder(len(examples), order_seed) if shards is None else ShardOrder(shards, order_seed)
        self._seed = mix(seed, 2)
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

    def rng(self, seed: int, step: int) -> CounterRng:
        """The random numbers of this process's rows of the global batch of ``step``."""
        return CounterRng(seed, step, self.batch_size, start=self.first_row, total=self.global_batch)

    def indices(self, step: int) -> np.ndarray:
        """The examples (global_batch,) of ``step``, those of all processes."""
        return self._indices(step, 0, self.global_batch)

    def _indices(self, step: int, first_row: int, rows: int) -> np.ndarray:
        first_step, first = self._origin
        return self._order.indices(first + (step - first_step) * self.global_batch + first_row, rows)

    def _make(self, step: int) -> Batch:
        indices = self._indices(step, self.first_row, self.batch_size)
        return self.examples.fetch(indices, self.rng(self._seed, step))

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
