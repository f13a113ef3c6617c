"""Kinds of pandas columns, and their values in table units."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advect.core.errors import UserError, optional_import, quoted_flag
from advect.core.types import LENGTH, NULL, Category, Condition, Length, Quantity
from advect.data.base import as_asked, category
from advect.data.tables.arrow import arrow_array, arrow_text, arrow_time_unit, arrow_values
from advect.data.tables.columns import Categories, Column, Number
from advect.data.tables.scaling import StandardScaling, choose_scaling, require_scaling
from advect.data.tables.text import as_series, infer_text
from advect.data.tables.words import text_of
from advect.data.transforms import check_span

EXACT = 2**53
"""float64 represents all whole numbers up to this."""


def read_column(
    series: Any,
    *,
    categorical: bool,
    form: Mapping[str, Any] | None = None,
    date_order: str = "auto",
) -> tuple[Column, np.ndarray]:
    """Column of a series under standard scaling, and its values (N,) in table units, float64, NaN where missing.

    Args:
        series: numbers, booleans, text, categories or times.
        categorical: treat numbers as categories.
        form: how the values were written in a text file.
        date_order: see :func:`advect.data.tables.text.infer_text`.

    Raises:
        UserError: no values, infinite values, an unsupported type, or a different text in every row.
    """
    pd = optional_import("pandas", "tables")
    name = series.name
    if not isinstance(name, str):
        raise UserError(f"column {name!r} has a name that is not text; rename it, e.g. frame.columns.astype(str)")
    series = series.reset_index(drop=True)
    if isinstance(series.dtype, np.dtype) and not series.dtype.isnative:
        series = series.astype(series.dtype.newbyteorder("="))
    if isinstance(series.dtype, pd.SparseDtype):
        series = series.sparse.to_dense()
    if not isinstance(series.dtype, pd.CategoricalDtype):
        series = series.infer_objects()
    if not series.notna().any():
        raise UserError(
            f"column {name!r} has no values; leave it out with drop=({name!r},), {quoted_flag('drop', name)}"
        )
    types = pd.api.types
    if (array := arrow_array(series)) is not None:
        return _read_arrow(pd, series, array, categorical, date_order)
    if types.is_datetime64_any_dtype(series.dtype):
        return _read_times(series, str(series.dtype), form)
    if types.is_bool_dtype(series.dtype) or isinstance(series.dtype, pd.CategoricalDtype):
        return _read_categories(series, str(series.dtype), form)
    if types.is_numeric_dtype(series.dtype) and not types.is_complex_dtype(series.dtype):
        return _read_categories(series, str(series.dtype), form) if categorical else _read_numbers(series, form)
    if types.is_object_dtype(series.dtype) or types.is_string_dtype(series.dtype):
        return _read_objects(series, categorical, date_order, form)
    raise UserError(f"column {name!r} has the type {series.dtype}, which a table cannot hold; drop or convert it")


def _read_arrow(
    pd: Any,
    series: Any,
    array: Any,
    categorical: bool,
    date_order: str,
) -> tuple[Column, np.ndarray]:
    """Column of an Arrow type, or of Python objects that have one."""
    kind, values, step, decimals = arrow_values(series.name, array)
    about: dict[str, Any] = {"arrow": arrow_text(array.type)}
    if kind == "text" or (categorical and kind == "number" and not step):
        plain = pd.Series(values, name=series.name, dtype=object)
        if kind == "text":
            column, found = _read_objects(plain, categorical, date_order)
        else:
            column, found = _read_categories(plain, "object")
        if isinstance(column, Number):
            return replace(column, dtype=str(series.dtype)), found
        return replace(column, dtype=str(series.dtype), **about), found
    if kind == "real":
        numbers = np.array([np.nan if v is None else v for v in values], np.float64)
        places = _decimals(numbers) if decimals is None else decimals
        return _number(series.name, str(series.dtype), numbers, places, **about), numbers
    there = [v for v in values if v is not None]
    origin = min(there) if step or max(map(abs, there)) >= EXACT else 0
    step = max(math.gcd(*(v - origin for v in there)), 1) if step else 1
    numbers = np.array([np.nan if v is None else (v - origin) // step for v in values], np.float64)
    if np.nanmax(np.abs(numbers)) >= EXACT:
        raise UserError(f"column {series.name!r} spans more than 2^53 units, which no float64 holds; make it coarser")
    about |= {"origin": origin, "step": step}
    return _number(series.name, str(series.dtype), numbers, 0, **about), numbers


def _read_objects(
    series: Any,
    categorical: bool,
    date_order: str,
    form: Mapping[str, Any] | None = None,
) -> tuple[Column, np.ndarray]:
    present = series.dropna()
    kinds = sorted({type(value).__name__ for value in present})
    if kinds == ["bool"]:
        return _read_categories(series, str(series.dtype))
    if kinds != ["str"]:
        raise UserError(f"column {series.name!r} holds {' and '.join(kinds)} among its values; make them one type")
    if not categorical:
        words = [None if a else v for v, a in zip(series, series.isna(), strict=True)]
        read = infer_text(series.name, text_of(words), date_order=date_order, only_dates=True, missing=())
        if read.doubt:
            raise UserError(read.doubt)
        if read.kind == "time":
            return _read_times(as_series(read, series.name), str(series.dtype), read.form)
        if len(present) > 2 and present.nunique() == len(present):
            raise UserError(
                f"column {series.name!r} has another text in each of its {len(present)} rows, as a name or an id has;"
                f" leave it out with drop=({series.name!r},), {quoted_flag('drop', series.name)},"
                f" or keep it with categorical=({series.name!r},), {quoted_flag('categorical', series.name)}"
            )
    return _read_categories(series, str(series.dtype), form)


def _read_categories(series: Any, dtype: str, form: Mapping[str, Any] | None = None) -> tuple[Column, np.ndarray]:
    absent = series.isna().to_numpy(bool)
    extra: dict[str, Any] = {"form": form} if form else {}
    if dtype == "category":
        kinds = series.cat.categories
        names = kinds[np.unique(series.cat.codes[~absent])].tolist()
        extra |= {"categories": kinds.tolist(), "ordered": bool(series.cat.ordered)}
        extra["category_dtype"] = str(kinds.dtype)
    else:
        names = sorted(set(series[~absent].tolist()))
    for kind in {type(value) for value in (*names, *extra.get("categories", ()))} - {str, int, float, bool}:
        raise UserError(
            f"column {series.name!r} has categories of the type {kind.__name__}; make them text or numbers"
        )
    place = {value: i for i, value in enumerate(names)}
    values = np.array([np.nan if a else place[v] for v, a in zip(series.tolist(), absent, strict=True)], np.float64)
    return Categories(name=series.name, dtype=dtype, missing=bool(absent.any()), names=names, **extra), values


def _read_numbers(series: Any, form: Mapping[str, Any] | None) -> tuple[Column, np.ndarray]:
    narrow = {"float16": np.float16, "float32": np.float32}.get(str(series.dtype).lower())
    values = series.to_numpy(narrow or np.float64, na_value=np.nan)
    if narrow:
        # 0.1 of 32 bits stands for 0.1, which is what CSV says, not for 0.10000000149.
        values = values.astype(str).astype(np.float64)
    infinite = np.isinf(values)
    if infinite.any():
        raise UserError(
            f"column {series.name!r} has {int(infinite.sum())} infinite values, the first in row"
            f" {int(infinite.argmax())}; remove those rows or make them missing"
        )
    whole = str(series.dtype).lower().startswith(("int", "uint"))
    about: dict[str, Any] = {"form": form} if form else {}
    if whole and np.nanmax(np.abs(values)) >= EXACT:
        absent = np.isnan(values)
        exact = [0 if a else int(v) for v, a in zip(series, absent, strict=True)]
        origin = min(v for v, a in zip(exact, absent, strict=True) if not a)
        values = np.array([np.nan if a else v - origin for v, a in zip(exact, absent, strict=True)], np.float64)
        about["origin"] = origin
    if whole and np.nanmax(np.abs(values)) >= EXACT:
        raise UserError(
            f"column {series.name!r} has whole numbers beyond 2^53, which no float64 holds;"
            f" leave it out with drop=({series.name!r},), {quoted_flag('drop', series.name)}, or make it text"
        )
    decimals = 0 if whole else _decimals(values)
    return _number(series.name, str(series.dtype), values, decimals, **about), values


def array_column(name: str, x: np.ndarray, dtype: np.dtype | None = None) -> tuple[Column, np.ndarray]:
    """Column of an array, without pandas, under standard scaling, and its values (N,) in table units.

    Args:
        name: column name.
        x: (N,) real numbers, finite or NaN, whole numbers or booleans.
        dtype: type in which x was given; default its own.
    """
    dtype = x.dtype if dtype is None else dtype
    values = x.astype(np.float64)
    if dtype.kind == "b":
        names = [bool(value) for value in np.unique(values)]
        return Categories(name=name, dtype="bool", names=names), values - float(names[0])
    if dtype.itemsize < 8 and dtype.kind == "f":
        # 0.1 of 32 bits stands for 0.1.
        short = lambda places: np.round(values, places)
        exact = lambda places: np.array_equal(short(places).astype(dtype), values.astype(dtype), equal_nan=True)
        decimals = next((places for places in range(7) if exact(places)), None)
        values = values if decimals is None else short(decimals)
    else:
        decimals = 0 if dtype.kind in "ui" else _decimals(values)
    return _number(name, str(dtype), values, decimals), values


def fit_number(column: Number, train: np.ndarray, scaling: str) -> Number:
    """Column under another scaling, fitted to values (N,) in table units, NaN where missing; see
    :func:`choose_scaling` for "auto". Without any value it keeps its own.
    """
    train = train[~np.isnan(train)]
    if not len(train):
        return column
    kind = choose_scaling(train) if scaling == "auto" else scaling
    return replace(column, scaling=require_scaling(kind).fit(train))


def _number(
    name: str,
    dtype: str,
    values: np.ndarray,
    decimals: int | None,
    **extra: Any,
) -> Number:
    absent = np.isnan(values)
    present = values[~absent]
    check_span([present.min()], [present.max()], f"column {name!r}")
    return Number(
        name=name,
        dtype=dtype,
        missing=bool(absent.any()),
        scaling=StandardScaling.fit(present),
        low=float(present.min()),
        high=float(present.max()),
        decimals=decimals,
        **extra,
    )


def _decimals(values: np.ndarray) -> int | None:
    """Fewest decimal places, up to 6, that represent all values; None if more are needed."""
    present = values[~np.isnan(values)]
    return next((places for places in range(7) if (np.round(present, places) == present).all()), None)


def _read_times(series: Any, dtype: str, form: Mapping[str, Any] | None) -> tuple[Column, np.ndarray]:
    absent = series.isna().to_numpy(bool)
    plain = series if getattr(series.dtype, "tz", None) is None else series.dt.tz_convert("UTC").dt.tz_localize(None)
    stamps = plain.to_numpy()
    # The coarsest unit that holds all: a float has the digits for days, seldom for nanoseconds.
    unit = next(u for u in ("D", "s", "ms", "us", "ns") if (stamps.astype(f"M8[{u}]") == stamps)[~absent].all())
    counts = stamps.astype(f"M8[{unit}]").astype(np.int64)
    origin = int(counts[~absent].min())
    step = max(int(np.gcd.reduce(counts[~absent] - origin)), 1)
    values = np.where(absent, np.nan, ((counts - origin) // step).astype(np.float64))
    about: dict[str, Any] = {"unit": unit, "origin": origin, "step": step} | ({"form": form} if form else {})
    return _number(series.name, dtype, values, 0, **about), values


def number_values(series: Any, column: Number) -> np.ndarray:
    """Series (N,) of numbers or times in the table units of ``column``, NaN where missing.

    Raises:
        UserError: it is of another kind.
    """
    if not series.notna().any():
        return np.full(len(series), np.nan)
    own, values = read_column(series, categorical=False)
    if not isinstance(own, Number) or bool(own.unit) != bool(column.unit) or bool(own.arrow) != bool(column.arrow):
        raise UserError(f"column {column.name!r} holds {series.dtype} here, and {column.dtype} in the data fitted")
    if not column.unit:
        return (values * own.step + (own.origin - column.origin)) / column.step
    absent = np.isnan(values)
    counts = np.where(absent, 0, values).astype(np.int64) * own.step + own.origin
    counts = counts.astype(f"M8[{own.unit}]").astype(f"M8[{column.unit}]").astype(np.int64) - column.origin
    return np.where(absent, np.nan, counts.astype(np.float64) / column.step)


FEW = 20
"""Maximum number of different whole numbers in a categorical condition."""

EXAMPLES = 64
"""Rows of a quantity kept as examples."""


def read_condition(
    series: Any,
    *,
    categorical: bool = False,
    continuous: bool = False,
    form: Mapping[str, Any] | None = None,
) -> tuple[Column, np.ndarray]:
    """Column of a series for :func:`condition_of`, and its values (N,) in table units, NaN where missing.

    Args:
        series: the values.
        categorical: treat numbers as categories, the default for whole numbers of at most ``FEW`` values.
        continuous: treat numbers as numbers, however few.
        form: how the values were written in a text file.

    Raises:
        UserError: as :func:`read_column`; or ``continuous`` values are not numbers.
    """
    types = optional_import("pandas", "tables").api.types
    if continuous and (not types.is_numeric_dtype(series.dtype) or types.is_bool_dtype(series.dtype)):
        raise UserError(f"continuous_conditions has {series.name!r}, whose values are {series.dtype}; use conditions")
    few = types.is_integer_dtype(series.dtype) and series.nunique() <= FEW
    names = categorical or (few and not continuous)
    return read_column(series, categorical=names, form=form)


def condition_of(column: Column, values: np.ndarray, train: np.ndarray) -> tuple[Category | Quantity, np.ndarray]:
    """Condition of a column, and its values: int64 (N,) or float32 (N, 1), null where missing.

    Args:
        column: number under standard scaling, or categories.
        values: (N,) in table units, NaN where missing.
        train: (N,) bool, rows that give frequencies and examples.

    Raises:
        UserError: the column has the reserved name of sequence lengths, or holds durations or times of day.
    """
    if column.name == LENGTH:
        raise UserError(f"a condition cannot be called {LENGTH!r}, which is that of sequences; rename the column")
    absent = np.isnan(values)
    codes = condition_codes(column, values)
    if isinstance(column, Categories):
        return category(codes[train & ~absent], [str(name) for name in column.names]), codes
    assert isinstance(column, Number) and isinstance(column.scaling, StandardScaling)
    given = values[train & ~absent]
    some = given[np.unique(np.linspace(0, len(given) - 1, min(len(given), EXAMPLES)).astype(np.int64))]
    scaling = column.scaling
    unit = arrow_time_unit(column.arrow) if column.arrow else column.unit
    if unit is None:
        raise UserError(
            f"condition {column.name!r} holds {column.dtype}, durations or times of day; make them numbers, such as"
            " seconds"
        )
    moments = (scaling.mean,), (scaling.std,), tuple((float(v),) for v in some)
    place: Any = {"unit": unit, "origin": column.origin, "step": column.step}
    spec = Quantity((column.name,), *moments, **place)
    return spec, codes


def condition_codes(column: Column, values: np.ndarray) -> np.ndarray:
    """Table units (N,) of a condition's column as networks take them, int64 (N,) or float32 (N, 1), null where NaN.

    Raises UserError for a number that is not under standard scaling.
    """
    if isinstance(column, Categories):
        return np.where(np.isnan(values), NULL, values).astype(np.int64)
    if not isinstance(column, Number) or not isinstance(column.scaling, StandardScaling):
        raise UserError(f"column {column.name!r} is not a number under standard scaling; fit it with 'standard'")
    return ((values - column.scaling.mean) / column.scaling.std).astype(np.float32)[:, None]


def check_told(columns: Sequence[Column], conditions: Mapping[str, Condition]) -> None:
    """Raise UserError unless the conditions of a card, but lengths, are those of its columns."""
    own = {name: one for name, one in conditions.items() if not isinstance(one, Length)}
    if len(columns) != len(own) or {column.name for column in columns} != own.keys():
        raise UserError(f"the conditions {sorted(own)[:9]} are not those of the columns; take another file")
    for column in columns:
        one = own[column.name]
        if isinstance(column, Categories):
            fits = isinstance(one, Category) and len(one.names) == len(column.names)
        else:
            fits = isinstance(one, Quantity) and len(one.mean) == 1
            fits = fits and isinstance(column, Number) and isinstance(column.scaling, StandardScaling)
        if not fits:
            raise UserError(f"the condition {column.name!r} is not that of its column; take another file")


def column_values(column: Column, cond: Tensor) -> Tensor:
    """Condition values (B,) or (B, 1) to table units (B,) float64, NaN where null."""
    if isinstance(column, Number):
        x = column.scaling.inverse(cond.double().reshape(-1))
        if not column.unit and column.step == 1:
            return column.rounded(x)
        assert isinstance(column.scaling, StandardScaling)
        return torch.from_numpy(as_asked(x.numpy(), column.scaling.mean))
    return torch.where(cond < 0, torch.nan, cond.double())
