"""Stored columns: conversion of values to model units and back to their original types.

In "table units" every column holds reals: a number is itself, a category its index among the names, a time whole units
after an origin, a missing value NaN.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from advect.core.bounds import Finite
from advect.core.errors import UserError, did_you_mean, optional_import
from advect.core.records import as_record, guarded
from advect.data.tables.arrow import arrow_series
from advect.data.tables.scaling import Scaling, scaling_from_config
from advect.data.tables.write_text import Form, TimeForm, write_number, write_time

_KINDS: dict[str, type[Column]] = {}
"""Columns by the kind in their configuration."""

Value = str | bool | int | float
"""A category in the data."""

ONE_HOT = 50
"""Maximum number of one-hot categories; more are encoded as bits."""


@dataclass(frozen=True, kw_only=True)
class Column(ABC):
    """One column of a table.

    Args:
        name: column name.
        dtype: pandas type name of the values, such as "int64".
        missing: whether values can be missing; an extra dimension is then 1 where missing, else -1.
        form: how text values were written (advect.data.tables.text).
        arrow: Arrow type of values without a NumPy type, see :func:`arrow_text`.
    """

    name: str
    dtype: str
    missing: bool = False
    form: Mapping[str, Any] = field(default_factory=dict)
    arrow: str = ""
    kind: ClassVar[str]

    def __init_subclass__(cls) -> None:
        if "kind" in cls.__dict__:
            _KINDS[cls.kind] = cls

    @property
    def codes(self) -> tuple[tuple[int, int], ...]:
        """First element and number of elements of each of its codes, as in :attr:`Transform.code_places`."""
        return ()

    @property
    def plain(self) -> Column:
        """This column with a number as one element, as distances take it."""
        return self

    @property
    @abstractmethod
    def value_width(self) -> int:
        """Dimensions of a value without the missing indicator; 0 for constants."""

    @property
    def width(self) -> int:
        """Dimensions of the column in model units."""
        return self.value_width + self.missing

    def forward(self, x: Tensor) -> Tensor:
        """Table units (B,) to model units (B, width) float32.

        A missing value is 0 with indicator 1, and NaN in a column whose values are not missing as such but unknown.
        """
        absent = x.isnan()
        z = self._encode(torch.where(absent, torch.zeros_like(x), x))
        z = torch.where(absent[:, None], 0.0 if self.missing else torch.nan, z)
        indicator = absent[:, None].double() * 2 - 1
        return (torch.cat([z, indicator], 1) if self.missing else z).float()

    def inverse(self, z: Tensor) -> Tensor:
        """Model units (B, width) to table units (B,) float64, restricted to values the column can have; NaN stays."""
        unknown = z.isnan().any(1)
        x = self._decode(torch.where(unknown[:, None], 0.0, z)[:, : self.value_width].double())
        x = torch.where(unknown, torch.nan, x)
        return torch.where(z[:, -1] > 0, torch.nan, x) if self.missing else x

    def unrounded(self, z: Tensor) -> Tensor:
        """:meth:`inverse`, for numbers without rounding and range; none is missing."""
        return self._decode(z[:, : self.value_width].double())

    @abstractmethod
    def _encode(self, x: Tensor) -> Tensor:
        """Table units (B,) without NaN to (B, value_width) float64."""

    @abstractmethod
    def _decode(self, z: Tensor) -> Tensor:
        """Inverse of :meth:`_encode`."""

    @abstractmethod
    def unfit(self, x: np.ndarray) -> tuple[int, str] | None:
        """Place of the first of the table units (B,), NaN where missing, that is no value of this column, and why."""

    @abstractmethod
    def to_series(self, x: np.ndarray) -> Any:
        """Table units (B,), NaN where missing, as a pandas Series of the column's type and name."""

    @abstractmethod
    def told(self, x: np.ndarray) -> list[Any]:
        """Table units (B,), none missing, as values of a condition: labels, numbers or ISO times."""

    def to_text(self, x: np.ndarray) -> Any:
        """As :meth:`to_series`, but written as in the file if the values were text."""
        return self.to_series(x)

    @property
    @abstractmethod
    def ends(self) -> np.ndarray:
        """Table units that stand for all that samples have, the outermost, and NaN if values can be missing."""

    def check_written(self, *, text: bool, others: Sequence[float] = ()) -> None:
        """Raise UserError unless the ends, and ``others``, can be written: in a file they may contradict the type."""
        values = np.array([*self.ends, *others, *[np.nan] * self.missing])
        guarded(lambda: self.to_text(values) if text else self.to_series(values), f"column {self.name[:40]!r}")

    def to_config(self) -> dict[str, Any]:
        """JSON object from which :func:`column_from_config` builds an equal column."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {"kind": self.kind, **{name: _written(value) for name, value in values.items()}}


@dataclass(frozen=True, kw_only=True)
class Number(Column):
    """Reals, whole numbers and times.

    Args:
        scaling: to model units and back.
        low, high: range of values, to which the inverse is clamped; equal for a constant.
        decimals: decimal places of the inverse, 0 for whole numbers; None for no rounding.
        unit: for times, "D", "s", "ms", "us" or "ns", else "".
        origin: table unit 0: for times in units since 1970, for whole numbers beyond 2^53 the smallest value.
        step: for times, their units per table unit: the largest that divides all gaps.
    """

    scaling: Scaling
    low: Finite
    high: Finite
    decimals: Annotated[int, Meta(ge=0, le=100)] | None = None
    unit: Literal["", "D", "s", "ms", "us", "ns"] = ""
    origin: Annotated[int, Meta(ge=-(2**63))] = 0
    step: Annotated[int, Meta(ge=1, le=2**63 - 1)] = 1
    kind: ClassVar[str] = "number"

    def __post_init__(self) -> None:
        if self.origin >= 2**64:
            raise UserError(f"column {self.name!r} begins beyond 64 bits; take another file")
        if not self.low <= self.high:
            raise UserError(f"column {self.name!r} has the range [{self.low}, {self.high}]; give low <= high")

    @property
    def value_width(self) -> int:
        return int(self.low < self.high)

    @property
    def codes(self) -> tuple[tuple[int, int], ...]:
        return ((self.value_width, 1),) if self.missing else ()

    @property
    def ends(self) -> np.ndarray:
        return np.array([self.low, self.high])

    def _encode(self, x: Tensor) -> Tensor:
        return self.scaling.forward(x)[:, None] if self.value_width else x.new_zeros((len(x), 0))

    def _decode(self, z: Tensor) -> Tensor:
        return self.rounded(self.unrounded(z))

    def unrounded(self, z: Tensor) -> Tensor:
        return self.scaling.inverse(z[:, 0]) if self.value_width else z.new_full((z.shape[0],), self.low).double()

    def rounded(self, x: Tensor) -> Tensor:
        """Nearest values that the column can have."""
        if self.decimals is not None:
            x = x.round(decimals=self.decimals)
        return x.clamp(self.low, self.high) + 0.0  # -0.0 is written as such

    def unfit(self, x: np.ndarray) -> tuple[int, str] | None:
        reach = self.high - self.low
        far = (x < self.low - reach) | (x > self.high + reach)
        broken = (x % 1 != 0) & ~np.isnan(x) if self.dtype.lower().startswith(("int", "uint")) else np.zeros_like(far)
        if not (far | broken).any():
            return None
        place = int((far | broken).argmax())
        if broken[place]:
            return place, "the data have whole numbers; round it"
        low, high = self.to_text(np.array([self.low, self.high])).tolist()
        here = f"the data lie in {low} to {high}" if reach else f"the data have {low} alone"
        return place, f"{here}; mend it, or leave it empty to have it drawn"

    def to_series(self, x: np.ndarray) -> Any:
        pd = optional_import("pandas", "tables")
        absent = np.isnan(x)
        if self.arrow:
            return arrow_series(self.arrow, self.dtype, self._exact(x, absent)).rename(self.name)
        if self.unit and self.form and not self.dtype.startswith("datetime"):
            return pd.Series(self._words(x, None), name=self.name, dtype=self.dtype)
        if self.unit:
            return _times(pd, x, absent, self).rename(self.name)
        whole = self.dtype.lower().startswith(("int", "uint"))
        if not whole:
            return pd.Series(np.asarray(x, np.float64), name=self.name, dtype=self.dtype)
        own = [0 if a else v for v, a in zip(self._exact(x, absent), absent, strict=True)]
        values = pd.array(np.array(own, self.dtype.lower()), dtype=nullable(self.dtype))
        values[absent] = pd.NA
        series = pd.Series(values, name=self.name)
        return series if absent.any() else series.astype(self.dtype)

    def _exact(self, x: np.ndarray, absent: np.ndarray) -> list[Any]:
        """Values (B,) as Python numbers, exact for whole ones; None where missing."""
        if self.decimals != 0 or self.dtype.lower().startswith(("float", "double")):
            return [None if a else float(v) for v, a in zip(x, absent, strict=True)]
        step = self.step  # a time asked for may lie between two steps
        counts = (round(v * step) if v % 1 else int(v) * step for v in np.where(absent, 0.0, x).tolist())
        return [None if a else v + self.origin for v, a in zip(counts, absent, strict=True)]

    def told(self, x: np.ndarray) -> list[Any]:
        exact = self._exact(x, np.zeros(len(x), bool))
        return [str(np.datetime64(v, self.unit)) if self.unit else v for v in exact]

    def _words(self, x: np.ndarray, missing: str | None) -> list[str | None]:
        """Values (B,) in table units as originally written."""
        absent = np.isnan(x)
        exact = self._exact(x, absent)
        if self.unit:
            return [missing if v is None else write_time(np.datetime64(v, self.unit), self.form) for v in exact]
        return [missing if v is None else write_number(v, self.form) for v in exact]

    def to_text(self, x: np.ndarray) -> Any:
        pd = optional_import("pandas", "tables")
        words = self._words(x, self.form.get("missing", "")) if self.form else None
        return self.to_series(x) if words is None else pd.Series(words, name=self.name, dtype=object)


def nullable(dtype: str) -> str:
    """Nullable pandas type of whole numbers: "uint8" to "UInt8"."""
    return dtype.replace("uint", "UInt").replace("int", "Int") if dtype.islower() else dtype


def _times(pd: Any, x: np.ndarray, absent: np.ndarray, column: Number) -> Any:
    counts = np.array([0 if v is None else v for v in column._exact(x, absent)], np.int64)
    stamps = counts.astype(f"datetime64[{column.unit}]")
    stamps[absent] = np.datetime64("NaT")
    own = pd.api.types.pandas_dtype(column.dtype)
    zone = getattr(own, "tz", None)
    unit = own.unit if zone is not None else np.datetime_data(own)[0]
    series = pd.Series(stamps.astype(f"datetime64[{unit}]"))
    return series if zone is None else series.dt.tz_localize("UTC").dt.tz_convert(zone)


@dataclass(frozen=True, kw_only=True)
class Categories(Column):
    """Values of a finite set, encoded as +-1: bits for 2 or more than ``ONE_HOT`` categories, else one-hot.

    Bits follow Chen, Zhang & Hinton 2023, "Analog bits". The inverse takes the nearest code.

    Args:
        names: occurring values (text, whole numbers, reals or booleans), in order.
        categories: all categories of a categorical dtype, in order.
        ordered: whether that dtype is ordered.
        category_dtype: type of its categories.
    """

    names: Sequence[Value]
    categories: Sequence[Value] = ()
    ordered: bool = False
    category_dtype: str = ""
    kind: ClassVar[str] = "categories"

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "categories", tuple(self.categories))
        if len(set(self.names)) < len(self.names) or len(set(self.categories)) < len(self.categories):
            raise UserError(f"column {self.name!r} has a category twice; give each once")
        if not self.names:
            raise UserError(f"column {self.name!r} has no categories; give at least one")

    @property
    def value_width(self) -> int:
        return self._codes.shape[1]

    @property
    def ends(self) -> np.ndarray:
        return np.arange(len(self.names), dtype=np.float64)

    @cached_property
    def _codes(self) -> Tensor:
        """Code of each category, (n, value_width) float64 of +-1."""
        n = len(self.names)
        if 2 < n <= ONE_HOT:
            return torch.eye(n, dtype=torch.float64) * 2 - 1
        places = torch.arange((n - 1).bit_length())
        return (torch.arange(n)[:, None] >> places & 1).double() * 2 - 1

    def _encode(self, x: Tensor) -> Tensor:
        return self._codes.to(x.device)[x.long()]

    def _decode(self, z: Tensor) -> Tensor:
        codes = self._codes.to(z.device)
        # All codes have one length, so the nearest has the largest product; in blocks, as there may be many codes.
        if torch.compiler.is_exporting():
            return (z @ codes.T).argmax(1).double()
        return torch.cat([(part @ codes.T).argmax(1) for part in z.split(1024)]).double() if len(z) else z.sum(1)

    def unfit(self, x: np.ndarray) -> tuple[int, str] | None:
        bad = ~np.isnan(x) & ~np.isin(x, np.arange(len(self.names)))
        return (int(bad.argmax()), f"there are categories 0 to {len(self.names) - 1}") if bad.any() else None

    def to_series(self, x: np.ndarray) -> Any:
        pd = optional_import("pandas", "tables")
        absent = np.isnan(x)
        places = np.where(absent, -1, x).astype(np.int64)
        if self.dtype == "category":
            kinds = pd.Index(list(self.categories), dtype=self.category_dtype)
            where = np.append(kinds.get_indexer(pd.Index(list(self.names), dtype=self.category_dtype)), -1)
            values = pd.Categorical.from_codes(where[places], dtype=pd.CategoricalDtype(kinds, ordered=self.ordered))
            return pd.Series(values, name=self.name)
        values = np.array([*self.names, None], object)[places]
        if self.arrow:
            return arrow_series(self.arrow, self.dtype, values.tolist()).rename(self.name)
        if absent.any() and self.dtype == "bool":
            return pd.Series(values, name=self.name, dtype="boolean")
        dtype = nullable(self.dtype) if absent.any() and "int" in self.dtype else self.dtype
        return pd.Series(values, name=self.name, dtype=dtype)

    def told(self, x: np.ndarray) -> list[Any]:
        return [str(self.names[int(place)]) for place in x]

    def to_text(self, x: np.ndarray) -> Any:
        series = self.to_series(x)
        absent = np.isnan(x)
        if "missing" not in self.form or not absent.any():
            return series
        words = series.astype(object)
        words[absent] = self.form["missing"]
        return words


def _written(value: Any) -> Any:
    """A field of a column as JSON has it."""
    if isinstance(value, Scaling):
        return value.to_config()
    return list(value) if isinstance(value, tuple) else value


def column_from_config(config: Mapping[str, Any]) -> Column:
    """Build the column that ``to_config`` describes.

    Raises:
        UserError: unknown kind, or missing or unexpected entries.
    """
    entries = dict(config)
    kind = str(entries.pop("kind", None))
    if kind not in _KINDS:
        raise UserError(f"unknown column kind {kind!r}{did_you_mean(kind, _KINDS)}")
    where = f"column {str(entries.get('name'))[:40]!r}"
    column = as_record(entries, _KINDS[kind], where, build=_scaling)
    as_record(dict(column.form), TimeForm if "date" in column.form else Form, f"the form of {where}")
    return column


def _scaling(kind: type, value: Any) -> Scaling:
    """Scaling of an entry of a column."""
    if isinstance(value, Scaling):
        return value
    if kind is not Scaling or not isinstance(value, Mapping):
        raise UserError(f"a column has a scaling {str(value)[:40]!r}, and not its entries; take another file")
    return scaling_from_config(value)
