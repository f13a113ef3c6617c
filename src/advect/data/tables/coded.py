"""Columns of few values, coded as categories: names, numbers, and numbers with values that recur.

A category is coded one-hot as +-1, and a missing value is one of the categories. A network of the loss
``variational-flow-matching`` puts out the logits of each code.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from advect.core.bounds import Finite
from advect.core.errors import UserError
from advect.data.tables.columns import Categories, Column, Number
from advect.data.tables.scaling import ATOM, QuantileScaling, Scaling

LARGEST = 128
"""Most categories coded by one digit, and most values of a number that are categories."""

DIGIT = 32
"""Most values of a digit where there are several."""

_LEAST, _ABOVE = 10, 5
"""Fewest rows of a value that recurs, and its rows over the median of all values'."""

ROWS = 40
"""Rows for each value, on average, from which the values of a number are categories."""


@dataclass(frozen=True)
class Code:
    """Codes (B, width) of ``count`` categories: digits in one system, each one-hot as +-1, or one +-1 for two values.

    More than ``LARGEST`` categories take as few digits as there can be of ``DIGIT`` values, so that 10,000 take 66
    elements. The first digit counts most, so that neighbours in order share it.
    """

    count: int

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Values of each digit; none for a single category."""
        if self.count <= 1:
            return ()
        if self.count <= LARGEST:
            return (self.count,)
        digits = next(m for m in range(2, 64) if DIGIT**m >= self.count)
        base = next(b for b in range(2, DIGIT + 1) if b**digits >= self.count)
        return (-(-self.count // base ** (digits - 1)), *[base] * (digits - 1))

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Elements of each digit."""
        return tuple(1 if size == 2 else size for size in self.sizes)

    @property
    def width(self) -> int:
        return sum(self.widths)

    def places(self, start: int = 0) -> tuple[tuple[int, int], ...]:
        """First element and number of elements of each digit, of a code that begins at ``start``."""
        ends = np.cumsum([start, *self.widths]).tolist()
        return tuple(zip(ends[:-1], self.widths, strict=True))

    def _digits(self, category: Tensor) -> list[Tensor]:
        """Digits (B,) of categories (B,) int64."""
        found = []
        for size in reversed(self.sizes):
            found.append(category % size)
            category = category // size
        return found[::-1]

    def encode(self, category: Tensor) -> Tensor:
        """Categories (B,) int64 to codes (B, width) float64."""
        z = torch.full((len(category), self.width), -1.0, dtype=torch.float64, device=category.device)
        rows = torch.arange(len(category), device=category.device)
        for digit, (start, width) in zip(self._digits(category), self.places(), strict=True):
            z[rows, start + digit if width > 1 else start] = 1.0 if width > 1 else digit.double() * 2 - 1
        return z

    def decode(self, z: Tensor) -> Tensor:
        """Categories (B,) int64 of the nearest codes to z (B, width)."""
        category = torch.zeros(z.shape[0], dtype=torch.int64, device=z.device)
        for size, (start, width) in zip(self.sizes, self.places(), strict=True):
            digit = z[:, start : start + width].argmax(1) if width > 1 else (z[:, start] > 0).long()
            category = category * size + digit
        if torch.compiler.is_exporting():
            if math.prod(self.sizes) == self.count:
                return category
            every = self.encode(torch.arange(self.count, device=z.device))
            return torch.where(category >= self.count, (z.double() @ every.T).argmax(1), category)
        beyond = (category >= self.count).nonzero()[:, 0]
        if len(beyond):  # digits that no category has: codes are of one length, so the nearest has the largest product
            every = self.encode(torch.arange(self.count, device=z.device))
            nearest = [(part @ every.T).argmax(1) for part in z[beyond].double().split(256)]
            category[beyond] = torch.cat(nearest)
        return category


