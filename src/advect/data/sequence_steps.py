"""Sequences from tables of one row a step, and such tables again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from advect.core.errors import UserError, did_you_mean, optional_import
from advect.data.sequence_arrays import Ragged
from advect.data.table_columns import Column
from advect.data.table_conditions import read_condition
from advect.data.table_files import CSV, PARQUET, read_table


def is_table(data: Any) -> bool:
    """Whether this is a data frame or the name of a CSV or Parquet file."""
    if isinstance(data, str | os.PathLike):
        return str(data).lower().endswith(PARQUET + CSV)
    return hasattr(data, "columns")


def read_steps(
    data: Any, *, id: str, order: str | None = None, values: Sequence[str] = (), conditions: Sequence[str] = ()
) -> Ragged:
    """Sequences from a table of one row a step.

    Args:
        data: a CSV or Parquet file, or a pandas DataFrame.
        id: the column that is the same in all rows of a sequence; sequences keep the order in which they begin.
        order: the column by which a sequence's rows are sorted; None leaves them in the order of the table.
        values: the columns of the channels, in the order of the table; by default all others.
        conditions: columns that are the same in all rows of a sequence.

    Raises:
        UserError: a column is not there, not of finite numbers, misses values, or changes within a sequence.
    """
    pd = optional_import("pandas", "tables")
    frame = read_table(data) if isinstance(data, str | os.PathLike) else data.reset_index(drop=True)
    keys = [id] if order is None else [id, order]
    named = [*keys, *conditions]
    for name in (*named, *values):
        if name not in frame.columns:
            raise UserError(f"the table has no column {name!r}{did_you_mean(name, map(str, frame.columns))}")
    channels = [c for c in frame.columns if (c in values if values else c not in named)]
    if not len(frame) or not channels:
        raise UserError(
            f"the table has {len(frame)} rows and {len(channels)} value columns; give at least one of each"
        )
    for name in keys:
        _require_all(frame[name].isna().to_numpy(bool), name)
    matrix = np.stack([_numbers(frame[name]) for name in channels], 1)
    places = pd.factorize(frame[id])[0]
    times = np.zeros(len(frame)) if order is None else pd.factorize(frame[order], sort=True)[0]
    rows = np.lexsort((times, places))
    starts = np.flatnonzero(np.diff(places[rows], prepend=-1))
    told = {name: _constant(frame[name], places, rows[starts], id) for name in conditions}
    return Ragged(np.split(matrix[rows], starts[1:]), tuple(map(str, channels)), told)


def _require_all(bad: np.ndarray, name: str) -> None:
    if bad.any():
        row = int(bad.argmax())
        raise UserError(f"column {name!r} misses a value in row {row}; fill it in or remove the row")


def _numbers(series: Any) -> np.ndarray:
    types = optional_import("pandas", "tables").api.types
    if not types.is_numeric_dtype(series.dtype) or types.is_complex_dtype(series.dtype):
        raise UserError(
            f"column {series.name!r} has values of {series.dtype}, which no channel can be;"
            " name the channels with --value-columns, or give it to --conditions"
        )
    values = series.to_numpy(np.float64, na_value=np.nan)
    _require_all(np.isnan(values), series.name)
    if np.isinf(values).any():
        raise UserError(f"column {series.name!r} is infinite in row {int(np.isinf(values).argmax())}; mend that row")
    return values


def _constant(series: Any, places: np.ndarray, firsts: np.ndarray, id: str) -> tuple[Column, np.ndarray]:
    """The condition of each sequence, from the first row of each."""
    own = series.iloc[firsts]
    there = own.iloc[places].reset_index(drop=True)
    plain = series.reset_index(drop=True)
    same = (plain == there).fillna(False).to_numpy(bool) | (plain.isna() & there.isna()).to_numpy(bool)
    if not same.all():
        row = int((~same).argmax())
        raise UserError(f"column {series.name!r} changes within a sequence of {id!r}, in row {row}; make it a value")
    return read_condition(own, None)
