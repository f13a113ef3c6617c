"""The labels y that a model is conditioned on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.utils.multiclass import type_of_target
from torch import Tensor

from advect.core.errors import UserError
from advect.core.types import Category
from advect.data.source import category

LABEL = "label"
"""The name of the condition that y is."""


@dataclass(frozen=True)
class Labels:
    """The values that labels have, (K,), in rising order; a label's code is its place among them."""

    classes: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> Labels:
        """Those that occur among values (n,), see :func:`values_of`. Raises UserError for real numbers."""
        if type_of_target(values) == "continuous":
            raise UserError("y holds real numbers, which are no labels; leave it out, or make it a column of X")
        return cls(np.unique(values))

    def codes(self, values: np.ndarray) -> np.ndarray:
        """The codes (n,), int64, of values (n,). Raises UserError for one that was not fitted."""
        codes = np.searchsorted(self.classes, values).clip(max=len(self.classes) - 1)
        unknown = self.classes[codes] != values
        if unknown.any():
            raise UserError(f"y has {values[unknown][0]!r}, which is not among the labels fitted: {self.classes}")
        return codes.astype(np.int64)

    def category(self, codes: np.ndarray) -> Category:
        """What data with these codes (n,) say of the condition: its names, and the share of each."""
        return category(codes, [str(value) for value in self.classes])


def values_of(y: Any, n: int) -> np.ndarray:
    """y as an array (n,) of numbers or text. Raises UserError for another shape, and for what is not finite."""
    values = np.asarray(y)
    if values.shape == (n, 1):
        values = values[:, 0]
    if values.shape != (n,):
        raise UserError(f"y must have shape ({n},), a label a row, got {values.shape}")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise UserError("y holds NaN or infinite values; remove those rows")
    return np.array([str(value) for value in values]) if values.dtype.kind == "O" else values


def given(labels: Labels | None, y: Any, n: int) -> dict[str, Tensor]:
    """The condition of y, a label for all of n rows or (n,), empty where it is None. Raises UserError if unfit."""
    if y is None:
        return {}
    if labels is None:
        raise UserError("y is given, but the model was fitted without labels; leave it out, or fit with y")
    values = np.full(n, y) if np.ndim(y) == 0 else values_of(y, n)
    return {LABEL: torch.from_numpy(labels.codes(values))}