class Coded(Column):
    """A column that starts with the code of a category, the last of which is that of missing values, if any."""

    @property
    @abstractmethod
    def kinds(self) -> int:
        """Categories apart from a missing value."""

    @cached_property
    def code(self) -> Code:
        return Code(self.kinds + self.missing)

    @property
    def codes(self) -> tuple[tuple[int, int], ...]:
        return self.code.places()

    @property
    def value_width(self) -> int:
        return self.code.width

    @property
    def width(self) -> int:
        return self.value_width

    def forward(self, x: Tensor) -> Tensor:
        absent = x.isnan()
        category = self._category(torch.where(absent, self._any, x))
        z = self.code.encode(torch.where(absent, self.kinds if self.missing else 0, category))
        return (z if self.missing else torch.where(absent[:, None], torch.nan, z)).float()

    def inverse(self, z: Tensor) -> Tensor:
        unknown = z.isnan().any(1)
        category = self.code.decode(torch.where(unknown[:, None], 0.0, z))
        x = self._value(category.clamp(max=self.kinds - 1))
        return torch.where(unknown | (category >= self.kinds), torch.nan, x)

    @property
    def _any(self) -> float:
        """A value of the column, in table units."""
        return 0.0

    @abstractmethod
    def _category(self, x: Tensor) -> Tensor:
        """Categories (B,) int64 of table units (B,) without NaN."""

    @abstractmethod
    def _value(self, category: Tensor) -> Tensor:
        """Table units (B,) float64 of categories (B,) below ``kinds``."""

    def _encode(self, x: Tensor) -> Tensor:
        return self.code.encode(self._category(x))

    def _decode(self, z: Tensor) -> Tensor:
        return self._value(self.code.decode(z).clamp(max=self.kinds - 1))


@dataclass(frozen=True, kw_only=True)
class CodedCategories(Coded, Categories):
    """Values of a finite set, as logits predict them."""

    kind: ClassVar[str] = "coded-categories"

    @property
    def kinds(self) -> int:
        return len(self.names)

    def _category(self, x: Tensor) -> Tensor:
        return x.long()

    def _value(self, category: Tensor) -> Tensor:
        return category.double()

    @cached_property
    def plain(self) -> Column:
        return Categories(**_values(self, Categories))


@dataclass(frozen=True, kw_only=True)
class Levels(Coded, Number):
    """Numbers or times of few values, each a category.

    Args:
        levels: all values in table units, rising, from ``low`` to ``high``.
    """

    levels: Sequence[Finite]
    kind: ClassVar[str] = "levels"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "levels", tuple(float(v) for v in self.levels))
        if not self.levels or list(self.levels) != sorted(set(self.levels)):
            raise UserError(f"column {self.name!r} has levels that do not rise; sort them, each once")
        if (self.low, self.high) != (self.levels[0], self.levels[-1]):
            raise UserError(f"column {self.name!r} has levels from other ends than its range; take another file")

    @property
    def kinds(self) -> int:
        return len(self.levels)

    @property
    def _any(self) -> float:
        return self.low

    @cached_property
    def _levels(self) -> Tensor:
        return torch.tensor(self.levels, dtype=torch.float64)

    def _category(self, x: Tensor) -> Tensor:
        middles = (self._levels[1:] + self._levels[:-1]) / 2
        return torch.bucketize(x.double().contiguous(), middles.to(x.device))

    def _value(self, category: Tensor) -> Tensor:
        return self._levels.to(category.device)[category]

    def unrounded(self, z: Tensor) -> Tensor:
        """The mean level by the shares that the code z (B, width) of one digit tells, else the nearest."""
        if len(self.code.sizes) > 1:
            return self._decode(z)
        shares = _shares(z.double(), self.code)[:, : self.kinds]
        return (shares @ self._levels.to(z.device)) / shares.sum(1).clamp(min=1e-12)

    @cached_property
    def plain(self) -> Column:
        return Number(**_values(self, Number))


