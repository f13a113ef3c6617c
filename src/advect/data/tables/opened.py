"""Tables opened: names of their columns, and the columns one by one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from advect.core.errors import UserError, optional_import
from advect.data.tables.csv_files import column_names, open_csv, require_columns
from advect.data.tables.files import CSV, read_table, table_file
from advect.data.tables.text import Read


def names_of(data: Any) -> list[str]:
    """Names of the columns of a path or a DataFrame, of which nothing else is read."""
    if not isinstance(data, str | os.PathLike):
        return [] if not hasattr(data, "columns") else list(data.columns)
    file = table_file(data)
    return column_names(file) if file.name.lower().endswith(CSV) else list(read_table(file).columns)


class Opened(NamedTuple):
    """Names of the columns of a table, the attributes it was read with, and its columns, of which none is kept."""

    names: list[str]
    attrs: Mapping[str, Any]
    columns: Iterator[tuple[Any, Mapping[str, Any]]]
    """Series, and how they were written."""


def open_table(data: Any, drop: Sequence[str], categorical: Sequence[str], words: Mapping[str, Any]) -> Opened:
    """Open a path or a DataFrame without the columns to drop; ``words`` as of :func:`open_csv`, and ``numeric``.

    Raises UserError for a file or frame that cannot be read, and for columns to drop that are not there.
    """
    words = dict(words)
    pd = optional_import("pandas", "tables")
    if isinstance(data, str | os.PathLike) and table_file(data).name.lower().endswith(CSV):
        numeric = words.pop("numeric")
        table = open_csv(table_file(data), {*categorical, *drop}, numeric, words)
        require_columns(table.names, drop, "drop")
        attrs = {"separator": table.separator, "unnamed": table.unnamed}
        return Opened([c for c in table.names if c not in drop], attrs, _certain(table.columns, drop))
    if isinstance(data, str | os.PathLike):
        frame = read_table(data)
    elif isinstance(data, pd.DataFrame):
        frame = data.copy(deep=False)
        for argument in ("numeric", "missing"):
            if words[argument]:
                raise UserError(f"{argument} is for CSV files, and the table is a DataFrame; leave it out")
    else:
        raise UserError(f"a table must be a path or a pandas DataFrame, got {type(data).__name__}; convert it")
    if frame.columns.has_duplicates:
        twice = frame.columns[frame.columns.duplicated()][0]
        raise UserError(f"the table has the column {twice!r} twice; rename one")
    require_columns(frame.columns, drop, "drop")
    # pandas cannot select rows of values in the other byte order, as FITS and HDF5 hold them.
    swapped = {c: d.newbyteorder("=") for c, d in frame.dtypes.items() if isinstance(d, np.dtype) and not d.isnative}
    frame = frame.astype(swapped) if swapped else frame
    for column in dict.fromkeys(drop):
        del frame[column]
    if not frame.size:
        raise _empty(frame.shape)
    attrs, frame.attrs = frame.attrs, {}  # which pandas copies with each column
    columns = {c: frame[c] for c in frame.columns}
    return Opened(list(columns), attrs, ((columns.pop(c), {}) for c in list(columns)))


def _certain(columns: Iterator[tuple[Any, Read]], drop: Sequence[str]) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """Columns but those to drop. Raises UserError for one of doubtful type and without any row."""
    kept = rows = 0
    for series, read in columns:
        rows = len(series)
        if series.name in drop:
            continue
        if read.doubt:
            raise UserError(read.doubt)
        if not rows:
            raise UserError(f"the table has the column {series.name!r} and no row; give at least one row")
        kept += 1
        yield series, read.form
    if not kept:
        raise _empty((rows, 0))


def _empty(shape: Sequence[int]) -> UserError:
    return UserError(f"the table is empty, its shape is {tuple(shape)}; give at least one row and one column")
