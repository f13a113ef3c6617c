"""Do the next step's drawing while this step computes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """``Ahead(draw)(step)`` is ``draw(step)``, with step + 1 already under way in a thread.

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
