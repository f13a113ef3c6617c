"""What a distribution is conditional on: labels, real numbers, or columns of any types, one row a sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.utils.multiclass import type_of_target
from torch import Tensor

from advect.core.errors import UserError
from advect.core.types import NULL, Category, Condition, Quantity
from advect.data.base import category
from advect.data.tables.columns import Categories
from advect.model.conditions import Encoded, label_place
from advect.sklearn.adapters import FrameAdapter

LABEL = "label"
"""Name of the condition y of one column."""

EXAMPLES, NUMBERS = 1000, 200_000
"""Most rows of a real-valued condition, and numbers in them, that a model keeps, to sample by if none are asked
for.
"""

_MISSING = ("nan", "<NA>", "NaT")


class Conditioning(ABC):
    """A kind of y, and what was learned about it from that of the first fit.

    Attributes:
        conditions: of the data, by name.
    """

    conditions: dict[str, Condition]

    @abstractmethod
    def rows(self, y: Any, n: int) -> dict[str, Tensor]:
        """y of n rows, or one for all, as a network takes it: by condition codes (n,) or standardised (n, d).

        Raises UserError for another shape, and for values that cannot be told from those of the fit.
        """

    def encoded(self, y: Any, n: int) -> dict[str, Encoded]:
        """:meth:`rows` as :class:`~advect.Flow` takes them; empty for None."""
        return {} if y is None else {name: Encoded(value) for name, value in self.rows(y, n).items()}


def conditioning_of(y: Any, n: int) -> Conditioning:
    """The kind of y of n rows: whole numbers and text are labels, other numbers real, columns of a frame their own.

    Raises UserError for another number of rows, and for missing values in an array.
    """
    if _is_frame(y) and y.shape[1] > 1:
        return Columns(y, n)
    values = np.asarray(y)
    if values.ndim == 2 and values.shape[1] > 1:
        return Reals.fit(check_reals(values, n))
    labels = check_labels(y, n)
    if type_of_target(labels) == "continuous":
        return Reals.fit(check_reals(labels, n))
    return Labels.from_values(labels)


def _is_frame(y: Any) -> bool:
    return type(y).__module__.partition(".")[0] == "pandas" and hasattr(y, "columns")


@dataclass(frozen=True)
class Labels(Conditioning):
    """Sorted distinct labels (K,); codes are indices, ``frequencies`` (K,) their counts in the first fit."""

    classes: np.ndarray
    counts: np.ndarray

    @classmethod
    def from_values(cls, values: np.ndarray) -> Labels:
        """Labels of values (n,)."""
        return cls(*np.unique(values, return_counts=True))

    @property
    def conditions(self) -> dict[str, Condition]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return {LABEL: self.category}

    @property
    def category(self) -> Category:
        codes = np.repeat(np.arange(len(self.classes)), self.counts)
        return category(codes, [str(value) for value in self.classes])

    def codes(self, values: np.ndarray) -> np.ndarray:
        """Codes (n,) int64 of values (n,), matched as conditions are. Raises UserError for an unknown label."""
        distinct, which = np.unique(values, return_inverse=True)
        known = self.category
        codes = [label_place(value, known) for value in distinct.tolist()]
        if None in codes:
            value = distinct.tolist()[codes.index(None)]
            raise UserError(f"y has {value!r}, which is not among the labels fitted: {self.classes}")
        return np.array(codes, np.int64)[which.reshape(-1)]

    def rows(self, y: Any, n: int) -> dict[str, Tensor]:
        values = np.asarray(y)
        values = np.full(n, values) if values.ndim == 0 else check_labels(y, n)
        return {LABEL: torch.from_numpy(self.codes(values))}


@dataclass(frozen=True)
class Reals(Conditioning):
    """d real numbers a row, standardised."""

    quantity: Quantity

    @classmethod
    def fit(cls, values: np.ndarray, names: Sequence[str] = ()) -> Reals:
        """Of rows (n, d)."""
        return cls(quantity_of(values, names or [f"y{i}" for i in range(values.shape[1])]))

    @property
    def conditions(self) -> dict[str, Condition]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return {LABEL: self.quantity}

    def rows(self, y: Any, n: int) -> dict[str, Tensor]:
        d, values = len(self.quantity.mean), np.asarray(y)
        one = values.ndim == 0 or (values.ndim == 1 and d > 1)
        values = check_reals(np.broadcast_to(values, (n, d)) if one and values.size == d else values, n, d)
        return {LABEL: standardised(values, self.quantity)}


class Columns(Conditioning):
    """Columns of a data frame, each a condition of its own: a category, or a number; missing values are its null."""

    def __init__(self, y: Any, n: int) -> None:
        self.names = [str(name) for name in y.columns]
        self._adapter = FrameAdapter(y, {"whiten": False, "scaling": "standard"})
        values = self._values(y, n)
        self.conditions = {}
        for column, x in zip(self._adapter.transform.columns, values.T, strict=True):
            there = x[~np.isnan(x)]
            if isinstance(column, Categories):
                self.conditions[column.name] = category(there.astype(np.int64), [str(name) for name in column.names])
            else:
                self.conditions[column.name] = quantity_of(there[:, None], [column.name])

    def _values(self, y: Any, n: int) -> np.ndarray:
        """Rows (n, d) in table units."""
        if not _is_frame(y) or [str(name) for name in y.columns] != self.names or len(y) not in (1, n):
            raise UserError(f"y must be a data frame of {n} rows, or one, with the columns {', '.join(self.names)}")
        values = self._adapter.given(y).numpy()
        return np.repeat(values, n, 0) if len(y) == 1 and n > 1 else values

    def rows(self, y: Any, n: int) -> dict[str, Tensor]:
        found = {}
        for (name, condition), x in zip(self.conditions.items(), self._values(y, n).T, strict=True):
            if isinstance(condition, Quantity):
                found[name] = standardised(x[:, None], condition)
            else:
                found[name] = torch.from_numpy(np.where(np.isnan(x), NULL, x).astype(np.int64))
        return found


def quantity_of(values: np.ndarray, names: Sequence[str]) -> Quantity:
    """The condition of rows (n, d) of finite numbers; constant columns are only centred."""
    x = values.astype(np.float64)
    mean, std = x.mean(0), x.std(0)
    std = np.where(std > 1e-12 * np.abs(mean), std, 1.0)
    some = x[np.linspace(0, len(x) - 1, min(len(x), EXAMPLES, max(1, NUMBERS // x.shape[1]))).astype(int)]
    return Quantity(tuple(names), tuple(mean.tolist()), tuple(std.tolist()), tuple(map(tuple, some.tolist())))


def standardised(values: np.ndarray, quantity: Quantity) -> Tensor:
    """Rows (n, d) in data units as a network takes them, float32."""
    x = (values.astype(np.float64) - np.array(quantity.mean)) / np.array(quantity.std)
    return torch.from_numpy(x.astype(np.float32))


def check_reals(y: Any, n: int, d: int | None = None) -> np.ndarray:
    """y as rows (n, d) of finite numbers. Raises UserError for another shape, text, NaN and infinities."""
    values = np.asarray(y)
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or len(values) != n or (d is not None and values.shape[1] != d):
        raise UserError(f"y must have shape ({n}, {d or 'd'}), a row of numbers each, got {np.shape(y)}")
    if values.dtype.kind not in "iufb":
        try:
            values = values.astype(np.float64)
        except (TypeError, ValueError):
            raise UserError("y has columns of text, which an array cannot hold; give a data frame") from None
    if not np.isfinite(values).all():
        raise UserError("y holds NaN or infinite values; remove those rows, or give a data frame")
    if np.abs(values).max(initial=0) > 1e150:
        raise UserError("y holds numbers beyond 1e150, whose spread no number holds; scale them")
    return values


def check_labels(y: Any, n: int) -> np.ndarray:
    """y as an array (n,) of numbers or text. Raises UserError for another shape and NaN."""
    values = np.asarray(y)
    if values.shape == (n, 1):
        values = values[:, 0]
    if values.shape != (n,):
        raise UserError(f"y must have shape ({n},), a label a row, got {values.shape}")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise UserError("y holds NaN or infinite values; remove those rows")
    if values.dtype.kind in "OU":  # NumPy makes text of a NaN in a list of words
        given = np.asarray(y, object).reshape(-1)
        if any(value is None or (not isinstance(value, str) and str(value) in _MISSING) for value in given):
            raise UserError("y holds missing labels; remove those rows")
    return np.array([str(value) for value in values]) if values.dtype.kind == "O" else values


def label_condition(conditioning: Conditioning | None, y: Any, n: int) -> dict[str, Encoded]:
    """Conditions of y, one for all or of n rows; empty for None. Raises UserError if unsuitable."""
    if y is not None and conditioning is None:
        raise UserError("y is given, but the model was fitted without labels; leave it out, or fit with y")
    return {} if conditioning is None else conditioning.encoded(y, n)


def taken(cond: Mapping[str, Tensor], rows: Any) -> dict[str, Tensor]:
    """Some rows of conditions (n, ...)."""
    return {name: value[rows] for name, value in cond.items()}