@dataclass(frozen=True, kw_only=True)
class Atoms(Coded, Number):
    """Numbers with values that recur, such as no rain, each a category beside that of all other values.

    Args:
        atoms: the values that recur, in table units, rising.
        others: scaling of the other values; its element is 0 where the value is none of them.
    """

    atoms: Sequence[Finite]
    others: Scaling
    kind: ClassVar[str] = "atoms"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "atoms", tuple(float(v) for v in self.atoms))
        if not self.atoms or list(self.atoms) != sorted(set(self.atoms)):
            raise UserError(f"column {self.name!r} has atoms that do not rise; sort them, each once")

    @property
    def kinds(self) -> int:
        return 1 + len(self.atoms)

    @property
    def value_width(self) -> int:
        return self.code.width + 1

    @property
    def _any(self) -> float:
        return self.low

    @cached_property
    def _atoms(self) -> Tensor:
        return torch.tensor(self.atoms, dtype=torch.float64)

    def _category(self, x: Tensor) -> Tensor:
        same = x.double()[:, None] == self._atoms.to(x.device)
        return torch.where(same.any(1), 1 + same.int().argmax(1), 0)

    def forward(self, x: Tensor) -> Tensor:
        code, present = super().forward(x), torch.where(x.isnan(), self._any, x)
        other = (self._category(present) == 0) & ~x.isnan()
        z = torch.where(other, self.others.forward(present), 0.0)
        z = z if self.missing else torch.where(x.isnan(), torch.nan, z)
        return torch.cat([code, z[:, None].float()], 1)

    def inverse(self, z: Tensor) -> Tensor:
        unknown = z.isnan().any(1)
        z = torch.where(unknown[:, None], 0.0, z)
        category = self.code.decode(z[:, :-1])
        x = torch.where(category == 0, self._rest(z), self._value(category.clamp(max=self.kinds - 1)))
        return torch.where(unknown | (category >= self.kinds), torch.nan, x)

    def _rest(self, z: Tensor) -> Tensor:
        """Values (B,) of the last element, none of them an atom unless the nearest number is one."""
        return self.rounded(self.others.inverse(z[:, -1].double()))

    def _value(self, category: Tensor) -> Tensor:
        return self._atoms.to(category.device)[(category - 1).clamp(min=0)]

    def _encode(self, x: Tensor) -> Tensor:
        return self.forward(x).double()

    def _decode(self, z: Tensor) -> Tensor:
        return self.inverse(z)

    def unrounded(self, z: Tensor) -> Tensor:
        category = self.code.decode(z[:, :-1].detach()).clamp(max=self.kinds - 1)
        return torch.where(category == 0, self.others.inverse(z[:, -1].double()), self._value(category))

    @cached_property
    def plain(self) -> Column:
        return Number(**_values(self, Number))


def _values(column: Column, kind: type) -> dict[str, Any]:
    return {f.name: getattr(column, f.name) for f in fields(kind)}


def _shares(z: Tensor, code: Code) -> Tensor:
    """Shares (B, count) of the categories of a code of one digit, as the mean code z (B, width) tells."""
    p = ((z + 1) / 2).clamp(0, 1)
    return torch.cat([1 - p, p], 1) if code.width == 1 else p / p.sum(1, keepdim=True).clamp(min=1e-12)


def coded(column: Column, values: np.ndarray, train: np.ndarray) -> Column:
    """The column as categories, where its values (N,) in table units, NaN where missing, suit that.

    Names always; numbers of at most ``LARGEST`` values with ``ROWS`` rows each, on average; and numbers among which
    some values recur in the rows ``train`` (n,): a share ``ATOM`` has each, and others are far rarer.
    """
    if isinstance(column, Categories):
        return CodedCategories(**_values(column, Categories))
    assert isinstance(column, Number)
    if column.low == column.high:
        return column
    present, counts = np.unique(values[~np.isnan(values)], return_counts=True)
    atoms, rest = _atoms(train[~np.isnan(train)])
    few = len(present) <= LARGEST and len(present) * ROWS <= counts.sum()
    if few or len(present) == 2 or (len(atoms) and len(np.unique(rest)) <= 1):
        return Levels(**_values(column, Number), levels=present.tolist())
    if not len(atoms):
        return column
    return Atoms(**_values(column, Number), atoms=atoms.tolist(), others=QuantileScaling.fit(rest))


def _atoms(train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values of a share ``ATOM`` of numbers (n,) and far above what others have, and the other numbers."""
    present, counts = np.unique(train, return_counts=True)
    usual = np.median(counts) if len(counts) else 0.0
    atoms = present[counts >= max(ATOM * len(train), _LEAST, _ABOVE * usual)]
    return atoms, train[~np.isin(train, atoms)]
