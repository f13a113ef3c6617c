"""Tables of which some entries are known: files and data frames as questions, and their answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from advect.core.errors import UserError, did_you_mean, optional_import
from advect.core.files import atomic_write_text
from advect.data.parquet_columns import PARQUET
from advect.data.tables.columns import Categories, Column, Number
from advect.data.tables.files import read_table, write_table
from advect.data.tables.infer_columns import number_values
from advect.data.tables.raw_csv import RawCsv, raw_rows, read_raw
from advect.data.tables.text import MISSING, as_series, infer_text
from advect.data.tables.words import text_of


@dataclass(frozen=True, eq=False)
class TableQuestion:
    """Rows of a table, some entries of which are asked for.

    Attributes:
        columns: of the table, those of the file.
        values: (n, K) in table units, NaN where asked for.
        raw: the fields as they stand, if they are of a CSV file, in the order of the columns.
    """

    columns: Sequence[Column]
    values: np.ndarray
    raw: RawCsv | None = None

    def answer(self, frame: Any, path: Path, *, index: Sequence[str] = ()) -> Path:
        """Write the rows with what is asked for from a data frame (n rows), of their texts for a CSV file.

        The suffix of the file read is appended to ``path``. What was known stands as it was.
        """
        if self.raw is None:
            file = path.with_name(path.name + ".parquet")
            write_table(file, frame, index=index)
            return file
        asked, drawn = np.isnan(self.values), raw_rows(frame, self.raw.separator)
        rows = [
            [new if lost else old for lost, old, new in zip(*row, strict=True)]
            for row in zip(asked.tolist(), self.raw.rows, drawn, strict=True)
        ]
        file = path.with_name(path.name + (".tsv" if self.raw.separator == "\t" else ".csv"))
        atomic_write_text(file, self.raw.text(rows))
        return file


def read_question(path: Path, columns: Sequence[Column]) -> TableQuestion:
    """Rows of a CSV or Parquet file with the ``columns`` of the table, in any order; empty entries are asked for.

    Raises UserError for other columns, a value that its column cannot have, and if nothing is known or asked for.
    """
    names = [column.name for column in columns]
    if path.name.lower().endswith(PARQUET):
        frame = read_table(path)
        check_names(str(path), list(frame.columns), names)
        series = [frame[name] for name in names]
        values = [series_units(f"{path}", own, c) for own, c in zip(series, columns, strict=True)]
        found = TableQuestion(columns, np.stack(values, 1))
    else:
        raw = read_raw(path)
        check_names(str(path), raw.names, names)
        if not raw.rows:
            raise UserError(f"{path} has no rows; give at least one")
        units = [word_units(raw, c) for c in columns]
        found = TableQuestion(columns, np.stack(units, 1), raw.ordered(names))
    return found


def check_names(what: str, there: Sequence[str], names: Sequence[str]) -> None:
    """Raise UserError unless the columns of a question are those of the table."""
    for name in there:
        if name not in names:
            raise UserError(f"{what} has the column {name!r}, which the data have not{did_you_mean(str(name), names)}")
    for name in names:
        if name not in there:
            raise UserError(f"{what} lacks the column {name!r}; add it, empty where it is asked for")


def frame_units(data: Any, columns: Sequence[Column]) -> np.ndarray:
    """A data frame, or a dict of columns or of one row's values, in table units (n, K), NaN where asked for.

    Columns that it lacks are asked for. Raises UserError for other columns and for values that a column cannot have.
    """
    pd = optional_import("pandas", "tables")
    if isinstance(data, Mapping):
        lists = {name: value if _several(value) else [value] for name, value in data.items()}
        data = pd.DataFrame(lists)
    names = [column.name for column in columns]
    for name in data.columns:
        if name not in names:
            raise UserError(f"given has the column {name!r}, which the data have not{did_you_mean(str(name), names)}")
    nothing = np.full(len(data), np.nan)
    return np.stack([series_units("given", data[c.name], c) if c.name in data else nothing for c in columns], 1)


def _several(value: Any) -> bool:
    return not isinstance(value, str | bytes) and hasattr(value, "__len__")


def series_units(what: str, series: Any, column: Column, *, beyond: bool = False) -> np.ndarray:
    """A pandas series (n,) in the table units of a column, NaN where missing.

    Raises UserError, naming row and column, for values that the column cannot have; ``beyond`` its range it may.
    """
    absent = series.isna().to_numpy(bool)
    values = np.full(len(series), np.nan)
    where = lambda place: f"{what} has {series.tolist()[place]!r} in row {place} of column {column.name!r}"
    if isinstance(column, Categories):
        places = {name: i for i, name in enumerate(column.names)}
        for i in np.flatnonzero(~absent).tolist():
            value = series.iloc[i]
            if value not in places:
                raise UserError(f"{where(i)}, which the data have not{did_you_mean(str(value), map(str, places))}")
            values[i] = places[value]
        return values
    assert isinstance(column, Number)
    if not absent.all():
        try:
            values = number_values(series, column)
        except UserError as error:
            raise UserError(f"{what}: {error}") from error
    if not beyond and (unfit := column.unfit(values)):
        raise UserError(f"{where(unfit[0])}, and {unfit[1]}")
    return values


def word_units(raw: RawCsv, column: Column, *, beyond: bool = False) -> np.ndarray:
    """Words (n,) of a CSV file in the table units of a column, NaN where they are asked for, as the data write them.

    Raises UserError as :func:`series_units`.
    """
    words = raw.column(column.name)
    where = lambda place: f"{raw.file} line {raw.lines[place]} has {words[place]!r} in column {column.name!r}"
    empty = {"", column.form.get("missing", "")}
    if isinstance(column, Categories):
        names = [str(name) for name in column.names]
        places = {name: float(i) for i, name in enumerate(names)}
        places |= {word: np.nan for word in {*empty, *MISSING} if word not in places}
        new = next((i for i, word in enumerate(words) if word not in places), None)
        if new is not None:
            raise UserError(f"{where(new)}, which the data have not{did_you_mean(words[new], names)}")
        return np.array([places[word] for word in words])
    assert isinstance(column, Number)
    absent = np.array([word in empty or word in MISSING for word in words])
    values = np.full(len(words), np.nan)
    there = [word for word, lost in zip(words, absent, strict=True) if not lost]
    if there:
        found = _numbers(there, column)
        if found is None:
            bad = next((word for word in dict.fromkeys(there) if _numbers([word], column) is None), there[0])
            kind = "time" if column.unit else "number"
            like = column.to_text(np.array([column.low])).tolist()[0]
            raise UserError(f"{where(words.index(bad))}, no {kind} as the data write it, such as {str(like)!r}")
        values[~absent] = found
    if not beyond and (unfit := column.unfit(values)):
        raise UserError(f"{where(unfit[0])}, and {unfit[1]}")
    return values


def _numbers(words: Sequence[str], column: Number) -> np.ndarray | None:
    """Words (n,) in table units, None unless all are written as those of the column, or as plain numbers."""
    form = column.form
    group = form.get("group", "")
    mark = form.get("decimal", "," if group == "." else ".")
    order = form.get("date") if form.get("date") in ("dmy", "mdy") else "auto"
    try:
        read = infer_text(
            column.name,
            text_of(list(words)),
            missing=(),
            decimal=mark,
            date_order=str(order),
            numeric=not column.unit,
            only_dates=bool(column.unit),
        )
        fits = read.kind == ("time" if column.unit else "number") and read.form.get("group", group) == group
        return number_values(as_series(read, column.name), column) if fits else None
    except UserError:
        return None
