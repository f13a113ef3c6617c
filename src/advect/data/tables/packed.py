"""Rows of model units in little memory: of a code that is one-hot, the place of its +1 alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Packed:
    """Vectors (B, D) as (B, E): each code of several elements as one number, other elements as they are.

    Args:
        elements: D.
        codes: first element and number of elements of each code, see :attr:`advect.data.Transform.code_places`.
    """

    elements: int
    codes: Sequence[tuple[int, int]]

    @cached_property
    def _hot(self) -> np.ndarray:
        """Start and size (n, 2) of the codes of several elements."""
        return np.array([code for code in self.codes if code[1] > 1], np.int64).reshape(-1, 2)

    @cached_property
    def _plain(self) -> np.ndarray:
        """Elements outside of those."""
        kept = np.ones(self.elements, bool)
        for start, size in self._hot:
            kept[start : start + size] = False
        return np.flatnonzero(kept)

    @property
    def width(self) -> int:
        """E."""
        return len(self._plain) + len(self._hot)

    def pack(self, x: np.ndarray) -> np.ndarray:
        """Rows (n, D) float32, a code NaN as a whole or not at all, as (n, E) float32."""
        parts = [x[:, self._plain]]
        for start, size in self._hot:
            code = x[:, start : start + size]
            parts.append(np.where(np.isnan(code[:, 0]), np.nan, code.argmax(1))[:, None].astype(np.float32))
        return np.concatenate(parts, 1)

    def forward(self, packed: Tensor) -> Tensor:
        """The rows (n, D) float32 of (n, E)."""
        x = packed.new_full((len(packed), self.elements), -1.0)
        x[:, torch.from_numpy(self._plain)] = packed[:, : len(self._plain)]
        place = packed[:, len(self._plain) :]
        unknown, starts = place.isnan(), torch.from_numpy(self._hot[:, 0])
        x.scatter_(1, starts + place.nan_to_num(0.0).long(), 1.0)
        if bool(unknown.any()):
            elements = np.concatenate([np.arange(start, start + size) for start, size in self._hot])
            lost = unknown.repeat_interleave(torch.from_numpy(self._hot[:, 1]), 1)
            x[:, torch.from_numpy(elements)] = x[:, torch.from_numpy(elements)].masked_fill(lost, torch.nan)
        return x
