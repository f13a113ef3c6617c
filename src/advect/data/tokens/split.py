"""Rows of tokens, and windows of a stream of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from advect.core.categorical import one_hot
from advect.core.random import Generator, uniform
from advect.core.types import Batch
from advect.data.base import Split


class TokenSplit(Split):
    """Rows of places in one array of tokens, as rows (B, L, K) of which one number is 1, and none after their ends.

    Args:
        places: (T,) place of each token in the vocabulary.
        starts, sizes: (n,) first token and number of tokens of each row.
        length: L.
        size: K.
        cond: conditions, n rows each.
        numbers: (n,) numbers of the rows in the data.
        reach: of windows of a stream, the place after its last token: in training each window begins up to a window
            later. None for rows that begin where they do.
    """

    def __init__(
        self,
        places: np.ndarray,
        starts: np.ndarray,
        sizes: np.ndarray,
        *,
        length: int,
        size: int,
        cond: Mapping[str, np.ndarray],
        numbers: np.ndarray,
        reach: int | None = None,
    ) -> None:
        self._places, self._starts, self._sizes = places, starts, sizes
        self._length, self._size, self._cond, self._numbers, self._reach = length, size, dict(cond), numbers, reach

    def __len__(self) -> int:
        return len(self._starts)

    def row_names(self, indices: np.ndarray) -> list[str]:
        return super().row_names(self._numbers[indices])

    def fetch(self, indices: np.ndarray, rng: Generator = None) -> Batch:
        starts, sizes = self._starts[indices], self._sizes[indices]
        if self._reach is not None and rng is not None and len(indices):
            later = uniform((len(indices),), rng, dtype=torch.float64).numpy() * self._length
            starts = np.minimum(starts + later.astype(np.int64), self._reach - self._length)
        steps = np.arange(self._length)
        real = steps < sizes[:, None]
        at = np.where(real, starts[:, None] + steps, 0)
        codes = np.where(real, self._places[at].astype(np.int64), -1)
        x1 = one_hot(torch.from_numpy(codes), self._size)
        if not self._cond:
            return Batch(x1)
        return Batch(x1, {name: torch.from_numpy(values[indices]) for name, values in self._cond.items()})
