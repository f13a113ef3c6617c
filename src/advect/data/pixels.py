"""Images or vectors that lie ready in one array, in memory or mapped from a file, handed out without a copy of it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from advect.core.random import Generator, uniform
from advect.core.types import Batch
from advect.data.source import Split
from advect.data.transforms import Transform


class PixelSplit(Split):
    """Some rows of an array x (N, *S), in data units; only what is fetched is read and converted.

    Args:
        x: (N, *S) of any real type, in memory or memory-mapped.
        rows: (n,) the rows that this split has.
        labels: for each condition, a whole number (N,) for every row of x.
        transform: to model units.
        flip: mirror half of the images (C, H, W) that are fetched with an rng.
    """

    def __init__(
        self,
        x: np.ndarray,
        rows: np.ndarray,
        labels: Mapping[str, np.ndarray],
        transform: Transform,
        *,
        flip: bool = False,
    ) -> None:
        self._x, self._rows, self._transform, self._flip = x, rows, transform, flip
        self._labels = {name: np.ascontiguousarray(values[rows], np.int64) for name, values in labels.items()}

    def __len__(self) -> int:
        return len(self._rows)

    def fetch(self, indices: np.ndarray, rng: Generator = None) -> Batch:
        x = np.array(self._x[self._rows[indices]])  # a copy in memory, also where x is mapped
        if self._flip and rng is not None:
            mirrored = uniform((len(indices),), rng).numpy() < 0.5
            x[mirrored] = x[mirrored, ..., ::-1]
        if x.dtype != np.uint8:  # PyTorch takes neither every width of whole numbers nor every order of bytes
            x = x.astype(np.result_type(x.dtype, np.float32), copy=False)
        x1 = self._transform.forward(torch.from_numpy(x))
        if not self._labels:
            return Batch(x1)
        return Batch(x1, {name: torch.from_numpy(values.take(indices)) for name, values in self._labels.items()})
